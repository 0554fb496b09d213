"""Inputs and results of every engine.

Results are bit-identical, whatever the engine and its number of threads, blocks or batches: the
representative of equal pages is their lowest row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

HOST_MEMORY, DEVICE_MEMORY = -1, -2
"""Values of :attr:`PageSource.fd` for stretches of memory."""


class PageClass(IntEnum):
    """Class of a row."""

    CONTENT = 0
    """ordinary bytes"""
    ZERO = 1
    """all bytes zero"""
    FILLED = 2
    """one 64-bit word, not zero, repeated"""
    ALIAS = 3
    """same frame as an earlier row: not read again"""
    UNREADABLE = 4
    """its bytes could not be read"""


@dataclass(frozen=True, slots=True)
class PageSource:
    """Where the bytes of rows 0 .. n - 1 lie: stretches of files or of memory.

    :param page_size: bytes
    :param first_row: (k + 1,) int64, ascending from 0 to n; stretch i holds rows first_row[i] up to
        first_row[i + 1]
    :param fd: (k,) int32 file descriptor, or :data:`HOST_MEMORY` or :data:`DEVICE_MEMORY`
    :param base: (k,) uint64 byte offset in the file, or address
    :param keep: objects that own the memory or the descriptors
    """

    page_size: int
    first_row: npt.NDArray[np.int64]
    fd: npt.NDArray[np.int32]
    base: npt.NDArray[np.uint64]
    keep: tuple[object, ...] = ()

    @property
    def pages(self) -> int:
        """Return the number of rows."""
        return int(self.first_row[-1])

    @classmethod
    def of_array(cls, pages: npt.NDArray[np.uint8]) -> PageSource:
        """Make a source of ``pages``, (n, page_size) uint8, C-contiguous; not copied."""
        return cls(
            page_size=pages.shape[1],
            first_row=np.array([0, len(pages)], np.int64),
            fd=np.array([HOST_MEMORY], np.int32),
            base=np.array([pages.ctypes.data], np.uint64),
            keep=(pages,),
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a partition of which every row was read, and none is an alias.

    :param zero: ZERO rows
    :param sharing: CONTENT and FILLED rows that are not their own representative
    :param shared: representatives of these
    """

    zero: int
    sharing: int
    shared: int


@dataclass(frozen=True, slots=True)
class Partition:
    """Rows split into classes of equal bytes.

    :param digests: (n, 2) uint64, low and high half of XXH3-128; undefined for ALIAS and
        UNREADABLE
    :param classes: (n,) uint8, :class:`PageClass`
    :param representative: (n,) int64, lowest row with the same bytes; for an ALIAS that of its
        frame; for an UNREADABLE row itself
    :param collisions: contents whose digest an earlier content has; 0 if not verified
    :param tally: counts, where a device made them
    :param seconds: wall time per stage; stages do not overlap
    :param busy: seconds of work per part of the offload engine; parts overlap within a stage
    """

    digests: npt.NDArray[np.uint64]
    classes: npt.NDArray[np.uint8]
    representative: npt.NDArray[np.int64]
    collisions: int
    tally: Tally | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)


def digest_mask(bits: int) -> npt.NDArray[np.uint64]:
    """Return the masks of the low and the high half that keep ``bits`` low bits, (2,) uint64."""
    kept = (1 << min(max(bits, 0), 128)) - 1
    return np.array([kept & (2**64 - 1), kept >> 64], np.uint64)


def one_page(page_size: int) -> PageSource:
    """Return a source of one page, with which an engine loads its code."""
    return PageSource.of_array(np.ones((1, page_size), np.uint8))


class Progress(Protocol):
    """Callback with the rows done and in total; runs in the thread that called the engine."""

    def __call__(self, done: int, total: int) -> None:
        """Report progress."""


class Engine(Protocol):
    """Bulk work on page bytes."""

    @property
    def name(self) -> str:
        """Name as in ``--backend``."""

    @property
    def device(self) -> str:
        """Model of the processor, or of the devices."""

    @property
    def threads(self) -> int:
        """Number of host threads."""

    def load(self, page_size: int) -> None:
        """Compile what a partition needs, or load compiled code, so that it can be timed apart."""

    def partition(
        self,
        source: PageSource,
        *,
        alias_of: npt.NDArray[np.int64] | None = None,
        verify: bool = True,
        digest_bits: int = 128,
        progress: Progress | None = None,
    ) -> Partition:
        """Find which pages of ``source`` are equal.

        :param alias_of: (n,) int64, lowest row with the same frame; only those rows are read
        :param verify: compare bytes; False: equal digests count as equal pages
        :param digest_bits: low bits of the digest to keep; few of them make digests collide
        """
