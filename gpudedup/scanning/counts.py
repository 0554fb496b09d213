"""Counters of a scan, each defined once.

A *page* is a row that was read, a *frame* a physical frame: rows of one image with the same known
frame are one frame, which belongs to the first of them. In total, and for every owner, domain, kind
and name, frames = zero_frames + unique_frames + shared_contents + sharing_frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.jit import compiled
from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import PageClass, Partition, Tally
from gpudedup.threads import ThreadPool


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of a scan, of all its images.

    :param pages: rows that were read, and aliases of such rows
    :param bytes: pages · page_size
    :param frames: physical frames among them
    :param zero_frames: frames all of zero
    :param distinct_contents: different contents, zero included
    :param unique_frames: frames, not zero, whose content no other frame has
    :param shared_contents: contents, not zero, of two frames or more
    :param sharing_frames: frames, not zero, beyond the first of each content
    :param saved_bytes: (sharing_frames + zero_frames) · page_size
    """

    pages: int
    bytes: int
    frames: int
    zero_frames: int
    distinct_contents: int
    unique_frames: int
    shared_contents: int
    sharing_frames: int
    saved_bytes: int


def is_ordinary(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which rows are frames with bytes other than zero, (n,) bool."""
    result: npt.NDArray[np.bool_] = (classes == PageClass.CONTENT) | (classes == PageClass.FILLED)
    return result


def is_read(partition: Partition) -> npt.NDArray[np.bool_]:
    """Return which rows were read, or are aliases of a row that was, (n,) bool."""
    unread: npt.NDArray[np.bool_] = partition.classes == PageClass.UNREADABLE
    if unread.any():
        # An alias of an unreadable frame has that frame's row as representative.
        unread = unread[partition.representative]
    return ~unread


def is_sharing(partition: Partition) -> npt.NDArray[np.bool_]:
    """Return which rows are sharing frames, (n,) bool."""
    moved: npt.NDArray[np.bool_] = partition.representative != np.arange(len(partition.classes))
    return moved & is_ordinary(partition.classes)


def shared_rows(partition: Partition, sharing: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the representatives of shared contents, ascending; ``sharing``: :func:`is_sharing`."""
    marked = np.zeros(len(sharing), np.bool_)
    marked[partition.representative[sharing]] = True
    return np.flatnonzero(marked)


def count(partition: Partition, page_size: int, threads: int = 1) -> Totals:
    """Return the totals of a partition."""
    pages, tally = len(partition.classes), partition.tally
    ordinary = pages - tally.zero if tally else 0
    if not tally:
        tally, ordinary, unread = _tally(partition, threads)
        if unread:
            # An alias of an unreadable frame was not read either.
            pages = int(np.count_nonzero(is_read(partition)))
    contents = ordinary - tally.sharing
    return Totals(
        pages=pages,
        bytes=pages * page_size,
        frames=tally.zero + ordinary,
        zero_frames=tally.zero,
        distinct_contents=contents + (tally.zero > 0),
        unique_frames=contents - tally.shared,
        shared_contents=tally.shared,
        sharing_frames=tally.sharing,
        saved_bytes=(tally.sharing + tally.zero) * page_size,
    )


def _tally(partition: Partition, threads: int) -> tuple[Tally, int, int]:
    """Count on the host; return also how many rows are CONTENT or FILLED, and UNREADABLE."""
    classes, representative = partition.classes, partition.representative
    n = len(classes)
    marked = zeros((n + 1,), np.uint8)
    step = max(1, -(-n // threads))
    with ThreadPool(threads) as pool:
        parts = pool.map(
            lambda start: _count(start, min(start + step, n), classes, representative, marked),
            range(0, n, step),
        )
        zero, ordinary, sharing, unread = (sum(each) for each in zip((0,) * 4, *parts, strict=True))
    return Tally(zero, sharing, int(np.count_nonzero(marked[:n]))), ordinary, unread


@compiled
def _count(start, stop, classes, representative, marked):  # type: ignore[no-untyped-def]
    """Return how many rows are zero, ordinary, sharing and unreadable; mark shared contents.

    :param marked: (n + 1,) uint8; set to 1 at representatives of sharing rows. Other rows set the
        last element: without a branch, which mixed classes would mispredict
    """
    zero = ordinary = sharing = unread = 0
    nowhere = len(marked) - 1
    for row in range(start, stop):
        kind, lowest = classes[row], representative[row]
        is_frame = (kind == PageClass.CONTENT) | (kind == PageClass.FILLED)
        shares = is_frame & (lowest != row)
        zero += kind == PageClass.ZERO
        ordinary += is_frame
        sharing += shares
        unread += kind == PageClass.UNREADABLE
        marked[lowest if shares else nowhere] = 1
    return zero, ordinary, sharing, unread
