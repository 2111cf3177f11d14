"""What a format is, and the small model that several formats are about."""

import json
import logging
from dataclasses import dataclass
from importlib.util import find_spec

from transformers import Qwen2Config

from dnd_fast import TokenLayout

BASE = Qwen2Config(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
PROMPTS = ["reverse rice", "count the letters in tea", "echo fig", "copy oak"]
WORDS = ["reverse", "rice", "count", "the", "letters", "in", "tea", "echo", "fig", "copy", "oak"]
LAYOUT = TokenLayout.for_model(BASE, 2)
# Endings of files that say by a checksum what their tensors are.
SEALED = (".safetensors", ".f16", ".pth", ".bin")


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: writes a good one into an empty folder.
        read: reads what is in the folder; raises InvalidInput or OSError where it is damaged.
        share: how often it is chosen; those that take long are rare.
        foreign: whether others write it, so that its tensors have no checksum.
    """

    write: object
    read: object
    share: float = 1
    foreign: bool = False


def write_lines(folder, name, records):
    text = "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records)
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def examples(**more):
    return [{"prompt": p, "response": p[::-1], **more} for p in PROMPTS]


def have(package, formats):
    """Formats that a package reads; none where it is not installed."""
    return formats if find_spec(package) else {}


logging.disable(logging.CRITICAL)
