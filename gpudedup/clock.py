"""Time the stages of an operation."""

from __future__ import annotations

import time


class Clock:
    """``seconds`` per stage; a stage lasts from the previous call of :meth:`stage` to its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        """End a stage; seconds of a stage that recurs are added up."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
