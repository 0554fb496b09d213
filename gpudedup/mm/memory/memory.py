"""Frames by number, in any pool, and the transactions that change them.

A pass changes bookkeeping only. After it, stale device entries are invalidated here, and the bytes
of the frames that it listed are copied. The lists are part of the state: whatever exception comes
between a pass and its copies (Ctrl-C, MemoryError, a lost device), the sources hold their bytes
until somebody takes a frame, and before that the copies are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, distinct
from gpudedup.errors import DeviceError, UsageError
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.mirror import Mirror
from gpudedup.mm.memory.pools import Addresses, Frames, HostPool, OutOfMemory, Pages, Pool
from gpudedup.mm.passes.access import addresses_of
from gpudedup.mm.passes.faults import retract
from gpudedup.mm.passes.pools import add_chunks, note_copied, sort_copies
from gpudedup.mm.state.arrays import (
    LEAF_PAGES,
    MAX_FRAMES,
    MAX_LEAVES,
    PER_CHUNK,
    PER_FRAME,
    PER_LEAF,
    PER_PAGE,
    Count,
    Frame,
    Geometry,
    PageNumbers,
    State,
    empty,
    grown,
)
from gpudedup.mm.state.page_table import ABSENT, add_leaves, locate, missing_leaves

_GONE, _COPIES, _REUSES = int(Count.GONE), int(Count.COPIES), int(Count.REUSES)

CHUNK_BYTES = 64 << 20
"""Bytes of frames that a pool takes at a time; chunks never move."""

LEAST_CHUNKS = 16
"""Chunks that fit in the memory that each device has free; they are smaller where it is little."""

BRING_BYTES = 8 << 20
"""Bytes copied at a time from one pool to another."""

COPY_FRAMES = 1 << 16
"""Frames copied per call, so that a copy of many takes little memory."""

NOWHERE = 512
"""Address of frames on a lost device, which have no bytes."""


class Memory:
    """The state of a manager, the bytes of its frames, and the devices that mirror it.

    :param page_size: bytes
    :param nodes: host pools, numbered from 0
    :param mirrors: devices, whose pools have the numbers after these
    :param state: all bookkeeping; growing replaces it
    """

    def __init__(self, page_size: int, nodes: int, mirrors: Sequence[Mirror] = ()) -> None:
        self.page_size = page_size
        self.nodes = nodes
        self.mirrors = mirrors
        self._host = HostPool()
        self._pools: list[Pool] = [self._host, *(mirror.pool for mirror in mirrors)]
        self._listed: tuple[Frames, Frames] = (np.empty(0, np.uint32), np.empty(0, np.uint32))
        size = min([CHUNK_BYTES, *(mirror.free // LEAST_CHUNKS for mirror in mirrors)])
        bits = max(6, (size // page_size).bit_length() - 1)
        self._chunk_frames = 1 << bits
        # The host takes CHUNK_BYTES at a time, however small a device makes the chunks.
        self._host_chunks = max(1, CHUNK_BYTES // (page_size << bits))
        self.state: State = empty(page_size, bits, nodes, len(mirrors))
        # Never replaced; read at every call, for which NumPy's scalars are slow.
        self._counts = memoryview(cast(Any, self.state.counts))
        self._add_chunks(0, 1)
        # Frame 0: new memory is zero.
        self.state.chunk_fresh[0] = 1
        self.state.room[0] -= 1
        self.state.protection[0] = Frame.USED | Frame.SHARED

    @property
    def frames_numbered(self) -> int:
        """Return how many frames all chunks have, free ones included."""
        return int(self.state.counts[Count.CHUNKS]) * self._chunk_frames

    @property
    def frames_copied(self) -> int:
        """Return how many frames were copied to another so far."""
        return int(self.state.counts[Count.FRAMES_COPIED])

    def ensure(self, node: int, frames: int) -> None:
        """Make room for ``frames`` more frames in a pool.

        :raises OutOfMemory: if they do not fit
        """
        lacking = frames - int(self.state.room[node])
        if lacking > 0:
            least = self._host_chunks if node < self.nodes else 1
            self._add_chunks(node, max(-(-lacking // self._chunk_frames), least))

    def node_of(self, frames: Frames) -> npt.NDArray[np.int64]:
        """Return the pools of frames."""
        chunks = frames >> int(self.state.geometry[Geometry.CHUNK_BITS])
        nodes: npt.NDArray[np.int64] = self.state.chunk_node[chunks].astype(np.int64)
        return nodes

    def room(self, node: int, frames: int) -> int:
        """Make room for up to ``frames`` more frames in a pool; return how many of them fit."""
        try:
            self.ensure(node, frames)
        except OutOfMemory:
            with suppress(OutOfMemory):
                while self.state.room[node] < frames:
                    self._add_chunks(node, 1)
        return min(frames, int(self.state.room[node]))

    def locate(
        self, mapping: Mapping, index: Index, *, create: bool = False
    ) -> tuple[PageNumbers, int]:
        """Return page numbers, (n,) uint32, and the bits that the pass of the same name met.

        :param create: add absent leaves; if not, their pages are those of leaf 0
        :raises UsageError: if the mapping was dropped, or an index lies outside
        """
        if mapping.dropped:
            raise UsageError(f"mapping {mapping.name!r} was dropped")
        if self.unsettled:
            self.settle()
        pages = np.empty(len(index), np.uint32)
        met = int(locate(self.state, mapping.directory, mapping.pages, index, pages))
        if met < 0:
            outside = int(index[-1 - met])
            raise UsageError(f"mapping {mapping.name!r}: no page {outside}, it has {mapping.pages}")
        if create and met & ABSENT:
            self.ensure_leaves(int(missing_leaves(mapping.directory, index)))
            add_leaves(self.state, mapping.directory, mapping.marks, mapping.number, index)
            locate(self.state, mapping.directory, mapping.pages, index, pages)
        return pages, met

    def ensure_leaves(self, leaves: int) -> None:
        """Make room for ``leaves`` more leaves.

        :raises UsageError: if there are not so many page numbers
        """
        counts = self.state.counts
        lacking = leaves - int(counts[Count.LEAVES_LEFT])
        if lacking <= 0:
            return
        before = len(self.state.leaf_mapping)
        if before + lacking > MAX_LEAVES:
            raise UsageError(f"more than {MAX_LEAVES * LEAF_PAGES} pages cannot be numbered")
        state = grown(self.state, PER_LEAF, before + lacking)
        leaves = min(len(state.leaf_mapping), MAX_LEAVES)
        self.state = grown(state, PER_PAGE, leaves * LEAF_PAGES, LEAF_PAGES)
        counts[Count.LEAVES_LEFT] += leaves - before

    def run(self, change: Callable[..., Any], *arguments: Any) -> Any:
        """Run a pass that moves or protects pages, then finish what it listed.

        :raises DeviceError: if a device is lost meanwhile, with the pages whose only frame it has
        """
        if self.unsettled:
            self.settle()
        try:
            return change(self.state, *arguments)
        finally:
            if self.unsettled:
                self._finish()

    def copying(self, change: Callable[..., Any], room: int, *arguments: Any) -> int:
        """Run a pass that lists up to ``room`` copies, then make them; return what it returns."""
        self._make_lists(room)
        return int(self.run(change, *arguments, *self._listed))

    def overwriting(
        self, change: Callable[..., Any], pages: PageNumbers, data: Pages, *arguments: Any
    ) -> None:
        """Run a pass that makes pages writable, then write all their bytes, instead of copying.

        If they cannot be written the listed frames are copied after all: no page is left with what
        its new frame held before. A frame that one of the pages left and the next keeps is copied
        in any case, before it is overwritten.

        :param data: (n, page_size) uint8
        """
        self._make_lists(len(pages))
        reuses = self._counts[_REUSES]
        try:
            change(self.state, pages, *arguments, *self._listed)
            self._invalidate()
            if self._counts[_REUSES] != reuses and self._counts[_COPIES]:
                self._copy_overwritten()
            self.write(self.state.frame[pages], data)
            self._counts[_COPIES] = 0
        finally:
            if self.unsettled:
                self._finish()

    def _copy_overwritten(self) -> None:
        """Make those of the listed copies whose source is about to be overwritten."""
        copies = self._counts[_COPIES]
        source, target = self._listed[0][:copies], self._listed[1][:copies]
        kept = int(sort_copies(self.state, source, target))
        if kept < copies:
            self.copy(source[kept:], target[kept:])
            self._counts[_COPIES] = kept
            self.state.counts[Count.FRAMES_COPIED] += copies - kept

    def _make_lists(self, room: int) -> None:
        if self.unsettled:
            self.settle()
        self._listed = (np.empty(room, np.uint32), np.empty(room, np.uint32))

    @property
    def unsettled(self) -> bool:
        """Return whether a pass listed what is not done yet."""
        return bool(self._counts[_GONE] or self._counts[_COPIES])

    def settle(self) -> None:
        """Finish what an interrupted call listed, if any, before pages or frames are used."""
        # Whoever uses a device that was lost meanwhile is told then.
        with suppress(DeviceError):
            self._finish()

    def _finish(self) -> None:
        """Invalidate the entries, and copy the frames, that are listed."""
        self._invalidate()
        error, lost = None, -1
        while copies := self._counts[_COPIES]:
            source, target = self._listed[0][:copies], self._listed[1][:copies]
            try:
                self.copy(source, target)
                note_copied(self.state)
            except DeviceError as failed:
                error, before, lost = failed, lost, sum(mirror.lost for mirror in self.mirrors)
                if lost == before:
                    raise
                self._retract(source, target)
        if error is not None:
            raise error

    def copying_all(self, change: Callable[..., Any], node: int, *arguments: Any) -> None:
        """Run a pass over a whole mapping; if it returns -1 - n, make room for n copies first."""
        copies = self.copying(change, 0, *arguments, node)
        if copies < 0:
            self.ensure(node, -1 - copies)
            self.copying(change, -1 - copies, *arguments, node)

    def _invalidate(self) -> None:
        """Invalidate the entries that a pass listed, on all devices that may have them."""
        state = self.state
        n = self._counts[_GONE]
        if n == 0:
            return
        mappings, index = state.gone_mapping[:n], state.gone_index[:n]
        for mirror in self.mirrors:
            its = state.gone_mirrors[:n] & (1 << mirror.number) != 0
            for number in distinct(mappings[its]).tolist():
                rows = its & (mappings == number)
                mirror.invalidate(number, index[rows].copy())
        state.counts[Count.GONE] = 0

    def _retract(self, source: Frames, target: Frames) -> None:
        """Make copies between working pools; list others in place of those that cannot be made.

        Pages whose bytes survive get a frame on the host; lost pages keep one on the lost device.
        """
        lost = np.zeros(self.nodes + len(self.mirrors), np.bool_)
        lost[[mirror.node for mirror in self.mirrors if mirror.lost]] = True
        target, first = np.unique(target, return_index=True)
        source = source[first]
        near, far = self.node_of(source), self.node_of(target)
        fine = ~(lost[near] | lost[far])
        self.copy(source[fine], target[fine])
        source, target, near = source[~fine], target[~fine], near[~fine]
        gone = lost[near]
        pool = np.where(gone | (near < self.nodes), near, 0)
        for node, frames in enumerate(np.bincount(pool, minlength=len(lost)).tolist()):
            if frames:
                chunks = -(-frames // self._chunk_frames)
                self._add_chunks(node, chunks, NOWHERE if lost[node] else None)
        retract(self.state, source, target, gone, pool, *self._listed)
        self._invalidate()

    def read(self, frames: Frames, out: Pages, offset: int = 0) -> None:
        """Copy n frames, from byte ``offset`` on, to ``out``, (n, k) uint8."""
        addresses, highest = self._addresses(frames)
        if highest < self.nodes:
            self._host.read(addresses, out, offset)
            return
        for pool, rows in self._by_pool(frames):
            found = np.empty((len(rows), out.shape[1]), np.uint8)
            pool.read(addresses[rows], found, offset)
            out[rows] = found

    def write(self, frames: Frames, data: Pages, offset: int = 0) -> None:
        """Copy ``data``, (n, k) uint8, to byte ``offset`` of n frames; the last of equals wins."""
        addresses, highest = self._addresses(frames)
        if highest < self.nodes:
            self._host.write(addresses, data, offset)
            return
        for pool, rows in self._by_pool(frames):
            pool.write(addresses[rows], data[rows], offset)

    def copy(self, source: Frames, target: Frames) -> None:
        """Copy whole frames, in any order: no target is also a source."""
        for start in range(0, len(source), COPY_FRAMES):
            part = slice(start, start + COPY_FRAMES)
            self._copy(source[part], target[part])

    def _copy(self, source: Frames, target: Frames) -> None:
        (here, near), (there, far) = self._addresses(source), self._addresses(target)
        if max(near, far) < self.nodes:
            self._host.copy(here, there, self.page_size)
            return
        for pool, rows in self._by_pool(source):
            for other, among in self._by_pool(target[rows]):
                if pool is other:
                    pool.copy(here[rows[among]], there[rows[among]], self.page_size)
                else:
                    self._bring(pool, here[rows[among]], other, there[rows[among]])

    def _bring(self, pool: Pool, source: Addresses, other: Pool, target: Addresses) -> None:
        """Copy frames from one pool to another, through the host."""
        each = max(1, BRING_BYTES // self.page_size)
        for start in range(0, len(source), each):
            part = slice(start, start + each)
            data = np.empty((len(source[part]), self.page_size), np.uint8)
            pool.read(source[part], data, 0)
            other.write(target[part], data, 0)

    def _addresses(self, frames: Frames) -> tuple[Addresses, int]:
        """Return the addresses of frames, and the highest number of a pool among theirs."""
        addresses = np.empty(len(frames), np.uint64)
        return addresses, int(addresses_of(self.state, frames, addresses))

    def _by_pool(self, frames: Frames) -> Iterator[tuple[Pool, npt.NDArray[np.int64]]]:
        """Yield each pool that has some of ``frames``, with their positions."""
        which = np.maximum(self.node_of(frames) - self.nodes + 1, 0)
        for number, pool in enumerate(self._pools):
            rows = np.flatnonzero(which == number)
            if len(rows):
                yield pool, rows

    def _add_chunks(self, node: int, count: int, address: int | None = None) -> None:
        first, frames = int(self.state.counts[Count.CHUNKS]), self._chunk_frames
        if (first + count) * frames > MAX_FRAMES:
            raise OutOfMemory(f"more than {MAX_FRAMES} frames cannot be numbered")
        if address is None:
            pool = self._pools[max(node - self.nodes + 1, 0)]
            address = pool.allocate(count * frames * self.page_size)
        state = grown(self.state, PER_FRAME, (first + count) * frames, frames)
        self.state = grown(state, PER_CHUNK, first + count)
        add_chunks(self.state, node, count, np.uint64(address))
