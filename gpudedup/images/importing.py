"""Import images of any format, several at once, into one dump."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpudedup.errors import DamagedError, ImageError, UsageError
from gpudedup.images.base import Image, check_page_sizes
from gpudedup.images.dumps.writer import DumpWriter, Written
from gpudedup.images.files import file_name
from gpudedup.images.losses import MAX_LOSSES, Loss, lines
from gpudedup.images.numbering import NUMBERED_ANEW, Numbering, frame_base, numberings
from gpudedup.images.opening import images_of

_MAX_NAMES = 16
"""Images named in the dump's ``gpudedup.source`` at most."""


def import_images(
    inputs: str | os.PathLike[str] | Image | Iterable[str | os.PathLike[str] | Image],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    page_size: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write all readable pages of ``inputs`` to one dump; count the rest in ``absent.unreadable``.

    :param inputs: path of an image, or image, which stays open; one or several
    :param format: format of all paths: ``arrow``, ``elf`` or ``raw``; None: recognised by content
    :param page_size: bytes, for formats that do not record it; None: DEFAULT_PAGE_SIZE
    :param force: replace an existing file
    :param progress: called with pages done and pages in all
    :raises ImageError: if an input cannot be read, page sizes differ, or no page can be read
    :raises DamagedError: if a merged dump does not match its digests
    :raises OutputError: if the dump exists (without force) or cannot be written; nothing is left
    :raises UsageError: if there is no input, or an argument is out of range
    """
    with ExitStack() as opened:
        images = images_of(inputs, opened, format=format, page_size=page_size)
        if not images:
            raise UsageError("no image to import")
        check_page_sizes(images, "dump")
        numbered = numberings(images)
        copy = _Copy(images, progress or (lambda done, total: None))
        with DumpWriter(
            path,
            images[0].page_size,
            [mapping for image in images for mapping in image.mappings],
            source=source_of(images),
            metadata=frame_base(numbered),
            force=force,
            pages=sum(image.pages for image in images),
        ) as dump:
            for image, numbering in zip(images, numbered, strict=True):
                copy.add(image, numbering, dump)
            losses = [*(loss for image in images for loss in image.losses), *copy.lost.losses()]
            if losses and not copy.written:
                raise losses[0].error()
    notes = [line for image in images for line in image.notes]
    if any(n.order is not None for n in numbered):
        notes.append(NUMBERED_ANEW)
    return Written(copy.written, copy.mappings, dump.absent, lines(losses, copy.lost.more), notes)


def source_of(images: Sequence[Image]) -> str:
    """Return the ``gpudedup.source`` of a dump of ``images``."""
    names = ", ".join(file_name(image.path) for image in images[:_MAX_NAMES])
    more = len(images) - _MAX_NAMES
    return f"import of {names}" + (f" and {more} more" if more > 0 else "")


class _Copy:
    """Copy images into a dump, one after another, through one buffer."""

    def __init__(self, images: Sequence[Image], progress: Callable[[int, int], None]) -> None:
        self.written = 0
        self.mappings = 0
        self.lost = _Lost()
        self._progress = progress
        self._done = 0
        self._total = sum(image.pages for image in images)
        most = min(images[0].batch_pages, max(image.pages for image in images))
        self._pages = np.empty((most, images[0].page_size), np.uint8)
        progress(0, self._total)

    def add(self, image: Image, numbering: Numbering, dump: DumpWriter) -> None:
        """Append all readable rows of ``image``."""
        dump.absent.add(image.absent)
        for columns in image.batch_columns():
            read = self._read(image, columns.row, len(columns))
            kept = columns.where(read, self.written)
            if len(kept):
                mapping = kept.mapping + np.int32(self.mappings)
                kept = replace(kept, mapping=mapping, frame=numbering(kept.frame))
                dump.write(kept, self._pages[: len(kept)])
            self.written += len(kept)
            dump.absent.unreadable += len(columns) - len(kept)
            self._done += len(columns)
            self._progress(self._done, self._total)
        self.mappings += len(image.mappings)

    def _read(self, image: Image, row: int, rows: int) -> npt.NDArray[np.bool_]:
        """Read rows into the buffer without gaps; return which were readable, (rows,) bool."""
        read = np.ones(rows, np.bool_)
        try:
            image.read_pages(row, self._pages[:rows])
        except DamagedError:
            raise
        except ImageError:
            kept = 0
            for at in range(rows):
                try:
                    image.read_pages(row + at, self._pages[kept : kept + 1])
                    kept += 1
                except ImageError as error:
                    read[at] = False
                    self.lost.add(image, row + at, error.reason)
        return read


class _Lost:
    """Stretches of unreadable rows: the first :data:`MAX_LOSSES`, and the number of the rest."""

    def __init__(self) -> None:
        self.more = 0
        self._stretches: list[tuple[Image, int, str]] = []
        self._pages: list[int] = []
        self._next: tuple[int, int] | None = None

    def add(self, image: Image, row: int, reason: str) -> None:
        """Add a row; rows of an image come in ascending order."""
        if self._next != (id(image), row):
            if len(self._stretches) < MAX_LOSSES:
                self._stretches.append((image, row, reason))
                self._pages.append(0)
            else:
                self.more += 1
        if not self.more:
            self._pages[-1] += 1
        self._next = id(image), row + 1

    def losses(self) -> list[Loss]:
        """Return the first :data:`MAX_LOSSES` stretches."""
        return [
            Loss(image.path, f"{pages} pages could not be read: {reason}", image.offset_of(row))
            for (image, row, reason), pages in zip(self._stretches, self._pages, strict=True)
        ]
