"""Collections on disk: what is in them, and that stops, restarts and wrong input do no harm."""

import dataclasses
import fcntl
import json
import os
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from peft import PeftModel
from typer.testing import CliRunner

from dnd_fast import InvalidInput, base_model
from dnd_fast.base_model import load_base
from dnd_fast.demo.export import write_examples
from dnd_fast.demo.tasks import Task
from dnd_fast.lora.batched import encode, with_adapters
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import CollectSpec, LoraSpec
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.adapters.collect import collect, collect_folder
from dnd_fast.train.adapters.collection import STATE_FILE, Collection
from dnd_fast.train.adapters.lora_trainer import LoraTrainer
from dnd_fast.train.commands.collect import collect as command

from ...bad_input import contents
from ...test_base_model import SIZES, new_base, save_base

TASKS = [
    Task("first", "plain", "food"),
    Task("last", "stars", "food"),
    Task("copy", "hash", "tool"),
]
LORA = LoraSpec(rank=2, alpha=4)
SPEC = CollectSpec(
    steps=4, checkpoints=3, learning_rate=3e-3, final_learning_rate=5e-4, batch=4, parallel=2
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folders of a tiny base and its tokenizer."""
    return save_base("qwen2", tmp_path_factory.mktemp("base"))


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"{task.name}.jsonl", task) for task in TASKS]


def write(path, task, count=12):
    write_examples(path, task.examples(count, "train", 0))
    return path


def run(files, folder, base, spec=SPEC, lora=LORA, **options):
    return collect_folder(files, folder, base[0], lora, spec, tokenizer=base[1], **options)


def adapters(folder):
    """Every written adapter's bytes, by data set and step."""
    paths = sorted(folder.glob("adapters/*/step-*/adapter_model.safetensors"))
    return {str(path.parent.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_collection(files, base, tmp_path):
    """On disk is what training in memory gives."""
    seen = []
    made = run(
        files, tmp_path / "c", base, seed=5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i + 1, 14) for i in range(14)]
    assert made.names == [task.name for task in TASKS]
    model, tokenizer = load_base(*base)
    layout = TokenLayout.for_model(model.config, 2)
    encoded = [encode(tokenizer, Dataset.read(path).examples) for path in files]
    tokens = collect(model, layout, encoded, SPEC, seed=5)
    for name, expected in zip(made.names, tokens, strict=True):
        checkpoints = made.checkpoints(name)
        assert [path.name for path in checkpoints] == ["step-00005", "step-00006", "step-00007"]
        found = torch.stack([layout.tokenize(made.load(path)) for path in checkpoints])
        assert torch.equal(found, expected)


@pytest.mark.parametrize("layers", [None, (1, 1)])
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_adapters_work_in_peft(family, layers, files, tmp_path):
    """As they were trained: PEFT must find the text part's layers, and nothing else."""
    base = save_base(family, tmp_path)
    lora = dataclasses.replace(LORA, layers=layers)
    made = run(files[:1], tmp_path / "c", base, lora=lora)
    checkpoint = made.checkpoints(made.names[0])[-1]
    model, tokenizer = load_base(*base)
    ids = torch.tensor([encode(tokenizer, Dataset.read(files[0]).examples)[0].ids])
    tensors = {key: value[None] for key, value in made.load(checkpoint).items()}
    with torch.no_grad(), with_adapters(model, tensors, 2.0):
        expected = model(ids).logits
    assert not torch.equal(expected, model(ids).logits)
    adapted = PeftModel.from_pretrained(model, checkpoint)
    torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert len(adapted.state_dict()) == len(new_base(family).state_dict()) + len(tensors)


def test_a_bfloat16_base(files, base, tmp_path):
    """Adapters stay float32: steps of 1e-6 would be lost in bfloat16."""
    made = run(files[:1], tmp_path / "c", base, dtype=torch.bfloat16, recompute=True, micro_batch=1)
    first, *_, last = (made.load(path) for path in made.checkpoints(made.names[0]))
    for key, value in first.items():
        assert (last[key] - value).abs().max() > 0, key
    assert made.manifest.settings["dtype"] == "bfloat16"


KILLED = """
import os, random, signal, sys, time
from pathlib import Path

import torch

from dnd_fast.recipe import CollectSpec, LoraSpec
from dnd_fast.train.adapters import collect
from dnd_fast.train.adapters import lora_trainer

torch.set_num_threads(1)
place, base, tokenizer, *files = map(Path, sys.argv[1:])
spec = CollectSpec(**SETTINGS)
advance = lora_trainer.LoraTrainer.advance


def run(folder, log, before_rename=None):
    '''In a process of its own; returns its id.'''
    if pid := os.fork():
        return pid

    def counted(trainer):
        os.write(log, b".")
        advance(trainer)

    lora_trainer.LoraTrainer.advance = counted
    if before_rename is not None:
        renames = 0

        def count(event, arguments):
            nonlocal renames
            if event == "os.rename":
                renames += 1
                if renames == before_rename:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
    collect.collect_folder(
        files, folder, str(base), LoraSpec(2, 4), spec, tokenizer=str(tokenizer), seed=3
    )
    os._exit(0)


def begun(log):
    return os.fstat(log).st_size


logs = [os.open(place / name, os.O_CREAT | os.O_RDWR | os.O_APPEND) for name in ("a", "b")]
os.waitpid(run(place / "whole", logs[0]), 0)
rng = random.Random(0)
for kind in ["a file", "a step", "the start"] * 4:
    before = begun(logs[1])
    renames = rng.randint(1, 4) if kind == "a file" else None
    pid = run(place / "killed", logs[1], renames)
    while kind == "a step" and begun(logs[1]) == before:
        time.sleep(0.001)
    if kind != "a file":
        time.sleep(rng.uniform(0, 0.03 if kind == "a step" else 0.15))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, (kind, status)
os.waitpid(run(place / "killed", logs[1]), 0)
print(begun(logs[1]) - begun(logs[0]))
"""


def test_killed_and_run_again(files, base, tmp_path):
    """Killed a dozen times, just before files appear and at random moments: the same bits."""
    settings = repr(dataclasses.asdict(dataclasses.replace(SPEC, steps=36)))
    finished = subprocess.run(
        [sys.executable, "-c", KILLED.replace("SETTINGS", settings), tmp_path, *base, *files],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) <= 12  # at most one step again after each
    assert adapters(tmp_path / "killed") == adapters(tmp_path / "whole")
    assert len(adapters(tmp_path / "whole")) == 9
    made = Collection.open(tmp_path / "killed")
    assert made.names == [task.name for task in TASKS]
    left = [path.name for path in (tmp_path / "killed").rglob(".*")]
    assert left == [".lock"]  # nothing half-written
    assert not list(tmp_path.glob(".killed*"))


def stopped(monkeypatch, steps, files, folder, base):
    """A run that stops before a step, as by Ctrl-C."""
    advance, left = LoraTrainer.advance, [steps]

    def counted(self):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(LoraTrainer, "advance", counted)
        with pytest.raises(KeyboardInterrupt):
            run(files, folder, base)


def test_an_unfinished_collection_is_refused(files, base, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    for steps in (0, 6, 0, 3):  # before, in and between the groups
        stopped(monkeypatch, steps, files, folder, base)
        with pytest.raises(InvalidInput, match="not finished: run the same dnd-fast collect again"):
            Collection.open(folder)
    run(files, folder, base)


def test_a_full_disk(files, base, tmp_path, monkeypatch):
    """What is there stays, and the run goes on once there is room."""
    run(files[:2], tmp_path / "whole", base)
    folder = tmp_path / "c"
    stopped(monkeypatch, 5, files[:2], folder, base)
    before = (adapters(folder), (folder / STATE_FILE).read_bytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))  # bytes of a file
    try:
        with pytest.raises(OSError, match="cannot be written"):
            run(files[:2], folder, base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (adapters(folder), (folder / STATE_FILE).read_bytes()) == before
    run(files[:2], folder, base)
    assert adapters(folder) == adapters(tmp_path / "whole")


def test_more_data_sets_later(files, base, tmp_path, monkeypatch):
    """Finished ones are not touched, and the new one is as if it had been there."""
    folder = tmp_path / "c"
    run(files[:2], folder, base)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("adapters/*/*/*")}
    assert run(files, folder, base).names == [task.name for task in TASKS]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    run(files, tmp_path / "at once", base)
    assert adapters(folder) == adapters(tmp_path / "at once")
    with monkeypatch.context() as patch:
        patch.setattr("dnd_fast.train.adapters.collect.load_base", None)  # nothing is left to do
        run(files, folder, base)


def test_neighbours_make_no_difference(files, base, tmp_path):
    together = run(files, tmp_path / "a", base, dataclasses.replace(SPEC, parallel=3))
    alone = run(files[::-1], tmp_path / "b", base, dataclasses.replace(SPEC, parallel=1))
    for name in together.names:
        for one, other in zip(together.checkpoints(name), alone.checkpoints(name), strict=True):
            for key, value in together.load(one).items():
                torch.testing.assert_close(alone.load(other)[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_initialisation(shared, files, base, tmp_path):
    """One A for all, or one for each, whatever else is collected."""
    still = dataclasses.replace(SPEC, learning_rate=1e-30, final_learning_rate=1e-30)
    options = {"shared_init": shared, "seed": 1}
    made = run(files, tmp_path / "a", base, still, **options)
    first, *others = (made.load(made.checkpoints(name)[0]) for name in made.names)
    key = next(iter(first))
    assert all(torch.equal(first[key], other[key]) == shared for other in others)
    alone = run(files[2:], tmp_path / "b", base, still, **options)
    assert torch.equal(alone.load(alone.checkpoints(made.names[2])[0])[key], others[1][key])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"spec": dataclasses.replace(SPEC, steps=5)}, "steps 4, this run asks for 5"),
        ({"spec": dataclasses.replace(SPEC, learning_rate=1e-4)}, "learning_rate 0.003"),
        ({"lora": LoraSpec(4, 4)}, "rank 2, this run asks for 4"),
        ({"lora": LoraSpec(2, 8)}, "lora_alpha 4"),
        ({"seed": 1}, "seed 0"),
        ({"shared_init": False}, "shared_init True"),
        ({"dtype": torch.bfloat16}, "dtype 'float32'"),
    ],
)
def test_other_settings_are_refused(changed, named, files, base, tmp_path, monkeypatch):
    """Adapters of one collection must be alike; also when it is not finished."""
    stopped(monkeypatch, 5, files, tmp_path / "c", base)
    before = adapters(tmp_path / "c")
    with pytest.raises(InvalidInput, match=f"was collected with {named}.*give another folder"):
        run(files, tmp_path / "c", base, **changed)
    assert adapters(tmp_path / "c") == before
    run(files, tmp_path / "c", base, dataclasses.replace(SPEC, parallel=3))  # makes no difference


