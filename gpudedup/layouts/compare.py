"""Run a trace under every layout: count what each costs, check that all read the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.compiled.splitmix import GAMMA, mix
from gpudedup.errors import InvariantError, UsageError
from gpudedup.layouts.base import Region
from gpudedup.layouts.bookkeeping import LAYOUTS, Bookkeeping
from gpudedup.layouts.pools import Pages
from gpudedup.schema import LAYOUT_COSTS

_READ_AT_ONCE = 1 << 10


@dataclass(frozen=True, slots=True)
class LayoutEvent:
    """One operation of a trace.

    :param operation: one of :data:`OPERATIONS`: methods of :class:`Bookkeeping`, and create_file
    :param mapping: any number, chosen by the event that makes the mapping
    :param index: first page; for ``fork`` and ``reflink`` the number of the new mapping
    :param count: pages; for ``create`` and ``truncate`` the new length of the mapping
    :param node: NUMA node, for ``create``, ``read``, ``migrate`` and ``replicate``
    :param seed: content of page ``index``; page ``index + k`` gets ``seed + k`` (:func:`content`)
    """

    operation: str
    mapping: int = 0
    index: int = 0
    count: int = 1
    node: int = 0
    seed: int = 0


TraceEvent = LayoutEvent
"""The name of 0.1."""


def content(seed: int, count: int, page_size: int) -> Pages:
    """Return pages of contents ``seed``, ``seed + 1``, ..., (count, page_size) uint8.

    Content 0 is zeros. In any other, each word is SplitMix64 of content and place.
    """
    numbers = np.arange(seed, seed + count, dtype=np.uint64)[:, None]
    places = np.arange(1, page_size // 8 + 1, dtype=np.uint64)
    state: npt.NDArray[np.uint64] = (numbers << np.uint64(20)) + places
    pages = mix(state * np.uint64(GAMMA))
    pages[numbers[:, 0] == 0] = 0
    found: Pages = pages.view(np.uint8)
    return found


class LayoutRun:
    """Runs a trace on one bookkeeping, and digests what it reads."""

    def __init__(self, bookkeeping: Bookkeeping) -> None:
        self.books = bookkeeping
        self.mappings: dict[int, Region] = {}
        self._digest = hashlib.blake2b(digest_size=32)

    def run(self, event: LayoutEvent) -> None:
        """Run one event.

        :raises UsageError: if there is no such operation, or no such mapping
        """
        if event.operation not in OPERATIONS:
            raise UsageError(f"operation {event.operation!r}: not one of {', '.join(OPERATIONS)}")
        OPERATIONS[event.operation](self, event)

    def digest(self) -> bytes:
        """Check invariants; return BLAKE2b-256 of all reads, and of all pages from every node."""
        self.books.check()
        for number, mapping in sorted(self.mappings.items()):
            self._digest.update(b"%d: %d pages" % (number, mapping.pages))
            for first in range(0, mapping.pages, _READ_AT_ONCE):
                index = range(first, min(first + _READ_AT_ONCE, mapping.pages))
                for node in range(self.books.nodes):
                    self._digest.update(self.books.read(mapping, index, node=node).data)
        return self._digest.digest()

    def mapping(self, number: int) -> Region:
        """Return a mapping by its number.

        :raises UsageError: if there is none
        """
        if number not in self.mappings:
            raise UsageError(f"mapping {number}: not made, or dropped")
        return self.mappings[number]

    def _create(self, event: LayoutEvent) -> None:
        kind = "file" if event.operation == "create_file" else "anon"
        self._add(
            event.mapping,
            self.books.create(str(event.mapping), kind=kind, pages=event.count, node=event.node),
        )

    def _copy(self, event: LayoutEvent) -> None:
        mapping = self.mapping(event.mapping)
        name = str(event.index)
        if event.operation == "fork":
            self._add(event.index, self.books.fork(mapping, name=name))
        else:
            self._add(event.index, self.books.reflink(mapping, name=name))

    def _add(self, number: int, mapping: Region) -> None:
        if number in self.mappings:
            raise UsageError(f"mapping {number}: made twice")
        self.mappings[number] = mapping

    def _read(self, event: LayoutEvent) -> None:
        found = self.books.read(self.mapping(event.mapping), _index(event), node=event.node)
        self._digest.update(found.data)

    def _write(self, event: LayoutEvent) -> None:
        data = content(event.seed, event.count, self.books.page_size)
        method = getattr(self.books, event.operation)
        method(self.mapping(event.mapping), _index(event), data)

    def _truncate(self, event: LayoutEvent) -> None:
        self.books.truncate(self.mapping(event.mapping), event.count)

    def _drop(self, event: LayoutEvent) -> None:
        self.books.drop(self.mapping(event.mapping))
        del self.mappings[event.mapping]

    def _move(self, event: LayoutEvent) -> None:
        method = getattr(self.books, event.operation)
        method(self.mapping(event.mapping), _index(event), node=event.node)

    def _change(self, event: LayoutEvent) -> None:
        getattr(self.books, event.operation)(self.mapping(event.mapping), _index(event))

    def _merge(self, _: LayoutEvent) -> None:
        self.books.merge()


OPERATIONS: dict[str, Callable[[LayoutRun, LayoutEvent], None]] = {
    "create": LayoutRun._create,
    "create_file": LayoutRun._create,
    "read": LayoutRun._read,
    "write": LayoutRun._write,
    "file_write": LayoutRun._write,
    "fork": LayoutRun._copy,
    "reflink": LayoutRun._copy,
    "truncate": LayoutRun._truncate,
    "punch": LayoutRun._change,
    "drop": LayoutRun._drop,
    "migrate": LayoutRun._move,
    "replicate": LayoutRun._move,
    "collapse": LayoutRun._change,
    "merge": LayoutRun._merge,
    "unmerge": LayoutRun._change,
}
"""Methods of :class:`LayoutRun` by the operation that they run."""


def _index(event: LayoutEvent) -> range:
    return range(event.index, event.index + event.count)


def compare_layouts(
    events: Iterable[LayoutEvent],
    *,
    page_size: int = 4096,
    nodes: int = 2,
    max_page_sharing: int = 256,
    layouts: Sequence[str] = LAYOUTS,
) -> pa.Table:
    """Run a trace under each layout, one after another, and return what each cost.

    Not counted: the check of the bookkeeping afterwards, and a read of every page from every node.

    :return: table of schema :data:`gpudedup.schema.LAYOUT_COSTS`, a row per layout
    :raises InvariantError: if two layouts read different bytes, or an invariant does not hold
    :raises UsageError: if an event does not fit
    """
    trace = list(events)
    rows = []
    read: dict[str, bytes] = {}
    for layout in layouts:
        books = Bookkeeping(layout, page_size, nodes=nodes, max_page_sharing=max_page_sharing)
        replay = LayoutRun(books)
        for event in trace:
            replay.run(event)
        rows.append(asdict(books.costs))
        read[layout] = replay.digest()
    if len(set(read.values())) > 1:
        raise InvariantError(f"layouts {', '.join(layouts)} do not read the same bytes")
    return pa.Table.from_pylist(rows, LAYOUT_COSTS)
