"""Test a generator on data sets that it was not trained on, beside what else one could do.

Source: Drag-and-Drop LLMs, sections 3.2 and 3.3, Tables 1 and 10. Methods:

* ``base``: the base model alone;
* ``in-context-K``: the base with K of the data set's own examples before each question;
* ``training``: training adapters, tested on data sets that they were not trained on: the mean over
  them (the paper's "training LoRAs"), and the best one, picked by its score on the very questions;
  ``nearest``: the one whose prompts' embedding is nearest; ``soup``: the mean of their weights;
* adapters that somebody else has trained, on all data sets together for instance;
* ``generated``: adapters from the data set's own unlabelled prompts, drawn several times;
* ``generated from another data set's prompts``: the control, which has to fail;
* ``oracle``: the adapter trained on the data set itself, where there is one.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.errors import InvalidInput
from dnd_fast.generator import Generator
from dnd_fast.lora.adapter import Adapter
from dnd_fast.text.datasets import Example
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.evaluation.metrics import Metric
from dnd_fast.train.evaluation.questions import Question
from dnd_fast.train.evaluation.scores import Evaluation, Row
from dnd_fast.train.generator.pairs import ANSWER_SHARE, Form, condition_texts

NEAREST_TEXTS = 96  # that stand for a data set where the nearest one is looked for
TEXTS_AT_ONCE = 8  # embedded together there: one may take 40 MB

BASE, ORACLE = "base", "oracle"
MEAN, BEST = "training adapters, mean", "training adapters, best on the test data"
NEAREST, SOUP = "training adapters, nearest by embedding", "training adapters, mean of weights"
GENERATED, CONTROL = "generated", "generated from another data set's prompts"
ROWS = (BASE, MEAN, BEST, NEAREST, SOUP, GENERATED, CONTROL, ORACLE)
METHODS = ("base", "training", "nearest", "soup", "generated", "control", "oracle")
IN_CONTEXT = re.compile(r"in-context-([1-9]\d*)")

Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class EvalTask:
    """A data set to test on.

    Attributes:
        name: Name as in the collection, if it is there.
        examples: What conditions are drawn from; never the questions.
        questions: Questions to be answered; empty where the metric brings its own.
        shots: Examples with responses, for those in context.
    """

    name: str
    examples: tuple[Example, ...]
    questions: tuple[Question, ...]
    shots: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Evaluator:
    """The base model and how its answers are scored."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metric: Metric

    def score(self, adapter: Adapter | None, task: EvalTask) -> list[float]:
        """Score each question under an adapter, or of the base alone."""
        with with_adapter(self.model, adapter):
            return self.metric.score(self.model, self.tokenizer, task.questions)