@pytest.mark.parametrize("steps", [5, 8])  # the first group begun, finished
def test_changed_data_is_refused(steps, files, base, tmp_path, monkeypatch):
    stopped(monkeypatch, steps, files, tmp_path / "c", base)
    write(files[1], TASKS[1], count=13)
    with pytest.raises(InvalidInput, match=f"{files[1]} is not the file of this name"):
        run(files, tmp_path / "c", base)


def test_other_misuse_is_named(files, base, tmp_path):
    copy = shutil.copy(files[0], tmp_path / "b.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no such data set"):
        run([tmp_path / "missing.jsonl"], tmp_path / "c", base)
    (tmp_path / "more").mkdir()
    with pytest.raises(InvalidInput, match="the same file name"):
        run([copy, shutil.copy(copy, tmp_path / "more")], tmp_path / "c", base)
    with pytest.raises(InvalidInput, match="more holds something else than a collection"):
        run(files, tmp_path / "more", base)
    (tmp_path / "c").mkdir()
    with (tmp_path / "c" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InvalidInput, match="another dnd-fast collect is at work"):
            run(files, tmp_path / "c", base)
    with pytest.raises(InvalidInput, match="no prompt leaves room"):
        run(files, tmp_path / "c", base, dataclasses.replace(SPEC, length=4))


