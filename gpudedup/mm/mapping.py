"""A mapping of the manager: a file or an anonymous region, and the directory of its pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES
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
        leaves = (pages + LEAF_PAGES - 1) >> LEAF_BITS
        if leaves > len(self.directory):
            longer = np.zeros(max(leaves, len(self.directory) * 3 // 2), np.uint32)
            longer[: len(self.directory)] = self.directory
            self.directory = longer
        # Last: without a directory as long, an access would read beyond its end.
        self.pages = pages
