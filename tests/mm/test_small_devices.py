"""Devices with little free memory: their chunks are smaller than those of the others."""

from __future__ import annotations

import numpy as np
import pytest

from gpudedup.devices.host import HostDevice
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
