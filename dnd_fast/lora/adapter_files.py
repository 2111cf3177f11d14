"""Adapters as people have them: PEFT's folders, with what became of their format over the years."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import read_json, read_safetensors, read_unchanged
from dnd_fast.hub import split_revision
from dnd_fast.torch_file import read_torch

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
# A LoRA tensor's name on a live model has the adapter's in it, before "weight" or at the end.
_NAMED = re.compile(
    r"(\.lora_(?:[AB]|embedding_[AB]|magnitude_vector))\.(?!(?:weight|bias)$)([^.]+)"
    r"(\.weight|\.bias)?$"
)


def find_adapter(source: str | Path, subfolder: str | None, revision: str | None) -> Path:
    """The folder of an adapter.

    Where PEFT has saved an adapter under a name of its own, that is the folder below the given one.

    Args:
        source: a folder, or a hub id, of which ``id@revision`` is one revision; a ``Path`` is
            always a folder.
        subfolder: the folder in it.
        revision: the hub's branch, tag or commit, apart from the id.

    Raises:
        FileNotFoundError: there is no such folder, no such hub id, or no adapter in it.
        InvalidInput: there are several.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _downloaded(source, subfolder, revision)
    folder = folder / (subfolder or "")
    if (folder / CONFIG_FILE).is_file():
        return folder
    named = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if len(named) > 1:
        raise InvalidInput(
            f"{folder} holds {len(named)} adapters ({', '.join(named)}); give one as subfolder."
        )
    if not named:
        raise FileNotFoundError(f"there is no adapter at {folder}: {CONFIG_FILE} is missing.")
    return folder / named[0]


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of an adapter's folder, by the names that PEFT saves them under.

    Raises:
        FileNotFoundError: one of the two files is missing.
        InvalidInput: a file is damaged, or holds tensors of several adapters.
    """
    return read_unchanged(folder, lambda: (_read_tensors(folder), read_json(folder / CONFIG_FILE)))


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for a JSON file: the sets that live ones have become sorted lists."""
    return {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in config.items()
    }


def _downloaded(source: str | Path, subfolder: str | None, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(source, Path):
        raise FileNotFoundError(f"there is no adapter folder at {source}.")
    place, named = split_revision(source)
    files = (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE)
    try:  # all files of one commit, whatever is pushed meanwhile
        return Path(
            snapshot_download(
                place,
                revision=revision or named,
                allow_patterns=[f"{subfolder}/{file}" if subfolder else file for file in files],
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"there is no adapter folder at {source}, and the hub gives none: {error}"
        ) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS_FILE
    if not file.exists() and (folder / OLD_WEIGHTS_FILE).exists():
        file = folder / OLD_WEIGHTS_FILE
        tensors = read_torch(file)
        if not isinstance(tensors, Mapping):
            raise InvalidInput(
                f"{file} holds a {type(tensors).__name__}, expected tensors by name."
            )
    else:
        tensors = read_safetensors(file)
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = _NAMED.sub(r"\1\3", str(key))
        if name in renamed:
            raise InvalidInput(
                f"{file} holds several adapters: {name} is in it more than once. Save each by "
                "PEFT's save_pretrained."
            )
        renamed[name] = tensor
    return renamed
