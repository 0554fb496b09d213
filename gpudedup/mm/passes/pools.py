"""The compiled passes of pools: add chunks, sort copies, note that frames were copied."""

from __future__ import annotations

import numpy as np

from gpudedup.compiled.jit import compiled
from gpudedup.mm.state.arrays import Count, Frame, Geometry


@compiled
def add_chunks(s, node, count, address):  # type: ignore[no-untyped-def]
    """Give a pool ``count`` more chunks, contiguous from ``address`` on; the arrays have room."""
    first = s.counts[Count.CHUNKS]
    frames = np.int64(1) << s.geometry[Geometry.CHUNK_BITS]
    for i in range(count):
        chunk = first + i
        s.base[chunk] = address + np.uint64(i * frames * s.geometry[Geometry.PAGE_SIZE])
        s.chunk_node[chunk] = node
        s.chunk_fresh[chunk] = 0
        s.chunk_link[chunk] = chunk + 1 if i + 1 < count else s.fresh[node]
    s.fresh[node] = first
    s.room[node] += count * frames
    s.counts[Count.CHUNKS] += count


@compiled
def note_copied(s):  # type: ignore[no-untyped-def]
    """Note that all listed frames have been copied."""
    s.counts[Count.FRAMES_COPIED] += s.counts[Count.COPIES]
    s.counts[Count.COPIES] = 0


@compiled
def sort_copies(s, source, target):  # type: ignore[no-untyped-def]
    """Put copies last whose source a store may overwrite; return how many others there are.

    :param source, target: (n,) uint32, frames to copy, and to where; reordered together
    """
    kept, stop = 0, len(source)
    while kept < stop:
        # Frames that stay shared are written through no page.
        if s.protection[source[kept]] & Frame.SHARED:
            kept += 1
            continue
        stop -= 1
        source[kept], source[stop] = source[stop], source[kept]
        target[kept], target[stop] = target[stop], target[kept]
    return kept
