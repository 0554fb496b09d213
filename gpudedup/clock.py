"""How long the stages of a piece of work take."""

from __future__ import annotations

import time


class Clock:
    """Seconds per stage; a stage lasts from the last call to this one.

    :param seconds: of each stage; one that comes again is added to
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        """Say that a stage is over."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
