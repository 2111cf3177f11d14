"""A collection: many data sets, each with adapters fine-tuned on it, as a folder.

collection.json                            base, LoRA settings, finished data sets with their hashes
datasets/NAME.jsonl                        what the adapters were trained on
adapters/NAME/step-00076/                  one adapter after that step, in PEFT's format
state.safetensors                          where an unfinished dnd-fast collect resumes
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_file,
    read_json,
    read_metadata,
    read_safetensors,
    write_json,
    write_safetensors,
)
from dnd_fast.filesystem import sweep
from dnd_fast.lora.adapter import CONFIG_FILE, Adapter, lora_config
from dnd_fast.recipe import from_table
from dnd_fast.text.datasets import Dataset

MANIFEST_FILE = "collection.json"
STATE_FILE = "state.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The content of ``collection.json``.

    Attributes:
        base, tokenizer: Paths or hub ids.
        rank, lora_alpha, target_modules: Settings of every adapter, as PEFT names them.
        settings: How the adapters were trained.
        datasets: SHA-256 of each data set's file, by name, of those that are finished.
        format_version: Version of the format.
    """

    base: str
    tokenizer: str
    rank: int
    lora_alpha: int
    target_modules: list[str] | str
    settings: dict[str, Any]
    datasets: dict[str, str]
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the collection in ``folder``.

        Raises:
            InvalidInput: it is damaged or of another version.
        """
        path = folder / MANIFEST_FILE
        manifest = from_table(cls, read_json(path), str(path))
        if manifest.format_version != FORMAT_VERSION:
            raise InvalidInput(
                f"{path}: format version {manifest.format_version}; this dnd-fast reads "
                f"{FORMAT_VERSION}. Update dnd-fast."
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write or replace the manifest, atomically."""
        with atomic_file(folder / MANIFEST_FILE) as staged:
            write_json(staged, dataclasses.asdict(self))

    def check_same_settings(self, wanted: Manifest, folder: Path) -> None:
        """Raise where adapters by ``wanted`` would not be like those in ``folder``.

        Raises:
            InvalidInput: a setting differs; the message names it.
        """
        theirs, ours = (
            {**dataclasses.asdict(manifest), **manifest.settings} for manifest in (self, wanted)
        )
        for name in ours.keys() - {"datasets", "settings"}:
            if theirs.get(name) != ours[name]:
                raise InvalidInput(
                    f"{folder} was collected with {name} {theirs.get(name)!r}, this run asks for "
                    f"{ours[name]!r}; ask for the same, or give another folder."
                )


