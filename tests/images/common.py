"""Helpers for tests of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpudedup.images.base import Image
from gpudedup.images.rows import PageColumns

READ_LIMIT = 8 << 20
"""Bytes to read at each end of an extent, at most."""


def open_files() -> int:
    """Return the number of open descriptors; a memory map holds one until it is collected."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def all_pages(image: Image) -> npt.NDArray[np.uint8]:
    pages = np.empty((image.pages, image.page_size), np.uint8)
    image.read_pages(0, pages)
    return pages


def joined(image: Image) -> PageColumns:
    """Return all rows in one piece; check that their numbers are consecutive."""
    pieces = list(image.columns())
    row = 0
    for piece in pieces:
        assert piece.row == row
        row += len(piece)
    assert row == image.pages
    frames = [p.frame for p in pieces if p.frame is not None]
    return PageColumns(
        0,
        np.concatenate([p.mapping for p in pieces]),
        np.concatenate([p.index for p in pieces]),
        np.concatenate(frames) if frames else None,
    )


def holds_together(image: Image, size: int) -> None:
    """Check what every image promises, and read its rows, mappings and the ends of its extents.

    :param size: bytes of the file
    """
    row = 0
    for extent in image.extents:
        assert extent.row == row
        assert extent.pages > 0
        assert 0 <= extent.offset <= extent.offset + extent.pages * image.page_size <= size
        row += extent.pages
        whole = min(extent.pages, max(1, READ_LIMIT // image.page_size))
        for first in (extent.row, row - whole):
            out = np.empty((whole, image.page_size), np.uint8)
            if image.format == "merged":
                image.read_stored(np.arange(first, first + whole), out)
            else:
                image.read_pages(first, out)
    assert image.stored == row
    if image.format == "merged":
        whole = min(image.pages, max(1, READ_LIMIT // image.page_size))
        for first in (0, image.pages - whole):
            image.read_pages(first, np.empty((whole, image.page_size), np.uint8))
    row = 0
    for c in image.columns():
        assert c.row == row
        row += len(c)
        assert c.mapping.min() >= 0
        assert c.mapping.max() < len(image.mappings)
        assert c.stored is None or 0 <= c.stored.min() <= c.stored.max() < image.stored
        for values in (c.index, c.frame, c.node, c.flags):
            assert values is None or (len(values) == len(c) and int(values.max()) < 2**64)
    assert row == image.pages
    for mapping in image.mappings:
        assert 0 <= mapping.start < 2**64
        "".join((mapping.owner, mapping.name, mapping.domain, mapping.flags)).encode()
    assert min(image.absent.as_dict().values()) >= 0
