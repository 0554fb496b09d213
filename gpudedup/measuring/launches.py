"""Launch single kernels on a device, to time them by its own events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpudedup.devices.base import Device, DeviceMemory
from gpudedup.kernels import blocks
from gpudedup.measuring.populations import PAGE_SIZE, Digests, Pages

FREE = 0xFF
"""Byte that fills the slots of an empty table."""

FOLLOWER = 5
"""As in ``common.cuh``."""


@dataclass(frozen=True)
class Part:
    """Part of a device's memory, which it keeps.

    :param offset: its first byte
    """

    of: DeviceMemory
    offset: int
    size: int

    @property
    def address(self) -> int:
        """Return its first address."""
        return self.of.address + self.offset


def halves(memory: DeviceMemory, unit: int) -> tuple[Part, Part]:
    """Return two neighbouring parts of ``memory``, equally large, multiples of ``unit`` bytes."""
    half = memory.size // 2 // unit * unit
    return Part(memory, 0, half), Part(memory, half, half)


@dataclass(frozen=True)
class Work:
    """A launch of one kernel.

    :param pages: pages, or rows, by which its grid is sized
    :param keep: memory that its arguments lead to
    """

    kernel: str
    pages: int
    arguments: tuple[np.generic, ...]
    keep: tuple[DeviceMemory, ...]
    page_size: int = 0
    layout: str = ""

    def resident_blocks(self, device: Device, switches: Mapping[str, int] | None = None) -> int:
        """Return the blocks of it that a multiprocessor runs at once."""
        return device.resident_blocks(
            self.kernel, page_size=self.page_size, layout=self.layout, switches=switches
        )

    def queue(
        self,
        device: Device,
        stream: Any,
        grid: int = 0,
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Queue it; ``grid`` is the number of blocks, 0: as the engine chooses."""
        if not grid:
            resident = self.resident_blocks(device, switches)
            grid = blocks(
                self.kernel, self.pages, device.multiprocessors, self.layout, resident=resident
            )
        device.launch(
            self.kernel, grid, self.arguments, stream,
            page_size=self.page_size, layout=self.layout, switches=switches,
        )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A device, and the amount of work to measure on it.

    :param size: bytes of pages
    :param grouped: digests to group
    :param threads: host threads of the engines; None: one per usable core
    """

    device: Device
    size: int
    grouped: int
    rounds: int
    threads: int | None = None

    def by_events(
        self, queue: Callable[[Any], None], before: Callable[[], None] | None = None
    ) -> Callable[[], float]:
        """Return a function that queues work on a stream and returns the device's seconds.

        :param before: called first, not timed; must wait for what it queues
        """
        device, stream = self.device, self.device.stream()

        def run() -> float:
            if before:
                before()
            start = device.record(stream)
            queue(stream)
            end = device.record(stream)
            device.finish(end)
            return device.seconds(start, end)

        return run

    def timed(
        self,
        work: Work,
        before: Callable[[], None] | None = None,
        *,
        grid: int = 0,
        switches: Mapping[str, int] | None = None,
    ) -> Callable[[], float]:
        """Return a function that times a launch."""
        return self.by_events(
            lambda stream: work.queue(self.device, stream, grid, switches), before
        )

    def upload(self, pages: Pages) -> DeviceMemory:
        """Return device memory that holds ``pages``."""
        memory, stream = self.device.allocate(pages.nbytes), self.device.stream()
        self.device.upload(memory.address, pages.reshape(-1), stream)
        self.device.finish(self.device.record(stream))
        return memory

    def read(self, memory: DeviceMemory) -> Callable[[], float]:
        """Return a function that times the read-only kernel over ``memory``."""
        return self.timed(self.reading(memory))

    def reading(self, memory: DeviceMemory) -> Work:
        """Return the read-only kernel over ``memory``."""
        total = self.device.allocate(8)
        arguments = (np.uint64(memory.address), np.uint64(memory.size // 16))
        return Work("read_words", 1 << 30, (*arguments, np.uint64(total.address)), (memory, total))

    def digesting(self, memory: DeviceMemory, page_size: int, layout: str) -> Work:
        """Return the digest kernel over ``memory``."""
        count = memory.size // page_size
        out = tuple(self.device.allocate(each * count) for each in (16, 1, 8))
        every_bit = np.uint64(2**64 - 1)
        arguments: tuple[np.generic, ...] = (
            np.uint64(memory.address), np.uint32(count),
            *(np.uint64(each.address) for each in out), every_bit, every_bit,
        )  # fmt: skip
        return Work("digest", count, arguments, (memory, *out), page_size, layout)

    def comparing(self, anchors: DeviceMemory, pages: DeviceMemory, shared: int = 1) -> Work:
        """Return the compare kernel: every page follows an anchor, and should be equal to it.

        :param anchors: as many pages as ``pages``
        :param shared: neighbouring pages that have one anchor
        """
        count = pages.size // PAGE_SIZE
        numbers = np.arange(count, dtype=np.uint64)
        heads = numbers // np.uint64(shared) * np.uint64(shared)
        places = anchors.address + PAGE_SIZE * numbers
        inputs = (
            self.upload(np.full((1, count), FOLLOWER, np.uint8)),
            *(self.upload(words.reshape(1, -1).view(np.uint8)) for words in (heads, places)),
        )
        arguments: tuple[np.generic, ...] = (
            np.uint64(pages.address), np.uint32(PAGE_SIZE), np.uint32(0), np.uint32(count),
            *(np.uint64(each.address) for each in inputs),
        )  # fmt: skip
        return Work("compare", count, arguments, (pages, anchors, *inputs))

    def inserting(self, values: Digests) -> tuple[Work, Callable[[], None]]:
        """Return the insert kernel over (n, 2) digests, and what empties its table before.

        :attr:`Work.keep` has digests, classes, table and slots found.
        """
        device, count = self.device, len(values)
        slots = count + count // 2 + 1
        digests = self.upload(values.view(np.uint8))
        classes, table, found = (device.allocate(size) for size in (count, 8 * slots, 8 * count))
        u32, u64 = np.uint32, np.uint64
        arguments: tuple[np.generic, ...] = (
            u64(digests.address), u32(0), u32(count), u64(classes.address), u64(table.address),
            u64(slots), u64(found.address),
        )  # fmt: skip
        stream = device.stream()

        def refill() -> None:
            device.fill(table.address, FREE, table.size, stream)
            device.fill(classes.address, 0, count, stream)
            # The launches are on another stream.
            device.finish(device.record(stream))

        return Work("insert", count, arguments, (digests, classes, table, found)), refill


def half_duplicates(count: int) -> Digests:
    """Return (count, 2) random digests, the second half drawn from the first."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 1 << 64, (count, 2), dtype=np.uint64)
    values[count // 2 :] = values[rng.integers(0, count // 2, count - count // 2)]
    return values
