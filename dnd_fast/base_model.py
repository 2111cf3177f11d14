"""Base models: any causal language model, or the text part of a vision-language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dnd_fast.errors import InvalidInput
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.batched import require_chat_template
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import auto_model
from dnd_fast.recipe import Recipe
from dnd_fast.text.prompt_encoder import move


def load_base(
    name: str,
    tokenizer: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen base model, ready to be adapted, and its tokenizer.

    Args:
        name: Folder or hub id.
        tokenizer: Folder or hub id of the tokenizer, where it is not the base's own.
        dtype: Dtype of the model's weights.
        device: Device to run it on.

    Raises:
        OSError: there is no such model or tokenizer.
        InvalidInput: transformers does not know the model, the tokenizer has no chat template, or
            the device cannot be used.
    """
    config = load_config(name)
    loaded_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer or name)
    require_chat_template(loaded_tokenizer)
    model: PreTrainedModel = auto_model(config).from_pretrained(name, dtype=dtype)
    move(model, device)
    return model.eval().requires_grad_(False), loaded_tokenizer


def load_config(name: str) -> PretrainedConfig:
    """Load a base model's config, without its weights; errors as :func:`load_base`."""
    try:
        return AutoConfig.from_pretrained(name)
    except ValueError as error:
        raise InvalidInput(f"the base {name!r}: {error}") from error


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
    """Return a folder's absolute path, so that it is found from everywhere; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
