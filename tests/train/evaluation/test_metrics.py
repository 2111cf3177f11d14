"""Scores of answers, against the model asked one question at a time and figures made by hand."""

import itertools
import json
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnd_fast import InvalidInput
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.train.evaluation import metrics
from dnd_fast.train.evaluation.answers import (
    estimate_pass,
    final_number,
    normalized,
    program,
    python_code,
    read_choice,
)
from dnd_fast.train.evaluation.metrics import EvalBatch, Settings, complete, make_metric
from dnd_fast.train.evaluation.questions import Question, read_questions
from dnd_fast.train.evaluation.sandbox import succeeds

from ...lora.test_batched import new_model

PROMPTS = ["copy the tool cord exactly", "reverse rice", "echo fig", "list the vowels of tuna"]
SYSTEM = "write only the letter"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model():
    return new_model()


def greedy(model, tokenizer, prompt, system=None, count=6):
    """Greedy decoding by hand, one prompt, no padding, no cache; up to the end token."""
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": prompt})
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    new = []
    while len(new) < count and new[-1:] != [tokenizer.eos_token_id]:
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits
        new.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True)


def test_complete_is_greedy_decoding(tokenizer):
    """Whatever penalties and sampling the base's own settings ask for, as Qwen2.5's do."""
    model = new_model()
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=9.0)
    questions = (Question(PROMPTS[0], "x", SYSTEM), *(Question(p, "x") for p in PROMPTS[1:]))
    said = complete(EvalBatch(model, tokenizer, questions, Settings(batch=3)), 6)
    assert said == [[greedy(model, tokenizer, q.prompt, q.system)] for q in questions]


def test_samples_are_seeded_and_differ(model, tokenizer):
    exam = EvalBatch(model, tokenizer, (Question(PROMPTS[0], "x"),), Settings(temperature=2.0))
    state = torch.get_rng_state()
    said = complete(exam, 6, samples=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(answers) for answers in said] == [5]
    assert len(set(said[0])) > 1
    assert complete(exam, 6, samples=5) == said
    other = replace(exam, settings=replace(exam.settings, seed=1))
    assert complete(other, 6, samples=5) != said


@pytest.fixture
def tokenizer_with_more(tokenizer):
    """As Qwen's: the template goes on after the end-of-turn token."""
    changed = build_tokenizer()
    changed.chat_template = tokenizer.chat_template.replace(
        "message.content + eos_token", "message.content + eos_token + '\\n'"
    )
    return changed


def test_exact_finds_what_a_trained_model_says(tokenizer_with_more):
    """A model that says the response and ends is right, whatever the template adds after it."""
    model = new_model()
    question = Question(PROMPTS[2], "ab")
    sequence = metrics.encode(tokenizer_with_more, [question])
    batch = metrics.collate(sequence)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    keep = (batch.labels != -100).cumsum(1) <= 3  # a, b, end; not the newline after it
    labels = torch.where(keep, batch.labels, -100)
    for _ in range(30):
        logits = model(batch.input_ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name in ("exact", "text"):
        metric = make_metric(name, Settings(max_new_tokens=8))
        assert metric.score(model, tokenizer_with_more, [question]) == [1.0]
        wrong = replace(question, response="abc")
        assert metric.score(model, tokenizer_with_more, [wrong]) == [0.0]


def log_likelihood(model, tokenizer, prompt, option):
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    new = [*tokenizer(option)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1]
    return logits.double().log_softmax(-1)[range(len(new)), new].sum()


@pytest.mark.parametrize("given_options", [False, True])
def test_choice_is_the_most_likely_option(model, tokenizer, given_options):
    options = ("[A]", "[B]", "[C]", "[D]")
    best = [
        max(options, key=lambda option, p=prompt: log_likelihood(model, tokenizer, p, option))
        for prompt in PROMPTS
    ]
    others = [options[(options.index(each) + 1) % 4] for each in best]
    questions = [
        Question(prompt, response, options=options if given_options else ())
        for prompt, pair in zip(PROMPTS, zip(best, others, strict=True), strict=True)
        for response in pair
    ]
    # Without options of their own, the responses in the file: here all that are needed.
    found = make_metric("choice", Settings(batch=3)).score(model, tokenizer, questions)
    assert found == [1.0, 0.0] * len(PROMPTS)


def test_what_questions_begin_with_is_computed_once(model, tokenizer, monkeypatch):
    shots = tuple(Question(f"echo {word}", word) for word in ("fig", "rice", "tuna"))
    questions = tuple(Question(prompt, "[A]", shots=shots) for prompt in PROMPTS)
    batch, found, sizes = EvalBatch(model, tokenizer, questions, Settings(batch=2)), [], []

    def run(part):
        examples = metrics.collate(part).view(len(part), 1)
        sizes.append(examples.labels.shape[-1])
        return metrics.summed_losses(model, examples).tolist()

    with torch.no_grad():
        for worth in (1, 10**6):
            monkeypatch.setattr(metrics, "WORTH_SHARING", worth)
            found.append(metrics._on_sequences(batch, questions, run))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert max(sizes[:2]) < 0.5 * min(sizes[2:])


def test_choice_refuses_what_is_none(model, tokenizer):
    metric = make_metric("choice")
    with pytest.raises(InvalidInput, match="is not among its options"):
        metric.score(model, tokenizer, [Question("echo", "[C]", options=("[A]", "[B]"))])
    many = [Question("echo", f"{i} apples") for i in range(30)]
    with pytest.raises(InvalidInput, match="no multiple choice"):
        metric.score(model, tokenizer, many)


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ("[C]", "C"),
        ("[ b ]", "B"),
        ("[True]", "True"),
        ("[false]. Because", "False"),
        ("A", "A"),
        (" D.", "D"),
        ("B: many small trials", "B"),
        ("C) because", "C"),
        ("The answer is B.", "B"),
        ("the answer would be (D)", "D"),
        ("Answer: [A]", "A"),
        ("True", "True"),
        ("that is false", "False"),
        ("I choose (A), not any other", "A"),
        ("I would say D: berries", "D"),
        ("A cat is an animal", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_read_choice(said, option):
    """Responses as in ARC, OBQA, PIQA, WinoGrande, BoolQ, and what chat models make of them."""
    assert read_choice(said) == option


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("He needs 10/5=<<10/5=2>>2 more cows.\n#### 2", 2),
        ("so 3 and 4, thus 1,234.50 dollars.", 1234.5),
        ("#### $1,000", 1000),
        ("#### -7 degrees, 8 more", -7),
        (r"the digit is $45 - 41 = \boxed{4}$. Note that 13 and 25 sum to 221.", 4),
        ("It costs $18.", 18),
        ("about .5", 0.5),
        (r"\boxed{x}", None),
        ("none", None),
    ],
)
def test_final_number(said, number):
    assert final_number(said) == number


