"""Count what the events of a replay do: per operation, and over time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.state.arrays import Count
from gpudedup.schema import CAUSES, OPERATIONS, SAMPLES, Operation

_COUNTED = {
    "reuses": Count.REUSES, "collapses": Count.COLLAPSES, "copies": Count.NEW_FRAMES,
    "pages": Count.PAGES, "hidden": Count.HIDDEN_GONE, "zero": Count.ZERO_PAGES,
}  # fmt: skip
"""Counts read from the arrays of the manager's state."""

_TOLD = ("copied", "written_back", "revoked", "invalidations", "device_faults", "remote")
"""Counts that memory, manager, grants and devices keep themselves."""

_PLACE = {name: place for place, name in enumerate((*_COUNTED, *_TOLD))}
_COUNTS = np.array(list(_COUNTED.values()))
_FILLS = [_PLACE["pages"], _PLACE["hidden"], _PLACE["zero"]]

_DONE = ("events", "pages", "refused")
"""Columns of causes that the player counts."""

_ALL = range(len(OPERATIONS))

_SAME = (
    "reuses",
    "collapses",
    "invalidations",
    "device_faults",
    "remote",
    "revoked",
    "written_back",
)
"""Columns of causes that are plain differences of counts."""

_HELD = (
    "frames", "pages", "pages_shared", "pages_sharing", "ksm_zero_pages", "replicas", "dirty",
    "pins", "mirrored",
)  # fmt: skip
"""Columns of samples that are the manager's counters of these names."""

_STORES = {
    Operation.WRITE, Operation.FILE_WRITE, Operation.PIN_WRITE, Operation.DEVICE_WRITE,
    Operation.ATOMIC_ADD, Operation.ACQUIRE_EXCLUSIVE,
}  # fmt: skip
"""Operations that may fill: give a frame to a page that has none."""


class Accounts:
    """Counts what the events of a replay do to a manager."""

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._read_sums = np.zeros((len(OPERATIONS), len(_PLACE)), np.int64)
        self._done = np.zeros((len(OPERATIONS), 3), np.int64)
        self._seconds = np.zeros(len(OPERATIONS))
        self._samples: dict[str, list[int | None]] = {name: [] for name in SAMPLES.names}
        self._current: Operation | None = None
        self._before, self._since = self._read(), time.perf_counter()

    def _read(self) -> npt.NDArray[np.int64]:
        """Return the counts so far, in the order of ``_PLACE``; ``manager.counters`` is slower."""
        manager, devices = self._manager, self._manager.mirrors
        told = (
            manager.memory.frames_copied, manager.writebacks.written_back, manager.grants.revoked,
            sum(d.invalidations for d in devices), sum(d.faults for d in devices),
            sum(d.remote for d in devices),
        )  # fmt: skip
        found = np.empty(len(_PLACE), np.int64)
        found[: len(_COUNTS)] = manager.memory.state.counts[_COUNTS]
        found[len(_COUNTS) :] = told
        return found

    def begin(self, operation: Operation) -> None:
        """Charge what happens from now on to ``operation``."""
        if operation is not self._current:
            self.charge()
            self._current = operation

    def charge(self) -> None:
        """Charge what happened since the last call to the current operation."""
        now, clock = self._read(), time.perf_counter()
        if self._current is not None:
            self._read_sums[self._current] += now - self._before
            self._seconds[self._current] += clock - self._since
        self._before, self._since = now, clock

    def add(self, operation: Operation, events: int, pages: int, refused: int = 0) -> None:
        """Count events done, their pages, and the pages refused."""
        self._done[operation] += events, pages, refused

    def add_time(self, pages: dict[Operation, int], seconds: float) -> None:
        """Split seconds among operations by their pages; the current one is not charged."""
        self._since += seconds
        for operation, count in pages.items():
            self._seconds[operation] += seconds * count / sum(pages.values())

    def _sums(self, which: Sequence[int]) -> dict[str, int]:
        """Return the columns of causes that are made of counts, summed over operations."""
        found = dict(zip(_PLACE, self._read_sums[which].sum(axis=0).tolist(), strict=True))
        # Pages that gained a frame. Dropping a hidden alias took one from `pages`; a store to a
        # page that merging left without a frame is a break, and takes one from `zero`.
        stores = self._read_sums[[code for code in which if code in _STORES]]
        fills = int(stores[:, _FILLS].sum())
        return {
            "fills": fills,
            "breaks": found["copies"] - fills,
            "bytes_copied": found["copied"] * self._manager.page_size,
        } | {name: found[name] for name in _SAME}

    def sample(self, event: int, time_ns: int | None) -> None:
        """Add a row to the samples: events done, and the time of the last that had one."""
        self.charge()
        counters, page_size = self._manager.counters, self._manager.page_size
        row: dict[str, int | None] = {name: getattr(counters, name) for name in _HELD}
        sums = self._sums(_ALL)
        row |= {name: sums[name] for name in SAMPLES.names if name in sums}
        row["event"], row["time_ns"] = event, time_ns
        row["bytes"] = counters.frames * page_size
        unshared = counters.pages + counters.ksm_zero_pages + counters.replicas
        row["unshared_bytes"] = unshared * page_size
        for name, column in self._samples.items():
            column.append(row[name])

    def causes(self) -> pa.Table:
        """Return a table of :data:`gpudedup.schema.CAUSES`."""
        rows = [
            {
                "operation": OPERATIONS[code],
                **dict(zip(_DONE, self._done[code].tolist(), strict=True)),
                **self._sums([code]),
                "seconds": self._seconds[code],
            }
            for code in _ALL
            if self._done[code, 0]
        ]
        return pa.Table.from_pylist(rows, CAUSES)

    def samples(self) -> pa.Table:
        """Return a table of :data:`gpudedup.schema.SAMPLES`."""
        return pa.Table.from_pydict(self._samples, SAMPLES)
