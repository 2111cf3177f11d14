"""A training run as a folder: from a collection and a recipe to a generator.

run.json                 everything that decides the result
statistics.safetensors   mean and std of the adapters' tokens, and the tokens' importance
checkpoints/             see dnd_fast.train.generator.checkpoints
log.jsonl                one line per step, one per evaluation
generator-mse/           the generator after a phase that another one follows, by objectives so far
generator-best/          the generator with the lowest held-out loss of the last phase, if that was
                         not at the end
generator/               the generator at the end
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnd_fast.base_model import load_base
from dnd_fast.decoder.planning import kind_of, training_plan
from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_file,
    locked,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)
from dnd_fast.generator import Generator, GeneratorConfig
from dnd_fast.lora.batched import TokenizedExample, encode
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Phase, Recipe
from dnd_fast.text.encoder import TextEncoder
from dnd_fast.train.adapters.collection import MANIFEST_FILE, Collection
from dnd_fast.train.adapters.lora_trainer import shorten
from dnd_fast.train.adapters.statistics import fit_layout
from dnd_fast.train.generator.checkpoints import Checkpoints
from dnd_fast.train.generator.data import AdapterFiles, TaskData
from dnd_fast.train.generator.distributed import DistributedContext, whole_weights
from dnd_fast.train.generator.embedding_cache import EmbeddedTexts, embed_texts
from dnd_fast.train.generator.log import Log
from dnd_fast.train.generator.pairs import Form, Pairing, Strategy, condition_texts
from dnd_fast.train.generator.trainer import StepMetrics, Trainer, TrainerConfig

RUN_FILE = "run.json"
STATISTICS_FILE = "statistics.safetensors"
LOG_FILE = "log.jsonl"
FORMAT_VERSION = 1
MAX_LENGTH = 2048  # tokens of an example, where the collection does not say
Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class RunConfig:
    """What decides a run's result, beside the collection's content.

    Attributes:
        recipe: what to build, and the phases of its training.
        held_out: data sets that are not trained on.
        form, strategy: see :class:`dnd_fast.train.generator.pairs.Pairing`.
        candidates: of each data set only the first so many texts are drawn from; None: all.
        seed: of weights and draws.
        options: how to compute.
    """

    recipe: Recipe
    held_out: tuple[str, ...] = ()
    form: Form = "prompt"
    strategy: Strategy = "N<-x"
    candidates: int | None = None
    seed: int = 0
    options: TrainerConfig = field(default_factory=TrainerConfig)


def train_run(
    setup: RunConfig,
    collection: Collection,
    out: Path,
    *,
    world: DistributedContext | None = None,
    encoder: TextEncoder | None = None,
    keep: int = 2,
    cache: Path | None = None,
    trackers: Sequence[str] = (),
    progress: Progress = lambda stage, done, total: None,
    on_step_end: Callable[[StepMetrics], None] = lambda record: None,
) -> bool:
    """Train a generator, or go on where an earlier process stopped.

    Args:
        setup: what to train.
        collection: adapters and data sets to train on.
        out: the run's folder.
        world: this process among all, each of which calls this; by default there is one.
        encoder: the recipe's text encoder, where it is loaded already.
        keep: checkpoints to keep, beside the best.
        cache: folder for embedded texts; by default in ``out``.
        trackers: "tensorboard", "wandb" or another of Accelerate's.
        progress: is told of what comes before the first step.
        on_step_end: is told of every step.

    Returns:
        Whether there was anything left to do.

    Raises:
        InvalidInput: recipe, collection and setup do not fit together, an adapter is damaged,
            ``out`` holds another run, or a loss is not finite.
        OSError: ``out`` cannot be written, or the base or the encoder cannot be had.
    """
    world, options, phases = world or DistributedContext(), setup.options, setup.recipe.phases
    trained = check_setup(setup, collection, world.size)
    config = generator_config(setup.recipe, collection)
    with locked(out, "dnd-fast train") if world.main else nullcontext():
        if world.main:
            _agree(out, _described(setup, collection, trained))
        if (out / "generator").is_dir():
            return False
        log = Log(out / LOG_FILE, trackers) if world.main else None
        torch.manual_seed(setup.seed)
        generator = Generator(config, encoder=encoder)
        importance = _statistics(out, generator.layout, collection, trained, world)
        generator.decoder.criterion_weight = importance.view(1, -1, 1, 1)
        size = max(options.pass_size(phase, world.size) for phase in phases)
        generator.decoder.set_plan(training_plan(generator.decoder, size, kind_of(world.device)))
        watched = []
        if options.evaluate_every:
            watched = [name for name in setup.held_out if name in collection.names]
        names, cache = [*trained, *watched], cache or out / "cache"
        texts = _embedded(setup, collection, names, generator, world, cache, progress)
        base, examples = _base(setup, collection, names, world)
        layout, kept = copy.deepcopy(generator.layout), dict[Path, Tensor]()
        sources = {
            name: TaskData(
                name,
                texts[name],
                AdapterFiles(collection, name, layout, kept),
                examples.get(name, []),
            )
            for name in names
        }

        def side(names: Sequence[str]) -> tuple[list[TaskData], Pairing]:
            chosen = [sources[name] for name in names]
            return chosen, _pairing(setup, chosen)

        checkpoints = Checkpoints(out / "checkpoints", keep)
        trainer = Trainer(
            generator.decoder,
            generator.layout,
            *side(trained),
            phases,
            base=base,
            held_out=side(watched) if watched else None,
            world=world,
            options=options,
            checkpoints=checkpoints,
            on_phase_end=lambda index: _on_phase_end(
                out, generator, phases, index, checkpoints, world
            ),
        )
        if log is not None:

            def step_done(record: StepMetrics) -> None:
                log.on_step_end(record)
                on_step_end(record)

            trainer.on_train_begin, trainer.on_step_end = log.on_train_begin, step_done
            trainer.on_evaluate = log.on_evaluate
        trainer.fit()
        if log is not None:
            log.finish()
    return True


def check_setup(setup: RunConfig, collection: Collection, processes: int) -> list[str]:
    """The data sets to train on.

    Raises:
        InvalidInput: the recipe has no phases, its adapters are not the collection's, the batch
            cannot be shared out evenly, or nothing is left to train on.
    """
    recipe, manifest = setup.recipe, collection.manifest
    if not recipe.phases:
        raise InvalidInput(
            f"recipe {recipe.name} says nothing about training: add a [[phases]] table."
        )
    for phase in recipe.phases:
        setup.options.pass_size(phase, processes)
    asked, found = (recipe.lora.rank, recipe.lora.alpha), (manifest.rank, manifest.lora_alpha)
    if asked != found:
        raise InvalidInput(
            f"recipe {recipe.name} is for adapters of rank and alpha {asked}, those of "
            f"{collection.folder} have {found}."
        )
    trained = [name for name in collection.names if name not in setup.held_out]
    if not trained:
        raise InvalidInput(f"all data sets of {collection.folder} are held out: none is left.")
    return trained


def find_names(collection: Collection, patterns: Sequence[str]) -> list[str]:
    """Names of data sets from names, patterns as of file names, and ``@FILE``, one name a line.

    Names in a file may be of data sets that have not been collected.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: a name or pattern fits no data set of the collection.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern.startswith("@"):
            found.update(dict.fromkeys(read_names(pattern)))
            continue
        fitting = [name for name in collection.names if fnmatchcase(name, pattern)]
        if not fitting:
            raise InvalidInput(
                f"{collection.folder} has no data set {pattern!r}; it has "
                f"{', '.join(collection.names)}."
            )
        found.update(dict.fromkeys(fitting))
    return list(found)


