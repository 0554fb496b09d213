"""Devices with little free memory: their chunks are smaller than those of the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from gpudedup.devices.base import OutOfDeviceMemory, Stream
from gpudedup.devices.host import HostDevice
from gpudedup.errors import DeviceError
from gpudedup.mm.manager import MemoryManager

from .common import PAGE, page, rows


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("free", [55 << 20, 90 << 20, 20 << 20])
def test_a_device_with_less_free_than_a_chunk_adds(free: int, page_size: int) -> None:
    mm = MemoryManager(page_size, device_engine=[HostDevice(0, free)])
    heap = mm.create("heap", pages=100)
    mm.write(heap, range(100), page(1, page_size))
    assert mm.device(0).atomic_add(heap, range(100), 0, 1).shape == (100,)
    assert mm.device(0).atomic_add(heap, 99, 1, np.uint64(5)).shape == (1,)
    mm.check()
    assert mm.counters.remote == 0


def test_most_of_a_small_device_holds_frames() -> None:
    free = 55 << 20
    mm = MemoryManager(4096, device_engine=[HostDevice(0, free)])
    count = free * 3 // 5 // 4096
    heap = mm.create("heap", pages=count)
    mm.write(heap, range(count), page(1, 4096))
    assert mm.migrate(heap, range(count), device=0).all()
    assert rows(mm.read(heap, [0, count - 1])) == rows([page(1, 4096)] * 2)
    mm.check()


def test_a_device_with_enough_changes_no_chunk() -> None:
    plain = MemoryManager(PAGE)
    large = MemoryManager(PAGE, device_engine=[HostDevice(0, 4 << 30)])
    assert len(plain.frames()) == len(large.frames())


class Full(HostDevice):
    """A device that has no memory for launches, and perhaps for nothing else.

    :param full: True from when on launches fail
    :param fills: True if it can fill memory even then
    """

    full, fills = False, True

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Run a kernel, or fail as a launch does that cannot load its kernel."""
        if self.full:
            raise OutOfDeviceMemory("CUDA_ERROR_OUT_OF_MEMORY")
        super().launch(kernel, blocks, arguments, stream)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        """Set bytes."""
        if not self.fills:
            raise OutOfDeviceMemory("CUDA_ERROR_OUT_OF_MEMORY")
        super().fill(address, byte, size, stream)


@pytest.mark.parametrize("fills", [True, False])
def test_an_invalidation_is_never_left_out_for_lack_of_memory(fills: bool) -> None:
    device = Full()
    mm = MemoryManager(PAGE, device_engine=[device])
    heap = mm.create("heap", pages=10)
    mm.write(heap, range(10), page(1))
    mm.device(0).read(heap, range(10))
    child = mm.fork(heap)
    device.full, device.fills = True, fills
    # The store moves the pages to new frames: the device's entries lead to the child's.
    mm.write(heap, range(10), page(2))
    device.full, device.fills = False, True
    if fills:
        assert rows(mm.device(0).read(heap, range(10))) == rows([page(2)] * 10)
        assert rows(mm.device(0).read(child, range(10))) == rows([page(1)] * 10)
    else:
        with pytest.raises(DeviceError, match="OUT_OF_MEMORY"):
            mm.device(0).read(heap, range(10))
    assert rows(mm.read(heap, range(10))) == rows([page(2)] * 10)
    mm.check()


def test_kernels_that_cannot_be_loaded_are_an_error_at_the_start() -> None:
    device = Full()
    device.full = True
    with pytest.raises(DeviceError, match="OUT_OF_MEMORY"):
        MemoryManager(PAGE, device_engine=[device])
