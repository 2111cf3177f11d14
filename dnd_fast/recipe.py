"""Recipes: what to build, as frozen dataclasses read from TOML.

The six recipes of the paper and the demo's are in ``recipes/``. Shapes and training follow the
paper's Tables 7 and 8, kernel sizes its published code.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from dnd_fast.errors import InvalidInput
from dnd_fast.files import check_depth, read_bytes

TOML_BYTES = 1 << 15  # reading long dotted names takes the square of their length
RECIPES = Path(__file__).parent / "recipes"
Layer = NewType("Layer", int)  # index of a transformer layer, from 0


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
    """The adapters.

    Attributes:
        rank: the LoRA rank.
        alpha: the LoRA alpha.
        scale: how the tokens are normalised; see :class:`dnd_fast.lora.weight_layout.WeightLayout`.
        layers: the first and the last transformer layer that is adapted, from 0; None: all are.
    """

    rank: int
    alpha: int
    scale: Literal["static", "border"] = "static"
    layers: tuple[Layer, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and len(self.layers) != 2:
            raise InvalidInput(
                f"layers={list(self.layers)}: it must be two numbers, the first and the last "
                "adapted layer."
            )


@dataclass(frozen=True)
class ConditionSpec:
    """How prompts become the decoder's input.

    Attributes:
        encoder: the path or hub id of the text encoder; ``"path-or-id#layer=-2"`` for a hidden
            layer of a language model, ``"glove:vectors.txt"`` for word vectors; see
            :meth:`dnd_fast.text.encoder.TextEncoder.from_pretrained`.
        prompts: N, the number of prompts in one condition.
        length: L, the number of tokens per prompt; shorter ones are padded, longer ones truncated.
        projected_length: L after the learned length projection; absent: no projection.
        projection: how the projection reads its input: ``"transpose"`` along L, or ``"view"``, the
            reinterpretation of the first published code.
        padding: what padding positions hold: ``"zero"``, or ``"encoded"`` as the encoder puts out.
        whitening: whether embeddings are whitened before the decoder, see
            :class:`dnd_fast.text.whitening.Whitening` (ours, not the paper's).
    """

    encoder: str
    prompts: int
    length: int
    projected_length: int | None = None
    projection: Literal["transpose", "view"] = "transpose"
    padding: Literal["zero", "encoded"] = "zero"
    whitening: bool = False


@dataclass(frozen=True)
class DecoderSpec:
    """Arguments of :class:`dnd_fast.decoder.model.HyperConvDecoder`."""

    features: list[list[int]]
    kernel_size: int


@dataclass(frozen=True)
class CollectSpec:
    """How adapters are fine-tuned on data sets: "pretrain" and "finetune" of the paper's Table 9.

    The paper prints the two learning rates, not how one becomes the other: here the first ten steps
    warm up, and the last 40 % of ``steps`` decay linearly. The defaults are its common-sense row.

    Attributes:
        steps: the number of optimiser steps before the first adapter is kept.
        checkpoints: the number of further steps, after each of which one adapter is kept.
        learning_rate, final_learning_rate: the learning rates of the first part and of the second.
        batch: the number of examples per adapter and step.
        samples: how many examples of a data set are used, spread evenly over it; None: all.
        length: the number of tokens of a conversation beyond which its response is cut.
        parallel: the number of adapters trained in one forward pass.
    """

    steps: int = 75
    checkpoints: int = 50
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5
    batch: int = 32
    samples: int | None = 5000
    length: int = 2048
    parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "final_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name}={getattr(self, name)!r}: it must be a positive number.")


@dataclass(frozen=True)
class Phase:
    """One phase of training: AdamW under a learning rate that warms up, then decays as a cosine.

    Attributes:
        objective: ``"mse"``, the distance to collected adapters (the paper's), or ``"sft"``, the
            base model's loss on the data sets' own examples under the generated adapter (ours).
        steps: the number of optimiser steps.
        learning_rate: the peak of the learning rate.
        batch: the number of generated adapters per step, over all GPUs.
        examples: the number of examples per generated adapter and step (``sft``).
        weight_decay: AdamW's weight decay.
        clip: the largest norm of the gradient.
        noise: the standard deviation of Gaussian noise on the condition; the target has a tenth.
        dropout: the share of the condition that is dropped, number by number.
        prompt_dropout: the share of a condition's prompts that are dropped as a whole, never all of
            them: a decoder learns not to need every wording of a task.
        weighted: whether tokens count by their importance (``mse``), as in the paper.
    """

    objective: Literal["mse", "sft"]
    steps: int
    learning_rate: float
    batch: int
    examples: int = 6
    weight_decay: float = 0.1
    clip: float = 1.0
    noise: float = 1e-4
    dropout: float = 0.0
    prompt_dropout: float = 0.0
    weighted: bool = True

    def __post_init__(self) -> None:
        for name in ("dropout", "prompt_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInput(
                    f"{name}={getattr(self, name)!r}: it must be a share from 0 to below 1."
                )

    def quiet(self) -> Phase:
        """The same without noise and dropout."""
        return dataclasses.replace(self, noise=0.0, dropout=0.0, prompt_dropout=0.0)


@dataclass(frozen=True)
class Recipe:
    """Everything needed to build a generator, to collect adapters for it, and to train it."""

    name: str
    description: str
    base: BaseSpec
    lora: LoraSpec
    condition: ConditionSpec
    decoder: DecoderSpec
    collection: CollectSpec = CollectSpec()
    phases: tuple[Phase, ...] = ()

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
        if not path.exists() or path.is_dir():
            raise FileNotFoundError(
                f"there is no recipe {str(name)!r}; give a .toml file or one of: "
                f"{', '.join(recipe_names())}."
            )
        return from_table(cls, read_toml(path), str(path))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: it is not TOML, or larger than any settings are.
    """
    path = Path(path)
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"there is no file {path}.")
    content = read_bytes(path, TOML_BYTES)
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    check_depth(table, str(path))
    return table


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
    try:
        return cls(**values)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _checked(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise InvalidInput(f"{where}: found {value!r}, expected one of {args}.")
    elif origin in (Union, types.UnionType):
        if value is not None:
            kinds = [arg for arg in args if arg is not type(None)]
            fitting = (k for k in kinds[:-1] if isinstance(value, get_origin(k) or k))
            return _checked(next(fitting, kinds[-1]), value, where)
    elif origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise InvalidInput(f"{where}: found {value!r}, expected a list.")
        return origin(_checked(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif hint is Layer:
        if type(value) is not int or value < 0:
            raise InvalidInput(f"{where}: found {value!r}, expected an integer of zero or more.")
    elif type(value) is not (origin or hint):
        raise InvalidInput(f"{where}: found {value!r}, expected {(origin or hint).__name__}.")
    elif hint is int and value < 1:
        raise InvalidInput(f"{where}: found {value}, expected a positive integer.")
    elif hint is float and not 0 <= value < math.inf:
        raise InvalidInput(f"{where}: found {value}, expected a number of zero or more.")
    return value
