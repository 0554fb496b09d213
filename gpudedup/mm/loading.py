"""Load an image of memory into a manager: the same pages, in the same frames.

Rows with one known frame become aliases of one frame. Each mapping of the image becomes a mapping
of its own: here a store breaks COW, as after a fork, even of memory shared on purpose.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import MAX_PAGES
from gpudedup.compiled.jit import compiled
from gpudedup.errors import ImageError
from gpudedup.images.base import Image
from gpudedup.images.rows import PageColumns
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.passes.access import mark_dirty
from gpudedup.mm.state.arrays import Page, PageNumbers
from gpudedup.mm.state.steps import join, protect, take
from gpudedup.scanning.population import Population
from gpudedup.schema import PageFlag


@compiled
def load(s, pages, kept, node, first_row, frame_of, frames):  # type: ignore[no-untyped-def]
    """Give pages of an image frames, shared as in the image.

    :param pages: (n,) uint32, page numbers, none of them kept twice, none with a frame
    :param kept: (n,) bool, True for pages that get a frame
    :param node: (n,) int64, pools with room for n
    :param first_row: (n,) int64, first row of the image with the same frame; -1: it has its own
    :param frame_of: (rows,) uint32, 0 at first, written: the frame of each ``first_row``
    :param frames: (n,) uint32, written: the frame to write its bytes to; 0: none
    """
    for i in range(len(pages)):
        frames[i] = 0
        if not kept[i]:
            continue
        p = np.int64(pages[i])
        first = first_row[i]
        f = np.int64(0) if first < 0 else np.int64(frame_of[first])
        if f == 0:
            f = take(s, node[i])
            frames[i] = f
            if first >= 0:
                frame_of[first] = f
            s.flags[p] = Page.WRITABLE
        else:
            protect(s, f)
        join(s, p, f)


def load_image(manager: AccessPaths, image: Image) -> None:
    """Load ``image`` into an empty manager of its page size.

    What rows that contradict one another mean is defined in docs/dump-format.md.

    :raises ImageError: if a page cannot be read, or lies beyond the longest mapping
    """
    _check_indices(image)
    mappings = _make_mappings(manager, image)
    with manager.lock:
        pages = _number_pages(manager, image, mappings)
        counts = _last_of_page(manager, pages)
    alias_of = Population.of([image]).alias_of()
    frame_of = np.zeros(image.pages, np.uint32)
    for columns in image.batch_columns():
        data = np.empty((len(columns), image.page_size), np.uint8)
        image.read_pages(columns.row, data)
        its = slice(columns.row, columns.row + len(columns))
        first = np.arange(its.start, its.stop) if alias_of is None else alias_of[its].copy()
        with manager.lock:
            _load_rows(manager, columns, mappings, data, pages[its], counts[its], first, frame_of)


def _check_indices(image: Image) -> None:
    for columns in image.rows:
        beyond = columns.index >= np.uint64(MAX_PAGES)
        if beyond.any():
            at = int(np.argmax(beyond))
            raise ImageError(
                image.path,
                f"row {columns.row + at}: page {columns.index[at]} of a mapping: the memory "
                f"manager numbers {MAX_PAGES}",
            )


def _make_mappings(manager: AccessPaths, image: Image) -> list[Mapping]:
    sizes = image.rows.sizes(len(image.mappings))
    return [
        manager.create(
            m.name, kind=m.kind, pages=size, owner=m.owner, domain=m.domain, start=m.start,
            flags=m.flags,
        )
        for m, size in zip(image.mappings, sizes.tolist(), strict=True)
    ]  # fmt: skip


def _number_pages(manager: AccessPaths, image: Image, mappings: list[Mapping]) -> PageNumbers:
    """Return the page number of each row of an image, (rows,) uint32."""
    pages = np.empty(image.pages, np.uint32)
    for columns in image.batch_columns():
        pages[columns.row : columns.row + len(columns)] = _pages_of(manager, columns, mappings)
    return pages


def _last_of_page(manager: AccessPaths, pages: PageNumbers) -> npt.NDArray[np.bool_]:
    """Return (rows,) bool, False for rows whose page comes again in a later one."""
    rows = np.arange(len(pages))
    last = np.empty(len(manager.memory.state.frame), np.int64)
    # NumPy defines that of equal indices the last one's value stays.
    last[pages] = rows
    found: npt.NDArray[np.bool_] = last[pages] == rows
    return found


def _load_rows(
    manager: AccessPaths,
    columns: PageColumns,
    mappings: list[Mapping],
    data: npt.NDArray[np.uint8],
    pages: PageNumbers,
    counts: npt.NDArray[np.bool_],
    first: npt.NDArray[np.int64],
    frame_of: npt.NDArray[np.uint32],
) -> None:
    memory = manager.memory
    n = len(columns)
    flags = np.zeros(n, np.uint32) if columns.flags is None else columns.flags
    node = np.zeros(n, np.int64) if columns.node is None else columns.node.astype(np.int64)
    node[(node < 0) | (node >= manager.nodes)] = 0
    kept = counts.copy()
    zero = np.flatnonzero(counts & (flags & int(PageFlag.ZERO_PAGE) != 0))
    # A page that was written after its flags were looked at is no page of zeros, and its frame is
    # another than the one that is named.
    written = data[zero].any(axis=1)
    kept[zero[~written]] = False
    first[zero[written]] = -1
    for at in range(manager.nodes):
        memory.ensure(at, int(np.count_nonzero(node == at)))
    frames = np.empty(n, np.uint32)
    load(memory.state, pages, kept, node, first, frame_of, frames)
    own = frames != 0
    memory.write(frames[own], data if own.all() else data[own])
    is_file = np.array([m.is_file for m in mappings], np.bool_)
    dirty = kept & is_file[columns.mapping] & (flags & int(PageFlag.DIRTY) != 0)
    mark_dirty(memory.state, pages[dirty])


def _pages_of(manager: AccessPaths, columns: PageColumns, mappings: list[Mapping]) -> PageNumbers:
    """Return the numbers of the pages of an image's rows."""
    pages = np.empty(len(columns), np.uint32)
    index = columns.index.astype(np.int64)
    order = np.argsort(columns.mapping, kind="stable")
    codes = columns.mapping[order]
    borders = np.flatnonzero(np.diff(codes, prepend=-1, append=-1)).tolist()
    for start, stop in pairwise(borders):
        part = order[start:stop]
        mapping = mappings[int(codes[start])]
        pages[part], _ = manager.memory.locate(mapping, index[part], create=True)
    return pages
