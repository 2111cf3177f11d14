"""A training run as a folder: from a collection and a recipe to a generator.

run.json                 everything that decides the result
statistics.safetensors   mean and std of the adapters' tokens, and the tokens' importance
whitening.safetensors    mean of the training texts' embeddings, and the matrix that whitens them
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
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnd_fast import smollm2
from dnd_fast.base_model import check_fits, load_base
from dnd_fast.decoder.planning import kind_of, training_plan
from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_file,
    check_weights,
    locked,
    read_safetensors,
    write_safetensors,
)
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.batched import TokenizedExample, encode
from dnd_fast.lora.frozen_base import FrozenBase, base_for_training
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import Phase, Recipe
from dnd_fast.text.datasets import Dataset
from dnd_fast.text.prompt_encoder import PromptEncoder
from dnd_fast.text.whitening import Whitening
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.adapters.lora_trainer import shorten
from dnd_fast.train.adapters.statistics import fit_layout
from dnd_fast.train.generator.checkpoints import Checkpoints
from dnd_fast.train.generator.config import RunConfig
from dnd_fast.train.generator.data import AdapterFiles, TaskData
from dnd_fast.train.generator.distributed import DistributedContext, whole_weights
from dnd_fast.train.generator.embedding_cache import EmbeddedTexts, embed_texts
from dnd_fast.train.generator.log import Log
from dnd_fast.train.generator.pairs import Pairing, condition_texts
from dnd_fast.train.generator.run_file import begin_or_resume
from dnd_fast.train.generator.trainer import StepMetrics, Trainer
from dnd_fast.train.generator.warm_start import warm_start

STATISTICS_FILE = "statistics.safetensors"
WHITENING_FILE = "whitening.safetensors"
LOG_FILE = "log.jsonl"
MAX_LENGTH = 2048  # tokens of an example, where the collection does not say
Progress = Callable[[str, int, int], None]  # stage, done, in all


def train_run(
    run_config: RunConfig,
    collection: Collection,
    out: Path,
    *,
    context: DistributedContext | None = None,
    encoder: PromptEncoder | None = None,
    keep: int = 2,
    cache: Path | None = None,
    trackers: Sequence[str] = (),
    progress: Progress = lambda stage, done, total: None,
    on_step_end: Callable[[StepMetrics], None] = lambda metrics: None,
) -> bool:
    """Train a generator, or resume where an earlier process stopped.

    Args:
        run_config: What to train.
        collection: Adapters and data sets to train on.
        out: Folder of the run.
        context: This process among all, each of which calls this; by default there is one.
        encoder: The recipe's text encoder, where it is loaded already.
        keep: Number of checkpoints to keep, beside the best.
        cache: Folder for embedded texts; by default in ``out``.
        trackers: "tensorboard", "wandb" or another of Accelerate's.
        progress: Callback that gets what comes before the first step.
        on_step_end: Callback that gets the metrics of every step.

    Returns:
        Whether there was anything left to do.

    Raises:
        InvalidInput: recipe, collection and configuration do not fit together, an adapter is
            damaged, ``out`` holds another run, or a loss is not finite.
        OSError: ``out`` cannot be written, or the base or the encoder cannot be had.
    """
    context = context or DistributedContext()
    trained_on = check_run_config(run_config, collection, context.size)
    with locked(out, "dnd-fast train") if context.main else nullcontext():
        if context.main:
            begin_or_resume(out, run_config, collection, trained_on)
        if (out / "generator").is_dir():
            return False
        log = Log(out / LOG_FILE, trackers) if context.main else None
        run = _Run(run_config, collection, out, context)
        generator = run.new_generator(trained_on, encoder)
        watched = run.watched()
        names = [*trained_on, *watched]
        texts = run.embedded_texts(names, generator.encoder, cache or out / "cache", progress)
        if generator.whitening is not None and run_config.start is None:
            run.fit_whitening(generator.whitening, [texts[name] for name in trained_on])
        base, examples = run.base_and_examples(names, generator.layout)
        tasks = run.tasks(names, texts, examples, generator.layout)
        checkpoints = Checkpoints(out / "checkpoints", keep)
        trainer = Trainer(
            generator.decoder,
            generator.layout,
            *run.paired(tasks[: len(trained_on)]),
            run_config.recipe.phases,
            whitening=generator.whitening,
            base=base,
            held_out=run.paired(tasks[len(trained_on) :]) if watched else None,
            context=context,
            trainer_config=run_config.trainer_config,
            checkpoints=checkpoints,
            on_phase_end=lambda index: run.save_generator(generator, index, checkpoints),
        )
        if log is not None:

            def log_step(metrics: StepMetrics) -> None:
                log.on_step_end(metrics)
                on_step_end(metrics)

            trainer.on_train_begin, trainer.on_step_end = log.on_train_begin, log_step
            trainer.on_evaluate = log.on_evaluate
        trainer.fit()
        if log is not None:
            log.finish()
    return True


def check_run_config(run_config: RunConfig, collection: Collection, processes: int) -> list[str]:
    """Return the names of the data sets to train on, those without adapters last.

    Raises:
        OSError: the collection's base, where a phase needs it, cannot be had.
        InvalidInput: the recipe has no phases, its adapters are not the collection's, the base that
            a phase needs is another model, the batch cannot be shared out evenly, nothing is left
            to train on, or there are data sets without adapters that no phase draws from, or of a
            name that another one has.
    """
    recipe, manifest = run_config.recipe, collection.manifest
    if not recipe.phases:
        raise InvalidInput(
            f"recipe {recipe.name} says nothing about training: add a [[phases]] table."
        )
    for phase in recipe.phases:
        run_config.trainer_config.pass_size(phase, processes)
    wanted = recipe.lora.rank, recipe.lora.alpha
    collected = manifest.rank, manifest.lora_alpha
    if wanted != collected:
        raise InvalidInput(
            f"recipe {recipe.name} is for adapters of rank and alpha {wanted}, those of "
            f"{collection.folder} have {collected}."
        )
    targets = GeneratorConfig.from_recipe(recipe).layout["target_modules"]
    if targets != manifest.target_modules:
        raise InvalidInput(
            f"recipe {recipe.name} is for adapters of the modules {targets}, those of "
            f"{collection.folder} are of {manifest.target_modules}: see the recipe's lora.layers."
        )
    if any(phase.objective == "sft" for phase in recipe.phases):
        check_fits(manifest.base, recipe)
    if set(collection.names) <= set(run_config.held_out):
        raise InvalidInput(f"all data sets of {collection.folder} are held out: none is left.")
    names = [*collection.names, *_uncollected(run_config, collection)]
    return [name for name in names if name not in run_config.held_out]


def _uncollected(run_config: RunConfig, collection: Collection) -> list[str]:
    """Names of the further data sets that the collection does not have; it may have some."""
    names = [dataset.name for dataset in run_config.data]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise InvalidInput(f"two data sets are named {twice[0]!r}: rename the file of one.")
    if names and not any(phase.objective == "sft" for phase in run_config.recipe.phases):
        raise InvalidInput(
            f"recipe {run_config.recipe.name} has no phase that draws from data sets without "
            "adapters: add one with the objective 'sft', or leave --data out."
        )
    collected = collection.manifest.datasets
    for dataset in run_config.data:
        if dataset.name in collected:
            collection.check_unchanged(dataset, collected[dataset.name])
    return [name for name in names if name not in collected]


def generator_config(recipe: Recipe, collection: Collection) -> GeneratorConfig:
    """Return the generator that the recipe builds for the collection's base model.

    Its adapters name the base as PEFT understands it.
    """
    config = GeneratorConfig.from_recipe(recipe)
    base_model = smollm2.hub_id(collection.manifest.base)
    return dataclasses.replace(config, layout=config.layout | {"base_model": base_model})


@dataclass(frozen=True)
class _Run:
    """The parts of a run, each made from the same four things."""

    config: RunConfig
    collection: Collection
    out: Path
    context: DistributedContext

    def new_generator(self, trained_on: Sequence[str], encoder: PromptEncoder | None) -> Generator:
        """Make the generator to begin with, planned for training.

        It is untrained, with the collection's statistics, unless the run starts from another one.
        """
        recipe, config = self.config.recipe, self.config.trainer_config
        torch.manual_seed(self.config.seed)
        generator = Generator(generator_config(recipe, self.collection), encoder=encoder)
        decoder = generator.decoder
        if self.config.start is not None:
            warm_start(generator, self.config.start)
        else:
            collected = [name for name in trained_on if name in self.collection.names]
            importance = self._statistics(generator.layout, collected)
            decoder.criterion_weight = importance.view(1, -1, 1, 1)
        size = max(config.pass_size(phase, self.context.size) for phase in recipe.phases)
        decoder.set_plan(training_plan(decoder, size, kind_of(self.context.device)))
        return generator

    def _statistics(self, layout: WeightLayout, names: Sequence[str]) -> Tensor:
        """Fit the layout, once for all processes and resumptions; return the tokens' importance."""
        file = self.out / STATISTICS_FILE
        if self.context.main and not file.exists():
            importance = fit_layout(layout, self.collection, names)
            fitted = {"importance": importance, "mean": layout.mean, "std": layout.std}
            with atomic_file(file) as staged:
                write_safetensors(staged, {key: v for key, v in fitted.items() if v is not None})
        self.context.wait()
        stored = read_safetensors(file, unchecked="warn")
        expected = {"importance", "mean", "std"} if layout.scale == "static" else {"importance"}
        if stored.keys() != expected or stored["importance"].shape != (layout.num_tokens,):
            raise InvalidInput(f"{file} is not of this run; remove it to have it computed again.")
        check_weights(stored, f"{file}: ")
        if layout.scale == "static":
            layout.set_statistics(stored["mean"], stored["std"])
        return stored["importance"]

    def fit_whitening(
        self, whitening: Whitening, texts: Sequence[tuple[EmbeddedTexts, ...]]
    ) -> None:
        """Fit to the training texts, once for all processes and resumptions."""
        file = self.out / WHITENING_FILE
        if self.context.main and not file.exists():
            rows = itertools.chain.from_iterable(itertools.chain.from_iterable(texts))
            whitening.fit(rows)
            with atomic_file(file) as staged:
                write_safetensors(staged, whitening.state_dict())
        self.context.wait()
        stored, own = read_safetensors(file, unchecked="refuse"), whitening.state_dict()
        if {k: v.shape for k, v in stored.items()} != {k: v.shape for k, v in own.items()}:
            raise InvalidInput(f"{file} is not of this run; remove it to have it computed again.")
        check_weights(stored, f"{file}: ")
        whitening.load_state_dict(stored)

    def dataset(self, name: str) -> Dataset:
        """Return a data set of the collection, or one without adapters."""
        if name in self.collection.names:
            return self.collection.dataset(name)
        return next(dataset for dataset in self.config.data if dataset.name == name)

    def watched(self) -> list[str]:
        """Names of the held-out data sets whose loss is measured."""
        if not self.config.trainer_config.evaluate_every:
            return []
        return [name for name in self.config.held_out if name in self.collection.names]

    def embedded_texts(
        self, names: Sequence[str], encoder: PromptEncoder, cache: Path, progress: Progress
    ) -> dict[str, tuple[EmbeddedTexts, ...]]:
        """Embed the texts of every data set; each process embeds an equal share of the sets."""
        encoder.to(self.context.device)
        fingerprint = encoder.fingerprint()

        def embedded(name: str) -> tuple[EmbeddedTexts, ...]:
            examples = self.dataset(name).examples[: self.config.candidates]
            spec = self.config.recipe.condition
            return tuple(
                embed_texts(encoder, texts, spec, cache, fingerprint=fingerprint)
                for texts in condition_texts(examples, self.config.form)
            )

        share = names[self.context.rank :: self.context.size]
        for done, name in enumerate(share, 1):
            embedded(name)
            progress("embed texts", done, len(share))
        self.context.wait()
        texts = {name: embedded(name) for name in names}
        encoder.to("cpu")
        return texts

    def base_and_examples(
        self, names: Sequence[str], layout: WeightLayout
    ) -> tuple[PreTrainedModel | FrozenBase | None, dict[str, list[TokenizedExample]]]:
        """Load the base model and tokenise the examples, where a phase needs them."""
        if not any(phase.objective == "sft" for phase in self.config.recipe.phases):
            return None, {}
        manifest = self.collection.manifest
        config = self.config.trainer_config
        name = config.base_dtype or ("bfloat16" if config.bf16 else "float32")
        model, tokenizer = load_base(
            manifest.base,
            manifest.tokenizer,
            dtype=getattr(torch, name),
            device=self.context.device,
        )
        length = manifest.settings.get("length", MAX_LENGTH)
        examples = {}
        for name in names:
            encoded = encode(tokenizer, self.dataset(name).examples)
            examples[name], _, _ = shorten(encoded, length)
            if not examples[name]:
                raise InvalidInput(f"data set {name!r}: no prompt is shorter than {length} tokens.")
        lora = self.config.recipe.lora
        return base_for_training(model, layout, lora, recompute=config.checkpointing), examples

    def tasks(
        self,
        names: Sequence[str],
        texts: dict[str, tuple[EmbeddedTexts, ...]],
        examples: dict[str, list[TokenizedExample]],
        layout: WeightLayout,
    ) -> list[TaskData]:
        """Put together what training draws from, in the order of ``names``."""
        layout, kept = copy.deepcopy(layout), dict[Path, Tensor]()
        return [
            TaskData(
                name,
                texts[name],
                AdapterFiles(self.collection, name, layout, kept),
                examples.get(name, []),
            )
            for name in names
        ]

    def paired(self, tasks: Sequence[TaskData]) -> tuple[Sequence[TaskData], Pairing]:
        """Return the tasks, and how pairs are drawn from them."""
        return tasks, Pairing(
            self.config.seed,
            self.config.recipe.condition.prompts,
            tuple(len(task.texts[0]) for task in tasks),
            tuple(len(task.targets) for task in tasks),
            tuple(len(task.examples) for task in tasks),
            self.config.strategy,
            self.config.form,
        )

    def save_generator(self, generator: Generator, index: int, checkpoints: Checkpoints) -> None:
        """Write the generator as it is after a phase; after the last, as it was at its best too."""
        phases: Sequence[Phase] = self.config.recipe.phases
        weights = whole_weights(generator.decoder)
        if self.context.main and index + 1 < len(phases):
            objectives = "+".join(phase.objective for phase in phases[: index + 1])
            _write_generator(self.out / f"generator-{objectives}", generator, weights)
        elif self.context.main:
            best = checkpoints.best(index)
            if best is not None and best < sum(phase.steps for phase in phases):
                best_weights = checkpoints.weights(best)
                _write_generator(self.out / "generator-best", generator, best_weights)
            # Last, because this folder says that all is done.
            _write_generator(self.out / "generator", generator, weights)
        self.context.wait()


def _write_generator(path: Path, generator: Generator, weights: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        whole = Generator(generator.config)
    whole.layout, whole.whitening = generator.layout, generator.whitening
    whole.decoder.criterion_weight = weights["criterion_weight"]
    whole.decoder.load_state_dict(weights, assign=True)
    whole.save_pretrained(path)
