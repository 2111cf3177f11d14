"""Test a generator on data sets that it was not trained on, beside what else one could do.

Source: Drag-and-Drop LLMs, sections 3.2 and 3.3, Tables 1 and 10. Methods:

* ``base``: the base model alone;
* training adapters, tested on data sets that they were not trained on: the mean over them (the
  paper's "training LoRAs"), the best one, picked by its score on the very questions, the nearest
  one by prompt embedding, and the mean of their weights;
* ``generated``: adapters from the data set's own unlabelled prompts, drawn several times;
* ``generated from another data set's prompts``: the control, which has to fail;
* ``oracle``: the adapter trained on the data set itself, where there is one.
"""

from __future__ import annotations

import random
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
from dnd_fast.lora.adapter import PREFIX, Adapter
from dnd_fast.lora.batched import with_adapters
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

Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class EvalTask:
    """A data set to test on.

    Attributes:
        name: as in the collection, if it is there.
        examples: what conditions are drawn from; never the questions.
        questions: to be answered; empty where the metric brings its own.
    """

    name: str
    examples: tuple[Example, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Evaluator:
    """The base model and how its answers are scored."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metric: Metric

    def score(self, adapter: Adapter | None, held_out: EvalTask) -> list[float]:
        """The score of each question under an adapter, or of the base alone."""
        with with_adapter(self.model, adapter):
            return self.metric.score(self.model, self.tokenizer, held_out.questions)


def evaluate(
    evaluator: Evaluator,
    collection: Collection,
    generators: Mapping[str, Generator],
    held_out: Sequence[EvalTask],
    trained_on: Sequence[str],
    *,
    form: Form = "prompt",
    prompt_batches: int = 3,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Score every method on every held-out data set; adapters are in memory one at a time.

    Args:
        evaluator: model and metric.
        collection: has the training adapters and, where a held-out data set is among its own, the
            oracle. Of each data set's adapters the last one counts.
        generators: by the name that tells them apart in the table; ``""`` for the only one.
        held_out: data sets to test on.
        trained_on: the collection's data sets that the generators were trained on.
        form: what of an example makes the condition, as in training.
        prompt_batches: conditions drawn for each data set.
        seed: of the first draw; the next ones have the next seeds. The same draw as
            ``Generator.generate(…, seed=seed)`` makes.
        progress: is told stage, steps done and in all.

    Raises:
        InvalidInput: an adapter does not fit the base model, or generators and collection are for
            different adapters.
    """
    for generator in generators.values():
        _check_fits(generator, collection)
    rows: dict[str, Row] = {BASE: {}}
    for done, each in enumerate(held_out, 1):
        rows[BASE][each.name] = [evaluator.score(None, each)]
        progress("test the base model", done, len(held_out))
    adapters, soup = _test_training_adapters(evaluator, collection, held_out, trained_on, progress)
    if any(adapters.values()):
        rows |= _summaries(adapters)
        nearest = _nearest(
            next(iter(generators.values())), collection, held_out, trained_on, form, progress
        )
        rows[NEAREST] = {name: adapters[near][name] for name, near in nearest.items()}
        rows[SOUP] = {
            each.name: [evaluator.score(soup(each.name), each)]
            for each in held_out
            if each.name in nearest
        }
    for label, generator in generators.items():
        rows |= _test_generated(
            evaluator,
            generator,
            _others(collection, held_out, trained_on),
            held_out,
            f", {label}" if label else "",
            form,
            range(seed, seed + prompt_batches),
            progress,
        )
    rows[ORACLE] = {
        each.name: [evaluator.score(last_adapter(collection, each.name), each)]
        for each in held_out
        if each.name in collection.names
    }
    return Evaluation(
        evaluator.metric.name, {name: row for name, row in rows.items() if row}, adapters
    )


@contextmanager
def with_adapter(model: PreTrainedModel, adapter: Adapter | None) -> Iterator[None]:
    """The model under an adapter while the block runs.

    Raises:
        InvalidInput: the adapter does not fit the model.
    """
    if adapter is None:
        yield
        return
    linears = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    for name in adapter.modules:
        a, b = (adapter.tensors[f"{PREFIX}{name}.lora_{half}.weight"] for half in "AB")
        found = tuple(linears[name].weight.shape) if name in linears else None
        if found != (b.shape[0], a.shape[1]):
            raise InvalidInput(
                f"an adapter does not fit this {type(model).__name__}: it changes {name}, "
                f"{b.shape[0]} x {a.shape[1]}, where the model has {found or 'nothing'}."
            )
    one = {name: value[None].to(model.device) for name, value in adapter.tensors.items()}
    with with_adapters(model, one, adapter.scaling):
        yield


def last_adapter(collection: Collection, name: str) -> Adapter:
    """The adapter trained longest on a data set."""
    return Adapter.load(collection.checkpoints(name)[-1])


def generate_adapter(
    generator: Generator, examples: Sequence[Example], form: Form, seed: int
) -> Adapter:
    """One adapter from examples in the form that the generator was trained with.

    Args:
        generator: takes N texts.
        examples: of which N are drawn.
        form: see :func:`dnd_fast.train.generator.pairs.condition_texts`; of "mix" a fifth are
            answers.
        seed: of the draw.
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
    """For each of ``[K, C]`` which of ``[M, C]`` has the highest cosine similarity."""
    return (normalize(signatures, dim=-1) @ normalize(others, dim=-1).T).argmax(1).tolist()


def _test_training_adapters(
    evaluator: Evaluator,
    collection: Collection,
    held_out: Sequence[EvalTask],
    trained_on: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Row], Callable[[str], Adapter]]:
    """Their scores, and the mean of all their weights but those trained on a given data set."""
    adapters: dict[str, Row] = {}
    total: dict[str, Tensor] = {}
    for done, name in enumerate(trained_on, 1):
        adapter = last_adapter(collection, name)
        for key, value in adapter.tensors.items():
            total[key] = total.get(key, 0) + value.double()
        adapters[name] = {
            each.name: [evaluator.score(adapter, each)] for each in held_out if each.name != name
        }
        progress("test every training adapter", done, len(trained_on))
    config = last_adapter(collection, trained_on[0]).config if trained_on else {}

    def soup(without: str) -> Adapter:
        kept, count = total, len(trained_on)
        if without in trained_on:
            own = last_adapter(collection, without).tensors
            kept, count = (
                {key: value - own[key].double() for key, value in total.items()},
                count - 1,
            )
        return Adapter({key: (value / count).float() for key, value in kept.items()}, config)

    return adapters, soup


def _summaries(adapters: Mapping[str, Row]) -> dict[str, Row]:
    """Mean and best of the training adapters, question by question."""
    rows: dict[str, Row] = {MEAN: {}, BEST: {}}
    for name in dict.fromkeys(name for row in adapters.values() for name in row):
        scores = [row[name][0] for row in adapters.values() if name in row]
        rows[MEAN][name] = [[mean(question) for question in zip(*scores, strict=True)]]
        rows[BEST][name] = [max(scores, key=mean)]
    return rows


def _nearest(
    generator: Generator,
    collection: Collection,
    held_out: Sequence[EvalTask],
    trained_on: Sequence[str],
    form: Form,
    progress: Progress,
) -> dict[str, str]:
    """For each held-out data set the one trained on whose texts are most similar on average."""
    sources = [each.examples for each in held_out]
    sources += [collection.dataset(name).examples for name in trained_on]
    spec, found = generator.config.condition, []
    for done, examples in enumerate(sources, 1):
        texts = condition_texts(examples[:NEAREST_TEXTS], form)[0]
        parts = [
            pooled(generator.encoder.encode(texts[start : start + TEXTS_AT_ONCE], spec.length))
            for start in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        found.append(torch.cat(parts).mean(0))
        progress("embed prompts", done, len(sources))
    signatures = torch.stack(found)
    nearest = {}
    for index, each in enumerate(held_out):
        others = [i for i, name in enumerate(trained_on) if name != each.name]
        if others:
            rows = signatures[[len(held_out) + i for i in others]]
            nearest[each.name] = trained_on[others[most_similar(signatures[[index]], rows)[0]]]
    return nearest


def _others(
    collection: Collection, held_out: Sequence[EvalTask], trained_on: Sequence[str]
) -> dict[str, tuple[Example, ...]]:
    """For each held-out data set another one's examples: the one before it, or a trained one's."""
    if len(held_out) > 1:
        return {each.name: held_out[i - 1].examples for i, each in enumerate(held_out)}
    return {
        each.name: collection.dataset(name).examples
        for each in held_out
        for name in [name for name in trained_on if name != each.name][:1]
    }


def _test_generated(
    evaluator: Evaluator,
    generator: Generator,
    others: Mapping[str, Sequence[Example]],
    held_out: Sequence[EvalTask],
    label: str,
    form: Form,
    seeds: Sequence[int],
    progress: Progress,
) -> dict[str, Row]:
    generated, control = GENERATED + label, CONTROL + label
    rows: dict[str, Row] = {generated: {}, control: {}}
    for done, each in enumerate(held_out, 1):
        rows[generated][each.name] = [
            evaluator.score(generate_adapter(generator, each.examples, form, seed), each)
            for seed in seeds
        ]
        if each.name in others:
            wrong = generate_adapter(generator, others[each.name], form, seeds[0])
            rows[control][each.name] = [evaluator.score(wrong, each)]
        progress(f"generate and test{label}", done, len(held_out))
    return rows


def _check_fits(generator: Generator, collection: Collection) -> None:
    """Generated and collected adapters must change the same matrices."""
    made = {key: tuple(shape) for key, shape in generator.layout.tensor_shapes().items()}
    name = collection.names[0]
    found = {key: tuple(v.shape) for key, v in last_adapter(collection, name).tensors.items()}
    for key in sorted(made.keys() | found.keys()):
        if made.get(key) != found.get(key):
            raise InvalidInput(
                f"the generator and {collection.folder} are for different adapters: {key} has "
                f"shape {made.get(key, 'missing')} in the one and {found.get(key, 'missing')} in "
                "the other."
            )
