"""Check that rows of a merged dump belong to the input that its metadata say they came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpudedup.errors import ImageError
from gpudedup.images.dumps.inputs import Input
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.rows import UNKNOWN_FRAME


def check_inputs(image: MergedImage, inputs: Sequence[Input], only: int | None = None) -> None:
    """Check that rows name mappings and frame numbers of their own input.

    An input could not be restored otherwise: its dump would name mappings that it does not have.

    :param only: number of the input whose rows are checked; None: all
    :raises ImageError: naming the first row that does not
    """
    row = mapping = 0
    for at, one in enumerate(inputs):
        first, stop = mapping, mapping + one.mappings
        start, end = row, row + one.rows
        row, mapping = end, stop
        if only not in (None, at):
            continue
        for piece in image.columns_between(start, end):
            wrong = np.flatnonzero((piece.mapping < first) | (piece.mapping >= stop))
            if len(wrong):
                here = int(wrong[0])
                reason = f"row {piece.row + here} is of input {at}, its mapping is not"
                raise ImageError(image.path, f"{reason}: mapping {piece.mapping[here]}")
            if piece.frame is None or not one.frame_base:
                continue
            base = np.uint64(one.frame_base)
            wrong = np.flatnonzero((piece.frame != UNKNOWN_FRAME) & (piece.frame < base))
            if len(wrong):
                here = int(wrong[0])
                reason = f"row {piece.row + here} is of input {at}, whose frames are numbered from"
                raise ImageError(image.path, f"{reason} {base}: frame {piece.frame[here]}")
