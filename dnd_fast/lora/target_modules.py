"""Which linear layers of a base model are adapted, found from its config alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dnd_fast.errors import InvalidInput
from dnd_fast.hub import require_buildable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODULE_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear layer: its name in the base model and its input and output sizes."""

    name: str
    size_in: int
    size_out: int

    def __post_init__(self) -> None:
        for size in (self.size_in, self.size_out):
            if type(size) is not int or size < 1:
                raise InvalidInput(
                    f"module {self.name!r} has a size of {size!r}; it must be a positive integer."
                )


def auto_model(config: PretrainedConfig) -> Any:
    """The class of transformers whose ``from_config`` and ``from_pretrained`` make the model.

    Raises:
        InvalidInput: it would be no language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    raise InvalidInput(
        f"{type(config).__name__} belongs to no causal or vision-language model that "
        "transformers has."
    )


def find_lora_modules(
    config: PretrainedConfig, target_modules: list[str] | str, layers: Sequence[int] | None = None
) -> tuple[list[LoraModule], list[str] | str]:
    """The linear layers of the language part's blocks, in token order, and PEFT's targets.

    Args:
        config: the model's config.
        target_modules: short names, or ``"all-linear"``.
        layers: the first and the last transformer layer to take them from; None: from all.

    Raises:
        InvalidInput: the model has no such modules or layers, or cannot be built.
    """
    auto = auto_model(config)
    require_buildable(config.to_dict(), f"this {type(config).__name__}")
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # sizes that contradict one another raise any type
        raise InvalidInput(f"this {type(config).__name__} describes no model: {error}") from error
    blocks = transformer_blocks(model)
    prefix = next((name for name, module in model.named_modules() if module is blocks), None)
    if prefix is None or blocks is None:
        raise InvalidInput(
            f"{type(model).__name__} has no list 'layers' of transformer blocks in its decoder; "
            "describe such a model by TokenLayout(modules, ...)."
        )
    first, last = (0, len(blocks) - 1) if layers is None else layers
    if not 0 <= first <= last < len(blocks):
        raise InvalidInput(
            f"layers={list(layers or [])}: the first and the last adapted layer of a "
            f"{type(model).__name__} with layers 0 to {len(blocks) - 1} must be two of these, in "
            "order."
        )
    every = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    inside = {
        name: module
        for name, module in every.items()
        # Some routers of experts are linear layers that put out more than a product.
        if name.startswith(f"{prefix}.") and type(module).forward is nn.Linear.forward
    }
    names_present = dict.fromkeys(name.rpartition(".")[2] for name in inside)
    with_experts = any(parameter.ndim == 3 for parameter in blocks.parameters())
    present = [short for short in names_present if not with_experts or _is_module(short, model)]
    chosen = present if target_modules == "all-linear" else target_modules
    if not isinstance(chosen, list) or not set(chosen) <= set(present) or not chosen:
        raise InvalidInput(
            f"target_modules={target_modules!r} does not fit {type(model).__name__}, "
            f"whose blocks have the linear layers {', '.join(present)}."
            + (" By others PEFT means routed experts." if len(present) < len(names_present) else "")
        )

    def layer_of(name: str) -> int:
        return int(name[len(prefix) + 1 :].split(".")[0])

    def position(name: str) -> tuple[int, int]:
        layer, short = layer_of(name), name.rpartition(".")[2]
        known = short in MODULE_ORDER
        return layer, MODULE_ORDER.index(short) if known else len(MODULE_ORDER) + present.index(
            short
        )

    taken = (n for n in inside if n.rpartition(".")[2] in chosen and first <= layer_of(n) <= last)
    names = sorted(taken, key=position)
    modules = [LoraModule(n, inside[n].in_features, inside[n].out_features) for n in names]
    shorts = sorted(chosen)
    if {name for name in every if name.rpartition(".")[2] in chosen} == set(names):
        return modules, shorts
    # Short names would also match layers outside the language part (a vision tower's, say), or
    # that were not chosen.
    if with_experts:  # for which PEFT cuts a regex down to short names
        return modules, names
    numbers = r"\d+" if layers is None else f"({'|'.join(map(str, range(first, last + 1)))})"
    return modules, rf"{re.escape(prefix)}\.{numbers}\..*\.({'|'.join(shorts)})"


def transformer_blocks(model: Any) -> nn.ModuleList | None:
    """The transformer blocks of a language model's decoder, if they are in a list ``layers``."""
    decoder = model.get_decoder()
    # Some models are their own decoder, and have the blocks a step below.
    owner = decoder if hasattr(decoder, "layers") else getattr(decoder, "model", None)
    blocks = getattr(owner, "layers", None)
    return blocks if isinstance(blocks, nn.ModuleList) else None


def _is_module(short: str, model: nn.Module) -> bool:
    """Whether PEFT takes a name for modules, and not for parameters that hold routed experts."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[short])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # experts' gate_proj and up_proj are one parameter
        return False
    return config.target_modules == {short}
