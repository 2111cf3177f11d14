"""From what a command was given to what a run does: recipe, encoder, data sets, passes that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from dnd_fast.decoder.planning import kind_of
from dnd_fast.errors import InvalidInput
from dnd_fast.lora.training_dtype import default_dtype
from dnd_fast.recipe import Recipe
from dnd_fast.text.datasets import Dataset
from dnd_fast.text.encoder import TextEncoder
from dnd_fast.text.prompt_encoder import PromptEncoder
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.adapters.names import find_names
from dnd_fast.train.generator.config import DtypeName, RunConfig, TrainerConfig
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.estimate import Estimate, check_fit, fit_passes
from dnd_fast.train.generator.pairs import Form, Strategy

GPU_MEMORY = {"h200": 141e9, "a100": 80e9, "cpu": 64e9}  # bytes


def resolve_recipe(
    name: str, *, phases: str | None = None, encoder: str | None = None
) -> tuple[Recipe, PromptEncoder | None]:
    """Load a recipe and apply what changes it.

    Args:
        name: A recipe's name or .toml file.
        phases: Objectives of the phases to run, separated by commas; None: all.
        encoder: Another text encoder than the recipe's, whose width the decoder takes.

    Returns:
        The recipe, and the other text encoder where one was asked for.

    Raises:
        InvalidInput: there is no such recipe, or it has no such phase.
        OSError: the encoder cannot be had.
    """
    recipe = Recipe.load(name)
    if phases is not None:
        recipe = _with_phases(recipe, phases)
    if encoder is None:
        return recipe, None
    loaded = TextEncoder.from_pretrained(encoder)
    (prompts, length, _), *others = recipe.decoder.features
    features = [[prompts, length, loaded.width], *others]
    changed = dataclasses.replace(
        recipe,
        condition=dataclasses.replace(recipe.condition, encoder=encoder),
        decoder=dataclasses.replace(recipe.decoder, features=features),
    )
    return changed, loaded


def resolve_run(
    recipe: Recipe,
    collection: Collection,
    trainer_config: TrainerConfig,
    context: DistributedContext,
    *,
    hold_out: Sequence[str] = (),
    form: Form = "prompt",
    strategy: Strategy = "N<-x",
    candidates: int | None = None,
    seed: int = 0,
    data: Sequence[Path] = (),
) -> RunConfig:
    """Put together what decides a run: on GPUs passes that fit, on a CPU the base's dtype.

    Args:
        recipe: What to build.
        collection: What to train on.
        trainer_config: How to compute; without a micro-batch a GPU takes as many as fit.
        context: This process among all.
        hold_out: Data sets not to train on; see :func:`dnd_fast.train.adapters.names.find_names`.
        form, strategy, candidates, seed: See :class:`RunConfig`.
        data: Data sets without adapters, as ``.jsonl`` files and folders of such.

    Raises:
        FileNotFoundError: there is no such data set, or file of names.
        InvalidInput: a name fits no data set, a data set is unusable, or the run does not fit the
            GPU's memory: it is refused before hours are spent.
    """
    if context.device.type == "cuda":
        memory = torch.cuda.get_device_properties(context.device).total_memory
        kind = kind_of(context.device)
        trainer_config, _ = estimate_run(
            recipe, trainer_config, memory=memory, gpus=context.size, device=kind
        )
    elif recipe.lora.layers is not None and trainer_config.base_dtype is None:
        fastest = default_dtype(recipe.lora, context.device)
        name: DtypeName = "bfloat16" if fastest == torch.bfloat16 else "float32"
        trainer_config = dataclasses.replace(trainer_config, base_dtype=name)
    others = tuple(Dataset.read(file) for path in data for file in _files(path))
    held_out = tuple(find_names(collection, hold_out, [dataset.name for dataset in others]))
    return RunConfig(recipe, held_out, form, strategy, candidates, seed, trainer_config, others)


def estimate_run(
    recipe: Recipe,
    trainer_config: TrainerConfig,
    *,
    memory: float | None = None,
    gpus: int = 1,
    device: str = "h200",
) -> tuple[TrainerConfig, list[Estimate]]:
    """Choose passes that fit, and estimate every phase in them.

    Args:
        recipe: What to train.
        trainer_config: How to compute.
        memory: Bytes of each GPU; by default those of this machine's GPU, or of ``device``.
        gpus: Number of GPUs.
        device: Name of the GPU whose rates are assumed.

    Raises:
        InvalidInput: a phase does not fit; the message says which options would make it fit.
    """
    if memory is None and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
    memory = memory or GPU_MEMORY[device]
    fitted = fit_passes(recipe, trainer_config, memory=memory, gpus=gpus, device=device)
    return fitted, check_fit(recipe, fitted, memory=memory, gpus=gpus, device=device)


def _files(path: Path) -> list[Path]:
    """Return the file itself, or the data sets in a folder."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise InvalidInput(f"{path} holds no data set: there is no .jsonl file in it.")
    return files


def _with_phases(recipe: Recipe, wanted: str) -> Recipe:
    names = wanted.split(",")
    known = [phase.objective for phase in recipe.phases]
    if unknown := [name for name in names if name not in known]:
        raise InvalidInput(
            f"--phases {wanted}: recipe {recipe.name} has no phase {unknown[0]!r}; it has "
            f"{', '.join(known) or 'none'}. Add a [[phases]] table to a recipe file of your own."
        )
    kept = tuple(phase for phase in recipe.phases if phase.objective in names)
    return dataclasses.replace(recipe, phases=kept)