def read_names(word: str) -> list[str]:
    """The word itself, or of ``@FILE`` its lines that are not blank.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not word.startswith("@"):
        return [word]
    lines = Path(word[1:]).read_text(encoding="utf-8").splitlines()
    return [name for line in lines if (name := line.strip())]


def generator_config(recipe: Recipe, collection: Collection) -> GeneratorConfig:
    """The generator that the recipe builds for the collection's base model."""
    config = GeneratorConfig.from_recipe(recipe)
    return dataclasses.replace(
        config, layout=config.layout | {"base_model": collection.manifest.base}
    )


def _described(setup: RunConfig, collection: Collection, trained: Sequence[str]) -> dict[str, Any]:
    manifest = (collection.folder / MANIFEST_FILE).read_bytes()
    content = {
        "format_version": FORMAT_VERSION,
        "recipe": dataclasses.asdict(setup.recipe),
        "collection": str(collection.folder.resolve()),
        "collection_sha256": hashlib.sha256(manifest).hexdigest(),
        "trained_on": list(trained),
        "held_out": list(setup.held_out),
        "form": setup.form,
        "strategy": setup.strategy,
        "candidates": setup.candidates,
        "seed": setup.seed,
        "bf16": setup.options.bf16,
        "optimizer": setup.options.optimizer,
        "versions": {
            name: importlib.metadata.version(name) for name in ("dnd-fast", "torch", "transformers")
        },
    }
    return json.loads(json.dumps(content))  # as it is read back


def _agree(out: Path, wanted: dict[str, Any]) -> None:
    """Begin a run in ``out``, or see that the one begun there is the same."""
    if not (out / RUN_FILE).exists():
        with atomic_file(out / RUN_FILE) as staged:
            write_json(staged, wanted)
        return
    found = read_json(out / RUN_FILE)
    for name in wanted.keys() - {"versions", "collection"}:
        if found.get(name) != wanted[name]:
            asked, had = _difference(name, wanted[name], found.get(name))
            raise InvalidInput(
                f"{out} holds a run with {had}, this one has {asked}: repeat the command of that "
                "run to go on with it, or give another folder."
            )


