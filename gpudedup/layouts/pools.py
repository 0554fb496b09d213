"""Frames with real bytes: one pool per node, the same for all layouts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpudedup.errors import InvariantError
from gpudedup.layouts.meter import FRAME_BYTES, Meter

Pages = npt.NDArray[np.uint8]

ZERO = 0
"""The frame of zeros, which pages that were never written read."""


class FramePools:
    """Pools of frames. A frame's number encodes its node and its slot in that node's pool.

    The frame freed last is taken first, as in the manager.

    :param page_size: bytes per page
    :param nodes: NUMA nodes, each with a pool
    """

    def __init__(self, page_size: int, nodes: int, meter: Meter) -> None:
        self.page_size = page_size
        self.nodes = nodes
        self.copies = self.peak = 0
        self.used: set[int] = set()
        self._meter = meter
        self._pools: list[Pages] = [np.zeros((64, page_size), np.uint8) for _ in range(nodes)]
        # Slot 0 of every pool stays zero, so that no frame but ZERO has the number 0.
        self._fresh = [1] * nodes
        self._free: list[list[int]] = [[] for _ in range(nodes)]

    def node_of(self, frame: int) -> int:
        """Return the node of a frame."""
        return frame % self.nodes

    def place(self, frame: int) -> tuple[int, int]:
        """Return node and slot of a frame, which order frames by address."""
        return frame % self.nodes, frame // self.nodes

    def take(self, node: int) -> int:
        """Take a free frame, with undefined bytes."""
        if self._free[node]:
            slot = self._free[node].pop()
        else:
            slot = self._fresh[node]
            self._fresh[node] += 1
            pool = self._pools[node]
            if slot == len(pool):
                self._pools[node] = np.zeros((2 * slot, self.page_size), np.uint8)
                self._pools[node][:slot] = pool
        frame = slot * self.nodes + node
        self.used.add(frame)
        self.peak = max(self.peak, len(self.used))
        self._meter.hold(FRAME_BYTES)
        return frame

    def take_zeroed(self, node: int) -> int:
        """Take a free frame and fill it with zeros."""
        frame = self.take(node)
        self.bytes(frame)[:] = 0
        return frame

    def take_copy(self, source: int, node: int) -> int:
        """Take a free frame and fill it with the bytes of another."""
        frame = self.take(node)
        self.bytes(frame)[:] = self.bytes(source)
        self.copies += 1
        return frame

    def give_back(self, frame: int) -> None:
        """Free a frame; raise InvariantError if it is free already."""
        if frame not in self.used:
            raise InvariantError(f"frame {frame} is freed twice")
        self.used.remove(frame)
        node, slot = self.place(frame)
        self._free[node].append(slot)
        self._meter.hold(-FRAME_BYTES)

    def bytes(self, frame: int) -> Pages:
        """Return the bytes of a frame, (page_size,) uint8; a view."""
        node, slot = self.place(frame)
        row: Pages = self._pools[node][slot]
        return row

    def read(self, frames: list[int], offset: int, size: int) -> Pages:
        """Return ``size`` bytes from byte ``offset`` on of n frames, (n, size) uint8."""
        out = np.empty((len(frames), size), np.uint8)
        for row, frame in enumerate(frames):
            out[row] = self.bytes(frame)[offset : offset + size]
        return out

    def write(self, frames: list[int], data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, to byte ``offset`` of n frames, in order."""
        end = offset + data.shape[1]
        for frame, row in zip(frames, data, strict=True):
            self.bytes(frame)[offset:end] = row
