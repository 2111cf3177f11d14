"""Scores of a language model's answers: one number from 0 to 1 for every question.

==============  ==================================================================================
``exact``       the whole response, token by token, is what greedy decoding gives; one forward pass
``text``        the generated text equals the response, case, white space and a final stop aside
``choice``      of the question's options the response is the most likely one
``letter``      the option named in the generated text ("[A]", "the answer is B", "True") is right
``number``      the generated text ends in the response's number ("#### 42", "\\boxed{42}", "42.")
``pass@K``      probability that one of K generated programs passes the question's test
``lm-eval:T``   task T of the lm-evaluation-harness, whose own questions take the place of ours
==============  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.batched import (
    TokenizedExample,
    after,
    collate,
    common_length,
    encode,
    exact_match,
    generation_inputs,
    summed_losses,
)
from dnd_fast.text.datasets import Example
from dnd_fast.train.evaluation.answers import (
    estimate_pass,
    final_number,
    normalized,
    program,
    read_choice,
)
from dnd_fast.train.evaluation.questions import Needed, Question
from dnd_fast.train.evaluation.sandbox import succeeds

LETTER_TOKENS, TEXT_TOKENS = 24, 512  # generated at most, where nothing else is said
MOST_OPTIONS = 26
WORTH_SHARING = 64  # tokens that all sequences begin with


@dataclass(frozen=True)
class Settings:
    """What metrics may be told.

    Attributes:
        batch: Number of sequences in a forward pass.
        max_new_tokens: Most tokens generated for an answer; None: 24 for ``letter``, else 512.
        samples: Programs generated for each question (``pass@K``); one: the greedy one.
        temperature: Temperature of sampling these.
        seed: Seed of sampling.
        run_generated_code: Whether ``pass@K`` may run what the model wrote, and ``lm-eval:FILE``
            what the file names.
    """

    batch: int = 32
    max_new_tokens: int | None = None
    samples: int = 20
    temperature: float = 0.8
    seed: int = 0
    run_generated_code: bool = False


@dataclass(frozen=True)
class EvalBatch:
    """A model, under whatever adapter at the moment, and the questions that it has to answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    questions: tuple[Question, ...]
    settings: Settings


@dataclass(frozen=True)
class Metric:
    """A way of scoring.

    Attributes:
        name: Name as in the table above.
        needed: The key that questions must have; None: the metric brings its own questions.
        settings: Settings that it follows.
        function: Gives a batch's scores, one from 0 to 1 for each question.
    """

    name: str
    needed: Needed | None
    settings: Settings
    function: Callable[[EvalBatch], list[float]]

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Iterable[Question],
    ) -> list[float]:
        """Score each question, without gradients."""
        with torch.no_grad():
            return self.function(EvalBatch(model, tokenizer, tuple(questions), self.settings))


def make_metric(name: str, settings: Settings | None = None) -> Metric:
    """Make the metric of that name.

    Raises:
        InvalidInput: there is none, K is no positive number or larger than ``samples``, running
            generated code or that of a task's file has not been allowed or does not work here, or
            lm-eval is missing or has no such task.
    """
    settings = settings or Settings()
    if name in METRICS:
        return Metric(name, "response", settings, METRICS[name])
    kind, mark, rest = name.partition("@" if name.startswith("pass@") else ":")
    if (kind, mark) == ("pass", "@"):
        return Metric(name, "test", settings, _passes(rest, settings))
    if (kind, mark) == ("lm-eval", ":"):
        from dnd_fast.train.evaluation.harness import harness_scores

        scores = harness_scores(rest, run_code=settings.run_generated_code)
        return Metric(name, None, settings, scores)
    raise InvalidInput(
        f"there is no metric {name!r}; choose one of {', '.join(METRICS)}, pass@1, pass@10, …, "
        "lm-eval:TASK."
    )


def exact(batch: EvalBatch) -> list[float]:
    """Whether greedy decoding gives the response, its end included.

    What a chat template puts after the end-of-turn token, and generation never reaches, does not
    count.
    """

    def score(part: Sequence[TokenizedExample]) -> list[float]:
        examples = collate(part).to(batch.model.device).view(len(part), 1)
        return exact_match(batch.model, examples).tolist()

    return _on_sequences(batch, batch.questions, score)


def choice(batch: EvalBatch) -> list[float]:
    """Whether the response is the most likely of the question's options.

    A likelihood is the product over the option's tokens, its end included, not normalised by
    length.

    Raises:
        InvalidInput: the response is not among the options, or there are none and the responses
            are too many to be options.
    """
    every = tuple(dict.fromkeys(question.response for question in batch.questions))
    options = [question.options or every for question in batch.questions]
    for question, offered in zip(batch.questions, options, strict=True):
        if question.response not in offered:
            raise InvalidInput(
                f"the response {question.response!r} to {question.prompt[:60]!r} is not among its "
                f"options {offered}."
            )
        if len(offered) > MOST_OPTIONS:
            raise InvalidInput(
                f"{question.prompt[:60]!r} has {len(offered)} options (without 'options' of its "
                "own: all responses in the file), which is no multiple choice; use another metric."
            )
    offers = [
        Example(question.prompt, option, question.system, question.shots)
        for question, offered in zip(batch.questions, options, strict=True)
        for option in offered
    ]

    def log_likelihoods(part: Sequence[TokenizedExample]) -> list[float]:
        examples = collate(part).to(batch.model.device).view(len(part), 1)
        return (-summed_losses(batch.model, examples)).tolist()

    likelihoods = iter(_on_sequences(batch, offers, log_likelihoods))
    scores = []
    for question, offered in zip(batch.questions, options, strict=True):
        likelihood = {option: next(likelihoods) for option in offered}
        scores.append(float(max(offered, key=likelihood.__getitem__) == question.response))
    return scores


