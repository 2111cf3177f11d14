"""Recipes: what to build, as frozen dataclasses read from TOML.

The six recipes of the paper and the demo's are in ``recipes/``. Shapes follow the paper's Tables 7
and 8 and the kernel sizes of its published code.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dnd_fast.errors import InvalidInput

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class BaseSpec:
    """The language model that adapters are made for.

    ``config`` holds the arguments of its transformers config, ``model_type`` included: enough to
    derive every shape without downloading anything.
    """

    id: str
    config: dict[str, Any]


@dataclass(frozen=True)
class LoraSpec:
    """The adapters: LoRA rank and alpha, and how their tokens are normalised."""

    rank: int
    alpha: int
    scale: Literal["static", "border"] = "static"


@dataclass(frozen=True)
class ConditionSpec:
    """How prompts become the decoder's input.

    Attributes:
        encoder: path or hub id of the text encoder.
        prompts: N, prompts in one condition.
        length: L, tokens per prompt; shorter ones are padded, longer ones truncated.
        projected_length: L after the learned length projection; absent: no projection.
        projection: how the projection reads its input: ``"transpose"`` along L, or ``"view"``, the
            reinterpretation of the first published code.
        padding: what padding positions hold: ``"zero"``, or ``"encoded"`` as the encoder puts out.
    """

    encoder: str
    prompts: int
    length: int
    projected_length: int | None = None
    projection: Literal["transpose", "view"] = "transpose"
    padding: Literal["zero", "encoded"] = "zero"


@dataclass(frozen=True)
class DecoderSpec:
    """Arguments of :class:`dnd_fast.decoder.HyperConvDecoder`."""

    features: list[list[int]]
    kernel_size: int


@dataclass(frozen=True)
class Recipe:
    """Everything needed to build an untrained generator."""

    name: str
    description: str
    base: BaseSpec
    lora: LoraSpec
    condition: ConditionSpec
    decoder: DecoderSpec

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """Read a recipe by its name (see :func:`recipe_names`) or from a ``.toml`` file.

        Raises:
            FileNotFoundError: no such recipe or file.
            InvalidInput: not TOML, or an entry is unknown, missing or of the wrong type.
        """
        path = Path(name)
        if path.suffix != ".toml":
            path = RECIPES / f"{name}.toml"
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no recipe {str(name)!r}; give a .toml file or one of: "
                f"{', '.join(recipe_names())}."
            )
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} is not valid TOML: {error}") from error
        return from_table(cls, table, str(path))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


T = TypeVar("T")


def from_table(cls: type[T], table: Any, where: str) -> T:
    """Build dataclass ``cls`` from a nested mapping, checking names and types.

    Raises:
        InvalidInput: an entry is unknown, missing or of the wrong type; the message names it.
    """
    if not isinstance(table, Mapping):
        raise InvalidInput(f"{where}: expected a table of settings, found {table!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(fields)):
        raise InvalidInput(f"{where}: unknown entry {unknown[0]!r}; known are {', '.join(fields)}.")
    hints = get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _checked(hints[name], table[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING:
            raise InvalidInput(f"{where}: entry {name!r} is missing.")
    return cls(**values)


def _checked(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise InvalidInput(f"{where}: found {value!r}, expected one of {args}.")
    elif origin in (Union, types.UnionType):
        if value is not None:
            return _checked(next(arg for arg in args if arg is not type(None)), value, where)
    elif origin is list:
        if not isinstance(value, list | tuple):
            raise InvalidInput(f"{where}: found {value!r}, expected a list.")
        return [_checked(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif type(value) is not (origin or hint):
        raise InvalidInput(f"{where}: found {value!r}, expected {(origin or hint).__name__}.")
    elif hint is int and value < 1:
        raise InvalidInput(f"{where}: found {value}, expected a positive integer.")
    return value
