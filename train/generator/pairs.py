"""Which prompts are paired with which adapter: a pure function of seed, step and position.

Source: Drag-and-Drop LLMs, section 2.3 (equation 2) and section 3.5 (strategies), Table 4a (forms).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dnd_fast.errors import InvalidInput
from dnd_fast.text.datasets import Example

Strategy = Literal["N<-x", "x<-x"]
Form = Literal["prompt", "prompt+answer", "answer", "mix"]
ANSWER_SHARE = 0.2  # in "mix": prompt : answer = 4 : 1


@dataclass(frozen=True)
class Pair:
    """One condition and its target, drawn from one data set.

    Attributes:
        dataset: Index of the data set.
        checkpoint: Index of the target among its adapters; 0 where it has none.
        texts: Indices of the N candidates that make the condition.
        answers: Which of these give their answer instead (only in the form "mix").
        examples: Indices of the examples that the generated adapter is tried on.
        noise_seed: Seed of noise and dropout.
    """

    dataset: int
    checkpoint: int
    texts: tuple[int, ...]
    answers: tuple[bool, ...]
    examples: tuple[int, ...]
    noise_seed: int


@dataclass(frozen=True)
class Pairing:
    """How pairs are drawn. Data sets are equally likely, however many adapters each has.

    A pair with a target is drawn from the data sets that have adapters, one with examples from all.

    Attributes:
        seed: Seed of all draws.
        prompts: N, the number of texts in a condition.
        candidates: x for each data set: the number of its texts to draw from, the first ones.
        checkpoints: Number of adapters of each data set, 0 where there are none.
        examples: Number of examples of each data set, 0 where none are drawn.
        strategy: ``"N<-x"``: N of x texts, drawn anew each time, without repetition where there are
            enough; ``"x<-x"``: all, always in the same order, which needs x = N.
        form: ``"mix"`` replaces a fifth of the prompts by their answers, drawn anew each time.

    Raises:
        InvalidInput: a data set has nothing to draw from, or too few or many texts for ``"x<-x"``.
    """

    seed: int
    prompts: int
    candidates: tuple[int, ...]
    checkpoints: tuple[int, ...]
    examples: tuple[int, ...]
    strategy: Strategy = "N<-x"
    form: Form = "prompt"

    def __post_init__(self) -> None:
        if min(self.candidates, default=0) < 1 or max(self.checkpoints, default=0) < 1:
            raise InvalidInput(
                "every data set needs a text and an adapter to draw from; beside such, others may "
                "do without an adapter."
            )
        if self.strategy == "x<-x" and set(self.candidates) != {self.prompts}:
            raise InvalidInput(
                f"the strategy x<-x uses all x texts of a data set at once, here "
                f"{min(self.candidates)} to {max(self.candidates)}, and the recipe's condition has "
                f"{self.prompts}: the two must be equal. Give --candidates {self.prompts}, or a "
                "recipe with another number of prompts."
            )

    def draw(self, step: int, position: int, examples: int = 0) -> Pair:
        """Draw the pair at ``position`` of the batch of ``step``, over all GPUs.

        Args:
            step, position: Place of the pair.
            examples: Number of examples that the pair has; 0: it has a target instead.
        """
        rng = random.Random(f"{self.seed} {step} {position}")
        every = range(len(self.candidates))
        dataset = rng.choice(every if examples else [i for i in every if self.checkpoints[i]])
        adapters = self.checkpoints[dataset]
        checkpoint = rng.randrange(adapters) if adapters else 0
        count = self.candidates[dataset]
        if self.strategy == "x<-x":
            texts = list(range(count))
        else:
            texts = rng.sample(range(count), min(self.prompts, count))
            texts += rng.choices(range(count), k=self.prompts - len(texts))
        mixed = self.form == "mix"
        return Pair(
            dataset,
            checkpoint,
            tuple(texts),
            tuple(mixed and rng.random() < ANSWER_SHARE for _ in texts),
            tuple(rng.randrange(self.examples[dataset]) for _ in range(examples)),
            rng.getrandbits(63),
        )


def condition_texts(examples: Iterable[Example], form: Form) -> tuple[list[str], ...]:
    """Return what is embedded of each example; for "mix" the prompts and, apart, the answers."""
    examples = list(examples)
    prompts = [example.prompt for example in examples]
    answers = [example.response for example in examples]
    if form == "mix":
        return prompts, answers
    if form == "prompt+answer":
        return ([f"{prompt}\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)],)
    return (prompts if form == "prompt" else answers,)
