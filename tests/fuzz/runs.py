"""Formats of training: collections, runs, their checkpoints, logs and caches."""

import json
from pathlib import Path

import torch
from form import LAYOUT, PROMPTS, Format, examples, write_lines
from tensors import adapter, embedder, write_generator

from dnd_fast import HyperConvDecoder, InvalidInput, Recipe
from dnd_fast.recipe import RECIPES, ConditionSpec
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.adapters.collection import Collection, Group, Manifest
from dnd_fast.train.evaluation.targets import EvalTarget
from dnd_fast.train.experts.checkpoints import State as ExpertState
from dnd_fast.train.generator.checkpoints import Checkpoints, State
from dnd_fast.train.generator.config import RunConfig
from dnd_fast.train.generator.distributed import (
    DistributedContext,
    full_state,
    load_optimizer,
    load_weights,
)
from dnd_fast.train.generator.embedding_cache import embed_texts
from dnd_fast.train.generator.log import Log
from dnd_fast.train.generator.run import _Run
from dnd_fast.train.generator.run_file import begin_or_resume

SPEC = ConditionSpec("", prompts=2, length=5)
CONFIG = RunConfig(Recipe.load(RECIPES / "demo.toml"))
ABOUT = {"seed": 0}


def collection(folder):
    return Collection(folder, Manifest("b", "b", 2, 4, LAYOUT.target_modules, {}, {}))


def write_collection(folder):
    write_lines(folder, "data.jsonl", examples())
    made, group = collection(folder), Group([Dataset.read(folder / "data.jsonl")])
    (folder / "data.jsonl").unlink()
    made.start(group)
    made.save_adapters(group, 7, {key: x[None] for key, x in adapter().tensors.items()})
    made.finish(group)


def read_collection(folder):
    found = Collection.open(folder)
    return found.manifest, [found.load(path) for path in found.checkpoints(found.names[0])]


def write_begun(folder):
    write_lines(folder, "data.jsonl", examples())
    made, group = collection(folder), Group([Dataset.read(folder / "data.jsonl")])
    made.manifest.write(folder)
    made.save_state(group, 3, {"a": torch.randn(1, 4)})


def read_begun(folder):
    found = Collection.begin(folder, collection(folder).manifest)
    return [
        (group.names, group.step, group.state)
        for group in found.unfinished([Dataset.read(folder / "data.jsonl")], 2)
    ]


def write_statistics(folder):
    collection(folder).manifest.write(folder)
    write_collection(folder / "collection")
    read_statistics(folder)


def read_statistics(folder):
    layout = type(LAYOUT).from_dict(LAYOUT.to_dict())
    kept = Collection.open(folder / "collection")
    run = _Run(CONFIG, kept, folder, DistributedContext())
    return run._statistics(layout, kept.names), layout.state_dict()


def trained():
    """A decoder and its optimiser, one step old."""
    decoder = HyperConvDecoder([(3, 5, 4), (3, 4, 6), (5, 4, 6)], 3)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in decoder.parameters()).backward()
    optimizer.step()
    return decoder, optimizer


def write_checkpoint(folder):
    Checkpoints(folder).save(State(3, 0, *full_state(*trained()), 0.5))


def read_checkpoint(folder):
    found = Checkpoints(folder).latest()
    if found is None:
        raise InvalidInput("a warning; an older one would be used")
    decoder, optimizer = trained()
    load_weights(decoder, found.weights)
    load_optimizer(decoder, optimizer, found.optimizer)
    return full_state(decoder, optimizer), found.step, found.score, Checkpoints(folder).best(0)


def write_expert_state(folder):
    state = ExpertState({"a": torch.randn(4)})
    state.vectors["a"].sum().backward()
    state.optimizer.step()
    state.save(folder, ABOUT)


def read_expert_state(folder):
    state = ExpertState({"a": torch.zeros(4)})
    if not state.restore(folder, ABOUT):
        raise InvalidInput("there is none")
    return state.vectors, state.best, state.step, state.score, state.history


def begin(folder):
    begin_or_resume(folder, CONFIG, collection(folder), ["data"])


def write_run(folder):
    collection(folder).manifest.write(folder)
    begin(folder)


def write_finished(folder):
    write_collection(folder / "collection")
    write_generator(folder)
    (folder / "g").rename(folder / "generator")
    begin_or_resume(folder, CONFIG, Collection.open(folder / "collection"), ["data"])


def read_finished(folder):
    found = EvalTarget.from_run(folder, folder / "collection")
    names = {label: Path(name).name for label, name in found.generators.items()}
    return names, found.trained_on, found.held_out, found.form, found.choose(["*"])


def write_log(folder):
    records = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    write_lines(folder, "log.jsonl", records)


def read_log(folder):
    Log(folder / "log.jsonl").on_train_begin(5)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def embedded(folder):
    found = embed_texts(embedder(), PROMPTS, SPEC, folder, fingerprint="x")
    return [found[index].clone() for index in range(len(found))]


FORMATS = {
    "collection": Format(write_collection, read_collection, 3),
    "begun collection": Format(write_begun, read_begun, 2),
    "statistics": Format(write_statistics, read_statistics),
    "checkpoint": Format(write_checkpoint, read_checkpoint, 3),
    "expert's state": Format(write_expert_state, read_expert_state, 2),
    "run": Format(write_run, begin, 2),
    "finished run": Format(write_finished, read_finished, 2),
    "log": Format(write_log, read_log),
    "embedded texts": Format(embedded, embedded, 2),
}
