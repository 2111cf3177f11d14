"""A model that adapts itself to prompts in two passes: find out what they need, then answer.

Source: Transformer² (arXiv:2501.06252), sections 3.2 and A.4. The first pass is one of

* ``"prompt"``: the base is asked which expert fits a prompt; ``"others"`` means the plain base.
* ``"classifier"``: the same under a further expert, trained to name the task.
* few-shot: the cross-entropy method searches the coefficients of a mixture of all
  experts, z' = Σ alpha_k z_k, on a few answered prompts of the task.

Asking: the answer taken is the category whose name, its end token included, the model is most
likely to give; so it is always one of the categories, from a model of any size.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.batched import (
    Batch,
    answered_exactly,
    collate,
    encode,
    generate_responses,
    response_logits,
    summed_losses,
)
from dnd_fast.stages import StageTimes
from dnd_fast.svf.cem import CemSpec, search
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.text.datasets import Example

OTHERS = "others"
Strategy = Literal["prompt", "classifier"]
SEQUENCES_PER_PASS = 512
TEMPLATE = (
    "Which of these categories does the question below belong to: {categories}? Answer with the "
    "category's name and nothing else; answer 'others' if none fits.\n\nQuestion: {prompt}"
)


class Answer(NamedTuple):
    """A response, and the expert that gave it (``"others"``: the base)."""

    response: str
    expert: str


@dataclass(frozen=True)
class FewShotSpec:
    """How experts are mixed.

    Attributes:
        per: ``"vector"``: one alpha per expert. ``"layer"``: one per expert and transformer layer.
        normalised: keep the sum of the alphas at 1.
        others: mix the base in as one more expert (ours), so that a mixture can be nearer to the
            base than every expert, or add up what several have learned.
        cem: the search's settings. The paper's light budget is ``CemSpec(iterations=10)`` on three
            examples.
    """

    per: Literal["vector", "layer"] = "vector"
    normalised: bool = True
    others: bool = True
    cem: CemSpec = field(default_factory=CemSpec)


@dataclass(frozen=True)
class Mixture:
    """What few-shot adaptation found.

    Attributes:
        expert: the mixture, an expert like any other.
        names: the experts mixed, in the order of ``alpha``.
        alpha: the coefficients ``[layers, K]``; one row where all layers share them.
        exact: the share of the examples answered exactly by greedy decoding.
        log_likelihood: the mean over the tokens of the examples' responses, which broke ties.
        generations: how many generations of samples were drawn.
        seconds: how long the search took, in seconds.
    """

    expert: Expert
    names: list[str]
    alpha: Tensor
    exact: float
    log_likelihood: float
    generations: int
    seconds: float


class AdaptiveModel:
    """A base with experts, one of which (or a mixture, or none) answers.

    Experts change the base while they answer: calls from several threads, also through other
    objects of this class with the same base, wait for one another.

    Args:
        base: the decomposed base model.
        tokenizer: the base's tokenizer, with a chat template.
        experts: the experts by the name of their category.
        classifier: the expert for the ``"classifier"`` strategy, trained on
            :func:`classification_examples`.
        template: the question that the first pass asks; ``{prompt}`` and ``{categories}`` in it
            are filled in.

    Raises:
        InvalidInput: there are no experts, one does not fit the base, or they do not fit together.
    """

    def __init__(
        self,
        base: DecomposedModel,
        tokenizer: PreTrainedTokenizerBase,
        experts: Mapping[str, Expert],
        *,
        classifier: Expert | None = None,
        template: str = TEMPLATE,
    ) -> None:
        if not experts:
            raise InvalidInput("there are no experts to choose from; give at least one.")
        if OTHERS in experts:
            raise InvalidInput(f"{OTHERS!r} is the name of the plain base; rename that expert.")
        if "{prompt}" not in template:
            raise InvalidInput(f"the template has no {{prompt}} in it: {template!r}.")
        first = next(iter(experts.values()))
        for name, expert in [*experts.items(), *([("classifier", classifier)] * bool(classifier))]:
            assert expert is not None
            try:
                base.check(expert)
            except InvalidInput as error:
                raise InvalidInput(f"{name}: {error}") from error
        for name, expert in experts.items():
            kinds = [(set(e.vectors), e.config.parametrisation) for e in (first, expert)]
            if kinds[0] != kinds[1]:
                raise InvalidInput(
                    f"{name}: it scales {len(expert.vectors)} matrices "
                    f"({expert.config.parametrisation}), {next(iter(experts))} scales "
                    f"{len(first.vectors)} ({first.config.parametrisation}); experts that are used "
                    "together must agree."
                )
        self.base, self.tokenizer = base, tokenizer
        self.experts, self.classifier, self.template = dict(experts), classifier, template
        self._times = StageTimes()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of the ``"first pass"`` and ``"second pass"`` of this thread's last
        :meth:`respond`."""
        return self._times.seconds

    @property
    def categories(self) -> list[str]:
        """The experts' names, then ``"others"``."""
        return [*self.experts, OTHERS]

    @torch.no_grad()
    def choose(self, prompts: Sequence[str], strategy: Strategy) -> list[str]:
        """The first pass: a category for each prompt.

        Raises:
            InvalidInput: the strategy is unknown, or there is no classifier for it.
        """
        if strategy not in get_args(Strategy):
            raise InvalidInput(f"strategy={strategy!r}; choose one of {get_args(Strategy)}.")
        if strategy == "classifier" and self.classifier is None:
            raise InvalidInput("the strategy 'classifier' needs a classification expert.")
        expert = self.classifier if strategy == "classifier" else None
        chosen = []
        per_pass = max(1, SEQUENCES_PER_PASS // len(self.categories))
        with self.base.merged(expert) if expert else self.base.plain():
            for start in range(0, len(prompts), per_pass):
                questions = [
                    Example(question(prompt, self.categories, self.template), name)
                    for prompt in prompts[start : start + per_pass]
                    for name in self.categories
                ]
                batch = self._collate(questions).view(len(questions), 1)
                losses = summed_losses(self.base.model, batch).view(-1, len(self.categories))
                chosen += [self.categories[i] for i in losses.argmin(1).tolist()]
        return chosen

    def few_shot(
        self, examples: Sequence[Example], spec: FewShotSpec | None = None, *, seed: int = 0
    ) -> Mixture:
        """The first pass for a whole task: search a mixture on a few answered prompts.

        Candidates are compared by the share of examples that they answer exactly, then by the mean
        log-likelihood of the examples' responses. (The paper takes that of the correct answers
        among those generated; ours also guides the search while no answer is right yet.)

        Args:
            examples: examples of the task, held out from what is evaluated; the paper takes 10,
                or 3.
            spec: how to mix and search.
            seed: the seed of the search.

        Raises:
            InvalidInput: there are no examples.
        """
        if not examples:
            raise InvalidInput("few-shot adaptation needs at least one answered prompt.")
        spec = spec or FewShotSpec()
        started = time.perf_counter()
        names = self.categories if spec.others else list(self.experts)
        batch = self._collate(examples)
        first = next(iter(self.experts.values()))
        layers = {name: _layer(name) for name in first.vectors}
        order = sorted(set(layers.values())) if spec.per == "layer" else [0]
        row = {
            name: order.index(layer) if spec.per == "layer" else 0 for name, layer in layers.items()
        }
        stacked = {name: self._stacked(name, names) for name in first.vectors}

        def alphas(samples: Tensor) -> Tensor:
            """``[P, D]`` -> ``[P, layers, K]``."""
            alpha = samples.view(-1, len(order), len(names))
            if spec.normalised:  # shifted, not divided: the sum of what is sampled may be near 0
                alpha = alpha + (1 - alpha.sum(-1, keepdim=True)) / len(names)
            return alpha

        def mixed(samples: Tensor) -> dict[str, Tensor]:
            alpha = alphas(samples)
            return {name: alpha[:, row[name]].to(z) @ z for name, z in stacked.items()}

        per_pass = max(1, SEQUENCES_PER_PASS // len(examples))

        def evaluate(samples: Tensor) -> Tensor:
            parts = [self._score(mixed(part), batch, len(part)) for part in samples.split(per_pass)]
            return torch.cat(parts)

        start = torch.full((len(order) * len(names),), 1 / len(names))
        result = search(evaluate, start, spec.cem, seed=seed)
        best = result.best[None]
        vectors = {name: z[0] for name, z in mixed(best).items()}
        return Mixture(
            self.base.expert(vectors, first.config.parametrisation),
            names,
            alphas(best)[0],
            exact=result.score[0],
            log_likelihood=result.score[1],
            generations=len(result.history),
            seconds=time.perf_counter() - started,
        )

    def respond(
        self,
        prompts: Sequence[str],
        strategy: Strategy | Mixture,
        *,
        max_new_tokens: int = 256,
    ) -> list[Answer]:
        """Both passes: greedy responses, each under the expert chosen for its prompt.

        Args:
            prompts: any prompts; a task's, if ``strategy`` is the mixture found for it.
            strategy: how to choose, or what :meth:`few_shot` found.
            max_new_tokens: the number of tokens in the longest response.
        """
        clock = time.perf_counter()
        if isinstance(strategy, Mixture):
            chosen, experts = ["mixture"] * len(prompts), {"mixture": strategy.expert}
            seconds = {"first pass": strategy.seconds}
        else:
            chosen, experts = self.choose(prompts, strategy), self.experts
            seconds = {"first pass": time.perf_counter() - clock}
        clock = time.perf_counter()
        answers: dict[int, Answer] = {}
        for name in dict.fromkeys(chosen):
            places = [i for i, choice in enumerate(chosen) if choice == name]
            group = [prompts[i] for i in places]
            with self.base.merged(experts[name]) if name != OTHERS else self.base.plain():
                responses = generate_responses(
                    self.base.model, self.tokenizer, [group], max_new_tokens=max_new_tokens
                )[0]
            answers |= {i: Answer(text, name) for i, text in zip(places, responses, strict=True)}
        seconds["second pass"] = time.perf_counter() - clock
        self._times.seconds = seconds
        return [answers[i] for i in range(len(prompts))]

    def _collate(self, examples: Sequence[Example]) -> Batch:
        return collate(encode(self.tokenizer, examples)).to(self.base.model.device)

    def _stacked(self, module: str, names: Sequence[str]) -> Tensor:
        """z of every expert for one module ``[K, r]``; the base's is what scales by 1."""
        vectors = [self.experts[name].vectors[module] for name in names if name != OTHERS]
        if OTHERS in names:
            plain = next(iter(self.experts.values())).config.parametrisation == "plain"
            vectors.append(torch.full_like(vectors[0], 1.0 if plain else 0.0))
        return torch.stack(vectors).to(self.base.svds[module].s)

    @torch.no_grad()
    def _score(self, vectors: Mapping[str, Tensor], batch: Batch, count: int) -> Tensor:
        """Exact match and mean log-likelihood ``[P, 2]`` of P mixtures on the same examples."""
        first = next(iter(self.experts.values()))
        repeated = Batch(*(tensor.repeat(count, 1) for tensor in batch))
        with self.base.factored(vectors, first.config.parametrisation):
            logits, labels = response_logits(self.base.model, repeated)
        exact = answered_exactly(repeated, logits).view(count, -1).double().mean(-1)
        losses = cross_entropy(logits.float(), labels, reduction="none").view(count, -1)
        return torch.stack([exact, -losses.double().mean(-1)], dim=-1).cpu()


def question(prompt: str, categories: Sequence[str], template: str = TEMPLATE) -> str:
    """What the first pass asks about a prompt."""
    named = template.replace("{categories}", ", ".join(categories))
    return named.replace("{prompt}", prompt)


def classification_examples(
    tasks: Mapping[str, Sequence[Example]], template: str = TEMPLATE
) -> list[Example]:
    """What a classification expert is trained on: every task's prompts, and the task's name."""
    categories = [*tasks, OTHERS]
    return [
        Example(question(example.prompt, categories, template), name)
        for name, examples in tasks.items()
        for example in examples
    ]


def _layer(module: str) -> int:
    index = re.search(r"\.(\d+)\.", module)
    return int(index[1]) if index else 0
