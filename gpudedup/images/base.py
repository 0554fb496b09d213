"""What every image of memory offers, whatever its format.

An image is a list of *rows*; a row is one page of one mapping. Rows are numbered from 0 in the
order of the image. Their metadata comes as flat columns (:class:`PageColumns`), their bytes as
:class:`Extent`: stretches of one file in which pages lie one after another, at any byte offset.
A consumer that wants speed reads the extents itself; one that wants ease calls
:meth:`Image.read_pages` or :meth:`Image.batches`.

What lies in the extents are *stored pages*. They are the rows, but for a merged dump: there rows
with equal bytes may share a stored page, and :attr:`PageColumns.stored` tells which.

What is not there is never told as zero: it is counted in :class:`Absent`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN_FRAME = np.uint64(2**64 - 1)
"""Stands for null in ``PageColumns.frame``: the row is its own frame."""

UNKNOWN_NODE = np.int16(-1)
"""Stands for null in ``PageColumns.node``."""

BATCH_BYTES = 64 << 20
"""Page bytes in one record batch."""

COLUMN_ROWS = 1 << 20
"""Most rows in one piece of :meth:`Image.columns`, of formats whose columns are made."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Whose page: one entry of the dump's dictionary ``mapping``.

    :param owner: process or machine, e.g. ``redis-server[812]``
    :param domain: security domain, e.g. ``uid:1000``; empty if the source has none
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param name: path, ``[heap]``, ...; empty for an unnamed anonymous mapping
    :param start: address of index 0 in bytes
    :param flags: the source's own words, e.g. VmFlags ``rd wr mr mw me ac``
    """

    owner: str
    domain: str
    kind: str
    name: str
    start: int
    flags: str = ""


@dataclass(slots=True)
class Absent:
    """Pages that the source has or had and this image has not. Absent is never zero.

    :param holes: never populated: sparse parts of a file, pages that a process never touched
    :param excluded: left out by whoever made the image (a core's memsz beyond its filesz)
    :param unreadable: should be there and could not be read; makes the exit code 3
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
"""Stored pages that are read together by :meth:`Image.read_stored`: they stay in the cache."""

_GAP_BYTES = 16 << 10
"""Reading so much in between takes less time than a further call."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Stored pages ``row .. row + pages - 1`` lie one after another from byte ``offset``."""

    row: int
    pages: int
    offset: int


@dataclass(frozen=True, slots=True)
class PageColumns:
    """Metadata of consecutive rows, as flat arrays of one length n.

    :param row: number of the first row
    :param mapping: (n,) int32, index into :attr:`Image.mappings`
    :param index: (n,) uint64, page offset within the mapping
    :param frame: (n,) uint64 physical frame, :data:`UNKNOWN_FRAME` where unknown; or None: all
    :param node: (n,) int16 NUMA node, :data:`UNKNOWN_NODE` where unknown; or None: all
    :param flags: (n,) uint32, bits of :class:`gpudedup.schema.PageFlag`; or None: all 0
    :param stored: (n,) int64, number of the stored page with the bytes; or None: that of the row
    """

    row: int
    mapping: npt.NDArray[np.int32]
    index: npt.NDArray[np.uint64]
    frame: npt.NDArray[np.uint64] | None = None
    node: npt.NDArray[np.int16] | None = None
    flags: npt.NDArray[np.uint32] | None = None
    stored: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.mapping)

    def slice(self, start: int, stop: int) -> PageColumns:
        """Return rows ``start .. stop - 1`` of these, as views; ``stop`` may lie beyond the end."""
        return _selected(self, slice(start, stop), self.row + start)

    def where(self, mask: npt.NDArray[np.bool_], row: int) -> PageColumns:
        """Return the rows for which ``mask``, (n,) bool, is true, numbered from ``row`` on."""
        return _selected(self, mask, row)

    @staticmethod
    def join(pieces: Sequence[PageColumns]) -> PageColumns:
        """Return consecutive pieces (at least one) as one."""
        if len(pieces) == 1:
            return pieces[0]
        return PageColumns(
            row=pieces[0].row,
            mapping=np.concatenate([p.mapping for p in pieces]),
            index=np.concatenate([p.index for p in pieces]),
            frame=_join([(len(p), p.frame) for p in pieces], UNKNOWN_FRAME),
            node=_join([(len(p), p.node) for p in pieces], UNKNOWN_NODE),
            flags=_join([(len(p), p.flags) for p in pieces], np.uint32(0)),
            stored=_join([(len(p), p.stored) for p in pieces], np.int64(-1)),
        )


