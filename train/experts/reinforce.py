"""Training of SVF experts: REINFORCE with a penalty for leaving the base, or next-token loss.

Source: Transformer² (arXiv:2501.06252), sections 3.2 and A.1, Table 6. The objective is

    J(z) = E[ r(y) log π'(y | x) ] - λ KL(π' ‖ π),    y ~ π',  r = 1 if y is right, else -1

with π' the model under the expert and π the base. Both terms are sums over a response's tokens, its
end included; KL is taken over the whole vocabulary at every token of the sampled response. With a
temperature T, π' and π are softmax(logits / T), so that what is sampled is what is differentiated.

A run is a function of its settings, seed and examples: step i draws its examples and responses by
(seed, i), so that a run that was killed resumes as if it had not been.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, locked, write_json
from dnd_fast.lora.batched import (
    IGNORE_INDEX,
    Batch,
    TokenizedExample,
    collate,
    encode,
    response_logits,
    summed_losses,
)
from dnd_fast.svf.decomposition import Parametrisation, initial_vectors
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.text.datasets import Example
from dnd_fast.train.experts.checkpoints import State
from dnd_fast.train.experts.sampling import sample

Objective = Literal["reinforce", "next-token"]
Reward = Callable[[str, Example], float]
RUN_FILE = "training.json"


@dataclass(frozen=True)
class ExpertSpec:
    """Settings of a run; defaults are the paper's where it has them.

    Attributes:
        modules: Which weights; see :class:`dnd_fast.svf.expert.DecomposedModel`.
        parametrisation: How z becomes scales; see :mod:`dnd_fast.svf.decomposition`.
        objective: ``"reinforce"``, or ``"next-token"``, the paper's ablation.
        steps: Number of optimiser steps.
        warmup: The first so many steps are next-token ones whatever the objective: a base that
            never answers right gets no reward to start from.
        batch: Examples per step.
        learning_rate: Learning rate of AdamW, with cosine decay and without weight decay (which
            would pull scales to 0).
        max_norm: Norm that gradients are clipped to.
        kl: λ, the weight of the penalty.
        temperature: Temperature of the sampled responses; positive.
        max_new_tokens: Tokens of the longest response.
        validation: Share of the examples kept to choose the best step by greedy responses.
        validate_every: Steps between validations.
        micro_batch: Sequences per forward pass.
    """

    modules: str = "both"
    parametrisation: Parametrisation = "plain"
    objective: Objective = "reinforce"
    steps: int = 100
    warmup: int = 0
    batch: int = 256
    learning_rate: float = 2e-3
    max_norm: float = 1e-3
    kl: float = 0.1
    temperature: float = 1.0
    max_new_tokens: int = 256
    validation: float = 0.5
    validate_every: int = 10
    micro_batch: int = 256

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "max_new_tokens", "validate_every", "micro_batch"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)}: at least 1 is needed.")
        for name in ("learning_rate", "max_norm", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name}={getattr(self, name)}: it must be a positive number.")
        for name in ("kl", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(f"{name}={getattr(self, name)}: it must not be negative.")
        if not 0 < self.validation < 1:
            raise InvalidInput(f"validation={self.validation}: it must be between 0 and 1.")
        if self.objective not in get_args(Objective):
            raise InvalidInput(
                f"objective={self.objective!r}; choose one of {get_args(Objective)}."
            )
        if self.parametrisation not in get_args(Parametrisation):
            raise InvalidInput(
                f"parametrisation={self.parametrisation!r}; choose one of "
                f"{get_args(Parametrisation)}."
            )


def exact_reward(response: str, example: Example) -> float:
    """Return 1 if a response is the example's, spaces around it aside, else -1."""
    return 1.0 if response.strip() == example.response.strip() else -1.0


