"""The first steps of every access path: find the pages, revoke grants, evict cached pages.

One lock guards all bookkeeping and the host's copies of bytes. Rows of a call are done one after
another, so an index that comes twice in a call means what two calls would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import numpy as np

from gpudedup.arguments import MAX_NODES, MAX_PAGES, Index, as_index, as_number
from gpudedup.devices.base import Device
from gpudedup.errors import UsageError
from gpudedup.mm.grants import Grants
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.memory.mirror import Mirror
from gpudedup.mm.memory.pools import Pages
from gpudedup.mm.passes.access import drop_from, prepare_write
from gpudedup.mm.passes.copies import cached_of, evict_pages, flush_pages
from gpudedup.mm.state.arrays import LEAF_BITS, PER_MAPPING, Count, Frame, PageNumbers, grown
from gpudedup.mm.writeback import Writebacks
from gpudedup.schema import check_page_size


class ManagerCore:
    """The mappings of a manager, its lock, and the way from ``(mapping, index)`` to pages."""

    def __init__(
        self, page_size: int = 4096, nodes: int = 1, devices: Sequence[Device] = ()
    ) -> None:
        self.page_size = page_size = check_page_size(as_number(page_size, "page_size"))
        nodes = as_number(nodes, "nodes")
        if not 1 <= nodes <= MAX_NODES:
            raise UsageError(f"{nodes} nodes: not from 1 to {MAX_NODES}")
        self.nodes = nodes
        self.lock = RLock()
        self.mirrors = [Mirror(d, k, nodes + k, page_size) for k, d in enumerate(devices)]
        self.memory = Memory(page_size, nodes, self.mirrors)
        self._mappings: dict[int, Mapping] = {}
        self._numbers_free: list[int] = []
        self._last_number = 0
        self._domains: dict[str, int] = {}
        self.grants = Grants(self.memory, self.lock)
        self._hidden_gone = 0
        self.dropped: deque[Callable[[], None]] = deque()
        self.writebacks = Writebacks(self.memory, self._mappings)
        self.volatile = 0
        self._unfinished: list[Mapping] = []

    def _new_mapping(self, name: str, kind: str, owner: str, domain: str, *more: Any) -> Mapping:
        if self._numbers_free:
            number = self._numbers_free.pop()
        else:
            number = self._last_number = self._last_number + 1
        mapping = Mapping(number, name, kind, owner, domain, *more)
        self.memory.state = grown(self.memory.state, PER_MAPPING, number + 1)
        self.memory.state.domain[number] = self._domains.setdefault(domain, len(self._domains))
        self._unfinished.append(mapping)
        self._mappings[number] = mapping
        return mapping

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Drop the mappings that the block made, if it raises."""
        self.writebacks.refuse_callback()
        try:
            yield
        except BaseException:
            for mapping in self._unfinished:
                # A hidden one goes with its last page.
                if self._mappings.get(mapping.number) is mapping and not mapping.hidden:
                    self._drop_from(mapping, 0)
                    self._forget_mapping(mapping)
            self.drop_hidden()
            raise
        finally:
            self._unfinished.clear()

    def make_writable(
        self,
        mapping: Mapping,
        pages: PageNumbers,
        *,
        data: Pages | None = None,
        node: int | None = None,
        room: int | None = None,
    ) -> None:
        """Break the protections of pages: each then has a frame of its own.

        :param data: (n, page_size) uint8, written to them; None: they keep their bytes
        :param node: pool of new frames; None: the mapping's
        :param room: new frames needed, at most; None: one for each page
        """
        node = mapping.node if node is None else node
        self.memory.ensure(node, len(pages) if room is None else room)
        if data is None:
            self.memory.copying(prepare_write, len(pages), pages, node, mapping.is_file)
        else:
            self.memory.overwriting(prepare_write, pages, data, node, mapping.is_file)

    def _locate(
        self, mapping: Mapping, index: Index, *, create: bool = False, home: bool = False
    ) -> PageNumbers:
        """Find pages before an access, and revoke the grants that hold them.

        :param create: add absent leaves
        :param home: evict cached pages to their homes
        """
        return self.reach_from(mapping, index, None, create=create, home=home)

    def reach_from(
        self,
        mapping: Mapping,
        index: Index,
        device: int | None,
        *,
        create: bool = False,
        home: bool = True,
    ) -> PageNumbers:
        """Do what :meth:`_locate` does for a device, whose own grants stay."""
        while True:
            self._check_own(mapping)
            pages, met = self.memory.locate(mapping, index, create=create)
            if not met & Frame.EXCLUSIVE or not self.grants.revoke(index, pages, device):
                break
        if met & Frame.CACHED and home:
            self._evict(pages)
        return pages

    def check_index(self, mapping: Mapping, index: Index) -> None:
        """Check what can be checked without the lock, for accesses of devices.

        :raises UsageError: if the mapping is dropped or another manager's, or an index lies outside
        """
        if mapping.dropped or self._mappings.get(mapping.number) is not mapping:
            raise UsageError(f"mapping {mapping.name!r} was dropped, or is another manager's")
        outside = index[(index < 0) | (index >= mapping.pages)]
        if len(outside):
            raise UsageError(
                f"mapping {mapping.name!r}: no page {int(outside[0])}, it has {mapping.pages}"
            )

    def _reach_all(self, mapping: Mapping) -> None:
        """Do what :meth:`_locate` does, with ``home``, for all pages of a mapping."""
        self._locate(mapping, as_index([]))
        self.grants.revoke_from(mapping)
        if self.memory.state.counts[Count.REPLICAS]:
            pages = np.empty(int(self.memory.state.counts[Count.REPLICAS]), np.uint32)
            leaves = mapping.directory[mapping.places()]
            self._evict(pages[: cached_of(self.memory.state, leaves, pages)])

    def _evict(self, pages: PageNumbers) -> None:
        """Flush cached pages to their homes and evict them; pinned ones stay cached."""
        self.memory.copying(flush_pages, len(pages), pages)
        self.memory.run(evict_pages, pages)

    def _check_own(self, mapping: Mapping) -> None:
        self.writebacks.refuse_callback()
        if self._mappings.get(mapping.number) is not mapping and not mapping.dropped:
            raise UsageError(f"mapping {mapping.name!r} belongs to another manager")
        if self.dropped:
            self.unpin_dropped()
        gone = int(self.memory.state.counts[Count.HIDDEN_GONE])
        if gone != self._hidden_gone:
            self._hidden_gone = gone
            self.drop_hidden()

    def unpin_dropped(self) -> None:
        """Unpin frames whose pins and buffers were dropped; under the lock, between passes."""
        while self.dropped:
            self.dropped.popleft()()

    def drop_hidden(self) -> None:
        """Drop hidden mappings that have no pages left; forget those that an exception left."""
        populated = self.memory.state.populated
        for mapping in list(self._mappings.values()):
            if mapping.dropped:
                self._forget_mapping(mapping)
            elif mapping.hidden and not populated[mapping.number]:
                self._drop_from(mapping, 0)
                self._forget_mapping(mapping)

    def _drop_from(self, mapping: Mapping, start: int) -> None:
        """Drop the pages of a mapping from index ``start`` on."""
        places = mapping.places(start >> LEAF_BITS)
        self.memory.run(drop_from, mapping.directory, places, start)

    def _forget_mapping(self, mapping: Mapping) -> None:
        # First: nobody uses it from now on, whatever comes between this and the rest.
        mapping.dropped = True
        for device in self.mirrors:
            device.table.forget(mapping)
        self._numbers_free.append(self._mappings.pop(mapping.number).number)

    def _node(self, node: int) -> int:
        node = as_number(node, "node")
        if not 0 <= node < self.nodes:
            raise UsageError(f"node {node}: not from 0 to {self.nodes - 1}")
        return node

    def _pool(self, node: int | None, device: int | None) -> int:
        """Return the number of the pool of a node or of a device."""
        if (node is None) == (device is None):
            raise UsageError("one of node and device must be given")
        return self._node(node) if node is not None else self._device(device).node

    def _device(self, device: int | None) -> Mirror:
        device = None if device is None else as_number(device, "device")
        if device is None or not 0 <= device < len(self.mirrors):
            raise UsageError(f"device {device}: there are {len(self.mirrors)}")
        return self.mirrors[device]

    def _check_size(self, pages: int) -> int:
        pages = as_number(pages, "pages")
        if not 0 <= pages <= MAX_PAGES:
            raise UsageError(f"{pages} pages: not from 0 to {MAX_PAGES}")
        return pages
