"""``ShimDevice``: late work, failures, and errors for what a real device would not notice."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gpudedup.devices.base import Device, DeviceMemory, OutOfDeviceMemory
from gpudedup.errors import DeviceError

from .checks import digests_of, pages_of_all_kinds
from .common import needs_compiler
from .shim.compile import Schedule, ShimError
from .shim.device import ShimDevice
from .shim.heap import POISON

SEEDS = range(30)
ALL = np.uint64((1 << 64) - 1)


def some_bytes(size: int = 4096, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def holding(device: Device, data: np.ndarray[Any, np.dtype[np.uint8]]) -> DeviceMemory:
    """Return device memory that holds ``data``."""
    memory = device.allocate(data.nbytes)
    stream = device.stream()
    device.upload(memory.address, data, stream)
    device.finish(device.record(stream))
    return memory


def test_a_download_is_not_visible_before_it_is_waited_for() -> None:
    device = ShimDevice()
    data, target = some_bytes(), np.zeros(4096, np.uint8)
    memory, stream = holding(device, data), device.stream()
    device.download(target, memory.address, stream)
    event = device.record(stream)
    assert not target.any()
    device.finish(event)
    np.testing.assert_array_equal(target, data)


def test_an_upload_reads_its_source_when_it_runs() -> None:
    device = ShimDevice()
    source, target = some_bytes(), np.zeros(4096, np.uint8)
    memory, stream = device.allocate(4096), device.stream()
    device.upload(memory.address, source, stream)
    source[:] = 7
    device.download(target, memory.address, stream)
    device.synchronize()
    assert (target == 7).all()


def relay(seed: int, *, waits: bool) -> bool:
    """Fill on one stream, copy on a second, download on a third; return whether bytes arrived."""
    device = ShimDevice(seed=seed)
    first, second, third = (device.stream() for _ in range(3))
    here, there = device.allocate(64), device.allocate(64)
    target = np.zeros(64, np.uint8)
    device.fill(here.address, 9, 64, first)
    filled = device.record(first)
    if waits:
        device.wait(second, filled)
    device.copy(there.address, here.address, 64, second)
    copied = device.record(second)
    if waits:
        device.wait(third, copied)
    device.download(target, there.address, third)
    device.finish(device.record(third))
    return bool((target == 9).all())


def test_events_order_streams() -> None:
    assert all(relay(seed, waits=True) for seed in SEEDS)


def test_a_forgotten_wait_shows() -> None:
    came = [relay(seed, waits=False) for seed in SEEDS]
    assert not all(came)
    assert came == [relay(seed, waits=False) for seed in SEEDS]


def test_work_on_a_dropped_stream_is_done() -> None:
    device = ShimDevice()
    memory, target = holding(device, some_bytes()), np.zeros(4096, np.uint8)
    device.download(target, memory.address, device.stream())
    gc.collect()
    device.synchronize()
    assert target.any()


def test_memory_is_counted_poisoned_and_aligned() -> None:
    device = ShimDevice(memory=10_000)
    memory = device.allocate(5_000)
    assert memory.size == 5_000
    assert memory.address % 256 == 0
    target = np.zeros(5_000, np.uint8)
    device.download(target, memory.address, device.stream())
    device.synchronize()
    assert (target == POISON).all()
    before = device.free_memory()
    with pytest.raises(OutOfDeviceMemory, match="asked for"):
        device.allocate(before + 1)
    assert device.free_memory() == before
    del memory
    assert device.free_memory() == 10_000
    assert device.allocate(10_000 // 256 * 256).size == 9984


def test_held_is_what_is_allocated() -> None:
    device, other = ShimDevice(), ShimDevice()
    memory = device.allocate(1000)
    start = memory.address
    assert device.holds(start)
    assert device.holds(start + 999)
    assert not device.holds(start + 1000)
    assert not device.holds(start - 1)
    assert not other.holds(start)
    assert not device.holds(some_bytes().ctypes.data)
    del memory
    assert not device.holds(start)


def test_memory_let_go_while_work_on_it_waits_is_an_error() -> None:
    device = ShimDevice()
    memory, stream = device.allocate(64), device.stream()
    device.fill(memory.address, 1, 64, stream)
    del memory
    other = device.allocate(64)
    with pytest.raises(ShimError, match="not memory of the device"):
        device.synchronize()
    assert other.size == 64


@pytest.mark.parametrize("size", [0, 64, 65])
def test_copies_stay_within_an_allocation(size: int) -> None:
    device = ShimDevice()
    memory, stream = device.allocate(64), device.stream()
    device.upload(memory.address, np.zeros(size, np.uint8), stream)
    if size <= 64:
        device.synchronize()
        return
    with pytest.raises(ShimError, match="65 bytes at"):
        device.synchronize()


@needs_compiler
def test_kernels_run_late_with_their_arguments_checked() -> None:
    device = ShimDevice(schedule=Schedule("random", 1))
    pages = pages_of_all_kinds(20, 512)
    held = holding(device, pages.reshape(-1))
    outputs = [device.allocate(20 * size) for size in (16, 1, 8)]
    addresses = [np.uint64(memory.address) for memory in outputs]
    arguments: tuple[np.generic, ...] = (
        np.uint64(held.address),
        np.uint32(20),
        *addresses,
        ALL,
        ALL,
    )
    stream = device.stream()
    device.launch("digest", 3, arguments, stream, page_size=512, layout="octet")
    assert not device.launches
    digests = np.zeros((20, 2), np.uint64)
    device.download(digests, outputs[0].address, stream)
    device.finish(device.record(stream))
    np.testing.assert_array_equal(digests, digests_of(pages))
    assert device.launches == [("digest", 3)]

    with pytest.raises(TypeError, match="digest takes"):
        device.launch("digest", 3, arguments[::-1], stream, page_size=512)
    with pytest.raises(ValueError, match="not compiled for page size 0"):
        device.launch("digest", 3, arguments, stream)
    with pytest.raises(ValueError, match="no kernel"):
        device.launch("digset", 3, arguments, stream)
    with pytest.raises(ValueError, match="in 0 blocks"):
        device.launch("digest", 0, arguments, stream, page_size=512)
    stranger = (np.uint64(digests.ctypes.data), *arguments[1:])
    device.launch("digest", 3, stranger, stream, page_size=512)
    with pytest.raises(ShimError, match="digest: argument 0 is not memory of the device"):
        device.synchronize()


@pytest.mark.parametrize("after", range(4))
def test_a_lost_device_stays_lost(after: int) -> None:
    device = ShimDevice(fail_after=after)
    memory, stream = device.allocate(64), device.stream()
    for _ in range(4):
        device.fill(memory.address, 1, 64, stream)
    event = device.record(stream)
    for use in (lambda: device.finish(event), device.synchronize, device.free_memory,
                device.stream, lambda: device.allocate(1)):  # fmt: skip
        with pytest.raises(DeviceError, match="device lost"):
            use()


def test_a_device_that_is_not_used_enough_is_not_lost() -> None:
    device = ShimDevice(fail_after=1)
    holding(device, some_bytes())
    device.synchronize()


def test_events_tell_the_time_between() -> None:
    device = ShimDevice()
    memory, stream = device.allocate(1 << 20), device.stream()
    start = device.record(stream)
    device.fill(memory.address, 0, 1 << 20, stream)
    end = device.record(stream)
    with pytest.raises(ShimError, match="have not come"):
        device.seconds(start, end)
    device.finish(end)
    assert 0 < device.seconds(start, end) < 10


def test_devices_and_threads_do_not_disturb_each_other() -> None:
    devices = [ShimDevice(seed=seed) for seed in range(2)]
    assert devices[0].name != devices[1].name

    def run(at: int) -> bool:
        device: Device = devices[at % 2]
        data, target = some_bytes(seed=at), np.zeros(4096, np.uint8)
        memory = holding(device, data)
        stream = device.stream()
        device.download(target, memory.address, stream)
        device.finish(device.record(stream))
        return bool((target == data).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(100)))


def test_what_belongs_to_another_device_is_refused() -> None:
    device, other = ShimDevice(), ShimDevice()
    with pytest.raises(ValueError, match="another device"):
        device.fill(device.allocate(1).address, 0, 1, other.stream())
    with pytest.raises(ValueError, match="another device"):
        device.finish(other.record(other.stream()))


def test_pinned_memory_starts_at_a_page() -> None:
    pinned = ShimDevice().pinned(5000)
    assert pinned.shape == (5000,)
    assert pinned.dtype == np.uint8
    assert not pinned.ctypes.data % 4096