def _selected(columns: PageColumns, which: slice | npt.NDArray[np.bool_], row: int) -> PageColumns:
    return PageColumns(
        row=row,
        mapping=columns.mapping[which],
        index=columns.index[which],
        frame=None if columns.frame is None else columns.frame[which],
        node=None if columns.node is None else columns.node[which],
        flags=None if columns.flags is None else columns.flags[which],
        stored=None if columns.stored is None else columns.stored[which],
    )


def _join(
    parts: Sequence[tuple[int, npt.NDArray[Any] | None]], unknown: np.generic
) -> npt.NDArray[Any] | None:
    """Return arrays, each with its length, as one; None if all are None."""
    if all(values is None for _, values in parts):
        return None
    return np.concatenate([np.full(n, unknown) if v is None else v for n, v in parts])


def regrouped(pieces: Iterable[PageColumns], rows: int) -> Iterator[PageColumns]:
    """Yield consecutive pieces cut and joined to ``rows`` rows each; the last may have fewer."""
    waiting: list[PageColumns] = []
    free = rows
    for piece in pieces:
        at = 0
        while at < len(piece):
            waiting.append(piece.slice(at, at + free))
            at += len(waiting[-1])
            free -= len(waiting[-1])
            if not free:
                yield PageColumns.join(waiting)
                waiting, free = [], rows
    if waiting:
        yield PageColumns.join(waiting)


@dataclass(slots=True)
class Image(ABC):
    """An opened image: its rows, where their bytes lie, and what is missing.

    :param path: as the user named it
    :param fd: file descriptor that ``extents`` refer to; closed by :meth:`close`
    :param page_size: bytes
    :param extents: cover every stored page exactly once, in order; all lie within the file
    :param losses: one line for each stretch counted in ``absent.unreadable``
    :param notes: what a user should know of this image, one line each
    """

    path: str
    fd: int
    page_size: int
    mappings: Sequence[Mapping] = ()
    extents: Sequence[Extent] = ()
    absent: Absent = field(default_factory=Absent)
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""

    @property
    @abstractmethod
    def format(self) -> str:
        """Short name of the format, as in ``scan --json``."""

    @abstractmethod
    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows in row order, in pieces of any length.

        Works on a closed image too: only page bytes need the file.
        """

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
        """Read stored pages, in any order and repeated or not.

        :param stored: (n,) int64
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
                # Perhaps only a page in between cannot be read.
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
        """Return how many pages have :data:`BATCH_BYTES`; at least one."""
        return max(1, BATCH_BYTES // self.page_size)

    def batch_columns(self) -> Iterator[PageColumns]:
        """Yield :meth:`columns` in pieces of :attr:`batch_pages` rows."""
        return regrouped(self.columns(), self.batch_pages)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the image as record batches of :func:`gpudedup.schema.dump_schema`.

        :data:`BATCH_BYTES` of pages each, from however many mappings; the last has fewer.

        :raises ImageError: where a page cannot be read
        """
        from gpudedup.images.dumps.batches import mapping_dictionary, record_batch

        dictionary = mapping_dictionary(self.mappings)
        for columns in self.batch_columns():
            pages = np.empty((len(columns), self.page_size), np.uint8)
            self.read_pages(columns.row, pages)
            yield record_batch(columns, pages, dictionary)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_page_sizes(images: Sequence[Image], together: str) -> None:
    """Check that images can be taken together.

    :param images: at least one
    :param together: what they become, for the message
    :raises ImageError: naming two of them, if their page sizes differ
    """
    first = images[0]
    for image in images:
        if image.page_size != first.page_size:
            raise ImageError(
                image.path,
                f"page size {image.page_size}, but {first.path} has {first.page_size}; "
                f"one {together} has one page size",
            )
