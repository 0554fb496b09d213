"""Frame numbers of several images in one dump.

Frames of different images are different frames, but a dump has one column for all. So each image's
frame numbers are raised by a *base*, one more than the highest number before. The schema metadata
``gpudedup.frame_base`` lists the bases: a frame's image is the last whose base is not above it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from gpudedup.images.base import Image
from gpudedup.images.rows import UNKNOWN_FRAME

NUMBERED_ANEW = "frames of all images do not fit into 64 bits together: numbered anew"

_MAX_FRAME = int(UNKNOWN_FRAME) - 1

Frames = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Numbering:
    """Map one image's frame numbers to the dump's: the number, or its place in ``order``, + base.

    :param base: number added to each frame number
    :param order: (k,) uint64, the image's frames, ascending; None: frames keep their numbers
    """

    base: int
    order: Frames | None = None

    def __call__(self, frame: Frames | None) -> Frames | None:
        """Return the dump's numbers of an image's frames."""
        if frame is None or (self.order is None and not self.base):
            return frame
        new = frame if self.order is None else np.searchsorted(self.order, frame).astype(np.uint64)
        return np.where(frame == UNKNOWN_FRAME, UNKNOWN_FRAME, new + np.uint64(self.base))


def numberings(images: Sequence[Image]) -> list[Numbering]:
    """Number frames so that no two images share a number; a single image keeps its numbers."""
    if len(images) == 1:
        return [Numbering(0)]
    bases = list(accumulate((_highest(image) + 1 for image in images), initial=0))
    if bases[-1] <= _MAX_FRAME + 1:
        return [Numbering(base) for base in bases[:-1]]
    orders = [_distinct(image) for image in images]
    bases = list(accumulate(map(len, orders), initial=0))
    return [Numbering(base, order) for base, order in zip(bases, orders, strict=False)]


def _highest(image: Image) -> int:
    """Return the highest frame number of an image, -1 if no frame is known."""
    return max((int(known.max()) for known in image.rows.frames() if len(known)), default=-1)


def _distinct(image: Image) -> Frames:
    """Return the distinct frames of an image, ascending."""
    found = np.empty(0, np.uint64)
    for known in image.rows.frames():
        found = np.union1d(found, known)
    return found


def frame_base(numbered: Sequence[Numbering]) -> dict[str, str]:
    """Return schema metadata by which original frames can be restored; null: they cannot."""
    if len(numbered) == 1:
        return {}
    bases = [n.base if n.order is None else None for n in numbered]
    return {"gpudedup.frame_base": json.dumps(bases)}
