"""The memory manager: the access paths, and who shares what."""

from __future__ import annotations

import os
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
from gpudedup.images.base import Image
from gpudedup.images.memory import open_array
from gpudedup.images.opening import open_image
from gpudedup.mm import tables
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.device import ManagedDevice
from gpudedup.mm.exclusive import Exclusive
from gpudedup.mm.grants import OnRevoke
from gpudedup.mm.loading import load_image, nodes_of
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
from gpudedup.mm.state.page_table import leaves_of


class MemoryManager(AccessPaths):
    """Frames, mappings and aliases with real bytes behind them.

    :param page_size: bytes, a power of two from 512 to 2 MiB
    :param nodes: NUMA nodes of the host, at least 1
    :param devices: how many devices mirror its page tables, up to 8; None: those given
    :param device_engine: ``cuda``; ``cpu``, where memory of the host stands for a device's;
        ``auto``: ``cuda`` if there are as many GPUs that can be used, else ``cpu``; or devices
        themselves
    :raises UsageError: if one of them lies outside its range
    :raises UnsupportedHereError: if ``cuda`` is asked for and cannot be used
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
        """Return a device, through which it reads, writes and adds to pages.

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

        :param image: path, :class:`gpudedup.images.base.Image`, or array of pages. An image given
            opened stays open, and is not needed any more.
        :param nodes: NUMA nodes; None: as many as the image tells. Frames of others go to node 0.
        :param devices, device_engine: as for a new manager
        :raises ImageError: if the image cannot be read
        """
        with ExitStack() as opened:
            if isinstance(image, str | os.PathLike):
                image = opened.enter_context(open_image(image))
            elif not isinstance(image, Image):
                image = open_array(image)
            nodes = nodes_of(image) if nodes is None else nodes
            manager = cls(image.page_size, nodes, devices, device_engine)
            load_image(manager, image)
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
        """Let pages with equal bytes share a frame, which is copied when one of them is written.

        Pages that are pinned, held exclusively or written meanwhile are left alone. Dirty pages of
        files are written back first. Other threads go on while pages are digested.

        :param policy: which pages; None: KSM's defaults
        :param engine: digests pages; None: the fastest here
        """
        return merge(self, policy or MergePolicy(), engine or choose().engine)

    def unmerge(self, mapping: Mapping, index: Any) -> npt.NDArray[np.bool_]:
        """Give merged pages, and zero pages that a merge left without, a frame of their own again.

        :param index: (n,) int, or one
        :return: (n,) bool, whether the page is merged still: only if it is pinned
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
        """Keep read-only copies of pages on a node or a device, where loads are served from them.

        All pages that share the frame have them. A store lets them go first.

        :return: (n,) bool, whether loads there are served there: not if the page is pinned
        :raises UsageError: if an index lies outside, or there is no such node or device
        :raises OutOfMemory: if there is no room for them; nothing was done
        """
        return self._more_frames(replicate_pages, mapping, index, self._pool(node, device))

    def collapse(self, mapping: Mapping, index: Any) -> None:
        """Let replicas of pages go.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            self.memory.run(collapse_pages, self._locate(mapping, as_index(index)))

    def cache(self, mapping: Mapping, index: Any, *, node: int) -> npt.NDArray[np.bool_]:
        """Hold pages whose home is a slow node on a faster one, where they are read and written.

        They go home on :meth:`flush` and :meth:`evict`, and when another owner needs them: by
        fork, splice, migration, replication, exclusive access or reflink.

        :return: (n,) bool, whether the page is on that node now: not if others share it, if it is
            pinned, cached elsewhere, or on a device
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
        """Write cached pages home that were written; return how many. They stay cached.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            pages = self._locate(mapping, as_index(index))
            return self.memory.copying(flush_pages, len(pages), pages)

    def evict(self, mapping: Mapping, index: Any) -> None:
        """Write cached pages home, and cache them no longer; pinned ones stay.

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
        """Take pages for one owner, who uses them through what is returned.

        Whatever shares their frames is left behind. Any other touch ends it for the pages touched,
        after ``on_revoke`` was called with the mapping and their indices; it is waited for, but not
        for longer than :data:`gpudedup.mm.grants.PATIENCE_S`.

        :param device: who takes them, in its own memory, and whose loads and stores go on; None:
            somebody on the host
        :raises BusyError: if one of the pages is pinned
        :raises UsageError: if an index lies outside, or there is no such device
        :raises OutOfMemory: if the device has no room for them
        """
        index = as_index(index)
        if device is not None:
            self._device(device)
        with self.lock:
            pages = self._locate(mapping, index, create=True, home=True)
            return Exclusive(self, self.acquire(mapping, index, pages, on_revoke, device))

    def release_exclusive(self, mapping: Mapping, index: Any) -> None:
        """End exclusive access to pages; its owner is not told.

        :raises UsageError: if an index lies outside
        """
        with self.lock:
            self._check_own(mapping)
            pages, _ = self.memory.locate(mapping, as_index(index))
            self.grants.release(pages)

    def reflink(self, mapping: Mapping, *, name: str, owner: str | None = None) -> Mapping:
        """Return a copy of a file with the same pages; nothing is copied until one is written.

        The frames in common belong to a hidden mapping, which is part of neither file and goes
        with the last of them. Dirty pages are written back first.

        :param owner: of the copy; None: the same
        :raises UsageError: if it is no file
        """
        if not mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is {mapping.kind}: no file")
        with self.lock:
            self._reach_all(mapping)
            self.write_back_all(mapping)
            copy, hidden = (
                self._new_mapping(
                    title, mapping.kind, mapping.owner if owner is None else owner,
                    mapping.domain, mapping.node,
                )
                for title in (name, f"{mapping.name} (reflinked)")
            )  # fmt: skip
            hidden.hidden = True
            for new in (copy, hidden):
                new.resize(mapping.pages)
                new.directory = np.zeros_like(mapping.directory)
            copy.writeback = mapping.writeback
            try:
                self.memory.ensure_leaves(2 * int(leaves_of(mapping.directory)))
                self.memory.copying_all(
                    reflink_pages, mapping.node, mapping.directory, copy.number, copy.directory,
                    hidden.number, hidden.directory,
                )  # fmt: skip
            except BaseException:
                self.drop(copy)
                raise
            self.drop_hidden()
            return copy
