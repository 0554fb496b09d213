"""The interface of every layout: the manager's calls that concern sharing, on real bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import MAX_NODES, MAX_PAGES, as_data, as_index, as_number, check_part
from gpudedup.errors import InvariantError, UsageError
from gpudedup.layouts.base import Layout, Region
from gpudedup.layouts.frame import FrameLayout
from gpudedup.layouts.inode import InodeLayout
from gpudedup.layouts.merging import merge
from gpudedup.layouts.meter import FRAME_BYTES, Costs, Meter
from gpudedup.layouts.pools import FramePools, Pages
from gpudedup.layouts.tagged import TaggedLayout
from gpudedup.schema import KINDS, check_page_size

_CLASSES: dict[str, type[Layout]] = {
    layout.name: layout for layout in (FrameLayout, TaggedLayout, InodeLayout)
}

LAYOUTS = tuple(_CLASSES)
"""Names of layouts, each explained in the docstring of its class."""


class Bookkeeping:
    """Holds pages with real bytes as the manager does, in one layout, and counts its costs.

    Calls do what those of :class:`gpudedup.mm.manager.MemoryManager` do, and read the same bytes
    under all layouts. There are no pins, no exclusive access and no dirty pages, which all layouts
    would keep alike, so every frame can be moved. Not thread-safe.

    A store copies a page's old bytes, since a fault does not know how much will be written; a file
    write of a whole page does not.

    :param layout: one of :data:`LAYOUTS`
    :param page_size: bytes per page, as :func:`gpudedup.schema.check_page_size` allows
    :param nodes: NUMA nodes, at least 1
    :param max_page_sharing: limit of pages per merged frame, at least 2
    :raises UsageError: if an argument lies outside its range; every call raises it too, also if
        the mapping is of the wrong kind, dropped or another's, or has no page of that index
    """

    def __init__(
        self,
        layout: str = "frame",
        page_size: int = 4096,
        *,
        nodes: int = 2,
        max_page_sharing: int = 256,
    ) -> None:
        if layout not in _CLASSES:
            raise UsageError(f"layout {layout!r}: not one of {', '.join(LAYOUTS)}")
        nodes = as_number(nodes, "nodes")
        max_page_sharing = as_number(max_page_sharing, "max_page_sharing")
        if not 1 <= nodes <= MAX_NODES:
            raise UsageError(f"{nodes} nodes: not from 1 to {MAX_NODES}")
        if max_page_sharing < 2:
            raise UsageError(f"max_page_sharing {max_page_sharing}: must be at least 2")
        self.page_size = check_page_size(as_number(page_size, "page_size"))
        self.nodes = nodes
        self.max_page_sharing = max_page_sharing
        self._meter = Meter()
        self._store = FramePools(self.page_size, nodes, self._meter)
        self._layout = _CLASSES[layout](self._store, self._meter)
        self._last_number = 0

    @property
    def layout(self) -> str:
        """Return the name of the layout."""
        return self._layout.name

    @property
    def mappings(self) -> list[Region]:
        """Return all mappings that were not dropped."""
        return list(self._layout.regions.values())

    @property
    def costs(self) -> Costs:
        """Return the costs so far."""
        meter, store = self._meter, self._store
        shared, pages = self._layout.merged()
        return Costs(
            layout=self.layout,
            lookups=meter.lookups,
            walks=meter.walks,
            copies=store.copies,
            frames=len(store.used),
            frames_peak=store.peak,
            metadata_bytes=meter.bytes,
            metadata_bytes_peak=meter.bytes_peak,
            pages_shared=shared,
            pages_sharing=pages - shared,
            operations=meter.operations,
        )

    def check(self) -> None:
        """Check every invariant, uncounted.

        :raises InvariantError: naming the first that does not hold
        """
        frames, others = self._layout.check()
        if len(set(frames)) != len(frames):
            raise InvariantError("a frame is found twice")
        if set(frames) != self._store.used:
            raise InvariantError(
                f"frames lost: {sorted(self._store.used - set(frames))[:3]}, "
                f"free but found: {sorted(set(frames) - self._store.used)[:3]}"
            )
        trees = sum(tree.bytes for region in self.mappings for tree in region.trees)
        expected = trees + others + FRAME_BYTES * len(frames)
        if expected != self._meter.bytes:
            raise InvariantError(f"{self._meter.bytes} bytes counted, {expected} found")

    def create(
        self, name: str, *, kind: str = "anon", pages: int = 0, owner: str = "", node: int = 0
    ) -> Region:
        """Make a mapping whose pages read as zero; its stores take frames of ``node``."""
        if kind not in KINDS:
            raise UsageError(f"kind {kind!r}: not one of {', '.join(KINDS)}")
        pages, node = self._check_size(pages), self._check_node(node)
        with self._meter.counting("create"):
            return self._new(name, kind, pages, owner, node)

    def _new(self, name: str, kind: str, pages: int, owner: str, node: int) -> Region:
        self._last_number += 1
        region = Region(self._last_number, name, kind, owner, node, pages)
        self._layout.open(region)
        return region

    def read(
        self,
        mapping: Region,
        index: Any,
        *,
        node: int | None = None,
        offset: int = 0,
        size: int | None = None,
    ) -> Pages:
        """Return what pages hold, (n, size) uint8.

        :param index: (n,) int, or one
        :param node: NUMA node of the reader; None: that of the mapping
        :param offset, size: first byte and bytes of each page; size None: up to the page's end
        """
        rows = self._rows(mapping, index)
        where = mapping.node if node is None else self._check_node(node)
        offset, size = check_part(offset, size, self.page_size)
        with self._meter.counting("read", len(rows)):
            frames = [self._layout.find(mapping, row, where) for row in rows]
        return self._store.read(frames, offset, size)

    def write(self, mapping: Region, index: Any, data: Any, *, offset: int | None = None) -> None:
        """Store to pages through the mapping; shared pages break COW first.

        :param index: (n,) int, or one
        :param data: uint8 or bytes: (n, page_size); with ``offset`` (n, k); one row serves all
        :param offset: first byte within the page; None: whole pages
        """
        self._write("write", mapping, index, data, offset, copy=True)

    def file_write(
        self, mapping: Region, index: Any, data: Any, *, offset: int | None = None
    ) -> None:
        """Write to pages of a file, which grows as needed: write(2). Arguments of :meth:`write`."""
        self._check_own(mapping)
        if not mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is {mapping.kind}: no file")
        rows = as_index(index)
        data = as_data(data, len(rows), self.page_size, offset)
        if len(rows) and rows.min() >= 0:
            self._check_size(int(rows.max()) + 1)
            mapping.pages = max(mapping.pages, int(rows.max()) + 1)
        copy = data.shape[1] < self.page_size
        self._write("file_write", mapping, rows, data, offset, copy=copy)

    def _write(
        self, operation: str, mapping: Region, index: Any, data: Any, offset: int | None, copy: bool
    ) -> None:
        rows = self._rows(mapping, index)
        data = as_data(data, len(rows), self.page_size, offset)
        with self._meter.counting(operation, len(rows)):
            frames = [self._layout.own(mapping, row, copy=copy) for row in rows]
        self._store.write(frames, data, offset or 0)

    def fork(self, mapping: Region, owner: str = "", *, name: str | None = None) -> Region:
        """Return a mapping that shares all frames of one that is no file; stores break COW."""
        if mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is a file: fork copies anonymous memory")
        return self._shared("fork", mapping, mapping.name if name is None else name, owner)

    def reflink(self, mapping: Region, *, name: str, owner: str | None = None) -> Region:
        """Return a file that shares all frames of another file; stores break COW."""
        if not mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is {mapping.kind}: no file")
        return self._shared("reflink", mapping, name, mapping.owner if owner is None else owner)

    def _shared(self, operation: str, mapping: Region, name: str, owner: str) -> Region:
        self._check_own(mapping)
        with self._meter.counting(operation):
            other = self._new(name, mapping.kind, mapping.pages, owner, mapping.node)
            self._layout.share(mapping, other)
        return other

    def truncate(self, mapping: Region, pages: int) -> None:
        """Set the number of pages: drop those beyond and free unused frames; new pages are zero."""
        self._check_own(mapping)
        pages = self._check_size(pages)
        with self._meter.counting("truncate"):
            if pages < mapping.pages:
                self._layout.discard_from(mapping, pages)
            mapping.pages = pages

    def punch(self, mapping: Region, index: Any) -> None:
        """Drop pages, which read as zero again; dropping the last sharer frees a frame."""
        self._each("punch", mapping, index, self._layout.discard)

    def drop(self, mapping: Region) -> None:
        """Drop a mapping and all its pages; using the mapping afterwards raises UsageError."""
        self._check_own(mapping)
        with self._meter.counting("drop"):
            self._layout.discard_from(mapping, 0)
            self._layout.close(mapping)
        mapping.dropped = True

    def migrate(self, mapping: Region, index: Any, *, node: int) -> npt.NDArray[np.bool_]:
        """Migrate frames to another node, for all sharers; replicas are freed.

        :return: (n,) bool, True where the page is on the node now: always
        """
        rows = self._rows(mapping, index)
        self._check_node(node)
        with self._meter.counting("migrate", len(rows)):
            self._layout.migrate(mapping, rows, node)
        return np.ones(len(rows), np.bool_)

    def replicate(self, mapping: Region, index: Any, *, node: int) -> npt.NDArray[np.bool_]:
        """Replicate pages read-only on a node; whose loads they serve there depends on the layout.

        :return: (n,) bool, True where loads on the node are now local: always
        """
        self._check_node(node)
        rows = self._each(
            "replicate",
            mapping,
            index,
            lambda region, row: self._layout.replicate(region, row, node),
        )
        return np.ones(rows, np.bool_)

    def collapse(self, mapping: Region, index: Any) -> None:
        """Free the replicas of pages."""
        self._each("collapse", mapping, index, self._layout.collapse)

    def merge(self) -> int:
        """Move pages of equal bytes to shared frames; return how many moved.

        The rules are the manager's, for pages of all kinds, nodes and domains; zero is a content.
        """
        with self._meter.counting("merge"):
            return merge(self._layout, self.max_page_sharing)

    def unmerge(self, mapping: Region, index: Any) -> npt.NDArray[np.bool_]:
        """Give merged pages a frame of their own again.

        :return: (n,) bool, True where the page is still merged: never
        """
        return np.zeros(self._each("unmerge", mapping, index, self._layout.unmerge), np.bool_)

    def _each(self, operation: str, mapping: Region, index: Any, change: Any) -> int:
        rows = self._rows(mapping, index)
        with self._meter.counting(operation, len(rows)):
            for row in rows:
                change(mapping, row)
        return len(rows)

    def _rows(self, mapping: Region, index: Any) -> list[int]:
        self._check_own(mapping)
        rows: list[int] = as_index(index).tolist()
        if rows and not 0 <= min(rows) <= max(rows) < mapping.pages:
            outside = next(row for row in rows if not 0 <= row < mapping.pages)
            raise UsageError(f"mapping {mapping.name!r}: no page {outside}, it has {mapping.pages}")
        return rows

    def _check_own(self, mapping: Region) -> None:
        if mapping.dropped:
            raise UsageError(f"mapping {mapping.name!r} was dropped")
        if self._layout.regions.get(mapping.number) is not mapping:
            raise UsageError(f"mapping {mapping.name!r} belongs to another bookkeeping")

    def _check_node(self, node: int) -> int:
        node = as_number(node, "node")
        if not 0 <= node < self.nodes:
            raise UsageError(f"node {node}: not from 0 to {self.nodes - 1}")
        return node

    def _check_size(self, pages: int) -> int:
        pages = as_number(pages, "pages")
        if not 0 <= pages <= MAX_PAGES:
            raise UsageError(f"{pages} pages: not from 0 to {MAX_PAGES}")
        return pages
