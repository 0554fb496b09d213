"""Work that waits: streams and events of a device whose work happens later than it was asked for.

Nothing runs before somebody waits for it. Then it is drawn by lot which stream does its next piece,
so that a wait that was forgotten, or a buffer that was used again too early, shows in the results.
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

    :param came: when it did, in seconds of the host's clock; None: not yet
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
    """A queue of work, done in order."""

    work: deque[Work] = field(default_factory=deque)


class Queues:
    """The streams of one device. Not locked: the device does that.

    :param seed: of the lots
    """

    def __init__(self, seed: int) -> None:
        self._lots = random.Random(seed)
        # In the order in which they were made, or the lots would not be the same every time.
        self._streams: list[weakref.ref[ShimStream]] = []
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
            # Held from here on: work that was queued is done, whether its stream is kept or not.
            self._busy.append(stream)
        stream.work.append(work)

    @property
    def empty(self) -> bool:
        """Return whether no work waits."""
        return not self._busy

    def run_until(self, done: Callable[[], bool]) -> None:
        """Do work, drawn by lot, until ``done()``."""
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
        """Forget all work."""
        for stream in self._busy:
            stream.work.clear()
        self._busy.clear()


def _can_go_on(stream: ShimStream) -> bool:
    awaited = stream.work[0].awaits
    return awaited is None or awaited.came is not None
