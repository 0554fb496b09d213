"""Streams and events of a device whose work runs later than it was queued.

Nothing runs before a caller waits for it. Then a random stream runs its next piece, so that a
forgotten wait, or a buffer reused too early, shows in the results.
"""

from __future__ import annotations

import random
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class ShimEvent:
    """A moment in a stream.

    :param came: seconds of the host's clock when the event came; None: not yet
    """

    came: float | None = None


@dataclass(slots=True)
class Work:
    """A piece of work: a function, or one of an event to record and an event to wait for."""

    run: Callable[[], None] | None = None
    records: ShimEvent | None = None
    awaits: ShimEvent | None = None


@dataclass(eq=False)
class ShimStream:
    """A queue of work, run in order."""

    work: deque[Work] = field(default_factory=deque)


class Queues:
    """The streams of one device. Not locked: the device has a lock.

    :param seed: seed of the random choice of streams
    """

    def __init__(self, seed: int) -> None:
        self._lots = random.Random(seed)
        self._streams: list[weakref.ref[ShimStream]] = []
        # A list, not a set: the order of streams must be the same in every run.
        self._busy: list[ShimStream] = []

    def stream(self) -> ShimStream:
        """Make a stream."""
        made = ShimStream()
        self._streams = [known for known in self._streams if known() is not None]
        self._streams.append(weakref.ref(made))
        return made

    def add(self, stream: ShimStream, work: Work) -> None:
        """Queue a piece of work."""
        if all(known() is not stream for known in self._streams):
            raise ValueError("a stream of another device")
        if not stream.work:
            # A strong reference: queued work runs even if the caller drops its stream.
            self._busy.append(stream)
        stream.work.append(work)

    @property
    def empty(self) -> bool:
        """Return whether no work waits."""
        return not self._busy

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run the next work of random streams until ``done()``."""
        while not done():
            able = [stream for stream in self._busy if _can_go_on(stream)]
            if not able:
                raise ValueError("an event of another device")
            stream = self._lots.choice(able)
            work = stream.work.popleft()
            if not stream.work:
                self._busy.remove(stream)
            if work.run is not None:
                work.run()
            if work.records is not None:
                work.records.came = time.perf_counter()

    def drop(self) -> None:
        """Drop all queued work."""
        for stream in self._busy:
            stream.work.clear()
        self._busy.clear()


def _can_go_on(stream: ShimStream) -> bool:
    awaited = stream.work[0].awaits
    return awaited is None or awaited.came is not None