def _difference(name: str, asked: Any, had: Any) -> tuple[str, str]:
    """The innermost entry that differs."""
    if isinstance(asked, dict) and isinstance(had, dict):
        for key in asked.keys() | had.keys():
            if asked.get(key) != had.get(key):
                return _difference(f"{name}.{key}", asked.get(key), had.get(key))
    return f"{name} = {asked!r}", f"{name} = {had!r}"


def _statistics(
    out: Path,
    layout: TokenLayout,
    collection: Collection,
    names: Sequence[str],
    world: DistributedContext,
) -> Tensor:
    """Fit the layout, once; returns the tokens' importance."""
    file = out / STATISTICS_FILE
    if world.main and not file.exists():
        importance = fit_layout(layout, collection, names)
        found = {"importance": importance, "mean": layout.mean, "std": layout.std}
        with atomic_file(file) as staged:
            write_safetensors(staged, {key: v for key, v in found.items() if v is not None})
    world.wait()
    stored = read_safetensors(file)
    if "mean" in stored:
        layout.set_statistics(stored["mean"], stored["std"])
    return stored["importance"]


def _embedded(
    setup: RunConfig,
    collection: Collection,
    names: Sequence[str],
    generator: Generator,
    world: DistributedContext,
    cache: Path,
    progress: Progress,
) -> dict[str, tuple[EmbeddedTexts, ...]]:
    """The texts of every data set; each process embeds an equal share of the data sets."""
    encoder = generator.encoder
    encoder.model.to(world.device)
    fingerprint = encoder.fingerprint()

    def embedded(name: str) -> tuple[EmbeddedTexts, ...]:
        examples = collection.dataset(name).examples[: setup.candidates]
        spec = setup.recipe.condition
        return tuple(
            embed_texts(encoder, texts, spec, cache, fingerprint=fingerprint)
            for texts in condition_texts(examples, setup.form)
        )

    share = names[world.rank :: world.size]
    for done, name in enumerate(share, 1):
        embedded(name)
        progress("embed texts", done, len(share))
    world.wait()
    found = {name: embedded(name) for name in names}
    encoder.model.to("cpu")
    return found


def _base(
    setup: RunConfig, collection: Collection, names: Sequence[str], world: DistributedContext
) -> tuple[PreTrainedModel | None, dict[str, list[TokenizedExample]]]:
    """The base model and the tokenised examples by data set, where a phase needs them."""
    if not any(phase.objective == "sft" for phase in setup.recipe.phases):
        return None, {}
    manifest = collection.manifest
    dtype = torch.bfloat16 if setup.options.bf16 else torch.float32
    model, tokenizer = load_base(
        manifest.base, manifest.tokenizer, dtype=dtype, device=world.device
    )
    examples = {}
    for name in names:
        found = encode(tokenizer, collection.dataset(name).examples)
        length = manifest.settings.get("length", MAX_LENGTH)
        examples[name], _, _ = shorten(found, length)
        if not examples[name]:
            raise InvalidInput(f"data set {name!r}: no prompt is shorter than {length} tokens.")
    return model, examples


def _pairing(setup: RunConfig, sources: Sequence[TaskData]) -> Pairing:
    return Pairing(
        setup.seed,
        setup.recipe.condition.prompts,
        tuple(len(source.texts[0]) for source in sources),
        tuple(len(source.targets) for source in sources),
        tuple(len(source.examples) for source in sources),
        setup.strategy,
        setup.form,
    )


def _on_phase_end(
    out: Path,
    generator: Generator,
    phases: Sequence[Phase],
    index: int,
    checkpoints: Checkpoints,
    world: DistributedContext,
) -> None:
    """Write the generator as it is after a phase; after the last one, as it was at its best too."""
    weights = whole_weights(generator.decoder)
    if world.main and index + 1 < len(phases):
        objectives = "+".join(phase.objective for phase in phases[: index + 1])
        _save_generator(out / f"generator-{objectives}", generator, weights)
    elif world.main:
        best = checkpoints.best(index)
        if best is not None and best < sum(phase.steps for phase in phases):
            _save_generator(out / "generator-best", generator, checkpoints.weights(best))
        _save_generator(out / "generator", generator, weights)  # last: it says that all is done
    world.wait()


def _save_generator(path: Path, generator: Generator, weights: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        whole = Generator(generator.config)
    whole.layout = generator.layout
    whole.decoder.criterion_weight = weights["criterion_weight"]
    whole.decoder.load_state_dict(weights, assign=True)
    whole.save_pretrained(path)
