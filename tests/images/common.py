"""What tests of images ask of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpudedup.images.base import Image, PageColumns


def open_files() -> int:
    """File descriptors of this process; a map of a file has one too, until it is garbage."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def all_pages(image: Image) -> npt.NDArray[np.uint8]:
    pages = np.empty((image.pages, image.page_size), np.uint8)
    image.read_pages(0, pages)
    return pages


def joined(image: Image) -> PageColumns:
    """All rows in one piece; their numbers must be consecutive."""
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
