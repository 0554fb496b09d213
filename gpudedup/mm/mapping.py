"""A mapping of the manager: a file or an anonymous region, and the directory of its pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.errors import UsageError
from gpudedup.mm.memory.pools import Memory
from gpudedup.mm.state.arrays import (
    LEAF_BITS,
    LEAF_PAGES,
    MAX_LEAVES,
    PER_LEAF,
    PER_PAGE,
    Count,
    grown,
)
from gpudedup.mm.state.page_table import ABSENT, add_leaves, locate, missing_leaves

Index = npt.NDArray[np.int64]
PageNumbers = npt.NDArray[np.uint32]

FILE_KINDS = ("file", "shmem")
"""Kinds whose pages are a page cache: written by file writes too, dirty, copied by reflink."""

Writeback = Callable[[npt.NDArray[np.int64], npt.NDArray[np.uint8]], None]
"""Called with (n,) indices and (n, page_size) bytes of dirty pages; raises if it cannot keep them.

It is called with the manager's lock held and must not call the manager.
"""


class Mapping:
    """What ``(mapping, index)`` addresses begin with; made by the manager only.

    :param number: from 1; used again when the mapping was dropped
    :param name: path, ``[heap]``, ...
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param owner: process or machine
    :param domain: security domain
    :param node: pool of frames that its stores take
    :param start: address of index 0, in bytes
    :param source_flags: the source's own words, e.g. VmFlags
    :param writeback: keeps dirty pages; None: they are only counted
    :param hidden: it is nobody's, and owns the frames that reflinked files have in common
    """

    __slots__ = (
        "directory", "domain", "dropped", "hidden", "kind", "name", "node", "number", "owner",
        "pages", "source_flags", "start", "writeback",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        name: str,
        kind: str,
        owner: str,
        domain: str,
        node: int,
        start: int = 0,
        source_flags: str = "",
        writeback: Writeback | None = None,
    ) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.owner = owner
        self.domain = domain
        self.node = node
        self.start = start
        self.source_flags = source_flags
        self.writeback = writeback
        self.pages = 0
        self.dropped = self.hidden = False
        self.directory: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)

    @property
    def is_file(self) -> bool:
        """Return whether its pages are a page cache."""
        return self.kind in FILE_KINDS

    def __repr__(self) -> str:
        gone = ", dropped" if self.dropped else ""
        return f"<mapping {self.name!r} of {self.owner!r}: {self.kind}, {self.pages} pages{gone}>"

    def resize(self, pages: int) -> None:
        """Set the number of pages, in a directory that grows by half at least."""
        self.pages = pages
        leaves = (pages + LEAF_PAGES - 1) >> LEAF_BITS
        if leaves > len(self.directory):
            longer = np.zeros(max(leaves, len(self.directory) * 3 // 2), np.uint32)
            longer[: len(self.directory)] = self.directory
            self.directory = longer

    def locate(self, memory: Memory, index: Index, *, create: bool) -> tuple[PageNumbers, int]:
        """Return numbers of pages, (n,) uint32, and which bits and leaves were met.

        :param create: give pages a leaf that have none; if not, they are pages of leaf 0
        :raises UsageError: if the mapping was dropped, or an index lies outside
        """
        if self.dropped:
            raise UsageError(f"mapping {self.name!r} was dropped")
        pages = np.empty(len(index), np.uint32)
        met = int(locate(memory.state, self.directory, self.pages, index, pages))
        if met < 0:
            raise UsageError(
                f"mapping {self.name!r}: no page {int(index[-1 - met])}, it has {self.pages}"
            )
        if create and met & ABSENT:
            ensure_leaves(memory, int(missing_leaves(self.directory, index)))
            add_leaves(memory.state, self.directory, self.number, index)
            locate(memory.state, self.directory, self.pages, index, pages)
        return pages, met


def ensure_leaves(memory: Memory, leaves: int) -> None:
    """Make room for ``leaves`` more leaves.

    :raises UsageError: if so many pages cannot be numbered
    """
    counts = memory.state.counts
    lacking = leaves - int(counts[Count.LEAVES_LEFT])
    if lacking <= 0:
        return
    before = len(memory.state.leaf_mapping)
    if before + lacking > MAX_LEAVES:
        raise UsageError(f"more than {MAX_LEAVES * LEAF_PAGES} pages cannot be numbered")
    state = grown(memory.state, PER_LEAF, before + lacking)
    leaves = min(len(state.leaf_mapping), MAX_LEAVES)
    memory.state = grown(state, PER_PAGE, leaves * LEAF_PAGES, LEAF_PAGES)
    counts[Count.LEAVES_LEFT] += leaves - before


def as_index(index: Any) -> Index:
    """Return an index, or many, as (n,) int64, C-contiguous.

    :raises UsageError: if it is not integers, or has more than one dimension
    """
    array = np.asarray(index)
    if array.dtype.kind not in "iu" and array.size:
        raise UsageError(f"index of type {array.dtype}: not integers")
    if array.ndim > 1:
        raise UsageError(f"index of shape {array.shape}: not one number or a row of them")
    if array.dtype == np.uint64 and array.size and array.max() >= 1 << 63:
        raise UsageError(f"index {array.max()}: no mapping has so many pages")
    return np.ascontiguousarray(array.reshape(-1), np.int64)


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the different ones among integers, ascending.

    What calls pass is ascending most of the time; NumPy's ``unique`` hashes all the same.
    """
    if (values[1:] > values[:-1]).all():
        return values
    ordered = np.sort(values)
    found: npt.NDArray[Any] = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return found


def check_part(offset: int, size: int, page_size: int) -> None:
    """Check that bytes lie within a page.

    :raises UsageError: if they do not
    """
    if offset < 0 or size < 0 or offset + size > page_size:
        raise UsageError(f"{size} bytes at {offset} of pages of {page_size}")


def as_data(data: Any, rows: int, page_size: int, offset: int | None) -> npt.NDArray[np.uint8]:
    """Return what shall be written to ``rows`` pages as (rows, k) uint8, C-contiguous.

    :param data: bytes or uint8, (rows, k), or (k,) for all pages the same
    :param offset: first byte within the page; None: whole pages
    :raises UsageError: if the shape does not fit
    """
    if isinstance(data, bytes | bytearray | memoryview):
        data = np.frombuffer(data, np.uint8)
    array = np.asarray(data)
    if array.dtype != np.uint8:
        raise UsageError(f"data of type {array.dtype}: pages are uint8")
    if array.ndim == 1:
        array = np.broadcast_to(array, (rows, len(array)))
    if array.ndim != 2 or len(array) != rows:
        raise UsageError(f"data of shape {array.shape} for {rows} pages")
    end = array.shape[1] + (offset or 0)
    if (offset is None and end != page_size) or (offset or 0) < 0 or end > page_size:
        raise UsageError(f"{array.shape[1]} bytes at {offset or 0} of pages of {page_size}")
    return np.ascontiguousarray(array)
