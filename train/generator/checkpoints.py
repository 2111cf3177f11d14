"""Checkpoints of a training run: written atomically, the last few and the best one kept.

step-000100/weights.safetensors      the decoder, float32
step-000100/optimizer.safetensors    moments and the like, by parameter
step-000100/state.json               step, evaluation, and the optimiser's plain numbers

All draws are functions of seed, step and position, so nothing else is needed to resume exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import (
    atomic_folder,
    read_json,
    read_safetensors,
    remove_folder,
    write_json,
    write_safetensors,
)
from dnd_fast.filesystem import sweep

logger = logging.getLogger(__name__)
WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE = (
    "weights.safetensors",
    "optimizer.safetensors",
    "state.json",
)


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        step: Steps done, counted over all phases.
        phase: Index of the phase that the last of them belongs to.
        weights: Weights of the decoder.
        optimizer: State of the optimiser by parameter and entry; empty at the end of a phase.
        score: Score of the evaluation at this very step, lower is better; None: there was none.
    """

    step: int
    phase: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    score: float | None = None


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. Scores are compared within a phase, which has one objective.

    Attributes:
        folder: Folder that holds them.
        keep: Number of the last ones that are kept, beside the one with the best score.
    """

    folder: Path
    keep: int = 2

    def save(self, state: State) -> None:
        """Write a checkpoint; then delete those that are not to be kept.

        Raises:
            OSError: the folder cannot be written, or the disk is full; older ones stay.
        """
        tensors = {key: v for key, v in state.optimizer.items() if isinstance(v, Tensor)}
        numbers = {key: v for key, v in state.optimizer.items() if key not in tensors}
        content = {
            "step": state.step,
            "phase": state.phase,
            "score": state.score,
            "optimizer": numbers,
        }
        with atomic_folder(self._path(state.step)) as staged:
            write_safetensors(staged / WEIGHTS_FILE, state.weights)
            write_safetensors(staged / OPTIMIZER_FILE, tensors)
            write_json(staged / STATE_FILE, content)
        self._remove_older(state.phase)

    def latest(self) -> State | None:
        """Read the newest checkpoint that can be read; None where there is none.

        What a process left that was killed while it saved is removed.
        """
        if self.folder.is_dir():
            sweep(self.folder)
        steps = self.steps()
        for step in reversed(steps):
            path = self._path(step)
            try:
                content = read_json(path / STATE_FILE)
                optimizer = read_safetensors(path / OPTIMIZER_FILE, unchecked="warn")
                weights = read_safetensors(path / WEIGHTS_FILE, unchecked="warn")
                phase, score, numbers = _entries(content)
            except (InvalidInput, FileNotFoundError) as error:
                logger.warning("%s cannot be read, an older one is used: %s", path, error)
            else:
                if step == steps[-1]:
                    self._remove_older(phase)
                return State(step, phase, weights, optimizer | numbers, score)
        return None

    def best(self, phase: int) -> int | None:
        """Return the step of the checkpoint with a phase's best score; None where none has one."""
        scores = {
            step: score for step in self.steps() if (score := self._score(step, phase)) is not None
        }
        return min(scores, key=scores.__getitem__, default=None)

    def weights(self, step: int) -> dict[str, Tensor]:
        """Read the decoder's weights at a step.

        Raises:
            InvalidInput: the file is damaged.
        """
        return read_safetensors(self._path(step) / WEIGHTS_FILE)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, in ascending order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def _remove_older(self, phase: int) -> None:
        best = self.best(phase)
        for step in self.steps()[: -self.keep]:
            if step != best:
                remove_folder(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _score(self, step: int, phase: int) -> float | None:
        try:
            its_phase, score, _ = _entries(read_json(self._path(step) / STATE_FILE))
        except (InvalidInput, FileNotFoundError):
            return None
        return score if its_phase == phase else None


def _entries(content: dict[str, Any]) -> tuple[int, float | None, dict[str, Any]]:
    """Phase, score and the optimiser's numbers; raises InvalidInput where they are none."""
    phase, score, numbers = (content.get(key) for key in ("phase", "score", "optimizer"))
    if (
        type(phase) is not int
        or not isinstance(score, int | float | None)
        or not isinstance(numbers, dict)
    ):
        raise InvalidInput(f"{STATE_FILE} holds something else than a state.")
    return phase, score, numbers
