"""A generator that begins with what another one has learned."""

from __future__ import annotations

import dataclasses
from typing import Any

from dnd_fast.errors import InvalidInput
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig


def warm_start(generator: Generator, start: str) -> None:
    """Give a generator the weights and statistics of another one of the same kind.

    Args:
        generator: Generator that is to be trained on; its encoder and its base stay.
        start: Name, folder or hub id of the other one.

    Raises:
        FileNotFoundError: there is no such generator.
        InvalidInput: it is damaged, or of another kind.
    """
    source = Generator.from_pretrained(start)
    theirs, ours = (_kind(each.config) for each in (source, generator))
    if different := [key for key in ours if theirs[key] != ours[key]]:
        key = different[0]
        raise InvalidInput(
            f"{start} is another kind of generator than the recipe's: its {key} is {theirs[key]}, "
            f"the recipe's {ours[key]}. Take the recipe that it was trained by."
        )
    generator.decoder.criterion_weight = source.decoder.criterion_weight
    generator.decoder.load_state_dict(source.decoder.state_dict())
    mean, std = source.layout.mean, source.layout.std
    if mean is not None and std is not None:
        generator.layout.set_statistics(mean, std)
    if generator.whitening is not None and source.whitening is not None:
        generator.whitening.load_state_dict(source.whitening.state_dict())


def _kind(config: GeneratorConfig) -> dict[str, Any]:
    """What two generators have in common that can take over each other's weights."""
    entries = dataclasses.asdict(config)
    return {
        f"{part}.{key}": value
        for part in ("condition", "decoder", "layout")
        for key, value in entries[part].items()
        if (part, key) not in {("condition", "encoder"), ("layout", "base_model")}
    }
