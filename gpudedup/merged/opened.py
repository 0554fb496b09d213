"""A merged dump as mappings that read like arrays of pages.

Opening reads neither rows nor frames. The first read of a mapping scans the page table once, for
the rows of each mapping. Views lie in a memory map of the file: truncating the file while a view is
used kills the process; copies are read from the file, and fail with ImageError then.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.dumps.inputs import Input, inputs_of
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.opening import open_image
from gpudedup.images.rows import Mapping, PageColumns

Pages = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Indices = int | np.integer | slice | Sequence[int] | npt.NDArray[np.integer]


def open_merged_image(path: str | os.PathLike[str]) -> MergedImage:
    """Open a merged dump as an image; the caller closes it. Raise ImageError if it is none."""
    image = open_image(path)
    if not isinstance(image, MergedImage):
        image.close()
        raise ImageError(image.path, f"not a merged dump ({image.format})")
    return image


def open_merged(path: str | os.PathLike[str]) -> MergedDump:
    """Open a merged dump as mappings that read like arrays; the caller closes it.

    :raises ImageError: if it is not a merged dump
    """
    return MergedDump(open_merged_image(path))


class MergedDump:
    """An opened merged dump: ``dump[owner, name]``, or ``dump[number]``, is a mapping's pages."""

    def __init__(self, image: MergedImage) -> None:
        self.image = image

    @property
    def page_size(self) -> int:
        """Return the page size in bytes."""
        return self.image.page_size

    @property
    def mappings(self) -> Sequence[Mapping]:
        """Return all mappings, in the order of their numbers."""
        return self.image.mappings

    @cached_property
    def inputs(self) -> list[Input]:
        """Return the images that were merged, in order.

        :raises ImageError: if the metadata contradict the dump
        """
        return inputs_of(self.image)

    @property
    def owners(self) -> list[str]:
        """Return the distinct owners, in the order of the mappings."""
        return list(dict.fromkeys(mapping.owner for mapping in self.mappings))

    def find(
        self, owner: str | None = None, name: str | None = None, kind: str | None = None
    ) -> list[MappedPages]:
        """Return the mappings that match all given fields, in their order."""
        return [
            self[number]
            for number, mapping in enumerate(self.mappings)
            if owner in (None, mapping.owner)
            and name in (None, mapping.name)
            and kind in (None, mapping.kind)
        ]

    def __getitem__(self, which: int | tuple[str, str]) -> MappedPages:
        """Return a mapping by its number, or by its owner and name.

        :raises KeyError: if no mapping matches
        :raises UsageError: if several match: :meth:`find` returns them
        """
        if isinstance(which, int):
            if not 0 <= which < len(self.mappings):
                raise KeyError(which)
            return MappedPages(self, which, self.mappings[which])
        found = self.find(*which)
        if not found:
            raise KeyError(which)
        if len(found) > 1:
            raise UsageError(f"{len(found)} mappings of {which[0]!r} are named {which[1]!r}")
        return found[0]

    def read(self, owner: str, address: int, size: int) -> bytes:
        """Return ``size`` bytes of an owner's memory from ``address`` on, within one mapping.

        :raises UsageError: if the dump lacks one of their pages
        """
        for mapping in self.find(owner):
            if mapping.info.start <= address < mapping.info.start + mapping.nbytes:
                return mapping.read(address - mapping.info.start, size)
        raise UsageError(f"address {address:#x} of {owner!r} is not in the dump")

    def rows_of(self, number: int) -> Iterator[PageColumns]:
        """Yield the rows of a mapping, in pieces."""
        code, start, stop = self._runs
        low, high = np.searchsorted(code, [number, number + 1])
        for first, end in zip(start[low:high].tolist(), stop[low:high].tolist(), strict=True):
            yield from self.image.columns_between(first, end)

    @cached_property
    def _runs(self) -> tuple[Rows, Rows, Rows]:
        """Return stretches of rows of one mapping, by mapping: its number, first row, end."""
        pieces = [np.empty((3, 0), np.int64)]
        for piece in self.image.columns():
            begin = np.flatnonzero(np.diff(piece.mapping, prepend=np.int32(-1)))
            end = np.append(begin[1:], len(piece))
            pieces.append(np.stack([piece.mapping[begin], begin + piece.row, end + piece.row]))
        code, start, stop = np.concatenate(pieces, axis=1)
        order = np.argsort(code, kind="stable")
        return code[order], start[order], stop[order]

    @cached_property
    def _mapped(self) -> mmap.mmap:
        data = self.image.data
        return mmap.mmap(data.fd, data.size, prot=mmap.PROT_READ)

    def frames(self, first: int, count: int) -> Pages | None:
        """Return a read-only view of stored pages; None if they are not contiguous in the file."""
        image = self.image
        for extent in image.extents:
            if extent.row <= first and first + count <= extent.row + extent.pages:
                image.data.check_length()
                offset = extent.offset + (first - extent.row) * image.page_size
                view = np.frombuffer(self._mapped, np.uint8, count * image.page_size, offset)
                return view.reshape(count, image.page_size)
        return None

    def close(self) -> None:
        """Close the image; views stay valid."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MappedPages:
    """The pages of one mapping: ``pages[3]``, ``pages[3:9]``, ``pages[[1, 5]]``.

    Pages that the dump lacks are an error, never zero; :attr:`index` lists those it has.
    """

    def __init__(self, dump: MergedDump, number: int, info: Mapping) -> None:
        self.dump = dump
        self.number = number
        self.info = info

    def __repr__(self) -> str:
        return f"MappedPages({self.info!r}, {len(self.index)} pages)"

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.uint64], Rows]:
        """Return index, ascending, and stored page of each page; a later row of a page wins."""
        pieces = list(self.dump.rows_of(self.number))
        index = np.concatenate([np.empty(0, np.uint64), *(p.index for p in pieces)])
        stored = [p.stored for p in pieces if p.stored is not None]
        frames = np.concatenate([np.empty(0, np.int64), *stored])
        order = np.argsort(index, kind="stable")
        index = index[order]
        is_last = np.append(index[1:] != index[:-1], np.ones(min(1, len(index)), np.bool_))
        return index[is_last], frames[order[is_last]]

    @property
    def index(self) -> npt.NDArray[np.uint64]:
        """Return the offsets of the pages in the dump, ascending, (n,) uint64."""
        return self._table[0]

    @property
    def stored(self) -> Rows:
        """Return the stored page of each page of :attr:`index`, (n,) int64."""
        return self._table[1]

    @property
    def end(self) -> int:
        """Return the number of pages up to the last one in the dump, absent ones included."""
        return int(self.index[-1]) + 1 if len(self.index) else 0

    def __len__(self) -> int:
        """Return :attr:`end`.

        :raises UsageError: if Python has no such length: an index may be any 64-bit number
        """
        if self.end > sys.maxsize:
            raise UsageError(f"{self.info.owner!r} {self.info.name!r}: {self.end} pages")
        return self.end

    @property
    def nbytes(self) -> int:
        """Return the bytes up to the end of the last page in the dump, absent pages included."""
        return self.end * self.dump.page_size

    def pages(self, index: Indices) -> Pages:
        """Return pages, (n, page_size) uint8: a view of the file if contiguous there, else a copy.

        :param index: page offsets within the mapping; a scalar is a batch of one
        :raises UsageError: if the dump lacks one of the pages
        """
        if isinstance(index, slice):
            wanted = np.arange(*index.indices(len(self)))
        else:
            wanted = np.atleast_1d(np.asarray(index))
            if wanted.dtype.kind != "u":
                wanted = wanted.astype(np.int64)
        place = np.searchsorted(self.index, wanted.astype(np.uint64))
        # A negative one is no number from the end, nor modulo 2^64.
        known = (place < len(self.index)) & (wanted >= 0)
        known[known] = self.index[place[known]] == wanted[known].astype(np.uint64)
        if not known.all():
            raise UsageError(
                f"page {wanted[~known][0]} of {self.info.owner!r} {self.info.name!r} is not in"
                " the dump"
            )
        stored = self.stored[place]
        if len(stored) and (np.diff(stored) == 1).all():
            view = self.dump.frames(int(stored[0]), len(stored))
            if view is not None:
                return view
        out = np.empty((len(stored), self.dump.page_size), np.uint8)
        self.dump.image.read_stored(stored, out)
        return out

    def __getitem__(self, index: Indices) -> Pages:
        """Return pages as :meth:`pages` does; for a scalar index one page, (page_size,) uint8."""
        found = self.pages(index)
        return found[0] if isinstance(index, int | np.integer) else found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Pages:
        pages = self.pages(slice(None))
        return pages.astype(dtype or np.uint8, copy=bool(copy))

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from byte ``offset`` of the mapping on.

        :raises UsageError: if the dump lacks one of their pages, or an argument is negative
        """
        if offset < 0 or size < 0:
            raise UsageError(f"offset {offset}, size {size}: must not be negative")
        page_size = self.dump.page_size
        first = offset // page_size
        pages = self.pages(np.arange(first, -(-(offset + size) // page_size)))
        return pages.reshape(-1)[offset - first * page_size :][:size].tobytes()
