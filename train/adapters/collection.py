"""A collection: many data sets, each with adapters fine-tuned on it, as a folder.

collection.json                            base, LoRA settings, finished data sets with their hashes
datasets/NAME.jsonl                        what the adapters were trained on
adapters/NAME/step-00076/                  one adapter after that step, in PEFT's format
state.safetensors                          where an unfinished dnd-fast collect goes on
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, read_json, write_json
from dnd_fast.lora.adapter import CONFIG_FILE, Adapter
from dnd_fast.recipe import from_table
from dnd_fast.text.datasets import Dataset

MANIFEST_FILE = "collection.json"
STATE_FILE = "state.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The content of ``collection.json``.

    Attributes:
        base, tokenizer: paths or hub ids.
        rank, lora_alpha, target_modules: of every adapter, as PEFT names them.
        settings: how the adapters were trained.
        datasets: SHA-256 of each data set's file, by name, of those that are finished.
    """

    base: str
    tokenizer: str
    rank: int
    lora_alpha: int
    target_modules: list[str] | str
    settings: dict[str, Any]
    datasets: dict[str, str]
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Collection:
    """A collection on disk; nothing but its description is in memory.

    Attributes:
        folder: where it is.
        manifest: its description.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Collection:
        """Read a collection's description and check it against what is there.

        Raises:
            FileNotFoundError: there is no collection.
            InvalidInput: it is unfinished, the description is damaged, a data set has changed or
                has no adapter, or adapters differ in base, rank or alpha.
        """
        folder = Path(folder)
        if not (folder / MANIFEST_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} is no collection: {MANIFEST_FILE} is missing. Make one: dnd-fast "
                "collect --help."
            )
        collection = cls(folder, read_manifest(folder))
        if (folder / STATE_FILE).exists() or not collection.names:
            raise InvalidInput(
                f"{folder} is not finished: run the same dnd-fast collect again, which goes on "
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

    @property
    def names(self) -> list[str]:
        """The data sets, in the order in which they were collected."""
        return list(self.manifest.datasets)

    def dataset(self, name: str) -> Dataset:
        """What the adapters of ``name`` were trained on.

        Raises:
            InvalidInput: there is none of that name, or its file is not the one trained on.
        """
        if name not in self.manifest.datasets:
            raise InvalidInput(
                f"{self.folder} has no data set {name!r}; it has {', '.join(self.names)}."
            )
        dataset = Dataset.read(self.folder / "datasets" / f"{name}.jsonl")
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
        """An adapter's tensors in float32, under PEFT's names.

        Raises:
            InvalidInput: it is damaged, or holds NaN or infinity; the message names it.
        """
        tensors = Adapter.load(checkpoint).tensors
        return {name: value.float() for name, value in tensors.items()}

    @cached_property
    def _checkpoints(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in sorted((self.folder / "adapters").glob("*/step-*")):
            found.setdefault(path.parent.name, []).append(path)
        return found

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


def read_manifest(folder: Path) -> Manifest:
    """The description of the collection in ``folder``.

    Raises:
        InvalidInput: it is damaged or of another version.
    """
    path = folder / MANIFEST_FILE
    manifest = from_table(Manifest, read_json(path), str(path))
    if manifest.format_version != FORMAT_VERSION:
        raise InvalidInput(
            f"{path}: format version {manifest.format_version}; this dnd-fast reads "
            f"{FORMAT_VERSION}. Update dnd-fast."
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write or replace the description, atomically."""
    with atomic_file(folder / MANIFEST_FILE) as staged:
        write_json(staged, dataclasses.asdict(manifest))