def train_expert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    spec: ExpertSpec,
    *,
    seed: int,
    out: str | Path,
    reward: Reward = exact_reward,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Expert:
    """Train an expert, or resume a run that was stopped.

    Args:
        model: The frozen base; the same before and after.
        tokenizer: Tokenizer with a chat template.
        examples: A task's prompts and responses. REINFORCE uses responses by ``reward`` alone.
        spec: Settings.
        seed: Seed of the split into training and validation, and of all draws.
        out: Folder for the expert, with ``training.json``: settings and validations. Beside them
            ``state/`` is what a stopped run resumes from.
        reward: Reward of a response to an example, in [-1, 1]; above 0 counts as right in
            validation.
        cache: Folder for the base's SVD; see :class:`dnd_fast.svf.expert.DecomposedModel`.
        progress: Callback that gets steps done and in all.

    Returns:
        The expert with the best validation score, the earliest of equals.

    Raises:
        InvalidInput: too few examples, ``out`` holds a run with other settings or one that another
            process is at, or its state is damaged.
    """
    out = Path(out)
    shuffled = random.Random(f"split {seed}").sample(list(examples), len(examples))
    kept = round(len(shuffled) * spec.validation)
    if not 0 < kept < len(shuffled):
        raise InvalidInput(
            f"{len(shuffled)} examples cannot be split into training and validation "
            f"(validation={spec.validation}); give more."
        )
    with locked(out, "dnd-fast train-expert"):
        base = DecomposedModel(model, spec.modules, cache=cache)
        run = _Run(base, tokenizer, shuffled[kept:], shuffled[:kept], spec, seed, reward)
        about = {
            "settings": dataclasses.asdict(spec),
            "seed": seed,
            "examples": hashlib.sha256(
                repr([dataclasses.astuple(e) for e in shuffled]).encode()
            ).hexdigest(),
            "base": base.fingerprint(list(base.sizes)),
        }
        vectors = initial_vectors(base.sizes, spec.parametrisation, seed)
        state = State({name: z.to(model.device) for name, z in vectors.items()})
        if not state.restore(out / "state", about):
            run.validate(state)
        progress(state.step, spec.steps)
        while state.step < spec.steps:
            run.step(state)
            if state.step % spec.validate_every == 0 or state.step == spec.steps:
                run.validate(state)
                state.save(out / "state", about)
            progress(state.step, spec.steps)
        expert = base.expert(state.best, spec.parametrisation)
        with atomic_folder(out) as folder:
            expert.write(folder)
            result = {"score": state.score, "history": state.history}
            write_json(folder / RUN_FILE, about | result)
    return expert


