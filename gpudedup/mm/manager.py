"""The memory manager: the access paths, and merging, replicas, caching, grants and reflinks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.arguments import as_index
from gpudedup.devices.base import Device
from gpudedup.devices.select import choose_devices
from gpudedup.engines.base import Engine
from gpudedup.engines.select import choose
from gpudedup.errors import UsageError
from gpudedup.images.opening import image_of
from gpudedup.mm import tables
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.device import ManagedDevice
from gpudedup.mm.exclusive import Exclusive
from gpudedup.mm.grants import OnRevoke
from gpudedup.mm.loading import load_image
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.merging import merge
from gpudedup.mm.passes.copies import (
    cache_pages,
    collapse_pages,
    flush_pages,
    reflink_pages,
    replicate_pages,
)
from gpudedup.mm.passes.merge import unmerge_pages
from gpudedup.mm.policy import MergePolicy, MergeReport


class MemoryManager(AccessPaths):
    """Frames, mappings and aliases with real bytes behind them.

    :param page_size: bytes, see :func:`gpudedup.schema.check_page_size`
    :param nodes: NUMA nodes of the host, 1 to :data:`gpudedup.arguments.MAX_NODES`
    :param devices: devices that mirror its page tables, up to
        :data:`gpudedup.arguments.MAX_DEVICES`; None: those given
    :param device_engine: ``cuda``; ``cpu``: host memory stands for a device's; ``auto``: ``cuda``
        if as many GPUs can be used, else ``cpu``; or the devices themselves
    :raises UsageError: if an argument is out of range
    :raises UnsupportedHereError: if ``cuda`` is requested and cannot be used
    """

    def __init__(
        self,
        page_size: int = 4096,
        nodes: int = 1,
        devices: int | None = None,
        device_engine: str | Sequence[Device] = "auto",
    ) -> None:
        super().__init__(page_size, nodes, choose_devices(device_engine, devices))

    def device(self, number: int) -> ManagedDevice:
        """Return a device, with its loads, stores and atomics.

        :raises UsageError: if there is no such device
        """
        return ManagedDevice(self, self._device(number))

    @property
    def devices(self) -> list[ManagedDevice]:
        """Return all devices."""
        return [ManagedDevice(self, mirror) for mirror in self.mirrors]

    @classmethod
    def from_image(
        cls,
        image: Any,
        *,
        nodes: int | None = None,
        devices: int | None = None,
        device_engine: str | Sequence[Device] = "auto",
    ) -> MemoryManager:
        """Return a manager that holds the pages of an image, in the same frames.

        :param image: path, array of pages, or open :class:`gpudedup.images.base.Image`, which stays
            open and may be closed afterwards
        :param nodes: NUMA nodes; None: as many as the image names. Frames of others lie on node 0.
        :param devices, device_engine: as for a new manager
        :raises ImageError: if the image cannot be read
        """
        with ExitStack() as opened:
            source = image_of(image, opened)
            nodes = source.rows.nodes() if nodes is None else nodes
            manager = cls(source.page_size, nodes, devices, device_engine)
            load_image(manager, source)
        return manager

    def frames(self) -> pa.Table:
        """Return all frames as they are now, of schema :data:`gpudedup.schema.FRAMES`."""
        with self.lock:
            return tables.frames_table(self.memory)

    def pages(self) -> pa.Table:
        """Return all pages as they are now, of schema :data:`gpudedup.schema.MANAGER_PAGES`."""
        with self.lock:
            return tables.pages_table(self.memory)

    def aliases(self) -> pa.Table:
        """Return the pages that have a frame, of schema :data:`gpudedup.schema.ALIASES`."""
        with self.lock:
            return tables.aliases_table(self.memory)

    def mappings_table(self) -> pa.Table:
        """Return the mappings, of schema :data:`gpudedup.schema.MANAGER_MAPPINGS`."""
        with self.lock:
            return tables.mappings_table(self.memory, self.mappings)

    def merge(
        self, policy: MergePolicy | None = None, *, engine: Engine | None = None
    ) -> MergeReport:
        """Make pages with equal bytes share a frame; a store breaks COW.

        Pages that are pinned, exclusive, cached, on a device or written meanwhile are skipped.
        Dirty pages of files are written back first. Other threads run while pages are digested.

        :param policy: pages that may share; None: KSM's defaults
        :param engine: engine that digests pages; None: the fastest here
        """
        return merge(self, policy or MergePolicy(), engine or choose().engine)

    def unmerge(self, mapping: Mapping, index: Any) -> npt.NDArray[np.bool_]:
        """Give merged pages, and pages that a merge found zero, a frame of their own again.

        :param index: (n,) int, or one
        :return: (n,) bool, True where a pin keeps the page merged
        :raises UsageError: if an index lies outside
        """
        with self.lock:
            pages = self._locate(mapping, as_index(index))
            merged = np.empty(len(pages), np.bool_)
            self.memory.ensure(mapping.node, len(pages))
            self.memory.copying(unmerge_pages, len(pages), pages, mapping.node, merged)
            return merged

    def replicate(
        self, mapping: Mapping, index: Any, *, node: int | None = None, device: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Replicate the frames of pages on a node or a device, whose loads the replicas serve.

        Replicas serve all aliases of a frame. A store by its only alias frees them first.

        :return: (n,) bool, True where the node or device now has a copy; False for pinned pages
        :raises UsageError: if an index lies outside, or there is no such node or device
        :raises OutOfMemory: if there is no room for them; nothing was done
        """
        return self._more_frames(replicate_pages, mapping, index, self._pool(node, device))

    def collapse(self, mapping: Mapping, index: Any) -> None:
        """Free the replicas of pages.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            self.memory.run(collapse_pages, self._locate(mapping, as_index(index)))

    def cache(self, mapping: Mapping, index: Any, *, node: int) -> npt.NDArray[np.bool_]:
        """Cache pages whose home is a slow node on a faster one, where they are read and written.

        :meth:`flush` writes them home; :meth:`evict`, fork, splice, migration, replication,
        exclusive access and reflink evict them.

        :return: (n,) bool, True where the node now has the page; False for pages shared, pinned,
            cached elsewhere or on a device
        :raises UsageError: if an index lies outside, or there is no such node
        """
        return self._more_frames(cache_pages, mapping, index, self._node(node), home=False)

    def _more_frames(
        self, change: Any, mapping: Mapping, index: Any, pool: int, *, home: bool = True
    ) -> npt.NDArray[np.bool_]:
        with self.lock:
            pages = self._locate(mapping, as_index(index), home=home)
            there = np.empty(len(pages), np.bool_)
            self.memory.ensure(pool, len(pages))
            self.memory.copying(change, len(pages), pages, pool, there)
            return there

    def flush(self, mapping: Mapping, index: Any) -> int:
        """Flush written cached pages to their homes, and keep them cached; return how many.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            pages = self._locate(mapping, as_index(index))
            return self.memory.copying(flush_pages, len(pages), pages)

    def evict(self, mapping: Mapping, index: Any) -> None:
        """Flush cached pages to their homes and evict them; pinned ones stay cached.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            self._locate(mapping, as_index(index), home=True)

    def acquire_exclusive(
        self,
        mapping: Mapping,
        index: Any,
        *,
        device: int | None = None,
        on_revoke: OnRevoke | None = None,
    ) -> Exclusive:
        """Acquire pages for one owner, who accesses them through the object returned.

        Shared frames are left to their other aliases. Any other touch revokes the pages touched: it
        calls ``on_revoke`` with the mapping and their indices first, and waits for it no longer
        than :data:`gpudedup.mm.grants.PATIENCE_S`.

        :param device: device that holds them in its memory, and whose accesses do not revoke them;
            None: the host
        :raises BusyError: if one of the frames is pinned and not shared
        :raises UsageError: if an index lies outside, or there is no such device
        :raises OutOfMemory: if there is no room for their frames
        """
        index = as_index(index)
        if device is not None:
            self._device(device)
        with self.lock:
            pages = self._locate(mapping, index, create=True, home=True)
            return Exclusive(self, self.acquire(mapping, index, pages, on_revoke, device))

    def release_exclusive(self, mapping: Mapping, index: Any) -> None:
        """End exclusive access to pages, without calling ``on_revoke``.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            self._check_own(mapping)
            pages, _ = self.memory.locate(mapping, as_index(index))
            self.grants.release(pages)

    def reflink(self, mapping: Mapping, *, name: str, owner: str | None = None) -> Mapping:
        """Return a copy of a file with the same pages, in the same frames: a store breaks COW.

        Common frames have an alias in a hidden mapping, part of neither file, too: it is dropped
        with their last other alias. Dirty pages are written back first.

        :param owner: owner of the copy; None: the file's
        :raises UsageError: if the mapping is no file
        """
        if not mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is {mapping.kind}: no file")
        with self.lock, self._making():
            self._reach_all(mapping)
            self.writebacks.write_all(mapping)
            copy, hidden = (
                self._new_mapping(
                    title, mapping.kind, mapping.owner if owner is None else owner,
                    mapping.domain, mapping.node,
                )
                for title in (name, f"{mapping.name} (reflinked)")
            )  # fmt: skip
            hidden.hidden = True
            for new in (copy, hidden):
                new.shape_like(mapping)
            copy.writeback = mapping.writeback
            places = mapping.places()
            self.memory.ensure_leaves(2 * len(places))
            self.memory.copying_all(
                reflink_pages, mapping.node, mapping.directory[places], places, copy.number,
                copy.directory, hidden.number, hidden.directory,
            )  # fmt: skip
            self.drop_hidden()
            return copy
