"""A mapping of the manager: a file or an anonymous region, and the directory of its pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES
from gpudedup.mm.state.page_table import BLOCK_BITS, BLOCK_PLACES, leaf_places
from gpudedup.schema import FILE_KINDS

Writeback = Callable[[npt.NDArray[np.int64], npt.NDArray[np.uint8]], None]
"""Called with (n,) indices and (n, page_size) bytes of dirty pages; raises if it cannot write them.
The manager's lock is held: it must not call the manager."""


class Mapping:
    """A file or an anonymous region; made by the manager only.

    :param number: number of the mapping, from 1; reused after it is dropped
    :param name: path, ``[heap]``, ...
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param owner: process or machine
    :param domain: security domain
    :param node: pool of the new frames of its stores
    :param start: address of index 0, in bytes
    :param source_flags: flags in the source's own words, e.g. VmFlags
    :param writeback: writes dirty pages back; None: they are only counted
    :param hidden: True for the mapping that owns the frames that reflinked files have in common
    """

    __slots__ = (
        "directory", "domain", "dropped", "hidden", "kind", "marks", "name", "node", "number",
        "owner", "pages", "source_flags", "start", "writeback",
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
        # Zeros take no memory until they are written, so a sparse mapping's directory is sparse;
        # walks skip the blocks that have no mark.
        self.directory: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self.marks: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)

    @property
    def is_file(self) -> bool:
        """Return whether its pages are a page cache."""
        return self.kind in FILE_KINDS

    def __repr__(self) -> str:
        gone = ", dropped" if self.dropped else ""
        return f"<mapping {self.name!r} of {self.owner!r}: {self.kind}, {self.pages} pages{gone}>"

    def resize(self, pages: int) -> None:
        """Set the number of pages, in a directory that grows by half at least."""
        leaves = (pages + LEAF_PAGES - 1) >> LEAF_BITS
        if leaves > len(self.directory):
            longer = np.zeros(max(leaves, len(self.directory) * 3 // 2), np.uint32)
            marks = np.zeros((len(longer) + BLOCK_PLACES - 1) >> BLOCK_BITS, np.bool_)
            places = self.places()
            longer[places] = self.directory[places]
            marks[: len(self.marks)] = self.marks
            # In this order: compiled code would read beyond the end of a shorter one.
            self.marks = marks
            self.directory = longer
        self.pages = pages

    def shape_like(self, other: Mapping) -> None:
        """Take another mapping's size, with a directory of the same shape, without leaves."""
        self.marks = other.marks.copy()
        self.directory = np.zeros(len(other.directory), np.uint32)
        self.pages = other.pages

    def places(self, start: int = 0) -> npt.NDArray[np.int64]:
        """Return the places of the directory from ``start`` on that have leaves, in order."""
        places = np.empty(0, np.int64)
        while (n := leaf_places(self.directory, self.marks, start, places)) > len(places):
            places = np.empty(n, np.int64)
        return places