def fit_experts(
    base: DecomposedModel,
    datasets: Sequence[Sequence[TokenizedExample]],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Fit one plain expert per data set by next-token loss, all of them in every pass.

    For collections of experts, from which a generator learns.

    Args:
        base: The decomposed base.
        datasets: Tokenised examples, one list per expert.
        steps: Number of optimiser steps, with cosine decay.
        batch: Examples per expert and step.
        learning_rate: Learning rate of AdamW.
        seed: Seed of the order of examples.
        progress: Callback that gets steps done and in all.

    Returns:
        Vectors z ``[data sets, r]`` by module name.
    """
    rng = random.Random(f"experts {seed}")
    vectors = {
        name: z.expand(len(datasets), -1).to(base.model.device, copy=True).requires_grad_()
        for name, z in initial_vectors(base.sizes, "plain", seed).items()
    }
    optimizer = torch.optim.AdamW(vectors.values(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        # The same positions in every data set: what differs between experts is the data alone.
        drawn = [rng.random() for _ in range(batch)]
        sequences = [data[int(len(data) * at)] for data in datasets for at in drawn]
        examples = collate(sequences).to(base.model.device).view(len(datasets), batch)
        with base.factored(vectors):
            losses = summed_losses(base.model, examples)
        loss = losses / (examples.labels != IGNORE_INDEX).sum((1, 2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    return {name: z.detach() for name, z in vectors.items()}


def policy_objective(
    log_policy: Tensor,
    log_base: Tensor,
    chosen: Tensor,
    owner: Tensor,
    rewards: Tensor,
    kl: float,
) -> tuple[Tensor, Tensor]:
    """Return J, whose gradient is REINFORCE's estimate, from sampled responses.

    Args:
        log_policy, log_base: log π' and log π ``[tokens, vocabulary]``; the second has no gradient.
        chosen: The sampled token ids ``[tokens]``.
        owner: Index of the response that each token belongs to ``[tokens]``.
        rewards: Rewards of the responses ``[B]``.
        kl: λ, the weight of the penalty.

    Returns:
        J, and KL(π' ‖ π) ``[B]`` without gradient.
    """
    likelihood = log_policy.gather(1, chosen[:, None])[:, 0]
    divergence = (log_policy.exp() * (log_policy - log_base)).sum(1)
    totals = torch.zeros_like(rewards)
    responses = totals.index_add(0, owner, likelihood)
    divergences = totals.index_add(0, owner, divergence)
    return (rewards * responses - kl * divergences).mean(), divergences.detach()


class _Run:
    """What stays the same from step to step."""

    def __init__(
        self,
        base: DecomposedModel,
        tokenizer: PreTrainedTokenizerBase,
        training: list[Example],
        validation: list[Example],
        spec: ExpertSpec,
        seed: int,
        reward: Reward,
    ) -> None:
        self.base, self.model, self.tokenizer = base, base.model, tokenizer
        self.spec, self.seed, self.reward = spec, seed, reward
        self.training = list(zip(training, encode(tokenizer, training), strict=True))
        self.validation = list(zip(validation, encode(tokenizer, validation), strict=True))
        self.last: dict[str, float | None] = {"reward": None, "kl": None}

    def step(self, state: State) -> None:
        """Do one optimiser step, in place."""
        spec, index = self.spec, state.step
        rng = random.Random(f"{self.seed} {index}")
        drawn = rng.sample(self.training, min(spec.batch, len(self.training)))
        state.optimizer.zero_grad()
        if spec.objective == "next-token" or index < spec.warmup:
            self._next_token(state.vectors, [encoded for _, encoded in drawn])
        else:
            self._reinforce(state.vectors, drawn, rng.getrandbits(62))
        torch.nn.utils.clip_grad_norm_(state.vectors.values(), spec.max_norm)
        cosine = 0.5 * (1 + math.cos(math.pi * index / spec.steps))
        state.optimizer.param_groups[0]["lr"] = spec.learning_rate * cosine
        state.optimizer.step()
        state.step += 1

    @torch.no_grad()
    def validate(self, state: State) -> None:
        """Score greedy responses; keep the vectors if they are the best so far."""
        rewards = []
        with self.base.merged(self.base.expert(state.vectors, self.spec.parametrisation)):
            for part in _parts(self.validation, self.spec.micro_batch):
                rewards += [score > 0 for score in self._rewards(part, self._sample(part, None))]
        score = mean(rewards)
        state.history.append({"step": state.step, "score": score, **self.last})
        if score > state.score:
            state.best, state.score = state.snapshot(), score

    def _next_token(self, vectors: dict[str, Tensor], sequences: list[TokenizedExample]) -> None:
        tokens = sum(len(ids) - start for ids, start in sequences)
        for part in _parts(sequences, self.spec.micro_batch):
            batch = collate(part).to(self.model.device).view(1, len(part))
            with self.base.factored(vectors, self.spec.parametrisation):
                (summed_losses(self.model, batch).sum() / tokens).backward()
        self.last = {"reward": None, "kl": None}

    def _reinforce(
        self, vectors: dict[str, Tensor], drawn: list[tuple[Example, TokenizedExample]], seed: int
    ) -> None:
        spec, device = self.spec, self.model.device
        expert = self.base.expert(vectors, spec.parametrisation)
        rewards, divergences = [], []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for part in _parts(drawn, spec.micro_batch):
                with self.base.merged(expert):
                    responses = self._sample(part, spec.temperature)
                scores = torch.tensor(self._rewards(part, responses), device=device)
                batch = collate(responses).to(device)
                with torch.no_grad():
                    log_base = self._log_probabilities(batch)
                with self.base.factored(vectors, spec.parametrisation):
                    log_policy = self._log_probabilities(batch)
                answered = batch.labels != IGNORE_INDEX
                objective, divergence = policy_objective(
                    log_policy,
                    log_base,
                    batch.labels[answered],
                    answered.nonzero()[:, 0],
                    scores,
                    spec.kl,
                )
                (-objective * len(part) / len(drawn)).backward()
                rewards += scores.tolist()
                divergences += divergence.tolist()
        self.last = {"reward": mean(rewards), "kl": mean(divergences)}

    def _log_probabilities(self, batch: Batch) -> Tensor:
        logits, _ = response_logits(self.model, batch)
        return (logits.float() / self.spec.temperature).log_softmax(-1)

    def _sample(
        self, part: Sequence[tuple[Example, TokenizedExample]], temperature: float | None
    ) -> list[TokenizedExample]:
        return sample(
            self.model,
            self.tokenizer,
            [encoded.ids[: encoded.response_start] for _, encoded in part],
            temperature=temperature,
            max_new_tokens=self.spec.max_new_tokens,
        )

    def _rewards(
        self,
        part: Sequence[tuple[Example, TokenizedExample]],
        responses: Sequence[TokenizedExample],
    ) -> list[float]:
        texts = self.tokenizer.batch_decode(
            [ids[start:] for ids, start in responses], skip_special_tokens=True
        )
        return [float(self.reward(text, e)) for text, (e, _) in zip(texts, part, strict=True)]


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