def test_letter_and_number(tokenizer, model, monkeypatch):
    said = [["[B] is right"], ["so #### 12"]]
    monkeypatch.setattr(metrics, "complete", lambda exam, tokens: said)
    questions = [Question("q", "[B]"), Question("q", "[A]")]
    assert make_metric("letter").score(model, tokenizer, questions) == [1.0, 0.0]
    questions = [Question("q", "12 apples or 3"), Question("q", "4 * 3 = 12\n#### 12.0")]
    assert make_metric("number").score(model, tokenizer, questions) == [0.0, 1.0]
    with pytest.raises(InvalidInput, match="names no option or number"):
        make_metric("letter").score(model, tokenizer, [Question("q", "plain")])


def test_normalized():
    assert normalized("  The\n\uff21nswer\t42. ") == "the answer 42"
    assert normalized("3.5") == "3.5"


@given(st.integers(1, 7), st.data())
def test_pass_estimate_is_the_mean_over_all_draws(samples, data):
    """Chen et al.: of all ways to pick k samples, the share with a correct one among them."""
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    results = [True] * correct + [False] * (samples - correct)
    draws = [any(draw) for draw in itertools.combinations(results, k)]
    assert estimate_pass(samples, correct, k) == pytest.approx(sum(draws) / len(draws))


def test_code_is_off_by_default():
    with pytest.raises(
        InvalidInput, match=r"as you: they can read and write.*--run-generated-code"
    ):
        make_metric("pass@1")
    for wrong in ("pass@0", "pass@x", "pass@21"):
        with pytest.raises(InvalidInput, match="K must be a number from 1 to"):
            make_metric(wrong, Settings(run_generated_code=True))
    for unknown in ("accuracy", "pass", "lm-eval"):
        with pytest.raises(InvalidInput, match="there is no metric"):
            make_metric(unknown)


HUMAN_EVAL = Question(
    'def double(x):\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
    "",
    test="def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
    entry_point="double",
)
PLAIN = Question("Define seven, which is 7.", "", test="assert seven == 7")


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (HUMAN_EVAL, "    return 2 * x\n", True),
        (HUMAN_EVAL, "    return 2 * x + 1\n", False),
        (HUMAN_EVAL, "Sure:\n```python\ndef double(x):\n    return x + x\n```\nDone.", True),
        (HUMAN_EVAL, "```\ndef double(x):\n    return x * x\n```", False),
        (HUMAN_EVAL, "```python\ndef double(x):\n    return x + x", True),  # cut off
        (HUMAN_EVAL, "", False),
        (PLAIN, "seven = 7", True),
        (PLAIN, "seven = 8", False),
        (PLAIN, "import sys; seven = 8; sys.exit(0)", False),  # the test has not run
        (PLAIN, "import os; os._exit(0)", False),
    ],
)
def test_programs(question, answer, right):
    assert succeeds(program(question, answer)) is right


