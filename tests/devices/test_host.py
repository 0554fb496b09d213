"""``HostDevice``: kernels give the results of other devices, and memory is freed."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.devices.base import Device, DeviceMemory, OutOfDeviceMemory
from gpudedup.devices.host import HOST_KERNELS, HostDevice
from gpudedup.errors import DeviceError
from gpudedup.kernels import ATOMIC, BRANCH_LEAVES, KERNELS, LEAF_PAGES, PRESENT, WRITE

from ..kernels.checks import check_copy
from ..kernels.common import DeviceKernels, needs_compiler
from ..kernels.shim.device import ShimDevice
from ..kernels.table_checks import check_add, check_page_table, check_set

BOTH = pytest.mark.parametrize("physical", [False, True], ids=["mapped", "physical"])


@BOTH
@pytest.mark.parametrize("page_size", [512, 4096, 128 << 10])
def test_page_table(page_size: int, physical: bool) -> None:
    check_page_table(DeviceKernels(HostDevice()), page_size, physical=physical)


@BOTH
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_rows_are_added_in_order(count: int, physical: bool) -> None:
    kernels = DeviceKernels(HostDevice())
    check_set(kernels, count)
    check_add(kernels, 512, count=count, physical=physical, in_order=True)


@pytest.mark.parametrize("page_size", [512, 4096, 128 << 10])
def test_copy(page_size: int) -> None:
    for gather, scatter in ((False, False), (True, False), (False, True), (True, True)):
        check_copy(DeviceKernels(HostDevice()), page_size, gather=gather, scatter=scatter)


PAGE_SIZE, FRAMES, LEAVES = 1024, 16, 3
PAGES = LEAVES * LEAF_PAGES


class Session:
    """Run kernels one after another on memory that stays allocated."""

    def __init__(self, device: Device) -> None:
        self._device, self._stream = device, device.stream()
        self._kept: list[DeviceMemory] = []

    def hold(self, values: npt.NDArray[Any]) -> int:
        """Return the address of device memory that holds ``values``."""
        self._kept.append(self._device.allocate(values.nbytes))
        address = self._kept[-1].address
        self._device.upload(address, values.view(np.uint8), self._stream)
        self._device.synchronize()
        return address

    def hold_frames(self, values: npt.NDArray[np.uint8]) -> int:
        """Return the address of device memory that holds ``values``, aligned as frames are."""
        address = self.hold(np.zeros(values.size + 512, np.uint8))
        address += -address % 512
        self._device.upload(address, values, self._stream)
        self._device.synchronize()
        return address

    def held(self, address: int, size: int) -> bytes:
        """Return the bytes at an address."""
        found = np.empty(size, np.uint8)
        self._device.download(found, address, self._stream)
        self._device.synchronize()
        return found.tobytes()

    def run(self, kernel: str, *arguments: int) -> None:
        """Run a kernel to its end, in one block."""
        dtypes = KERNELS[kernel].dtypes
        typed = tuple(d.type(a) for d, a in zip(dtypes, arguments, strict=True))
        self._device.launch(kernel, 1, typed, self._stream)
        self._device.synchronize()


def outcome(device: Device, seed: int) -> list[bytes]:
    """Return what random tables, stores, sums, loads and copies leave in memory."""
    rng = np.random.default_rng(seed)
    session = Session(device)
    hold, run = session.hold, session.run
    first = session.hold_frames(rng.integers(0, 256, FRAMES * PAGE_SIZE, dtype=np.uint8))
    table, branch = hold(np.zeros(PAGES, np.uint64)), hold(np.zeros(BRANCH_LEAVES, np.uint64))
    directory = hold(np.array([branch], np.uint64))
    before, out = hold(np.zeros(PAGES, np.uint64)), hold(np.zeros(PAGES * PAGE_SIZE, np.uint8))
    missed = [hold(np.zeros(PAGES, np.uint8)) for _ in range(3)]
    left = []
    for _ in range(5):
        linked = rng.permutation(LEAVES)[:2].astype(np.uint64)
        at, leaves = branch + 8 * linked, table + 8 * LEAF_PAGES * linked
        run("set_words", hold(at), hold(leaves), len(linked))
        pages = rng.permutation(PAGES).astype(np.uint64)
        frames = np.append(rng.permutation(FRAMES), rng.integers(0, FRAMES, PAGES - FRAMES))
        bits = rng.integers(0, (PRESENT | WRITE | ATOMIC) + 1, PAGES)
        # Of pages that share a frame only one is writable: stores have no promised order.
        bits[FRAMES:] &= ~WRITE
        entries = (first + PAGE_SIZE * frames | bits).astype(np.uint64)
        run("set_words", hold(table + 8 * pages), hold(entries), PAGES)
        index = hold(pages)
        offset, size, more = map(int, rng.integers(0, PAGE_SIZE // 2, 3))
        data = hold(rng.integers(0, 256, PAGES * (size + more) + 1, dtype=np.uint8))
        run("store_pages", directory, 1, index, PAGES, offset, size, data, size + more,
            missed[0])  # fmt: skip
        words = hold(rng.integers(0, 8, PAGES, dtype=np.uint32))
        values = hold(rng.integers(0, 1 << 64, PAGES, dtype=np.uint64))
        run("add_words", directory, 1, index, words, values, before, missed[1], PAGES)
        run("load_pages", directory, 1, index, PAGES, offset, size, out, missed[2])
        sources = first + PAGE_SIZE * rng.permutation(FRAMES)[: FRAMES // 2]
        run("copy_pages", 0, out + PAGE_SIZE * (PAGES - len(sources)),
            hold(sources.astype(np.uint64)), 0, len(sources), PAGE_SIZE)  # fmt: skip
        left.append(session.held(first, FRAMES * PAGE_SIZE))
        left += [session.held(out, PAGES * PAGE_SIZE), session.held(before, 8 * PAGES)]
        left += [session.held(told, PAGES) for told in missed]
    return left


@needs_compiler
@pytest.mark.parametrize("seed", range(8))
def test_kernels_leave_the_bytes_that_they_leave_elsewhere(seed: int) -> None:
    assert outcome(HostDevice(), seed) == outcome(ShimDevice(), seed)


@pytest.mark.parametrize("kernel", HOST_KERNELS)
def test_arguments_are_those_of_the_kernel(kernel: str) -> None:
    wanted, device = KERNELS[kernel].dtypes, HostDevice()
    for wrong in (wanted[:-1], (np.dtype(np.int64), *wanted[1:])):
        with pytest.raises(TypeError, match=f"{kernel} takes"):
            device.launch(kernel, 1, tuple(dtype.type(0) for dtype in wrong), device.stream())
    device.launch(kernel, 1, KERNELS[kernel].nothing(), device.stream())


def test_other_kernels_do_not_run() -> None:
    device: Device = HostDevice(3)
    with pytest.raises(DeviceError, match=r"^cpu \(3\): kernel digest does not run on the host$"):
        device.launch("digest", 1, (), device.stream(), page_size=4096)


def test_bytes_are_copied_and_set_at_once() -> None:
    device = HostDevice()
    data = np.random.default_rng(0).integers(0, 256, (8, 512), dtype=np.uint8)
    here, there = device.allocate(data.nbytes), device.allocate(data.nbytes)
    stream, other = device.stream(), device.stream()
    start = device.record(stream)
    device.upload(here.address, data, stream)
    device.copy(there.address, here.address, data.nbytes, stream)
    device.fill(here.address + 5, 9, 100, stream)
    device.wait(other, device.record(stream))
    target, filled = np.zeros_like(data), device.pinned(data.nbytes)
    device.download(target, there.address, other)
    device.download(filled, here.address, other)
    end = device.record(other)
    device.finish(end)
    np.testing.assert_array_equal(target, data)
    expected = data.ravel().copy()
    expected[5:105] = 9
    np.testing.assert_array_equal(filled, expected)
    assert 0 < device.seconds(start, end) < 10


def test_memory_is_counted_and_comes_back() -> None:
    device = HostDevice(memory=10_000_000)
    small, large = device.allocate(5_000), device.allocate(5_000_000)
    for memory, size in ((small, 5_000), (large, 5_000_000)):
        assert memory.size == size
        assert memory.address % 4096 == 0
        assert device.holds(memory.address)
        assert device.holds(memory.address + size - 1)
        assert not device.holds(memory.address + size)
        assert not device.holds(memory.address - 1)
    assert device.free_memory() == 10_000_000 - 5_005_000
    with pytest.raises(
        OutOfDeviceMemory, match=r"^cpu \(0\): 4995001 bytes asked for, 4995000 free"
    ):
        device.allocate(4_995_001)
    start = large.address
    del large, memory
    gc.collect()
    assert not device.holds(start)
    assert device.holds(small.address)
    assert device.free_memory() == 9_995_000
    assert device.allocate(9_995_000).size == 9_995_000


def test_no_limit_is_that_of_the_host() -> None:
    device = HostDevice()
    assert device.free_memory() > 0
    assert not device.allocate(0).size
    with pytest.raises(OutOfDeviceMemory, match="asked for"):
        device.allocate(1 << 60)


def test_threads_do_not_disturb_each_other() -> None:
    device = HostDevice(memory=8 << 20)
    pages = DeviceKernels(device)
    word = device.allocate(8)
    device.fill(word.address, 0, 8, device.stream())

    def run(at: int) -> None:
        check_copy(pages, 512, gather=True, scatter=True, seed=at)
        rows = np.full(1000, word.address, np.uint64)
        zeros, ones = np.zeros(1000, np.uint32), np.ones(1000, np.uint64)
        before = np.empty(1000, np.uint64)
        addresses = [array.ctypes.data for array in (rows, zeros, ones, before)]
        arguments = map(np.uint64, (0, 0, *addresses, 0))
        device.launch("add_words", 1, (*arguments, np.uint32(1000)), device.stream())
        assert (np.diff(before.astype(np.int64)) > 0).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(100)))
    total = np.zeros(1, np.uint64)
    device.download(total, word.address, device.stream())
    assert total[0] == 100_000
    gc.collect()
    assert device.free_memory() == (8 << 20) - 8
