"""Several images as one population: rows, mappings and stored pages, image after image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import DEVICE_MEMORY, HOST_MEMORY, PageSource
from gpudedup.errors import UsageError
from gpudedup.images.base import Image, check_page_sizes
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.losses import MAX_LOSSES, Loss
from gpudedup.images.memory import MemoryImage
from gpudedup.images.rows import UNKNOWN_FRAME, Mapping

Key = Literal["owner", "domain", "kind", "name"]


@dataclass(frozen=True, slots=True)
class Population:
    """The images of one scan.

    :param images: in the order given; all of one page size
    :param first_row: (k + 1,) int64, row in the population of each image's row 0; last is n
    :param first_mapping: (k + 1,) int32, the same for mappings
    :param first_stored: (k + 1,) int64, the same for stored pages: fewer than rows in merged dumps
    """

    images: tuple[Image, ...]
    first_row: npt.NDArray[np.int64]
    first_mapping: npt.NDArray[np.int32]
    first_stored: npt.NDArray[np.int64]

    @classmethod
    def of(cls, images: Sequence[Image]) -> Population:
        """Make a population of ``images``.

        :raises UsageError: if ``images`` is empty
        :raises ImageError: if their page sizes differ
        """
        if not images:
            raise UsageError("no input")
        check_page_sizes(images, "scan")
        return cls(
            images=tuple(images),
            first_row=np.cumsum([0, *(image.pages for image in images)], dtype=np.int64),
            first_mapping=np.cumsum([0, *(len(i.mappings) for i in images)], dtype=np.int32),
            first_stored=np.cumsum([0, *(image.stored for image in images)], dtype=np.int64),
        )

    @property
    def page_size(self) -> int:
        """Return the page size in bytes."""
        return self.images[0].page_size

    @property
    def pages(self) -> int:
        """Return the number of rows."""
        return int(self.first_row[-1])

    @property
    def mappings(self) -> list[Mapping]:
        """Return the mappings of all images."""
        return [mapping for image in self.images for mapping in image.mappings]

    def source(self) -> PageSource:
        """Return where the bytes of all stored pages lie."""
        extents = [
            (base + e.row, _place(image), e.offset)
            for base, image in zip(self.first_stored.tolist(), self.images, strict=False)
            for e in image.extents
        ]
        return PageSource(
            page_size=self.page_size,
            first_row=np.array([e[0] for e in extents] + [self.first_stored[-1]], np.int64),
            fd=np.array([e[1] for e in extents], np.int32),
            base=np.array([e[2] for e in extents], np.uint64),
            keep=self.images,
        )

    def stored_of(self) -> npt.NDArray[np.int64] | None:
        """Return the stored page of each row, (n,) int64; None: their numbers are equal."""
        if not any(isinstance(image, MergedImage) for image in self.images):
            return None
        stored = np.empty(self.pages, np.int64)
        for at, image in enumerate(self.images):
            start, stop = self.first_row[at : at + 2]
            if not isinstance(image, MergedImage):
                stored[start:stop] = np.arange(stop - start)
            else:
                for piece in image.rows:
                    row = int(start) + piece.row
                    assert piece.stored is not None
                    stored[row : row + len(piece)] = piece.stored
            stored[start:stop] += self.first_stored[at]
        return stored

    def place(self, row: int) -> tuple[Image, int]:
        """Return the image that holds ``row``, and the byte offset of the page in its file."""
        at = int(np.searchsorted(self.first_row, row, side="right")) - 1
        image = self.images[at]
        return image, image.offset_of(row - int(self.first_row[at]))

    def losses(self, rows: npt.NDArray[np.int64]) -> tuple[list[Loss], int]:
        """Return the losses of the images, then those of stretches of rows that were not read.

        :param rows: rows that were not read, ascending
        :return: losses, and the number of stretches beyond :data:`MAX_LOSSES`
        """
        stretches = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []
        losses = [loss for image in self.images for loss in image.losses]
        for stretch in stretches[:MAX_LOSSES]:
            image, offset = self.place(int(stretch[0]))
            pages = "1 page" if len(stretch) == 1 else f"{len(stretch)} pages"
            losses.append(Loss(image.path, f"{pages} could not be read", offset))
        return losses, max(0, len(stretches) - MAX_LOSSES)

    def mapping_codes(self) -> npt.NDArray[np.int32]:
        """Return the index of each row's mapping in :attr:`mappings`, (n,) int32."""
        codes = np.empty(self.pages, np.int32)
        for at, image in enumerate(self.images):
            for piece in image.rows:
                row = int(self.first_row[at]) + piece.row
                np.add(piece.mapping, self.first_mapping[at], out=codes[row : row + len(piece)])
        return codes

    def words(self, key: Key) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Return the distinct words of ``key``, and the index of each mapping's word."""
        words: dict[str, int] = {}
        codes = [words.setdefault(getattr(mapping, key), len(words)) for mapping in self.mappings]
        return list(words), np.array(codes, np.int32)

    def indices(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Return the page offsets of ``rows`` within their mappings, (len(rows),) uint64."""
        order = np.argsort(rows)
        wanted = rows[order]
        found = np.empty(len(rows), np.uint64)
        for at, image in enumerate(self.images):
            for piece in image.rows:
                row = int(self.first_row[at]) + piece.row
                low, high = np.searchsorted(wanted, [row, row + len(piece)])
                found[order[low:high]] = piece.index[wanted[low:high] - row]
        return found

    def alias_of(self) -> npt.NDArray[np.int64] | None:
        """Return the lowest row of each row's frame in its image, (n,) int64; None: all differ."""
        result: npt.NDArray[np.int64] | None = None
        for at, image in enumerate(self.images):
            # Arrays have no frames; their rows need not be made to see that.
            frames = None if isinstance(image, MemoryImage) else image.rows.frame_of()
            if frames is None:
                continue
            from gpudedup.engines.aliases import first_rows

            row, n = int(self.first_row[at]), len(frames)
            first = np.empty(n, np.int64)
            table = np.full(1 << max(4, (n + n // 4).bit_length()), -1, np.int64)
            if first_rows(frames, UNKNOWN_FRAME, table, row, first):
                if result is None:
                    result = np.arange(self.pages)
                result[row : row + n] = first
        return result


def _place(image: Image) -> int:
    """Return the descriptor of an image's file, or the kind of memory that holds it."""
    if isinstance(image, MemoryImage):
        return DEVICE_MEMORY if image.on_device else HOST_MEMORY
    return image.fd
