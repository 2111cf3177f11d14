"""``run.json``: everything that decides a run's result, so that only the same run resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, hash_file, read_bytes, read_json, write_json
from dnd_fast.generator_config import find_files
from dnd_fast.recipe import Recipe, from_table
from dnd_fast.train.adapters.collection import MANIFEST_FILE, Collection
from dnd_fast.train.generator.config import RunConfig

RUN_FILE = "run.json"
FORMAT_VERSION = 1


def begin_or_resume(
    out: Path, run_config: RunConfig, collection: Collection, trained_on: Sequence[str]
) -> None:
    """Write ``run.json``, or check that the run begun in ``out`` is the same.

    Raises:
        InvalidInput: ``out`` holds another run; the message names the first difference.
    """
    wanted = _description(run_config, collection, trained_on)
    if not (out / RUN_FILE).exists():
        with atomic_file(out / RUN_FILE) as staged:
            write_json(staged, wanted)
        return
    # Older ones lack some entries.
    stored = {"data": {}, "data_sha256": {}, "start_sha256": None} | read_json(out / RUN_FILE)
    if "recipe" in stored:  # with the defaults of entries that did not exist when it was written
        recipe = from_table(Recipe, stored["recipe"], f"{out / RUN_FILE}: recipe")
        stored["recipe"] = _as_read_back(dataclasses.asdict(recipe))
    for name, sha256 in wanted["data_sha256"].items():
        if stored["data_sha256"].get(name, sha256) != sha256:
            raise InvalidInput(
                f"{wanted['data'][name]} has changed since {out} began to train on it; put the "
                "original back, or give another folder."
            )
    for name in wanted.keys() - {"versions", "collection", "data", "start"}:
        if stored.get(name) != wanted[name]:
            theirs, ours = _difference(name, stored.get(name), wanted[name])
            raise InvalidInput(
                f"{out} holds a run with {theirs}, this one has {ours}: repeat the command of that "
                "run to resume it, or give another folder."
            )


def _description(
    run_config: RunConfig, collection: Collection, trained_on: Sequence[str]
) -> dict[str, Any]:
    manifest = read_bytes(collection.folder / MANIFEST_FILE)
    uncollected = set(trained_on) - set(collection.names)
    data = [dataset for dataset in run_config.data if dataset.name in uncollected]
    content = {
        "format_version": FORMAT_VERSION,
        "recipe": dataclasses.asdict(run_config.recipe),
        "collection": str(collection.folder.resolve()),
        "collection_sha256": hashlib.sha256(manifest).hexdigest(),
        "data": {dataset.name: str(dataset.path.resolve()) for dataset in data},
        "data_sha256": {dataset.name: dataset.sha256 for dataset in data},
        "start": run_config.start,
        "start_sha256": _hash_generator(run_config.start),
        "trained_on": list(trained_on),
        "held_out": list(run_config.held_out),
        "form": run_config.form,
        "strategy": run_config.strategy,
        "candidates": run_config.candidates,
        "seed": run_config.seed,
        "bf16": run_config.trainer_config.bf16,
        "base_dtype": run_config.trainer_config.base_dtype,
        "optimizer": run_config.trainer_config.optimizer,
        "versions": {
            name: importlib.metadata.version(name) for name in ("dnd-fast", "torch", "transformers")
        },
    }
    return _as_read_back(content)


def _hash_generator(name: str | None) -> str | None:
    if name is None:
        return None
    _, weights = find_files(name)
    return hash_file(weights)


def _as_read_back(content: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(content))
    return result


def _difference(name: str, theirs: Any, ours: Any) -> tuple[str, str]:
    """Describe the innermost entry that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            if theirs.get(key) != ours.get(key):
                return _difference(f"{name}.{key}", theirs.get(key), ours.get(key))
    return f"{name} = {theirs!r}", f"{name} = {ours!r}"
