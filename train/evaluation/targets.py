"""What is evaluated: generators with the data sets they know, and those they do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from dnd_fast.base_model import load_base
from dnd_fast.errors import InvalidInput
from dnd_fast.files import read_json
from dnd_fast.generator import Generator
from dnd_fast.lora.adapter import Adapter
from dnd_fast.text.datasets import Dataset, Example
from dnd_fast.text.prompts import read_prompts
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.adapters.names import find_names, read_names
from dnd_fast.train.evaluation.evaluate import (
    METHODS,
    EvalTask,
    Evaluator,
    Progress,
    check_methods,
    evaluate,
    generate_adapter,
    last_adapter,
)
from dnd_fast.train.evaluation.metrics import Metric
from dnd_fast.train.evaluation.plots import (
    Kind,
    Point,
    plot_accuracy,
    plot_weights,
    require_matplotlib,
    tensors_on_disk,
)
from dnd_fast.train.evaluation.questions import Needed, read_questions
from dnd_fast.train.evaluation.scores import Evaluation, check_disjoint, merged
from dnd_fast.train.generator.pairs import Form
from dnd_fast.train.generator.run_file import FORMAT_VERSION, RUN_FILE

SHOWN_CHECKPOINTS = 4  # adapters of a data set in the plot of weights


@dataclass(frozen=True)
class EvalTarget:
    """Generators to evaluate.

    Attributes:
        collection: Collection of training adapters and oracles.
        generators: Folders or names, by what tells them apart in the table; ``""`` for one alone.
        trained_on: Data sets that they were trained on, whether or not the collection has them.
        held_out: Data sets that they were not trained on.
        form: Form of their conditions.
    """

    collection: Collection
    generators: dict[str, str]
    trained_on: list[str]
    held_out: list[str]
    form: Form = "prompt"

    @classmethod
    def from_run(cls, run: Path, collection: Path | None = None) -> EvalTarget:
        """Find all generators of a finished training run, one for each phase.

        Args:
            run: Folder of the run.
            collection: Where the collection is now, if not where the run found it.

        Raises:
            FileNotFoundError: there is no run, or no collection.
            InvalidInput: the run is not finished, its description is damaged, or the collection
                lacks data sets that it was trained on.
        """
        if not (run / RUN_FILE).is_file():
            raise FileNotFoundError(
                f"{run} is no training run: {RUN_FILE} is missing. For a generator's folder use "
                "--generator."
            )
        content = read_json(run / RUN_FILE)
        try:
            if content["format_version"] != FORMAT_VERSION:
                raise InvalidInput(
                    f"{run / RUN_FILE}: format version {content['format_version']!r}; this "
                    f"dnd-fast reads {FORMAT_VERSION}. Update dnd-fast."
                )
            objectives = [phase["objective"] for phase in content["recipe"]["phases"]]
            trained_on, held_out = list(content["trained_on"]), list(content["held_out"])
            form, place = content["form"], collection or Path(content["collection"])
            uncollected = set(content.get("data", ()))
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"{run / RUN_FILE} is damaged: there is no {error}.") from error
        if not (run / "generator").is_dir():
            raise InvalidInput(
                f"{run} is not finished: run the same dnd-fast train again, which resumes where it "
                "stopped."
            )
        earlier = ["+".join(objectives[:count]) for count in range(1, len(objectives))]
        generators = {
            label: str(run / f"generator-{label}")
            for label in earlier
            if (run / f"generator-{label}").is_dir()
        }
        generators["+".join(objectives) if generators else ""] = str(run / "generator")
        opened = Collection.open(place)
        if missing := sorted(set(trained_on) - uncollected - set(opened.names)):
            raise InvalidInput(f"{place} lacks {missing[0]!r}, which {run} was trained on.")
        return cls(opened, generators, trained_on, held_out, form)

    @classmethod
    def from_generator(
        cls, generator: str, collection: Path, hold_out: Sequence[str]
    ) -> EvalTarget:
        """Take a generator that no run is known of: all not held out counts as trained on.

        Args:
            generator: "demo", "smollm2", a folder or a hub id.
            collection: Folder of the collection.
            hold_out: Names, patterns, or ``@FILE`` with one name a line.

        Raises:
            FileNotFoundError: there is no collection, or no such file of names.
            InvalidInput: nothing is held out, or a name fits no data set of the collection.
        """
        opened = Collection.open(collection)
        held_out = find_names(opened, hold_out)
        if not held_out:
            raise InvalidInput(
                "which data sets has this generator not been trained on? Name them: --hold-out."
            )
        trained_on = [name for name in opened.names if name not in held_out]
        return cls(opened, {"": generator}, trained_on, held_out)

    @property
    def collected(self) -> list[str]:
        """Data sets that the generators were trained on and that have training adapters."""
        return [name for name in self.trained_on if name in self.collection.names]

    def choose(self, patterns: Sequence[str]) -> list[str]:
        """Choose data sets to test on: the held-out ones, or those of all that fit the patterns.

        Args:
            patterns: Names, patterns, or ``@FILE`` with one of these a line.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInput: a pattern fits none, or nothing is held out.
        """
        names = [*self.held_out, *self.trained_on]
        wanted = [name for pattern in patterns for name in read_names(pattern)]
        for pattern in wanted:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InvalidInput(f"--data {pattern}: there is only {', '.join(names)}.")
        if wanted:
            return [name for name in names if any(fnmatchcase(name, p) for p in wanted)]
        if not self.held_out:
            raise InvalidInput("nothing was held out in training; name data sets: --data.")
        return self.held_out

    def read_held_out(
        self,
        names: Sequence[str],
        tests: Path | None,
        prompts: Path | None,
        needed: Needed | None,
        examples: Path | None = None,
    ) -> list[EvalTask]:
        """Read questions of data sets, and the examples that conditions are drawn from.

        Args:
            names: Names of the data sets.
            tests: Folder with the questions of each in ``NAME.jsonl``.
            prompts: Folder with the examples, which need no responses unless conditions hold them;
                None: the collection's own.
            needed: The key that questions must have; None: there are no questions.
            examples: Folder with examples to put into a context; None: the collection's own, where
                it has the data set.

        Raises:
            FileNotFoundError: a file is missing.
            InvalidInput: a file is damaged, a folder is not given, or a data set is not in the
                collection and has no prompts.
        """
        if needed is not None and tests is None:
            raise InvalidInput("where are the questions? Give the folder: --test.")
        tasks = []
        for name in names:
            known = name in self.collection.names
            own = self.collection.dataset(name).examples if known else ()
            shots = own if examples is None else Dataset.read(examples / f"{name}.jsonl").examples
            if prompts is not None:
                texts = self._read_prompts(prompts / f"{name}.jsonl")
            elif known:
                texts = own
            else:
                raise InvalidInput(
                    f"{name!r} is not in {self.collection.folder}, which conditions are drawn "
                    "from: give a folder with prompts of each data set, --prompts."
                )
            questions = (
                ()
                if tests is None or needed is None
                else tuple(read_questions(tests / f"{name}.jsonl", needed))
            )
            tasks.append(EvalTask(name, texts, questions, shots))
        return tasks

    def _read_prompts(self, path: Path) -> tuple[Example, ...]:
        if self.form == "prompt":
            return tuple(Example(prompt, response="") for prompt in read_prompts(path))
        return Dataset.read(path).examples

    def points(
        self, generator: Generator, held_out: Sequence[EvalTask], seeds: Sequence[int]
    ) -> tuple[list[Point], list[str]]:
        """Choose adapters to plot; returns these, and the names of their tensors.

        Of each data set four checkpoints, evenly spaced; of each held-out one an adapter per seed.
        """
        points = []
        for name in dict.fromkeys([*self.collected, *(task.name for task in held_out)]):
            kind: Kind = "training" if name in self.trained_on else "oracle"
            own = self.collection.checkpoints(name)
            step = max(1, (len(own) - 1) / (SHOWN_CHECKPOINTS - 1))
            chosen = {round(k * step) for k in range(min(len(own), SHOWN_CHECKPOINTS))}
            points += [Point(name, kind, tensors_on_disk(own[i])) for i in sorted(chosen)]
        for task in held_out:
            for seed in seeds:
                adapter = generate_adapter(generator, task.examples, self.form, seed)
                points.append(Point(task.name, "generated", adapter.tensors.__getitem__))
        return points, list(last_adapter(self.collection, self.collection.names[0]).tensors)


def evaluate_targets(
    targets: Sequence[EvalTarget],
    metric: Metric,
    *,
    tests: Path | None,
    prompts: Path | None = None,
    data: Sequence[str] = (),
    methods: Sequence[str] = METHODS,
    examples: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
    prompt_batches: int = 3,
    seed: int = 0,
    device: str = "cpu",
    plots: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Make one table of all targets. Everything is read and checked before the first test.

    Args:
        targets: What to evaluate; targets must not share held-out data sets.
        metric: The metric that counts.
        tests, prompts: See :meth:`EvalTarget.read_held_out`.
        data: See :meth:`EvalTarget.choose`.
        examples: Folder with examples to put into a context; see :meth:`EvalTarget.read_held_out`.
        adapters: Folders of further adapters, each a row of its own by this name.
        methods, prompt_batches, seed: See :func:`dnd_fast.train.evaluation.evaluate.evaluate`.
        device: Device of base and generators. The base is in bfloat16, on a CPU in float32.
        plots: Folder for ``accuracy.png`` and ``weights.png``, or one of these for each run; None:
            no plots.
        progress: Callback that gets stage, steps done and in all.

    Raises:
        FileNotFoundError: a file is missing.
        InvalidInput: a file is damaged, things do not fit together, or plots are asked for without
            matplotlib.
        OSError: the base or an encoder cannot be had, or a plot cannot be written.
    """
    check_methods(methods)
    if plots is not None:
        require_matplotlib()
    tasks = [
        target.read_held_out(target.choose(data), tests, prompts, metric.needed, examples)
        for target in targets
    ]
    check_disjoint([task.name for task in held_out] for held_out in tasks)
    further = {name: Adapter.load(folder) for name, folder in (adapters or {}).items()}
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    load = lru_cache(maxsize=1)(partial(load_base, dtype=dtype, device=device))
    evaluations = []
    for number, (target, held_out) in enumerate(zip(targets, tasks, strict=True), 1):
        manifest = target.collection.manifest
        model, tokenizer = load(manifest.base, manifest.tokenizer)
        generators = {
            label: Generator.from_pretrained(name).to(device)
            for label, name in target.generators.items()
        }
        evaluations.append(
            evaluate(
                Evaluator(model, tokenizer, metric),
                target.collection,
                generators,
                held_out,
                target.collected,
                methods=methods,
                adapters=further,
                form=target.form,
                prompt_batches=prompt_batches,
                seed=seed,
                progress=progress,
            )
        )
        if plots is not None:
            last, seeds = list(generators.values())[-1], range(seed, seed + prompt_batches)
            name = "weights.png" if len(targets) == 1 else f"weights-{number}.png"
            plot_weights(*target.points(last, held_out, seeds), plots / name)
    table = merged(evaluations)
    if plots is not None:
        plot_accuracy(table, plots / "accuracy.png")
    described = list(map(_described, targets, tasks))
    return dataclasses.replace(table, settings={"seed": seed, "subjects": described})


def _described(target: EvalTarget, held_out: Sequence[EvalTask]) -> dict[str, Any]:
    """Describe what was evaluated, for the record."""
    return {
        "generators": target.generators,
        "collection": str(target.collection.folder),
        "condition_form": target.form,
        "trained_on": target.trained_on,
        "held_out": [task.name for task in held_out],
    }
