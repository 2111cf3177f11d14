"""dnd-fast: text prompts in, a LoRA adapter for a language model out, in one forward pass.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnd_fast.adapter import Adapter
    from dnd_fast.adaptive import AdaptiveModel
    from dnd_fast.condition import TextEncoder
    from dnd_fast.decoder import HyperConvDecoder
    from dnd_fast.errors import InvalidInput
    from dnd_fast.generator import Generator, generate
    from dnd_fast.layout import TokenLayout
    from dnd_fast.recipe import Recipe
    from dnd_fast.released import load_decoder
    from dnd_fast.svf import DecomposedModel, Expert

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapter",
    "AdaptiveModel": "adaptive",
    "DecomposedModel": "svf",
    "Expert": "svf",
    "Generator": "generator",
    "HyperConvDecoder": "decoder",
    "InvalidInput": "errors",
    "Recipe": "recipe",
    "TextEncoder": "condition",
    "TokenLayout": "layout",
    "generate": "generator",
    "load_decoder": "released",
}
__all__ = [
    "Adapter",
    "AdaptiveModel",
    "DecomposedModel",
    "Expert",
    "Generator",
    "HyperConvDecoder",
    "InvalidInput",
    "Recipe",
    "TextEncoder",
    "TokenLayout",
    "generate",
    "load_decoder",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
