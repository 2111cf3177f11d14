"""How long the stages of a call took, kept apart for every thread."""

from __future__ import annotations

import threading
from typing import Any


class StageTimes(threading.local):
    """Seconds of the stages of this thread's last call; a copy of it is empty.

    Attributes:
        seconds: seconds by the stage's name; empty where this thread has made no call.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return StageTimes, ()
