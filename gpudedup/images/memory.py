"""Images that lie in memory: NumPy arrays, and whatever offers DLPack on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.errors import UsageError
from gpudedup.images.base import COLUMN_ROWS, Extent, Image, Mapping, PageColumns
from gpudedup.schema import check_page_size


@dataclass(slots=True)
class MemoryImage(Image):
    """Pages of an array; not copied. ``fd`` is -1 and an extent's offset is an address.

    :param array: (n, page_size) uint8, C-contiguous
    """

    array: npt.NDArray[np.uint8] | None = None

    @property
    def format(self) -> str:
        """Return ``memory``."""
        return "memory"

    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows."""
        for first in range(0, self.pages, COLUMN_ROWS):
            index = np.arange(first, min(first + COLUMN_ROWS, self.pages), dtype=np.uint64)
            yield PageColumns(first, np.zeros(len(index), np.int32), index)

    def read_pages(self, row: int, out: npt.NDArray[np.uint8]) -> None:
        """Copy rows ``row .. row + n - 1`` to ``out``, (n, page_size) uint8."""
        assert self.array is not None
        out[:] = self.array[row : row + len(out)]


def open_array(array: Any, name: str = "array") -> MemoryImage:
    """Make an image of ``array``, (n, page_size) uint8, C-contiguous, or anything with DLPack.

    :raises UsageError: if it has another shape or type, or does not lie in host memory
    """
    try:
        pages: Any = array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{name}: not an array in host memory: {error}") from None
    if pages.dtype != np.uint8 or pages.ndim != 2 or not pages.flags.c_contiguous:
        raise UsageError(
            f"{name}: {pages.dtype} of shape {pages.shape}; pages are (n, page_size) uint8, "
            "C-contiguous"
        )
    return MemoryImage(
        path=name,
        fd=-1,
        page_size=check_page_size(pages.shape[1]),
        mappings=(Mapping(name, "", "anon", "", 0),),
        extents=[Extent(0, len(pages), pages.ctypes.data)] if len(pages) else [],
        source="memory",
        array=pages,
    )