@pytest.mark.parametrize("steps", [2, 5, 9, None])
def test_another_model_in_the_bases_place(steps, files, tmp_path, monkeypatch):
    """Whether there is state alone, checkpoints, finished data sets, or nothing else."""
    (tmp_path / "moved").mkdir()
    base = save_base("qwen2", tmp_path / "moved")
    if steps:
        stopped(monkeypatch, steps, files, tmp_path / "c", base)
    else:
        run(files[:2], tmp_path / "c", base)
    monkeypatch.setitem(SIZES, "intermediate_size", 64)
    save_base("qwen2", tmp_path / "moved")
    before = contents(tmp_path / "c")
    with pytest.raises(InvalidInput, match=f"'{base[0]}' is not the model that .*/c was begun"):
        run(files, tmp_path / "c", base)
    assert contents(tmp_path / "c") == before


def test_long_responses_are_counted(files, base, tmp_path):
    """Twelve short examples, one with a long response, one with a long prompt."""
    with files[0].open("a") as file:
        file.write(json.dumps({"prompt": "copy", "response": "a" * 90}) + "\n")
        file.write(json.dumps({"prompt": "a" * 90, "response": "a"}) + "\n")
    with pytest.warns(UserWarning, match="of 14 examples 1 responses are cut at 60.*1 left out"):
        run(files[:1], tmp_path / "c", base, dataclasses.replace(SPEC, length=60))