def text(batch: EvalBatch) -> list[float]:
    """Whether the generated text equals the response, both :func:`normalized`."""
    return _read(batch, TEXT_TOKENS, normalized)


def letter(batch: EvalBatch) -> list[float]:
    """Whether the generated text names the same option as the response (:func:`read_choice`)."""
    return _read(batch, LETTER_TOKENS, read_choice)


def number(batch: EvalBatch) -> list[float]:
    """Whether the generated text ends in the response's number (:func:`final_number`)."""
    return _read(batch, TEXT_TOKENS, final_number)


METRICS = {"exact": exact, "text": text, "choice": choice, "letter": letter, "number": number}


def complete(batch: EvalBatch, max_new_tokens: int, *, samples: int = 1) -> list[list[str]]:
    """Generate answers to each question: the greedy one, or several sampled ones.

    Whatever the model's own generation settings are, nothing is penalised, and sampling is from the
    whole distribution at the batch's temperature.
    """
    settings = batch.settings
    decoding: dict[str, float] = {"do_sample": False}
    if samples > 1:
        decoding = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "num_return_sequences": samples,
        }

    def answer(part: Sequence[Question]) -> list[list[str]]:
        inputs = generation_inputs(batch.tokenizer, part, batch.model.device)
        ids = batch.model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=settings.max_new_tokens or max_new_tokens,
            repetition_penalty=1.0,
            **decoding,
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = batch.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]

    at_once = max(1, settings.batch // samples)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _in_passes(batch.questions, at_once, lambda question: len(question.prompt), answer)


def _passes(number: str, settings: Settings) -> Callable[[EvalBatch], list[float]]:
    """Make ``pass@K`` for K as written in ``number``."""
    if not number.isdecimal() or not 1 <= (k := int(number)) <= settings.samples:
        raise InvalidInput(
            f"metric 'pass@{number}': K must be a number from 1 to the samples per question, which "
            f"are {settings.samples} (--samples)."
        )
    if not settings.run_generated_code:
        raise InvalidInput(
            f"the metric pass@{k} runs programs that a language model wrote. They run within "
            "limits, and without a network where the system allows, but as you: they can read and "
            "write what you can. Use an account or a machine where that does no harm, and allow "
            "it: --run-generated-code."
        )
    if not succeeds("pass"):
        raise InvalidInput(
            "not even an empty program runs within limits here; the module "
            "dnd_fast.train.evaluation.sandbox says what it needs."
        )

    def score(batch: EvalBatch) -> list[float]:
        samples = batch.settings.samples
        programs = [
            program(question, answer)
            for question, answers in zip(
                batch.questions, complete(batch, TEXT_TOKENS, samples=samples), strict=True
            )
            for answer in answers
        ]
        with ThreadPoolExecutor() as pool:  # each thread waits for a process
            passed = list(pool.map(succeeds, programs))
        return [
            estimate_pass(samples, sum(passed[i : i + samples]), k)
            for i in range(0, len(passed), samples)
        ]

    return score


def _read(
    batch: EvalBatch, max_new_tokens: int, read: Callable[[str], str | float | None]
) -> list[float]:
    """Score whether ``read`` finds the same in the generated text as in the response."""
    wanted = [read(question.response) for question in batch.questions]
    for question, right in zip(batch.questions, wanted, strict=True):
        if right is None:
            raise InvalidInput(
                f"the response {question.response[:60]!r} to {question.prompt[:60]!r} names no "
                "option or number that this metric could compare; use another one."
            )
    answers = complete(batch, max_new_tokens)
    return [float(read(text) == right) for (text, *_), right in zip(answers, wanted, strict=True)]


S = TypeVar("S")
T = TypeVar("T")


def _on_sequences(
    batch: EvalBatch,
    examples: Iterable[Example],
    run: Callable[[Sequence[TokenizedExample]], list[float]],
) -> list[float]:
    """Run on the examples' token ids, without what follows a response's end-of-turn token.

    What all begin with, as examples in context, is computed once.
    """
    end = batch.tokenizer.eos_token_id
    sequences = [
        TokenizedExample(ids[: ids.index(end, start) + 1], start)
        if end in ids[start:]
        else TokenizedExample(ids, start)
        for ids, start in encode(batch.tokenizer, examples)
    ]
    first = sequences[0].ids
    shared = min(min(common_length(first, ids), start - 1) for ids, start in sequences)
    if shared < WORTH_SHARING or batch.model._is_stateful:  # recurrent ones keep no keys
        shared = 0
    rest = [TokenizedExample(ids[shared:], start - shared) for ids, start in sequences]
    with after(batch.model, first[:shared]) if shared else nullcontext():
        return _in_passes(rest, batch.settings.batch, lambda sequence: len(sequence.ids), run)


def _in_passes(
    items: Iterable[S], size: int, length: Callable[[S], int], run: Callable[[Sequence[S]], list[T]]
) -> list[T]:
    """Run on ``size`` items at a time, long ones first; results are in the items' order."""
    ordered = sorted(enumerate(items), key=lambda pair: -length(pair[1]))
    unordered: dict[int, T] = {}
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        results = run([item for _, item in part])
        unordered.update(zip((index for index, _ in part), results, strict=True))
    return [unordered[index] for index in range(len(ordered))]
