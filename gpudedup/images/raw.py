"""Raw images: frames of a machine one after another (``.mem``, ``.dd``, memory-backend-file).

There is no header, so any file can be read as one. Holes of a sparse file were never written by the
machine: they are absent, not zero. LiME's "raw" mode concatenates memory ranges and looks like a
raw image, but frame numbers are wrong beyond the first range.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpudedup.errors import ImageError
from gpudedup.images.base import Absent, Extent, Image
from gpudedup.images.files import file_name, open_regular
from gpudedup.images.losses import Loss
from gpudedup.images.rows import COLUMN_ROWS, Mapping, PageColumns, of_one_mapping


@dataclass(slots=True)
class RawImage(Image):
    """A raw image; index and frame of a page are its offset in the file, in pages."""

    @property
    def format(self) -> str:
        """Return ``raw``."""
        return "raw"

    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows, one extent at a time."""
        for extent in self.extents:
            begin = extent.offset // self.page_size
            for first in range(0, extent.pages, COLUMN_ROWS):
                stop = min(first + COLUMN_ROWS, extent.pages)
                place = np.arange(begin + first, begin + stop, dtype=np.uint64)
                mapping = of_one_mapping(0, len(place))
                yield PageColumns(extent.row + first, mapping, place, place)


def open_raw(path: str, page_size: int) -> RawImage:
    """Open ``path`` as a raw image with pages of ``page_size`` bytes.

    :raises ImageError: if it cannot be opened, is not a regular file, or is empty
    """
    fd, size = open_regular(path)
    try:
        extents, data_pages = _data_extents(fd, size, page_size)
    except OSError as error:
        os.close(fd)
        raise ImageError(path, error.strerror or str(error)) from None
    except BaseException:
        os.close(fd)
        raise
    tail = size % page_size
    image = RawImage(
        path=path,
        fd=fd,
        page_size=page_size,
        mappings=(Mapping(file_name(path), "", "guest", "memory", 0),),
        extents=extents,
        absent=Absent(holes=size // page_size - data_pages, unreadable=1 if tail else 0),
        source="raw",
    )
    if tail:
        reason = f"the last {tail} bytes are less than a page"
        image.losses.append(Loss(path, reason, size - tail))
    return image


def _data_extents(fd: int, size: int, page_size: int) -> tuple[list[Extent], int]:
    """Return the stretches of whole pages that hold any data, and their pages in all."""
    extents: list[Extent] = []
    row = at = 0
    whole = size // page_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        first = start // page_size
        if extents:
            last = extents[-1]
            first = max(first, last.offset // page_size + last.pages)
        stop = min(-(-at // page_size), whole)
        if stop > first:
            extents.append(Extent(row, stop - first, first * page_size))
            row += stop - first
    return extents, row
