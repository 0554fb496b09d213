"""Merged dumps: pages with equal bytes share one entry of the dictionary of ``content``.

The dictionary holds the frames, which are the stored pages; the indices are the page table. A row's
frame number, node and flags are those of the original, so a scan counts as before.

Opening reads the mappings, but neither rows nor frames. pyarrow would join a dictionary that comes
in parts (deltas), and copy it; so only the indices of record batches are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import DamagedError, ImageError
from gpudedup.images.base import GATHER_BYTES, Extent
from gpudedup.images.dumps.columns import Layout
from gpudedup.images.dumps.image import ArrowImage, check_block
from gpudedup.images.dumps.ipc import DictionaryPart, blocks, dictionary_parts
from gpudedup.images.dumps.mappings import read_mappings
from gpudedup.images.dumps.merged_seal import (
    Seal,
    check_frames,
    check_rest,
    damage_among,
    seal_of,
)
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.schema import KINDS

_ROW_BYTES = 17
"""Least bytes of a row: mapping, index, flags, content."""


class Mappings(Sequence[Mapping]):
    """The entries of the dictionary ``mapping``, each decoded on access."""

    def __init__(self, dictionary: pa.StructArray | None = None) -> None:
        self._dictionary = dictionary

    def column(self, name: str) -> pa.Array:
        """Return one field of all mappings."""
        return [] if self._dictionary is None else self._dictionary.field(name)

    def __len__(self) -> int:
        return 0 if self._dictionary is None else len(self._dictionary)

    @overload
    def __getitem__(self, at: int) -> Mapping: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Mapping, ...]: ...

    def __getitem__(self, at: int | slice) -> Mapping | tuple[Mapping, ...]:
        if isinstance(at, slice):
            return tuple(self[n] for n in range(*at.indices(len(self))))
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        assert self._dictionary is not None
        return Mapping(**self._dictionary[at].as_py())

    def __iter__(self) -> Iterator[Mapping]:
        for first in range(0, len(self), 1 << 16):
            assert self._dictionary is not None
            for fields in self._dictionary.slice(first, 1 << 16).to_pylist():
                yield Mapping(**fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # like a list's


@dataclass(slots=True)
class MergedImage(ArrowImage):
    """A merged dump; its stored pages are the entries of the dictionary ``content``.

    :param first_row: number of each record batch's first row, and of rows in all
    """

    first_row: Sequence[int] = (0,)
    _last: tuple[int, PageColumns] | None = field(default=None, repr=False)
    _seal: Seal | None = field(default=None, repr=False)
    _is_checked: bool = field(default=False, repr=False)

    @property
    def format(self) -> str:
        """Return ``merged``."""
        return "merged"

    @property
    def pages(self) -> int:
        """Return the number of rows."""
        return self.first_row[-1]

    def offset_of(self, row: int) -> int:
        """Return the byte offset of a row's page in the file."""
        return self.offset_of_stored(int(self.stored_of(row, 1)[0]))

    def read_pages(self, row: int, out: npt.NDArray[np.uint8]) -> None:
        """Implement :meth:`Image.read_pages`.

        :raises DamagedError: if a page does not match its digest; ``out`` is worthless then
        """
        self.sealed()
        stored = self.stored_of(row, len(out))
        step = max(1, GATHER_BYTES // self.page_size)
        try:
            for at in range(0, len(stored), step):
                part, pages = stored[at : at + step], out[at : at + step]
                self.read_stored(part, pages)
                self.check(part, pages)
        except DamagedError as error:
            raise self.damage(error) from None

    def sealed(self) -> Seal | None:
        """Return the seal, after its hash was checked once; None: others wrote the file.

        :raises DamagedError: if page table, metadata or digests are damaged
        """
        if not self._is_checked:
            seal = seal_of(self)
            if seal is not None:
                check_rest(self, seal)
            self._seal, self._is_checked = seal, True
        return self._seal

    def check(self, stored: npt.NDArray[np.int64], pages: npt.NDArray[np.uint8]) -> None:
        """Compare stored pages that were read with their digests, if the file has a seal.

        :param stored: (n,) int64
        :param pages: (n, page_size) uint8, C-contiguous: what :meth:`read_stored` read
        :raises DamagedError: if some do not match; :meth:`damage` makes it tell all
        """
        seal = self.sealed()
        if seal is not None:
            check_frames(self, seal, stored, pages)

    def damage(self, found: DamagedError, start: int = 0, stop: int | None = None) -> DamagedError:
        """Return an error that tells of all damage in rows ``start .. stop - 1``.

        :param found: what :meth:`check` raised; any other damage is returned as it is
        """
        seal = self.sealed()
        if seal is None or not found.frames:
            return found
        rows = list(self.columns_between(start, self.pages if stop is None else stop))
        return damage_among(self, seal, found.frames, rows)

    def stored_of(self, row: int, rows: int) -> npt.NDArray[np.int64]:
        """Return the stored pages of rows ``row .. row + rows - 1``, (rows,) int64."""
        pieces = [piece.stored for piece in self.columns_between(row, row + rows)]
        return np.concatenate([np.empty(0, np.int64), *(p for p in pieces if p is not None)])

    def columns_between(self, start: int, stop: int) -> Iterator[PageColumns]:
        """Yield the metadata of rows ``start .. stop - 1``, one record batch at a time."""
        at = bisect_right(self.first_row, start) - 1
        while start < stop and at < len(self.blocks):
            first, end = self.first_row[at : at + 2]
            if end > first:
                if self._last is None or self._last[0] != at:
                    self._last = at, self.piece(at, first)
                yield self._last[1].slice(start - first, stop - first)
            start, at = max(start, end), at + 1

    def place_rows(self) -> None:
        """Implement :meth:`ArrowImage.place_rows`; rows are not read."""
        path, data = self.path, self.data
        self.layout = Layout(self.schema)
        self.blocks = blocks(path, data)
        for at, block in enumerate(self.blocks):
            check_block(path, at, block)
            if block.rows > block.size // _ROW_BYTES:
                raise ImageError(path, f"record batch {at}: {block.rows} rows", block.offset)
        self.first_row = list(accumulate((block.rows for block in self.blocks), initial=0))
        # Blocks may share bytes; without a limit a small file could mean endless work.
        if self.pages * _ROW_BYTES > data.size:
            raise ImageError(path, f"{self.pages} rows are more than the file holds")
        self.extents = _frames(dictionary_parts(path, data, "content", self.page_size))
        if self.stored * self.page_size > data.size:
            raise ImageError(path, f"{self.stored} frames are more than the file holds")
        if self.blocks:
            self.mappings = Mappings(_dictionary(self))

    def piece(self, at: int, row: int) -> PageColumns:
        """Implement :meth:`ArrowImage.piece`.

        :raises ImageError: if it also refers to a frame that is not in the dictionary
        """
        # Without arguments ``super`` does not know the class that ``slots`` makes anew.
        piece = ArrowImage.piece(self, at, row)
        stored = piece.stored
        assert stored is not None
        if not 0 <= stored.min() <= stored.max() < self.stored:
            reason = f"record batch {at}: column content: not in the dictionary"
            raise ImageError(self.path, reason, self.blocks[at].offset)
        return piece


def _frames(parts: Sequence[DictionaryPart]) -> list[Extent]:
    """Return the frames' extents; a part replaces those before it unless it is a delta."""
    frames: list[Extent] = []
    for part in parts:
        if not part.delta:
            frames = []
        first = frames[-1].row + frames[-1].pages if frames else 0
        if part.values:
            frames.append(Extent(first, part.values, part.first))
    return frames


def _dictionary(image: MergedImage) -> pa.StructArray:
    """Return the checked dictionary of the column ``mapping``."""
    dictionary = read_mappings(image.data, image.schema)
    offset = image.blocks[0].offset
    if dictionary.null_count or any(column.null_count for column in dictionary.flatten()):
        raise ImageError(image.path, "a mapping has nulls", offset)
    if unknown := set(dictionary.field("kind").to_pylist()) - set(KINDS):
        reason = f"a mapping of kind {min(unknown)!r}, not one of {', '.join(KINDS)}"
        raise ImageError(image.path, reason, offset)
    return dictionary