def test_pass_metric(model, tokenizer, monkeypatch):
    wrong, right = "seven = 8", "seven = 7"
    said = [[right, wrong, wrong, wrong], [wrong] * 4]
    monkeypatch.setattr(metrics, "complete", lambda exam, tokens, samples: said)
    for k, expected in ((1, 0.25), (2, 0.5), (4, 1.0)):
        metric = make_metric(f"pass@{k}", Settings(samples=4, run_generated_code=True))
        assert metric.needed == "test"
        assert metric.score(model, tokenizer, [PLAIN, PLAIN]) == [expected, 0.0]


def test_python_code():
    assert python_code("x = 1") == "x = 1"
    assert python_code("a\n```py\nx = 1\n```\nb\n```\ny\n```") == "x = 1\n"


def test_questions(tmp_path):
    file = tmp_path / "toy.jsonl"
    lines = [
        {"prompt": "p", "response": "r", "system": "s", "options": ["r", "q"], "id": 7},
        {"prompt": "p", "response": "r", "system": None},
        {"prompt": "p", "response": "r", "system": ""},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = read_questions(file)
    assert first == Question("p", "r", "s", options=("r", "q"))
    assert second == Question("p", "r")
    assert third == Question("p", "r", "")
    file.write_text(json.dumps({"prompt": "p", "test": "t", "entry_point": "f"}))
    assert read_questions(file, "test") == [Question("p", "", test="t", entry_point="f")]
    with pytest.raises(InvalidInput, match="line 1: the key 'response' holds ''"):
        read_questions(file)
    for key, value in (("options", "r"), ("options", [1]), ("system", 3), ("prompt", " ")):
        file.write_text(json.dumps({"prompt": "p", "response": "r"} | {key: value}))
        with pytest.raises(InvalidInput, match=f"line 1: the key '{key}'"):
            read_questions(file)


def test_lm_eval(model, tokenizer, tmp_path, monkeypatch):
    """A task of one's own, from local files, asked of the model as it is at the moment."""
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    answers = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    wrong = ["x" + answers[0], *answers[1:]]
    data = tmp_path / "toy.jsonl"
    data.write_text(
        "".join(
            json.dumps({"asked": prompt, "answer": answer}) + "\n"
            for prompt, answer in zip(PROMPTS, wrong, strict=True)
        )
    )
    (tmp_path / "toy-task.yaml").write_text(
        f"""task: toy-task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {tmp_path / "cache"}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{asked}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<eos>"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    allowed = Settings(run_generated_code=True)
    metric = make_metric(f"lm-eval:{tmp_path / 'toy-task.yaml'}", allowed)
    assert metric.needed is None
    assert metric.score(model, tokenizer, []) == [0.0, 1.0, 1.0, 1.0]
    (tmp_path / "none.yaml").write_text("task: other")
    with pytest.raises(InvalidInput, match="has no task 'none'"):
        make_metric(f"lm-eval:{tmp_path / 'none.yaml'}", allowed)
    with pytest.raises(FileNotFoundError):
        make_metric(f"lm-eval:{tmp_path / 'nowhere.yaml'}", allowed)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InvalidInput, match="a device or a pipe"):
        make_metric(f"lm-eval:{tmp_path / 'pipe.yaml'}", allowed)


@pytest.mark.parametrize(
    "way",
    [
        "process_docs: !function evil.run",
        "class: !function evil.run",
        "include: other.yaml",
        "doc_to_text: \"{{ ''.__class__ }}\"",
        "metric_list: [{metric: evil.py, hf_evaluate: true}]",
    ],
)
def test_code_of_a_task_is_not_run_without_leave(tmp_path, way):
    """Neither that of functions, nor of other files, nor of templates and metrics of the hub's."""
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\ndef run(*a, **b): return a")
    (tmp_path / "other.yaml").write_text("process_docs: !function evil.run")
    (tmp_path / "bad.yaml").write_text(f"task: bad\ndataset_path: json\n{way}\n")
    with pytest.raises(InvalidInput, match=r"bad\.yaml names .*allow it: --run-generated-code"):
        make_metric(f"lm-eval:{tmp_path / 'bad.yaml'}")
    assert not canary.exists()


def test_lm_eval_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InvalidInput, match=r"pip install \"dnd-fast\[eval\]\""):
        make_metric("lm-eval:arc_easy")
