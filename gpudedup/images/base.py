"""The interface of every image of memory, whatever its format.

An image is a list of rows (:mod:`gpudedup.images.rows`). Their bytes lie in *extents*: stretches of
one file in which pages lie one after another, at any byte offset. Engines read the extents
themselves, for speed; :meth:`Image.read_pages` and :meth:`Image.batches` are easier.

Extents consist of *stored pages*. A row is a stored page, except in a merged dump: rows with equal
bytes share one there, and the column ``stored`` names it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError
from gpudedup.images.losses import Loss
from gpudedup.images.rows import Mapping, PageColumns, Rows, regrouped

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 64 << 20
"""Page bytes in one record batch."""


@dataclass(slots=True)
class Absent:
    """Pages that the source has or had and this image lacks. Absent is never zero.

    :param holes: pages never populated: sparse parts of a file, memory that a process never touched
    :param excluded: pages that the writer of the image left out (a core's memsz beyond its filesz)
    :param unreadable: pages that should exist and could not be read; exit code PARTLY_UNREADABLE
    """

    holes: int = 0
    excluded: int = 0
    unreadable: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    def add(self, other: Absent) -> None:
        """Add the counts of another image to these."""
        self.holes += other.holes
        self.excluded += other.excluded
        self.unreadable += other.unreadable


GATHER_BYTES = 2 << 20
"""Page bytes that :meth:`Image.read_stored` reads together: few enough to stay in the cache."""

_GAP_BYTES = 16 << 10
"""Bytes of a gap at most that is read along with its neighbours: faster than a second call."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Stored pages ``row .. row + pages - 1`` lie one after another from byte ``offset``."""

    row: int
    pages: int
    offset: int


@dataclass(slots=True)
class Image(ABC):
    """An opened image: its rows, where their bytes lie, and what is missing.

    :param path: file as the user named it
    :param fd: file descriptor that ``extents`` refer to; closed by :meth:`close`
    :param page_size: bytes
    :param extents: every stored page exactly once, in order; all lie within the file
    :param losses: stretches counted in ``absent.unreadable``
    :param notes: what a user should know of this image, one line each
    """

    path: str
    fd: int
    page_size: int
    mappings: Sequence[Mapping] = ()
    extents: Sequence[Extent] = ()
    absent: Absent = field(default_factory=Absent)
    losses: list[Loss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""
    _rows: Rows | None = field(default=None, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def format(self) -> str:
        """Short name of the format, as in ``scan --json``."""

    @abstractmethod
    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows in row order, in pieces; the image may be closed."""

    @property
    def rows(self) -> Rows:
        """Return :meth:`columns`, read once and kept."""
        if self._rows is None:
            self._rows = Rows(self.columns())
        return self._rows

    @property
    def pages(self) -> int:
        """Return the number of rows."""
        return self.stored

    @property
    def stored(self) -> int:
        """Return the number of stored pages."""
        return self.extents[-1].row + self.extents[-1].pages if self.extents else 0

    def offset_of(self, row: int) -> int:
        """Return the byte offset of a row's page in the file."""
        return self.offset_of_stored(row)

    def offset_of_stored(self, stored: int) -> int:
        """Return the byte offset of a stored page in the file."""
        extent = self.extents[bisect_right(self.extents, stored, key=lambda e: e.row) - 1]
        return extent.offset + (stored - extent.row) * self.page_size

    def read_pages(self, row: int, out: npt.NDArray[np.uint8]) -> None:
        """Read rows ``row .. row + n - 1`` into ``out``, (n, page_size) uint8, C-contiguous.

        :raises ImageError: naming the offset at which the file could not be read
        """
        self._read_run(row, out)

    def read_stored(self, stored: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Read stored pages.

        :param stored: (n,) int64, in any order, repeated or not
        :param out: (n, page_size) uint8, C-contiguous, written
        :raises ImageError: naming the offset at which the file could not be read
        """
        step = max(1, GATHER_BYTES // self.page_size)
        for at in range(0, len(stored), step):
            self._gather(stored[at : at + step], out[at : at + step])

    def _gather(self, stored: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        if (np.diff(stored) == 1).all():
            self._read_run(int(stored[0]), out)
            return
        wanted, place = np.unique(stored, return_inverse=True)
        is_last = np.diff(wanted) > 1 + _GAP_BYTES // self.page_size
        first = wanted[np.concatenate([[True], is_last])]
        pages = wanted[np.concatenate([is_last, [True]])] + 1 - first
        begin = np.cumsum(pages) - pages
        buffer = np.empty((int(pages.sum()), self.page_size), np.uint8)
        span = np.searchsorted(first, wanted, side="right") - 1
        at = begin[span] + wanted - first[span]
        for number, (start, n, to) in enumerate(
            zip(first.tolist(), pages.tolist(), begin.tolist(), strict=True)
        ):
            try:
                self._read_run(start, buffer[to : to + n])
            except ImageError:
                # The unreadable page may lie in a gap.
                for page, to_page in zip(wanted[span == number], at[span == number], strict=True):
                    self._read_run(int(page), buffer[to_page : to_page + 1])
        # Without a mode NumPy would write to a copy of ``out`` first.
        np.take(buffer, at[place], axis=0, out=out, mode="clip")

    def _read_run(self, stored: int, out: npt.NDArray[np.uint8]) -> None:
        """Read consecutive stored pages."""
        done, flat = 0, out.reshape(-1).data
        at = bisect_right(self.extents, stored, key=lambda e: e.row) - 1
        while done < len(out):
            extent = self.extents[at]
            skip = stored + done - extent.row
            count = min(extent.pages - skip, len(out) - done)
            self._read_at(
                extent.offset + skip * self.page_size,
                flat[done * self.page_size : (done + count) * self.page_size],
            )
            done += count
            at += 1

    def _read_at(self, offset: int, out: memoryview) -> None:
        while out:
            try:
                got = os.preadv(self.fd, [out], offset)
            except OSError as error:
                raise ImageError(self.path, error.strerror or str(error), offset) from None
            if not got:
                raise ImageError(self.path, "the file became shorter while it was read", offset)
            offset += got
            out = out[got:]

    @property
    def batch_pages(self) -> int:
        """Return the number of pages in :data:`BATCH_BYTES`, at least 1."""
        return max(1, BATCH_BYTES // self.page_size)

    def batch_columns(self) -> Iterator[PageColumns]:
        """Yield :attr:`rows` in pieces of :attr:`batch_pages` rows."""
        return regrouped(self.rows, self.batch_pages)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of :func:`gpudedup.schema.dump_schema`, at most :attr:`batch_pages` rows.

        :raises ImageError: where a page cannot be read
        """
        from gpudedup.images.dumps.batches import mapping_dictionary, record_batch

        dictionary = mapping_dictionary(self.mappings)
        for columns in self.batch_columns():
            pages = np.empty((len(columns), self.page_size), np.uint8)
            self.read_pages(columns.row, pages)
            yield record_batch(columns, pages, dictionary)

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_page_sizes(images: Sequence[Image], together: str) -> None:
    """Check that images, at least one, have one page size.

    :param together: what they become together, for the message
    :raises ImageError: naming two images whose page sizes differ
    """
    first = images[0]
    for image in images:
        if image.page_size != first.page_size:
            raise ImageError(
                image.path,
                f"page size {image.page_size}, but {first.path} has {first.page_size}; "
                f"one {together} has one page size",
            )
