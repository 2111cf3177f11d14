"""The log of a run while it trains: log.jsonl, and Accelerate's trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnd_fast import json_lines
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, parse_json, read_bytes
from dnd_fast.train.generator.trainer import StepMetrics

LOG_BYTES = 1 << 32


class Log:
    """The log of one run, written by one process.

    Args:
        file: File with one line per step (step, objective, loss, learning_rate, gradient_norm,
            seconds) and one per evaluation (step, held_out_loss).
        trackers: Names of trackers that Accelerate knows.

    Raises:
        InvalidInput: a tracker is unknown or not installed.
    """

    def __init__(self, file: Path, trackers: Sequence[str] = ()) -> None:
        self._file = file
        self._trackers = [_tracker(name, file.parent) for name in trackers]

    def on_train_begin(self, step: int) -> None:
        """Forget what comes after ``step``: these steps are done again."""
        if self._file.exists():
            lines = read_bytes(self._file, LOG_BYTES).splitlines(keepends=True)
            with atomic_file(self._file) as staged:
                staged.write_bytes(b"".join(line for line in lines if _is_until(step, line)))

    def on_step_end(self, metrics: StepMetrics) -> None:
        """Write the metrics of a step."""
        values = dataclasses.asdict(metrics)
        del values["done"], values["steps"]
        self._write(values)

    def on_evaluate(self, step: int, loss: float) -> None:
        """Write the loss on held-out data sets."""
        self._write({"step": step, "held_out_loss": loss})

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.finish()

    def _write(self, values: dict[str, Any]) -> None:
        json_lines.append(self._file, values)
        numbers = {key: value for key, value in values.items() if isinstance(value, float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=values["step"])


def _is_until(step: int, line: bytes) -> bool:
    """Whether it is a whole line of the log, of a step up to ``step``; others are left out."""
    try:
        record = parse_json(line, "a line") if line.endswith(b"\n") else None
    except InvalidInput:
        return False
    found = record.get("step") if isinstance(record, dict) else None
    return isinstance(found, int) and found <= step


def _tracker(name: str, folder: Path) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS or name not in map(str, get_available_trackers()):
        raise InvalidInput(
            f"tracker {name!r}: not installed, or unknown to Accelerate, which knows "
            f"{', '.join(map(str, LOGGER_TYPE_TO_CLASS))}. Try: pip install {name}."
        )
    kind = LOGGER_TYPE_TO_CLASS[name]
    place = (folder,) if kind.requires_logging_directory else ()
    tracker = kind(folder.name, *place)
    tracker.start()
    return tracker