def evaluate(
    evaluator: Evaluator,
    collection: Collection,
    generators: Mapping[str, Generator],
    held_out: Sequence[EvalTask],
    trained_on: Sequence[str],
    *,
    methods: Sequence[str] = METHODS,
    adapters: Mapping[str, Adapter] | None = None,
    form: Form = "prompt",
    prompt_batches: int = 3,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Score methods on every held-out data set; adapters are in memory one at a time.

    Args:
        evaluator: Model and metric.
        collection: Training adapters and, where a held-out data set is among them, the oracle. Of
            each data set's adapters the last one counts.
        generators: Generators by the name that tells them apart in the table; ``""`` for the only
            one.
        held_out: Data sets to test on.
        trained_on: The collection's data sets that the generators were trained on.
        methods: The methods to score, of ``METHODS``, and "in-context-K" for any K.
        adapters: Further adapters of the base, each a row of its own by this name.
        form: What of an example makes the condition, as in training.
        prompt_batches: Number of conditions drawn for each data set.
        seed: Seed of the first draw; the next ones have the next seeds. The same draw as
            ``Generator.generate(…, seed=seed)`` makes.
        progress: Callback that gets stage, steps done and in all.

    Raises:
        InvalidInput: an adapter does not fit the base model, generators and collection are for
            different adapters, there is no such method, there are too few examples to put into the
            context, or a name is that of another row.
    """
    adapters = adapters or {}
    check_methods(methods)
    for generator in generators.values():
        _check_fits(generator, collection)
    for name, adapter in adapters.items():
        _check_adapter(name, adapter, evaluator.model)
    test = _Test(evaluator, collection, held_out, trained_on, form, progress)
    in_context = {
        name: test.with_shots(int(name.rpartition("-")[2]), seed)
        for name in filter(IN_CONTEXT.fullmatch, methods)
    }
    rows: dict[str, Row] = {}
    if "base" in methods:
        rows[BASE] = test.everywhere(BASE, held_out)
    for name, tasks in in_context.items():
        rows[name] = test.everywhere(name, tasks)
    for name, adapter in adapters.items():
        rows[name] = test.everywhere(name, held_out, adapter)
    trained = test.training_adapters() if "training" in methods else {}
    rows |= _summaries(trained) if any(trained.values()) else {}
    if "nearest" in methods and trained_on:
        rows[NEAREST] = test.nearest(next(iter(generators.values())))
    if "soup" in methods and trained_on:
        rows[SOUP] = test.mean_of_weights()
    for label, generator in generators.items():
        suffix = f", {label}" if label else ""
        seeds = range(seed, seed + prompt_batches)
        if "generated" in methods:
            stage = f"generate and test{suffix}"
            rows[GENERATED + suffix] = test.generated(generator, seeds, stage)
        if "control" in methods:
            rows[CONTROL + suffix] = test.control(generator, seed)
    if "oracle" in methods:
        rows[ORACLE] = test.oracles()
    rows = {name: row for name, row in rows.items() if row}
    return Evaluation(evaluator.metric.name, rows, trained)


def check_methods(methods: Sequence[str]) -> None:
    """Raise InvalidInput unless there are methods, all of ``METHODS`` or examples in context."""
    unknown = [name for name in methods if name not in METHODS and not IN_CONTEXT.fullmatch(name)]
    if unknown or not methods:
        raise InvalidInput(
            f"there is no method {(unknown or [''])[0]!r} to evaluate; choose of "
            f"{', '.join(METHODS)}, in-context-3, in-context-8, …"
        )


@dataclass(frozen=True)
class _Test:
    """What all methods are tested on; each method of this class makes a row of the table."""

    evaluator: Evaluator
    collection: Collection
    held_out: Sequence[EvalTask]
    trained_on: Sequence[str]
    form: Form
    progress: Progress

    def everywhere(
        self, name: str, tasks: Sequence[EvalTask], adapter: Adapter | None = None
    ) -> Row:
        """Score one adapter, or the base alone, on every data set."""
        row: Row = {}
        for done, task in enumerate(tasks, 1):
            row[task.name] = [self.evaluator.score(adapter, task)]
            self.progress(f"test {name}", done, len(tasks))
        return row

    def with_shots(self, count: int, seed: int) -> list[EvalTask]:
        """Put examples before each question, the same for all of a data set."""
        if self.evaluator.metric.needed is None:
            raise InvalidInput(
                f"{self.evaluator.metric.name} brings its own questions, before which no examples "
                "can be put: leave in-context out."
            )
        tasks = []
        for task in self.held_out:
            prompts = {question.prompt for question in task.questions}
            pool = [example for example in task.shots if example.prompt not in prompts]
            if len(pool) < count:
                raise InvalidInput(
                    f"data set {task.name!r} has {len(pool)} examples with responses to put into "
                    f"the context, {count} are wanted: give a folder with more, --examples."
                )
            shots = tuple(random.Random(f"in context {task.name} {seed}").sample(pool, count))
            asked = tuple(dataclasses.replace(each, shots=shots) for each in task.questions)
            tasks.append(dataclasses.replace(task, questions=asked))
        return tasks

    def training_adapters(self) -> dict[str, Row]:
        """Score every training adapter on the data sets that it was not trained on."""
        rows: dict[str, Row] = {}
        for done, name in enumerate(self.trained_on, 1):
            adapter = last_adapter(self.collection, name)
            rows[name] = {
                task.name: [self.evaluator.score(adapter, task)]
                for task in self.held_out
                if task.name != name
            }
            self.progress("test every training adapter", done, len(self.trained_on))
        return rows

    def mean_of_weights(self) -> Row:
        """Score the mean of all training adapters but the data set's own."""
        total: dict[str, Tensor] = {}
        for name in self.trained_on:
            for key, value in last_adapter(self.collection, name).tensors.items():
                total[key] = total.get(key, 0) + value.double()
        config = last_adapter(self.collection, self.trained_on[0]).config
        row: Row = {}
        for task in self.held_out:
            kept, count = total, len(self.trained_on)
            if task.name in self.trained_on:
                own = last_adapter(self.collection, task.name).tensors
                kept = {key: value - own[key].double() for key, value in total.items()}
                count -= 1
            if count:
                tensors = {key: (value / count).float() for key, value in kept.items()}
                row[task.name] = [self.evaluator.score(Adapter(tensors, config), task)]
        return row

    def nearest(self, generator: Generator) -> Row:
        """Score on each data set the adapter of the one trained on whose texts are most similar."""
        examples = [task.examples for task in self.held_out]
        examples += [self.collection.dataset(name).examples for name in self.trained_on]
        signatures = []
        for done, some in enumerate(examples, 1):
            signatures.append(self._signature(generator, some))
            self.progress("embed prompts", done, len(examples))
        held_out, trained_on = torch.stack(signatures).split(
            [len(self.held_out), len(self.trained_on)]
        )
        row: Row = {}
        for index, task in enumerate(self.held_out):
            others = [i for i, name in enumerate(self.trained_on) if name != task.name]
            if others:
                (most,) = most_similar(held_out[[index]], trained_on[others])
                adapter = last_adapter(self.collection, self.trained_on[others[most]])
                row[task.name] = [self.evaluator.score(adapter, task)]
        return row

    def _signature(self, generator: Generator, examples: Sequence[Example]) -> Tensor:
        """Mean embedding ``[C]`` of a data set's first texts."""
        texts = condition_texts(examples[:NEAREST_TEXTS], self.form)[0]
        length = generator.config.condition.length
        parts = [
            pooled(generator.encoder.encode(texts[start : start + TEXTS_AT_ONCE], length))
            for start in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat(parts).mean(0)

    def generated(self, generator: Generator, seeds: Sequence[int], stage: str) -> Row:
        """Score adapters from each data set's own prompts, drawn once by each seed."""
        row: Row = {}
        for done, task in enumerate(self.held_out, 1):
            row[task.name] = [
                self.evaluator.score(
                    generate_adapter(generator, task.examples, self.form, seed), task
                )
                for seed in seeds
            ]
            self.progress(stage, done, len(self.held_out))
        return row

    def control(self, generator: Generator, seed: int) -> Row:
        """Score adapters from another data set's prompts: the one before, or a trained one's."""
        row: Row = {}
        for index, task in enumerate(self.held_out):
            other = next((name for name in self.trained_on if name != task.name), None)
            if len(self.held_out) > 1:
                examples = self.held_out[index - 1].examples
            elif other is not None:
                examples = self.collection.dataset(other).examples
            else:
                continue
            wrong = generate_adapter(generator, examples, self.form, seed)
            row[task.name] = [self.evaluator.score(wrong, task)]
        return row

    def oracles(self) -> Row:
        """Score the adapters trained on the data sets themselves, where there are any."""
        return {
            task.name: [self.evaluator.score(last_adapter(self.collection, task.name), task)]
            for task in self.held_out
            if task.name in self.collection.names
        }


@contextmanager
def with_adapter(model: PreTrainedModel, adapter: Adapter | None) -> Iterator[None]:
    """Put the model under an adapter, any that PEFT can apply, while the block runs.

    Raises:
        InvalidInput: the adapter does not fit the model.
    """
    if adapter is None:
        yield
        return
    wrapped = adapter.apply(model)
    try:
        yield
    finally:
        wrapped.unload()


def last_adapter(collection: Collection, name: str) -> Adapter:
    """Read the adapter trained longest on a data set."""
    return Adapter.load(collection.checkpoints(name)[-1])


def generate_adapter(
    generator: Generator, examples: Sequence[Example], form: Form, seed: int
) -> Adapter:
    """Generate an adapter from examples in the form that the generator was trained with.

    Args:
        generator: A generator that takes N texts.
        examples: Examples, of which N are drawn.
        form: See :func:`dnd_fast.train.generator.pairs.condition_texts`; of "mix" a fifth are
            answers.
        seed: Seed of the draw.
    """
    texts, *answers = condition_texts(examples, form)
    if answers:
        rng = random.Random(f"mix {seed}")
        texts = [
            answer if rng.random() < ANSWER_SHARE else prompt
            for prompt, answer in zip(texts, answers[0], strict=True)
        ]
    return generator.generate(texts, seed=seed)


def pooled(embedded: Tensor) -> Tensor:
    """Mean over the real positions of each text: ``[texts, L, C]`` -> ``[texts, C]`` float32."""
    real = (embedded != 0).any(-1).float()
    return embedded.float().sum(1) / real.sum(1, keepdim=True)


def most_similar(signatures: Tensor, others: Tensor) -> list[int]:
    """Find for each of ``[K, C]`` which of ``[M, C]`` has the highest cosine similarity."""
    return (normalize(signatures, dim=-1) @ normalize(others, dim=-1).T).argmax(1).tolist()


def _summaries(adapters: Mapping[str, Row]) -> dict[str, Row]:
    """Rows of the training adapters' mean and best, question by question."""
    rows: dict[str, Row] = {MEAN: {}, BEST: {}}
    for name in dict.fromkeys(name for row in adapters.values() for name in row):
        scores = [row[name][0] for row in adapters.values() if name in row]
        rows[MEAN][name] = [[mean(question) for question in zip(*scores, strict=True)]]
        rows[BEST][name] = [max(scores, key=mean)]
    return rows


def _check_adapter(name: str, adapter: Adapter, model: PreTrainedModel) -> None:
    if name in ROWS:
        raise InvalidInput(f"an adapter cannot be named {name!r}, as another row is.")
    try:
        with with_adapter(model, adapter):
            pass
    except InvalidInput as error:
        raise InvalidInput(f"adapter {name!r}: {error}") from error


def _check_fits(generator: Generator, collection: Collection) -> None:
    """Check that generated and collected adapters change the same matrices."""
    made = {key: tuple(shape) for key, shape in generator.layout.tensor_shapes().items()}
    name = collection.names[0]
    collected = {key: tuple(v.shape) for key, v in last_adapter(collection, name).tensors.items()}
    for key in sorted(made.keys() | collected.keys()):
        if made.get(key) != collected.get(key):
            raise InvalidInput(
                f"the generator and {collection.folder} are for different adapters: {key} has "
                f"shape {made.get(key, 'missing')} in the one and "
                f"{collected.get(key, 'missing')} in the other."
            )
