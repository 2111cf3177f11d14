"""Import of decoder checkpoints published with the paper's code."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.errors import InvalidInput
from dnd_fast.files import check_weights, read_safetensors
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.recipe import DecoderSpec, Recipe
from dnd_fast.torch_file import read_torch

# The published names of a block's parameters, and ours.
RENAMED = {
    "linear1.norm.weight": "norm.weight",
    "linear1.norm.bias": "norm.bias",
    "linear1.conv1w.weight": "a_width.weight",
    "linear1.conv1h.weight": "a_height.weight",
    "linear1.conv2h.weight": "b_height.weight",
    "linear1.conv2w.weight": "b_width.weight",
    "linear1.bias": "bias",
    "linear2.weight": "layerwise.weight",
    "linear2.bias": "layerwise.bias",
}
PROJECTION_KEYS = [
    f"{layer}.{kind}" for layer in ("down_proj", "gate_proj") for kind in ("weight", "bias")
]
CRITERION_KEY = "criterion_weight"
IGNORED_PREFIX = "condition_module."


def load_decoder(
    source: str | Path | Mapping[str, Any],
    *,
    projection: Literal["transpose", "view"] = "view",
) -> HyperConvDecoder:
    """Read a decoder published with the paper's code; shapes and kernel size come from its tensors.

    Args:
        source: a ``.pth``/``.pt``/``.bin`` file (never unpickled beyond tensors), a safetensors
            file, or a state dict. Keys may have the prefix ``model.``; those of the text encoder
            (``condition_module.*``) are dropped.
        projection: how the checkpoint's length projection, if it has one, reads its input:
            ``"view"`` as in the first published code, ``"transpose"`` as in the later one.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: the file is damaged or holds more than tensors; keys are missing or
            unexpected (all are listed); shapes contradict one another; values are not finite.
    """
    state = _read(source)
    count = _count_blocks(state)
    wanted = {
        f"decoder.module_list.{i}.{theirs}": f"blocks.{i}.{ours}"
        for i in range(count)
        for theirs, ours in RENAMED.items()
    }
    if any(key in state for key in PROJECTION_KEYS):
        wanted |= {key: f"projection.{key}" for key in PROJECTION_KEYS}
    if CRITERION_KEY in state:
        wanted[CRITERION_KEY] = CRITERION_KEY
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        raise InvalidInput(
            f"this is no released decoder: missing {missing or 'nothing'}, "
            f"unexpected {unexpected or 'nothing'}."
        )
    for name, value in state.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if dense and value.nbytes > value.untyped_storage().nbytes():  # however small the file
            raise InvalidInput(f"{name} repeats values instead of holding them; save a copy.")
    check_weights(state)
    decoder = _empty_decoder(state, count, projection)
    renamed = {new: state[old] for old, new in wanted.items()}
    for new, expected in decoder.state_dict().items():
        if renamed[new].shape != expected.shape:
            raise InvalidInput(
                f"{new} has shape {list(renamed[new].shape)}, which contradicts the other tensors: "
                f"they imply {list(expected.shape)}."
            )
    decoder.load_state_dict(renamed, assign=True)
    return decoder.eval()


def load_generator(source: str | Path | Mapping[str, Any], recipe: Recipe) -> Generator:
    """A generator around a published decoder.

    The recipe gives base model, rank and condition; shapes and kernel size come from the
    checkpoint. Tokens have the published border, padding is encoded, and the length projection
    reads its input as in the first published code.

    Raises:
        FileNotFoundError, InvalidInput: as :func:`load_decoder`, or the decoder does not fit the
            recipe.
    """
    decoder = load_decoder(source)
    published = dataclasses.replace(
        recipe,
        lora=dataclasses.replace(recipe.lora, scale="border"),
        condition=dataclasses.replace(recipe.condition, projection="view", padding="encoded"),
        decoder=DecoderSpec([list(shape) for shape in decoder.features], decoder.kernel_size),
    )
    with torch.device("meta"):
        generator = Generator(GeneratorConfig.from_recipe(published))
    if generator.decoder.condition_shape != decoder.condition_shape:
        raise InvalidInput(
            f"the checkpoint takes conditions of shape {decoder.condition_shape}, recipe "
            f"{recipe.name} makes them {generator.decoder.condition_shape}."
        )
    generator.decoder = decoder
    return generator


def _count_blocks(state: Mapping[str, Tensor]) -> int:
    matches = [re.match(r"decoder\.module_list\.(\d+)\.", key) for key in state]
    numbers = {int(match[1]) for match in matches if match}
    if not numbers:
        raise InvalidInput(
            "this is no released decoder: no key starts with decoder.module_list.0; found "
            f"{', '.join(sorted(state)[:3]) or 'nothing'}."
        )
    if gap := sorted(set(range(len(numbers))) - numbers):
        raise InvalidInput(
            f"this is no released decoder: missing decoder.module_list.{gap[0]}, found "
            f"decoder.module_list.{max(numbers)}."
        )
    return len(numbers)


def _empty_decoder(
    state: Mapping[str, Tensor], count: int, mode: Literal["transpose", "view"]
) -> HyperConvDecoder:
    """A decoder of the checkpoint's shapes on the meta device."""
    block = [f"decoder.module_list.{i}.linear" for i in range(count)]
    try:
        features = [
            [state[f"{name}2.weight"].shape[1], *state[f"{name}1.norm.weight"].shape]
            for name in block
        ]
        features.append(
            [state[f"{block[-1]}2.weight"].shape[0], *state[f"{block[-1]}1.bias"].shape]
        )
        kernel_size = state[f"{block[0]}2.weight"].shape[-1]
        down = state.get("down_proj.weight")
        with torch.device("meta"):
            projection = None
            if down is not None:
                projection = LengthProjection(down.shape[1], down.shape[0], mode=mode)
            decoder = HyperConvDecoder(features, kernel_size, projection=projection)
            if CRITERION_KEY in state:
                decoder.criterion_weight = torch.empty(1, features[-1][0], 1, 1)
    except (IndexError, ValueError) as error:
        raise InvalidInput(f"this is no released decoder: {error}") from error
    return decoder


def _read(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint at {path}.")
        if path.suffix == ".safetensors":
            content: Any = read_safetensors(path)
        else:
            content = read_torch(path)
    else:
        content = source
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise InvalidInput("the checkpoint holds no state dict.")
    state = {}
    for key, value in content.items():
        name = str(key).removeprefix("model.")
        if not name.startswith(IGNORED_PREFIX):
            state[name] = value
    return state
