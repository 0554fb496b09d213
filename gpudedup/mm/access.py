"""The access paths: every way to reach a page, in bulk, by ``(mapping, index)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, as_data, as_index, as_number, check_part
from gpudedup.errors import BusyError, UsageError
from gpudedup.mm.check import check
from gpudedup.mm.core import ManagerCore
from gpudedup.mm.counters import Counters, read_counters
from gpudedup.mm.grants import Grant, OnRevoke
from gpudedup.mm.mapping import Mapping, Writeback
from gpudedup.mm.memory.pools import Frames, Pages
from gpudedup.mm.passes.access import (
    add_pins,
    drop_pages,
    fork_pages,
    frames_of,
    migrate_pages,
    pin_shared,
    remove_pins,
)
from gpudedup.mm.passes.faults import lacking, on_devices
from gpudedup.mm.pins import Buffer, Pin
from gpudedup.mm.state.arrays import Count, Frame, PageNumbers
from gpudedup.schema import KINDS


class AccessPaths(ManagerCore):
    """Mappings, and the paths that read, write, pin or drop their pages, breaking protections."""

    @property
    def mappings(self) -> list[Mapping]:
        """Return all mappings that were not dropped."""
        return [m for m in self._mappings.values() if not (m.hidden or m.dropped)]

    @property
    def counters(self) -> Counters:
        """Return the counters as they are now."""
        with self.lock:
            self.unpin_dropped()
            return read_counters(
                self.memory.state,
                frames_copied=self.memory.frames_copied,
                volatile=self.volatile,
                written_back=self.writebacks.written_back,
                revoked=self.grants.revoked,
                devices=self.mirrors,
            )

    def check(self, *, contents: bool = True) -> None:
        """Check every invariant.

        :param contents: compare replicas with their originals byte by byte, too
        :raises InvariantError: naming the first invariant that does not hold
        :raises DeviceError: if a device is lost meanwhile; devices lost before are skipped
        """
        with self.lock:
            self.memory.settle()
            self.unpin_dropped()
            self.drop_hidden()
            check(self.memory, self._mappings, self.mirrors, contents=contents)

    def create(
        self,
        name: str,
        *,
        kind: str = "anon",
        pages: int = 0,
        owner: str = "",
        domain: str = "",
        node: int = 0,
        start: int = 0,
        flags: str = "",
        writeback: Writeback | None = None,
    ) -> Mapping:
        """Make a mapping whose pages read as zero.

        :param kind: one of :data:`gpudedup.schema.KINDS`; ``file`` and ``shmem`` are page caches
        :param pages: number of pages
        :param owner: process or machine
        :param domain: security domain
        :param node: NUMA node of its new frames
        :param start: address of index 0, in bytes
        :param flags: flags in the source's own words
        :param writeback: writes dirty pages of a file back; None: they are only counted
        :raises UsageError: if an argument is out of range
        """
        if kind not in KINDS:
            raise UsageError(f"kind {kind!r}: not one of {', '.join(KINDS)}")
        pages, start = self._check_size(pages), as_number(start, "start")
        with self.lock, self._making():
            mapping = self._new_mapping(
                name, kind, owner, domain, self._node(node), start, flags, writeback
            )
            mapping.resize(pages)
            return mapping

    def read(
        self,
        mapping: Mapping,
        index: Any,
        *,
        node: int | None = None,
        offset: int = 0,
        size: int | None = None,
        out: Pages | None = None,
    ) -> Pages:
        """Return what pages hold, (n, size) uint8: a load, or a file read.

        :param index: (n,) int, or one
        :param node: node of the reader; None: the mapping's
        :param offset: first byte within the page
        :param size: bytes of each page; None: up to its end
        :param out: (n, size) uint8, C-contiguous, to be filled and returned
        :raises UsageError: if an index lies outside, or an argument does not fit
        """
        index = as_index(index)
        offset, size = check_part(offset, size, self.page_size)
        if out is None:
            out = np.empty((len(index), size), np.uint8)
        elif out.dtype != np.uint8 or out.shape != (len(index), size) or not out.flags.c_contiguous:
            raise UsageError(f"out: not ({len(index)}, {size}) uint8, C-contiguous")
        with self.lock:
            where = mapping.node if node is None else self._node(node)
            pages = self._locate(mapping, index)
            frames = np.empty(len(pages), np.uint32)
            frames_of(self.memory.state, pages, where, frames)
            self.memory.read(frames, out, offset)
        return out

    def write(self, mapping: Mapping, index: Any, data: Any, *, offset: int | None = None) -> None:
        """Write to pages through the mapping: a store. Protections are broken first.

        :param index: (n,) int, or one
        :param data: uint8 or bytes: (n, page_size), or (n, k) with ``offset``; or one row for all
        :param offset: first byte within the page; None: whole pages
        :raises UsageError: if an index lies outside, or data does not fit
        """
        index = as_index(index)
        data = as_data(data, len(index), self.page_size, offset)
        with self.lock:
            self._write(mapping, index, data, offset)

    def file_write(
        self, mapping: Mapping, index: Any, data: Any, *, offset: int | None = None
    ) -> None:
        """Write to pages of a file, which may grow: write(2). Otherwise as :meth:`write`."""
        index = as_index(index)
        data = as_data(data, len(index), self.page_size, offset)
        if not mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is {mapping.kind}: no file")
        with self.lock:
            before, waits = mapping.pages, self.grants.waits
            try:
                if len(index) and index.min() >= 0 and not mapping.dropped:
                    end = int(index.max()) + 1
                    self._check_size(end)
                    if end > before:
                        mapping.resize(end)
                self._write(mapping, index, data, offset)
            except BaseException:
                # Whoever had the lock while owners were told may have written beyond the old end.
                if mapping.pages > before and self.grants.waits == waits:
                    self._drop_from(mapping, before)
                    mapping.resize(before)
                raise

    def _write(self, mapping: Mapping, index: Index, data: Pages, offset: int | None) -> None:
        pages = self._locate(mapping, index, create=True)
        if data.shape[1] == self.page_size:
            self.make_writable(mapping, pages, data=data)
        else:
            self.make_writable(mapping, pages)
            self.memory.write(self.memory.state.frame[pages], data, offset or 0)

    def fork(self, mapping: Mapping, owner: str = "", *, name: str | None = None) -> Mapping:
        """Return a child mapping with the same pages, in the same frames: a store breaks COW.

        Only frames that are pinned and not shared are copied at once: they stay their owner's.

        :param owner: owner of the child
        :param name: name of the child; None: the mapping's
        :raises UsageError: if the mapping is a file
        """
        if mapping.is_file:
            raise UsageError(f"mapping {mapping.name!r} is a file: fork copies anonymous memory")
        with self.lock, self._making():
            self._reach_all(mapping)
            child = self._new_mapping(
                mapping.name if name is None else name, mapping.kind, owner, mapping.domain,
                mapping.node, mapping.start, mapping.source_flags,
            )  # fmt: skip
            child.shape_like(mapping)
            places = mapping.places()
            self.memory.ensure_leaves(len(places))
            self.memory.copying_all(
                fork_pages, child.node, mapping.directory[places], places, child.number,
                child.directory,
            )  # fmt: skip
            return child

    def truncate(self, mapping: Mapping, pages: int) -> None:
        """Set the number of pages: pages beyond are dropped, new ones read as zero.

        :raises UsageError: if the number is out of range
        """
        pages = self._check_size(pages)
        with self.lock:
            self._locate(mapping, as_index([]))
            if pages < mapping.pages:
                self.grants.revoke_from(mapping, pages)
                self._drop_from(mapping, pages)
            mapping.resize(pages)

    def punch(self, mapping: Mapping, index: Any) -> None:
        """Make pages read as zero; dropping the last alias frees the frame."""
        with self.lock:
            self.memory.run(drop_pages, self._locate(mapping, as_index(index)))

    def drop(self, mapping: Mapping) -> None:
        """Drop a mapping with all its pages. Using it afterwards raises UsageError."""
        with self.lock:
            self.truncate(mapping, 0)
            self._forget_mapping(mapping)
            self.drop_hidden()

    def pin(self, mapping: Mapping, index: Any, *, write: bool = False) -> Pin:
        """Pin frames for access past the manager: they are not freed, moved or protected.

        A pin for writing breaks protections first; a pin for reading leaves frames shared.

        :raises UsageError: if an index lies outside
        """
        index = as_index(index)
        with self.lock:
            pages = self._locate(mapping, index, create=write)
            if write:
                self.make_writable(mapping, pages)
            frames = np.empty(len(pages), np.uint32)
            pins = self._pins
            try:
                add_pins(self.memory.state, pages, frames)
                return Pin(self, mapping, index, pages, frames, write)
            except BaseException:
                self._unpin_since(pins, frames)
                raise

    def splice(self, mapping: Mapping, index: Any) -> Buffer:
        """Return a buffer of what pages hold now; later stores do not show in it.

        :raises UsageError: if an index lies outside
        """
        index = as_index(index)
        with self.lock:
            pages = self._locate(mapping, index, home=True)
            frames = np.empty(len(pages), np.uint32)
            self.memory.ensure(mapping.node, len(pages))
            pins = self._pins
            try:
                self.memory.copying(pin_shared, len(pages), pages, mapping.node, frames)
                return Buffer(self, mapping, index, frames)
            except BaseException:
                self._unpin_since(pins, frames)
                raise

    @property
    def _pins(self) -> int:
        return int(self.memory.state.counts[Count.PINS])

    def _unpin_since(self, pins: int, frames: Frames) -> None:
        """Unpin frames if they have been pinned since there were ``pins`` pins."""
        if self._pins != pins:
            remove_pins(self.memory.state, frames)

    def writeback(self, mapping: Mapping, index: Any = None) -> int:
        """Write dirty pages of a file back; return how many were dirty.

        :param index: (n,) int, or one; None: the whole file
        :raises UsageError: if an index lies outside
        """
        with self.lock:
            if index is None:
                self._locate(mapping, as_index([]))
                # Stores of an exclusive owner do not fault: they would not mark pages dirty again.
                self.grants.revoke_from(mapping)
                return self.writebacks.write_all(mapping)
            index = as_index(index)
            return self.writebacks.write(mapping, index, self._locate(mapping, index))

    def migrate(
        self, mapping: Mapping, index: Any, *, node: int | None = None, device: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Migrate frames to another node, or to a device; all aliases follow.

        :return: (n,) bool, True where the node or device now has the page; False for pinned pages
        :raises UsageError: if an index lies outside, or there is no such node or device
        :raises OutOfMemory: if there is no room for them; nothing was moved
        """
        pool = self._pool(node, device)
        with self.lock:
            pages = self._locate(mapping, as_index(index), home=True)
            moved = np.empty(len(pages), np.bool_)
            self.memory.ensure(pool, len(pages))
            self.memory.copying(migrate_pages, len(pages), pages, pool, moved)
            return moved

    def acquire(
        self,
        mapping: Mapping,
        index: Index,
        pages: PageNumbers,
        on_revoke: OnRevoke | None,
        device: int | None,
    ) -> Grant:
        """Grant pages, none of them exclusive, to one owner; the lock is held.

        :raises BusyError: if one of their frames is pinned and not shared
        :raises OutOfMemory: if there is no room for their frames
        """
        state = self.memory.state
        index, first = np.unique(index, return_index=True)
        pages = pages[first]
        frames = state.frame[pages]
        if ((state.pins[frames] != 0) & (state.protection[frames] & Frame.SHARED.value == 0)).any():
            raise BusyError(f"mapping {mapping.name!r}: a page is pinned")
        self._make_own(mapping, pages, device)
        return self.grants.add(mapping, index, pages, on_revoke, device)

    def _make_own(self, mapping: Mapping, pages: PageNumbers, device: int | None) -> None:
        """Give pages frames of their own, on the host or on the owner's device."""
        memory = self.memory
        if device is None:
            self.make_writable(mapping, pages)
            found = np.empty(len(pages), np.uint32)
            far = found[: on_devices(memory.state, pages, found)]
            node = mapping.node
            memory.ensure(node, len(far))
        else:
            node, lacks = self.mirrors[device].node, np.empty(len(pages), np.bool_)
            room = int(lacking(memory.state, pages, node, True, lacks))
            self.make_writable(mapping, pages, node=node, room=room)
            far = pages[lacks]
        if len(far):
            memory.copying(migrate_pages, len(far), far, node, np.empty(len(far), np.bool_))