def test_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    """Of one data set, while adapters are being kept: it is named, and the others go on."""
    base = save_base("qwen2", tmp_path)
    model, tokenizer = load_base(*base)
    model.get_input_embeddings().weight[tokenizer("#")["input_ids"][0]] = torch.nan
    model.save_pretrained(base[0])
    monkeypatch.setattr(base_model, "check_weights", lambda tensors, where: None)  # refuses it
    rng = random.Random("collect 0")
    drawn = [{int(40 * rng.random()) for _ in range(SPEC.batch)} for _ in range(7)]
    bad = min(drawn[5] - set.union(*drawn[:5]))  # an example that is first drawn in step 6
    good = TASKS[0].examples(40, "train", 0)
    spoiled = [*good[:bad], *TASKS[2].examples(1, "train", 0), *good[bad + 1 :]]
    files = [tmp_path / f"{name}.jsonl" for name in ("spoiled", "good")]
    for path, examples in zip(files, (spoiled, good), strict=True):
        write_examples(path, examples)
    for _ in range(2):  # again, at once
        with pytest.raises(InvalidInput, match="'spoiled', step 6: the loss is nan"):
            run(files, tmp_path / "c", base)
        assert sorted(adapters(tmp_path / "c")) == [
            "adapters/good/step-00005",
            "adapters/spoiled/step-00005",
        ]
        assert (tmp_path / "c" / STATE_FILE).exists()
    with pytest.warns(UserWarning, match="spoiled was begun"):
        made = run(files[1:], tmp_path / "c", base)
    assert made.names == ["good"]
    assert len(made.checkpoints("good")) == 3


def test_the_command(files, base, tmp_path):
    app = typer.Typer()
    app.command()(command)
    arguments = [
        *map(str, files[:2]),
        *("--base", base[0], "--tokenizer", base[1], "--out", str(tmp_path / "c")),
        *("--steps", "2", "--checkpoints", "1", "--batch", "3", "--rank", "3", "--parallel", "2"),
        *("--learning-rate", "1e-3", "--seed", "4", "--no-shared-init", "--micro-batch", "2"),
        *("--device", "cpu"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "holds adapters of 2 data sets" in " ".join(result.output.split())
    manifest = Collection.open(tmp_path / "c").manifest
    assert (manifest.rank, manifest.lora_alpha) == (3, 6)
    settings = manifest.settings
    assert (settings["steps"], settings["checkpoints"], settings["batch"]) == (2, 1, 3)
    assert (settings["learning_rate"], settings["final_learning_rate"]) == (1e-3, 1e-5)
    assert (settings["seed"], settings["shared_init"], settings["dtype"]) == (4, False, "float32")
    result = CliRunner().invoke(app, [*arguments, "--recipe", "demo"])
    assert isinstance(result.exception, InvalidInput)
    assert "is not what the recipe 'demo' is for" in str(result.exception)