@dataclass(frozen=True)
class Group:
    """Data sets whose adapters are trained together, and how far they are.

    Attributes:
        datasets: The data sets.
        step: Optimiser steps done.
        state: State of the trainer after these, a row for each data set; empty at the start.
    """

    datasets: list[Dataset]
    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the data sets."""
        return [dataset.name for dataset in self.datasets]


@dataclass
class Collection:
    """A collection on disk; nothing but its manifest is in memory.

    One process at a time may write to it; see :func:`dnd_fast.files.locked`.

    Attributes:
        folder: Folder of the collection.
        manifest: What it holds: settings and finished data sets.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Collection:
        """Open a finished collection to read it, checked against what is in the folder.

        Raises:
            FileNotFoundError: there is no collection.
            InvalidInput: it is unfinished, the manifest is damaged, a data set has changed or has
                no adapter, or adapters differ in base, rank or alpha.
        """
        folder = Path(folder)
        if not (folder / MANIFEST_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} is no collection: {MANIFEST_FILE} is missing. Make one: dnd-fast "
                "collect --help."
            )
        collection = cls(folder, Manifest.read(folder))
        if (folder / STATE_FILE).exists() or not collection.names:
            raise InvalidInput(
                f"{folder} is not finished: run the same dnd-fast collect again, which resumes "
                "where it stopped."
            )
        for name in collection.names:
            collection.dataset(name)
            if not collection.checkpoints(name):
                raise InvalidInput(
                    f"{folder}: the data set {name!r} has no adapter: adapters/{name} is gone. "
                    f"Remove {name!r} from {MANIFEST_FILE} and run the same dnd-fast collect again."
                )
            for checkpoint in collection.checkpoints(name):
                collection._check(checkpoint)
        return collection

    @classmethod
    def begin(cls, folder: Path, wanted: Manifest) -> Collection:
        """Open a collection to add to it, a new one where there is none.

        Raises:
            InvalidInput: the folder holds something else, or adapters by other settings.
        """
        for written_to in (folder, folder / "datasets", *folder.glob("adapters/*")):
            sweep(written_to)
        if (folder / MANIFEST_FILE).exists():
            manifest = Manifest.read(folder)
            manifest.check_same_settings(wanted, folder)
            return cls(folder, manifest)
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InvalidInput(f"{folder} holds something else than a collection; give a new one.")
        wanted.write(folder)
        return cls(folder, wanted)

    @property
    def names(self) -> list[str]:
        """Names of the finished data sets, in the order in which they were collected."""
        return list(self.manifest.datasets)

    def dataset(self, name: str) -> Dataset:
        """Read what the adapters of ``name`` were trained on.

        Raises:
            InvalidInput: there is none of that name, or its file is not the one trained on.
        """
        if name not in self.manifest.datasets:
            raise InvalidInput(
                f"{self.folder} has no data set {name!r}; it has {', '.join(self.names)}."
            )
        dataset = Dataset.read(self._dataset_path(name))
        if dataset.sha256 != self.manifest.datasets[name]:
            raise InvalidInput(
                f"{self.folder}: datasets/{name}.jsonl has changed since its adapters were "
                "trained; put the original back, or collect anew."
            )
        return dataset

    def checkpoints(self, name: str) -> list[Path]:
        """Folders of the adapters trained on ``name``, by step."""
        return list(self._checkpoints.get(name, []))

    def load(self, checkpoint: Path) -> dict[str, Tensor]:
        """Read an adapter's tensors in float32, under PEFT's names.

        Raises:
            InvalidInput: it is damaged, or holds NaN or infinity; the message names it.
        """
        tensors = Adapter.load(checkpoint).tensors
        return {name: value.float() for name, value in tensors.items()}

    def unfinished(self, datasets: Sequence[Dataset], parallel: int) -> list[Group]:
        """What is left to do: data sets that have no adapters yet, those already begun first.

        Args:
            datasets: All data sets that are wanted.
            parallel: How many are trained together.

        Raises:
            InvalidInput: a data set has changed since its training was begun or finished.
        """
        begun, step, state = self._read_state()
        wanted = {dataset.name: dataset for dataset in datasets}
        for name, sha256 in (self.manifest.datasets | begun).items():
            if name in wanted:
                self.check_unchanged(wanted[name], sha256)
        if forgotten := begun.keys() - wanted.keys() - self.manifest.datasets.keys():
            warnings.warn(
                f"{self.folder}: {', '.join(sorted(forgotten))} was begun and is not among the "
                "data sets given now; given later, it starts anew.",
                stacklevel=3,
            )
        new = [name for name in wanted if name not in self.manifest.datasets]
        fresh = [wanted[name] for name in new if name not in begun]
        groups = [Group(fresh[i : i + parallel]) for i in range(0, len(fresh), parallel)]
        if rows := [row for row, name in enumerate(begun) if name in new]:
            resumed = [wanted[name] for name in begun if name in new]
            groups.insert(0, Group(resumed, step, {key: v[rows] for key, v in state.items()}))
        return groups

    def check_unchanged(self, dataset: Dataset, sha256: str) -> None:
        """Raise InvalidInput unless a data set is the one that adapters of its name are of."""
        if dataset.sha256 != sha256:
            raise InvalidInput(
                f"{dataset.path} is not the file of this name that {self.folder} has adapters of; "
                "give it another name, or collect into another folder."
            )

    def check_base(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise InvalidInput unless the base gives adapters of the shapes that are here already.

        Args:
            shapes: PEFT's names and the shapes of an adapter's tensors.
        """
        kept = {key: tuple(value.shape[1:]) for key, value in self._read_state()[2].items()}
        kept = {key.removeprefix("adapter/"): shape for key, shape in kept.items()}
        if not kept and self._checkpoints:
            first = next(iter(self._checkpoints.values()))[0]
            kept = {key: tuple(value.shape) for key, value in self.load(first).items()}
        for name, shape in shapes.items():
            if kept and kept.get(name) != shape:
                raise InvalidInput(
                    f"the base {self.manifest.base!r} is not the model that {self.folder} was "
                    f"begun with: {name} would have shape {shape}, there it has {kept.get(name)}. "
                    "Put that model back, or collect into another folder."
                )

    def start(self, group: Group) -> None:
        """Copy a group's data sets, so that what its adapters are trained on stays known."""
        for dataset in group.datasets:
            with atomic_file(self._dataset_path(dataset.name)) as staged:
                staged.write_bytes(dataset.json_lines)

    def save_adapters(self, group: Group, step: int, adapters: Mapping[str, Tensor]) -> None:
        """Keep a group's adapters ``[data sets, rows, columns]`` after a step."""
        config = lora_config(
            rank=self.manifest.rank,
            lora_alpha=self.manifest.lora_alpha,
            target_modules=self.manifest.target_modules,
            base_model=self.manifest.base,
        )
        for row, name in enumerate(group.names):
            tensors = {key: value[row] for key, value in adapters.items()}
            Adapter(tensors, config).save(self.folder / "adapters" / name / f"step-{step:05d}")

    def save_state(self, group: Group, step: int, state: Mapping[str, Tensor]) -> None:
        """Keep what the group's training resumes from."""
        hashes = {dataset.name: dataset.sha256 for dataset in group.datasets}
        with atomic_file(self.folder / STATE_FILE) as staged:
            write_safetensors(staged, state, {"step": str(step), "datasets": json.dumps(hashes)})

    def finish(self, group: Group) -> None:
        """Enter a group's data sets as finished."""
        hashes = {dataset.name: dataset.sha256 for dataset in group.datasets}
        datasets = self.manifest.datasets | hashes
        self.manifest = dataclasses.replace(self.manifest, datasets=datasets)
        self.manifest.write(self.folder)

    def close(self) -> None:
        """Remove the state: nothing is left to resume."""
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    def _read_state(self) -> tuple[dict[str, str], int, dict[str, Tensor]]:
        """Read the begun data sets' hashes, the steps done and the trainer's state."""
        path = self.folder / STATE_FILE
        if not path.exists():
            return {}, 0, {}
        entries, state = read_metadata(path), read_safetensors(path, unchecked="warn")
        try:
            begun, step = dict(json.loads(entries["datasets"])), int(entries["step"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(
                f"{path} does not say what it is the state of; remove it, and what was begun "
                "starts anew."
            ) from error
        return begun, step, state

    def _dataset_path(self, name: str) -> Path:
        return self.folder / "datasets" / f"{name}.jsonl"

    @cached_property
    def _checkpoints(self) -> dict[str, list[Path]]:
        checkpoints: dict[str, list[Path]] = {}
        for path in sorted((self.folder / "adapters").glob("*/step-*")):
            checkpoints.setdefault(path.parent.name, []).append(path)
        return checkpoints

    def _check(self, checkpoint: Path) -> None:
        config = read_json(checkpoint / CONFIG_FILE)
        for key, expected in (
            ("base_model_name_or_path", self.manifest.base),
            ("r", self.manifest.rank),
            ("lora_alpha", self.manifest.lora_alpha),
        ):
            if config.get(key) != expected:
                raise InvalidInput(
                    f"{checkpoint}: {key} is {config.get(key)!r}, the collection's is "
                    f"{expected!r}; adapters of one collection must agree."
                )
