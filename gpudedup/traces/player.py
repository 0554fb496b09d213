"""Run the events of a trace on a memory manager, in bulk where the outcome is the same.

Consecutive events of one operation, mapping, node and device are one run; so are loads and stores
between two other events, whatever their mappings (:mod:`gpudedup.traces.bulk`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.splitmix import Words
from gpudedup.errors import BusyError, TraceError
from gpudedup.mm.device import ManagedDevice
from gpudedup.mm.exclusive import Exclusive
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.pools import OutOfMemory
from gpudedup.mm.pins import Buffer, Pin
from gpudedup.mm.policy import MergePolicy
from gpudedup.schema import Operation
from gpudedup.traces.accounts import Accounts
from gpudedup.traces.bulk import Accesses
from gpudedup.traces.contents import bytes_of, pages_of, words_of
from gpudedup.traces.events import NONE, Events, chunks, cuts
from gpudedup.traces.operations import COUNTS_PAGES

WORD_PAGES = 1 << 16
"""Pages per call of operations that move words or nothing."""

WHOLE_BYTES = 16 << 20
"""Bytes of pages per call of operations that write whole pages."""

Index = npt.NDArray[np.int64]


class Player:
    """Runs events on a manager, whose mappings they number in its order.

    :param policy: policy of merge events; None: skip them
    :param accounts: counts what the events do
    :param trace: name of the trace, for messages
    """

    def __init__(
        self, manager: MemoryManager, policy: MergePolicy | None, accounts: Accounts, trace: str
    ) -> None:
        self.mappings: list[Mapping] = manager.mappings
        self._manager = manager
        self._policy = policy
        self._accounts = accounts
        self._trace = trace
        self._fast = Accesses(manager, self.mappings, accounts)
        self._whole = max(1, WHOLE_BYTES // manager.page_size)
        self._exclusive = False
        self._held: dict[tuple[int, int, int, int], deque[Pin | Buffer]] = {}
        self._grants: list[Exclusive] = []

    def play(self, events: Events) -> None:
        """Run the next events.

        :raises TraceError: if an event ends a pin or a splice that is not held
        :raises OutOfMemory: if a store finds no room for a frame
        """
        access = events.operation <= int(Operation.WRITE)
        columns = (events.operation, events.mapping, events.node, events.device)
        borders = cuts(*(np.where(access, np.int32(-1), column) for column in columns))
        for start, stop in pairwise(borders):
            run = events.slice(start, stop)
            if access[start]:
                self._accesses(run)
            else:
                self._run(run)

    def _accesses(self, events: Events) -> None:
        stores = events.operation == int(Operation.WRITE)
        for code, which in ((Operation.READ, ~stores), (Operation.WRITE, stores)):
            if n := int(np.count_nonzero(which)):
                pages = int(events.count[which].sum(dtype=np.int64))
                self._accounts.add(code, n, pages)
        # The order of loads and stores decides which of them ends exclusive access.
        borders = cuts(events.operation) if self._exclusive else [0, len(events)]
        for start, stop in pairwise(borders):
            self._fast.do(events.slice(start, stop))

    def _run(self, events: Events) -> None:
        """Run events of one operation, mapping, node and device."""
        code = Operation(int(events.operation[0]))
        self._accounts.begin(code)
        refused = _DO[code](self, events)
        if code in _RESIZE:
            self._fast.look_at(int(events.mapping[0]))
        pages = int(events.count.sum(dtype=np.int64)) if COUNTS_PAGES[code] else 0
        self._accounts.add(code, len(events), pages, refused)

    def _mapping(self, events: Events) -> Mapping:
        return self.mappings[int(events.mapping[0])]

    def _file_write(self, events: Events) -> int:
        mapping = self._mapping(events)
        for index, seed in _pieces(events, self._whole):
            data = pages_of(words_of(seed, index), self._manager.page_size)
            self._manager.file_write(mapping, index, data)
        return 0

    def _fork(self, events: Events) -> int:
        parent = self._mapping(events)
        for _ in range(len(events)):
            owner = f"{parent.owner} (fork {len(self.mappings)})"
            self.mappings.append(self._manager.fork(parent, owner))
        return 0

    def _reflink(self, events: Events) -> int:
        file = self._mapping(events)
        for _ in range(len(events)):
            name = f"{file.name} (reflink {len(self.mappings)})"
            self.mappings.append(self._manager.reflink(file, name=name))
        return 0

    def _drop(self, events: Events) -> int:
        self._manager.drop(self._mapping(events))
        return 0

    def _truncate(self, events: Events) -> int:
        for pages in events.index.tolist():
            self._manager.truncate(self._mapping(events), pages)
        return 0

    def _pin(self, events: Events) -> int:
        for key, index in _ranges(events):
            self._hold(key, self._manager.pin(self._mapping(events), index))
        return 0

    def _pin_write(self, events: Events) -> int:
        for at, (key, index) in enumerate(_ranges(events)):
            pin = self._manager.pin(self._mapping(events), index, write=True)
            self._hold(key, pin)
            # Through the pin, past the manager, as DMA writes.
            words = words_of(np.repeat(events.seed[at], len(index)), index)
            pin.write(pages_of(words, self._manager.page_size))
        return 0

    def _splice(self, events: Events) -> int:
        for key, index in _ranges(events):
            self._hold(key, self._manager.splice(self._mapping(events), index))
        return 0

    def _hold(self, key: tuple[int, int, int], held: Pin | Buffer) -> None:
        self._held.setdefault((isinstance(held, Pin), *key), deque()).append(held)

    def _let_go(self, events: Events) -> int:
        pins = int(events.operation[0]) == Operation.UNPIN
        for at, (key, _) in enumerate(_ranges(events)):
            held = self._held.get((pins, *key))
            if not held:
                what = "unpin: no pin" if pins else "close: no splice"
                reason = f"{what} of {key[2]} pages from {key[1]} of mapping {key[0]} is held"
                raise TraceError(self._trace, reason, events.row + at)
            _release(held.popleft())
            if not held:
                del self._held[pins, *key]
        return 0

    def _over_pages(self, events: Events, change: Callable[[Mapping, Index], object]) -> int:
        """Call ``change`` on pages in bulk; return how many it refused or found no room for."""
        mapping, refused = self._mapping(events), 0
        for index, _ in _pieces(events, WORD_PAGES):
            refused += _refused(change, mapping, index)
        return refused

    def _place(self, events: Events) -> dict[str, int | None]:
        return {"node": _or_none(events.node), "device": _or_none(events.device)}

    def _migrate(self, events: Events) -> int:
        place = self._place(events)
        return self._over_pages(events, lambda m, i: self._manager.migrate(m, i, **place))

    def _replicate(self, events: Events) -> int:
        place = self._place(events)
        return self._over_pages(events, lambda m, i: self._manager.replicate(m, i, **place))

    def _cache(self, events: Events) -> int:
        node = int(events.node[0])
        return self._over_pages(events, lambda m, i: self._manager.cache(m, i, node=node))

    def _merge(self, events: Events) -> int:
        if self._policy is not None:
            self._manager.merge(self._policy)
        return 0

    def _unmerge(self, events: Events) -> int:
        return self._over_pages(events, lambda m, i: ~self._manager.unmerge(m, i))

    def _device_read(self, events: Events) -> int:
        device, mapping = self._manager.device(int(events.device[0])), self._mapping(events)
        for index, _ in _pieces(events, WORD_PAGES):
            device.read(mapping, index, size=8)
        return 0

    def _device_write(self, events: Events) -> int:
        device, mapping = self._manager.device(int(events.device[0])), self._mapping(events)
        for index, seed in _pieces(events, WORD_PAGES):
            device.write(mapping, index, bytes_of(words_of(seed, index)), offset=0)
        return 0

    def _atomic_add(self, events: Events) -> int:
        self._exclusive = True
        device, mapping = self._manager.device(int(events.device[0])), self._mapping(events)
        return sum(
            self._add(device, mapping, index, words_of(seed, index))
            for index, seed in _pieces(events, WORD_PAGES)
        )

    def _add(self, device: ManagedDevice, mapping: Mapping, index: Index, words: Words) -> int:
        """Add to the first word of pages; return how many the host did in the device's place."""
        try:
            device.atomic_add(mapping, index, 0, words)
            return 0
        except (BusyError, OutOfMemory) as error:
            left = ~error.done
            index, words = index[left], words[left]
        if (half := len(index) // 2) == 0:
            before = self._manager.read(mapping, index, size=8).view(np.uint64)
            self._manager.write(mapping, index, bytes_of(before.reshape(-1) + words), offset=0)
            return 1
        return sum(
            self._add(device, mapping, index[part], words[part])
            for part in (slice(half), slice(half, None))
        )

    def _acquire(self, events: Events) -> int:
        self._exclusive = True
        refused = 0
        for _, index in _ranges(events):
            try:
                self._grants.append(
                    self._manager.acquire_exclusive(
                        self._mapping(events), index, device=_or_none(events.device)
                    )
                )
            except (BusyError, OutOfMemory):
                refused += len(index)
        self._grants = [grant for grant in self._grants if grant.left]
        return refused

    def let_all_go(self) -> None:
        """Unpin, close and release all pins, splices and grants that are still held."""
        for held in self._held.values():
            for one in held:
                _release(one)
        self._held.clear()
        for grant in self._grants:
            grant.release()
        self._grants.clear()


def _refused(change: Callable[[Mapping, Index], object], mapping: Mapping, index: Index) -> int:
    """Call ``change`` on pages, on as many as there is room for; return how many it did not do."""
    try:
        done = change(mapping, index)
    except OutOfMemory:
        if (half := len(index) // 2) == 0:
            return 1
        return sum(_refused(change, mapping, part) for part in (index[:half], index[half:]))
    return int(len(done) - np.count_nonzero(done)) if isinstance(done, np.ndarray) else 0


def _release(held: Pin | Buffer) -> None:
    if isinstance(held, Pin):
        held.unpin()
    else:
        held.close()


def _ranges(events: Events) -> Iterator[tuple[tuple[int, int, int], Index]]:
    """Yield (mapping, index, count) of each event, and the indices of its pages."""
    for mapping, index, count in zip(
        events.mapping.tolist(), events.index.tolist(), events.count.tolist(), strict=True
    ):
        yield (mapping, index, count), np.arange(index, index + count)


def _pieces(events: Events, most: int) -> Iterator[tuple[Index, Words]]:
    """Yield the indices and seeds of pages, at most ``most`` at a time."""
    if len(events) > 1:
        for rows in chunks(events, most):
            yield rows.index.astype(np.int64), rows.seed
        return
    first, count = int(events.index[0]), int(events.count[0])
    for start in range(first, first + count, most):
        index = np.arange(start, min(start + most, first + count))
        yield index, np.repeat(events.seed, len(index))


def _or_none(numbers: npt.NDArray[np.int16]) -> int | None:
    return None if numbers[0] == NONE else int(numbers[0])


def _pages(name: str) -> Callable[[Player, Events], int]:
    """Return a function that runs events through the manager's ``name(mapping, index)``."""

    def do(player: Player, events: Events) -> int:
        method = getattr(player._manager, name)
        return player._over_pages(events, lambda m, i: (method(m, i), None)[1])

    return do


_DO: dict[int, Callable[[Player, Events], int]] = {
    Operation.FILE_WRITE: Player._file_write,
    Operation.FORK: Player._fork,
    Operation.REFLINK: Player._reflink,
    Operation.DROP: Player._drop,
    Operation.TRUNCATE: Player._truncate,
    Operation.PUNCH: _pages("punch"),
    Operation.PIN: Player._pin,
    Operation.PIN_WRITE: Player._pin_write,
    Operation.UNPIN: Player._let_go,
    Operation.SPLICE: Player._splice,
    Operation.CLOSE: Player._let_go,
    Operation.WRITEBACK: _pages("writeback"),
    Operation.MIGRATE: Player._migrate,
    Operation.REPLICATE: Player._replicate,
    Operation.COLLAPSE: _pages("collapse"),
    Operation.CACHE: Player._cache,
    Operation.FLUSH: _pages("flush"),
    Operation.EVICT: _pages("evict"),
    Operation.MERGE: Player._merge,
    Operation.UNMERGE: Player._unmerge,
    Operation.DEVICE_READ: Player._device_read,
    Operation.DEVICE_WRITE: Player._device_write,
    Operation.ATOMIC_ADD: Player._atomic_add,
    Operation.ACQUIRE_EXCLUSIVE: Player._acquire,
    Operation.RELEASE_EXCLUSIVE: _pages("release_exclusive"),
}

_RESIZE = {Operation.FILE_WRITE, Operation.TRUNCATE, Operation.DROP}
"""Operations that may replace a mapping's directory."""
