"""Run loads and stores of a trace in bulk, whatever their mappings.

Loads change nothing, and stores to different pages commute. So those that need no fault run in one
pass, then stores that break COW together, and the rest through the manager's access paths.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.jit import compiled
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.schema import Operation
from gpudedup.traces.accounts import Accounts
from gpudedup.traces.bulk_pass import ASKS, BREAKS, Directories, do_accesses
from gpudedup.traces.contents import bytes_of, words_of
from gpudedup.traces.events import NONE, Events, chunks, cuts

PASS_PAGES = 1 << 16
"""Pages per pass, at most."""

Numbers = npt.NDArray[np.int64]


@compiled
def _sorted(keys, counts, order):  # type: ignore[no-untyped-def]
    """Write the stable order that sorts ``keys``; ``counts`` is all 0, with an entry per key."""
    for key in keys:
        counts[key] += 1
    start = 0
    for k in range(len(counts)):
        n = counts[k]
        counts[k] = start
        start += n
    for i in range(len(keys)):
        order[counts[keys[i]]] = i
        counts[keys[i]] += 1


def groups(keys: Numbers) -> list[Numbers]:
    """Return the places of each key, ascending, in the order of the keys, (n,) int64 from 0 up."""
    if not len(keys):
        return []
    most = int(keys.max()) + 1
    if most > 4 * len(keys):
        order = np.argsort(keys, kind="stable")
    else:
        order = np.empty(len(keys), np.int64)
        _sorted(keys, np.zeros(most, np.int64), order)
    return [order[start:stop] for start, stop in pairwise(cuts(keys[order]))]


class Accesses:
    """Runs loads and stores on ``mappings``, by number in the trace; more may be appended."""

    def __init__(self, manager: MemoryManager, mappings: list[Mapping], accounts: Accounts) -> None:
        self._manager = manager
        self._mappings = mappings
        self._accounts = accounts
        self._directories = Directories(
            np.zeros(0, np.uint64),
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros(0, np.bool_),
        )
        self._known = 0
        self._seen: list[npt.NDArray[np.uint32] | None] = []
        self._pages = np.empty(PASS_PAGES, np.uint32)
        self._how = np.empty(PASS_PAGES, np.uint8)
        self._word = np.empty((PASS_PAGES, 8), np.uint8)

    def look_at(self, number: int) -> None:
        """Note the directory of a mapping, which a change of length may have replaced."""
        directory = self._mappings[number].directory
        if number < self._known and directory is not self._seen[number]:
            self._seen[number] = directory
            self._directories.address[number] = directory.ctypes.data
            self._directories.leaves[number] = len(directory)

    def _look_at_new(self) -> None:
        first, self._known = self._known, len(self._mappings)
        room = len(self._directories.leaves)
        if self._known > room:
            more = self._known - room + room // 2
            longer: Any = [np.append(old, np.zeros(more, old.dtype)) for old in self._directories]
            self._directories = Directories(*longer)
        for number in range(first, self._known):
            mapping = self._mappings[number]
            self._directories.home[number] = mapping.node
            self._directories.is_file[number] = mapping.is_file
            self._seen.append(None)
            self.look_at(number)

    def do(self, events: Events) -> None:
        """Run loads and stores; their mappings must exist and be long enough."""
        if self._known < len(self._mappings):
            self._look_at_new()
        for part in chunks(events, PASS_PAGES):
            self._do(part)

    def _do(self, rows: Events) -> None:
        n = len(rows)
        pages, how = self._pages[:n], self._how[:n]
        stores = rows.operation == int(Operation.WRITE)
        started = time.perf_counter()
        with self._manager.lock:
            left, _ = do_accesses(
                self._manager.memory.state, self._manager.nodes, self._directories, stores,
                rows.mapping, rows.index, rows.node, rows.seed, pages, how,
            )  # fmt: skip
        written = int(np.count_nonzero(stores))
        self._accounts.add_time(
            {Operation.READ: n - written, Operation.WRITE: written}, time.perf_counter() - started
        )
        if left:
            asks = np.flatnonzero(how == ASKS)
            self._ask(rows, asks[~stores[asks]])
            breaks = np.flatnonzero(how == BREAKS)
            if len(breaks):
                self._break(rows, breaks, pages)
            self._ask(rows, asks[stores[asks]])

    def _break(self, rows: Events, which: Numbers, pages: npt.NDArray[np.uint32]) -> None:
        """Break COW and store, in bulk for each node and for files apart."""
        self._accounts.begin(Operation.WRITE)
        manager, mapping = self._manager, rows.mapping[which]
        with manager.lock:
            for group in groups(
                2 * self._directories.home[mapping] + self._directories.is_file[mapping]
            ):
                own = which[group]
                # make_writable uses only the mapping's node, and whether it is a file.
                manager.make_writable(self._mappings[int(rows.mapping[own[0]])], pages[own])
                words = words_of(rows.seed[own], rows.index[own].astype(np.int64))
                frames = manager.memory.state.frame[pages[own]]
                manager.memory.write(frames, bytes_of(words), 0)

    def _ask(self, rows: Events, which: Numbers) -> None:
        """Run loads, or stores, through the manager's access paths."""
        if not len(which):
            return
        operation = Operation(int(rows.operation[which[0]]))
        self._accounts.begin(operation)
        places = self._manager.nodes + 1
        keys = rows.mapping[which].astype(np.int64)
        if operation == Operation.READ:
            keys = keys * places + rows.node[which] + 1
        for group in groups(keys):
            own = which[group]
            mapping = self._mappings[int(rows.mapping[own[0]])]
            index = rows.index[own].astype(np.int64)
            if operation == Operation.READ:
                node = int(rows.node[own[0]])
                self._manager.read(
                    mapping, index, node=None if node == NONE else node, size=8,
                    out=self._word[: len(own)],
                )  # fmt: skip
            else:
                data = bytes_of(words_of(rows.seed[own], index))
                self._manager.write(mapping, index, data, offset=0)
