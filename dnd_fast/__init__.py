"""dnd-fast: text prompts in, a LoRA adapter for a language model out, in one forward pass.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnd_fast.base_model import load_base
    from dnd_fast.convert import load_decoder
    from dnd_fast.decoder.model import HyperConvDecoder
    from dnd_fast.decoder.prepared import PreparedDecoder
    from dnd_fast.errors import InvalidInput
    from dnd_fast.generator import Generator, generate
    from dnd_fast.lora.adapter import Adapter
    from dnd_fast.lora.layout import TokenLayout
    from dnd_fast.recipe import Recipe
    from dnd_fast.svf.adaptive import AdaptiveModel
    from dnd_fast.svf.expert import DecomposedModel, Expert
    from dnd_fast.text.encoder import TextEncoder

__version__ = "0.1.0"

_HOME = {
    "Adapter": "lora.adapter",
    "AdaptiveModel": "svf.adaptive",
    "DecomposedModel": "svf.expert",
    "Expert": "svf.expert",
    "Generator": "generator",
    "HyperConvDecoder": "decoder.model",
    "InvalidInput": "errors",
    "PreparedDecoder": "decoder.prepared",
    "Recipe": "recipe",
    "TextEncoder": "text.encoder",
    "TokenLayout": "lora.layout",
    "generate": "generator",
    "load_base": "base_model",
    "load_decoder": "convert",
}
__all__ = [
    "Adapter",
    "AdaptiveModel",
    "DecomposedModel",
    "Expert",
    "Generator",
    "HyperConvDecoder",
    "InvalidInput",
    "PreparedDecoder",
    "Recipe",
    "TextEncoder",
    "TokenLayout",
    "generate",
    "load_base",
    "load_decoder",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
