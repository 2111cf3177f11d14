"""Runs on data sets without adapters beside a collection: who draws from them, what is refused."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch

from dnd_fast import Generator, InvalidInput
from dnd_fast.demo.tasks import Task
from dnd_fast.demo.vocabulary import DOMAINS, FORMATS, SKILLS
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.adapters.statistics import fit_layout
from dnd_fast.train.evaluation.targets import EvalTarget
from dnd_fast.train.generator import resolve
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.data import MicroBatches
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.run import train_run

from ..conftest import write_dataset
from .test_run import MSE, RECIPE, SFT, Stopped, equal


@pytest.fixture
def uncollected(tmp_path):
    """A folder with three data sets that have no adapters."""
    folder, form, domain = tmp_path / "uncollected", next(iter(FORMATS)), next(iter(DOMAINS))
    for skill in list(SKILLS)[2:5]:
        write_dataset(folder, Task(skill, form, domain))
    return folder


PHASES = dataclasses.replace(MSE, steps=1), SFT


def with_data(collection, *data, phases=PHASES, hold_out=(), **options):
    """What the command makes of ``--data`` and ``--hold-out``."""
    return resolve.resolve_run(
        dataclasses.replace(RECIPE, phases=phases),
        collection,
        TrainerConfig(save_every=1),
        DistributedContext(),
        data=data,
        hold_out=hold_out,
        **options,
    )


def test_data_sets_without_adapters(collection, encoder, tmp_path, uncollected, monkeypatch):
    """Only the phase that needs no adapters draws from them; statistics are the collection's."""
    drawn = {"mse": [], "sft": []}
    make = MicroBatches.__getitem__

    def spying(batches, index):
        batch = make(batches, index)
        drawn[batches.phase.objective] += [
            (batches.tasks[pair.dataset].name, *pair.texts) for pair in batch.pairs
        ]
        return batch

    monkeypatch.setattr(MicroBatches, "__getitem__", spying)
    first, second, third = sorted(path.stem for path in uncollected.iterdir())
    own = collection.dataset(collection.names[0]).path  # with adapters, whoever names it
    config = with_data(
        collection,
        uncollected,
        own,
        phases=[dataclasses.replace(phase, batch=16) for phase in (MSE, SFT)],
        hold_out=[collection.names[-1], f"{third[:3]}*"],
        candidates=9,
    )
    assert config.held_out == (collection.names[-1], third)
    out = tmp_path / "run"
    assert train_run(config, collection, out, encoder=encoder)
    collected = collection.names[:-1]
    assert {name for name, *_ in drawn["mse"]} == set(collected)
    assert {name for name, *_ in drawn["sft"]} == {*collected, first, second}
    assert max(text for _, *texts in drawn["sft"] for text in texts) == 8
    layout = Generator.from_pretrained(out / "generator", encoder=encoder).layout
    fit_layout(again := copy.deepcopy(layout), collection, collected)
    assert torch.equal(layout.mean, again.mean)

    described = json.loads((out / "run.json").read_text())
    assert described["trained_on"] == [*collected, first, second]
    files = [uncollected / f"{name}.jsonl" for name in (first, second)]
    assert described["data"] == {file.stem: str(file) for file in files}
    assert described["data_sha256"] == {file.stem: Dataset.read(file).sha256 for file in files}
    target = EvalTarget.from_run(out)
    assert (target.trained_on, target.collected) == ([*collected, first, second], collected)
    assert target.choose([first]) == [first]


def test_a_run_with_data_sets_without_adapters_goes_on(collection, encoder, tmp_path, uncollected):
    config = with_data(collection, uncollected)
    train_run(config, collection, tmp_path / "whole", encoder=encoder)

    def stop(metrics):
        if metrics.step == 3:
            raise Stopped

    out = tmp_path / "broken"
    with pytest.raises(Stopped):
        train_run(config, collection, out, encoder=encoder, on_step_end=stop)
    file = max(uncollected.iterdir())
    content = file.read_text()
    file.write_text(content + content.splitlines()[0])
    with pytest.raises(InvalidInput, match=f"{file} has changed since {out} began to train on it"):
        train_run(with_data(collection, uncollected), collection, out, encoder=encoder)
    file.write_text(content)
    with pytest.raises(InvalidInput, match=r"holds a run with (data|trained_on)"):
        train_run(with_data(collection, file), collection, out, encoder=encoder)
    moved = shutil.move(uncollected, tmp_path / "moved")
    assert train_run(with_data(collection, moved), collection, out, encoder=encoder)
    assert equal(tmp_path / "whole" / "generator", out / "generator")


def test_data_sets_without_adapters_that_cannot_be_used(
    collection, encoder, tmp_path, uncollected, demo_tasks
):
    def run(*data, **options):
        config = with_data(collection, *data, **options)
        train_run(config, collection, tmp_path / "run", encoder=encoder)

    def refused(message, *data, **options):
        with pytest.raises(InvalidInput, match=message):
            run(*data, **options)
        assert not (tmp_path / "run" / "run.json").exists()

    refused("no phase that draws from data sets without adapters", uncollected, phases=(MSE,))
    file = min(uncollected.iterdir())
    refused(f"two data sets are named {file.stem!r}", uncollected, file)
    other = write_dataset(tmp_path / "other", demo_tasks[0], seed=1)
    refused("is not the file of this name that .* has adapters of", other)
    refused("no data set 'nothing'; it has .*upper", uncollected, hold_out=["nothing"])
    refused(r"all data sets of .* are held out", uncollected, hold_out=collection.names)
    (tmp_path / "empty").mkdir()
    refused(r"empty holds no data set: there is no \.jsonl file", tmp_path / "empty")
