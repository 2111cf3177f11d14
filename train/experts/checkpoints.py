"""The state of a run that trains an expert: in memory, and kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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


class State:
    """All that a run has besides its settings: what is kept on disk to resume from.

    Attributes:
        step: Optimiser steps done.
        vectors: Vectors z by module name, on the model's device.
        best: The vectors with the best validation.
        score: Share of right greedy responses under ``best``.
        history: Entries of each validation: ``step``, ``score``, and mean ``reward`` and ``kl`` of
            the last sampled batch (None after next-token steps).
    """

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        self.step = 0
        self.vectors = {name: z.clone().requires_grad_() for name, z in vectors.items()}
        # Without weight decay, which would pull scales towards 0.
        self.optimizer = torch.optim.AdamW(self.vectors.values(), lr=0.0, weight_decay=0.0)
        self.best = self.snapshot()
        self.score = -1.0
        self.history: list[dict[str, float | None]] = []

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the vectors as they are now."""
        return {name: z.detach().clone() for name, z in self.vectors.items()}

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write ``folder/step-N``, which appears at once and whole, and remove older ones."""
        tensors = {f"best {name}": z for name, z in self.best.items()}
        for name, z in self.vectors.items():
            tensors[f"z {name}"] = z.detach()
            moments = self.optimizer.state[z]
            tensors |= {f"{key} {name}": value for key, value in moments.items()}
        older = list(folder.glob("step-*"))
        with atomic_folder(folder / f"step-{self.step:06d}") as staged:
            write_safetensors(staged / "state.safetensors", tensors)
            content = {"step": self.step, "score": self.score, "history": self.history}
            write_json(staged / "state.json", about | content)
        for path in older:
            remove_folder(path)

    def restore(self, folder: Path, about: dict[str, Any]) -> bool:
        """Take over what :meth:`save` wrote last; False where there is nothing.

        Raises:
            InvalidInput: it is damaged, or of a run with other settings.
        """
        sweep(folder)
        steps = sorted(folder.glob("step-*"))
        if not steps:
            return False
        *older, latest = steps
        content = read_json(latest / "state.json")
        for key, value in about.items():
            if content.get(key) != value:
                raise InvalidInput(
                    f"{folder.parent} holds a run with other {key}: {content.get(key)!r}, not "
                    f"{value!r}. Give another folder, or the same settings to resume it."
                )
        tensors = read_safetensors(latest / "state.safetensors", unchecked="warn")
        try:
            for name, z in self.vectors.items():
                z.data.copy_(tensors[f"z {name}"])
                self.best[name].copy_(tensors[f"best {name}"])
                self.optimizer.state[z] = {
                    key: tensors[f"{key} {name}"].to("cpu" if key == "step" else z.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
            self.step, self.score = content["step"], content["score"]
            self.history = content["history"]
        except (KeyError, RuntimeError) as error:
            raise InvalidInput(f"{latest} is damaged ({error!r}); remove it.") from error
        for path in older:  # by a process that was killed before it removed them
            remove_folder(path)
        return True
