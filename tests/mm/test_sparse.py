"""Mappings of 2^36 pages of which few have frames take memory and steps for those few."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gpudedup import MemoryManager
from gpudedup.arguments import MAX_PAGES
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.state.arrays import LEAF_PAGES
from gpudedup.mm.state.page_table import BLOCK_PLACES

from .common import PAGE, Pages
from .conftest import Devices

FEW = [0, 5, BLOCK_PLACES * LEAF_PAGES - 1, BLOCK_PLACES * LEAF_PAGES, 1 << 35, MAX_PAGES - 1]


def _page(byte: int) -> Pages:
    return np.full(PAGE, byte, np.uint8)


def _few(mm: MemoryManager, kind: str = "anon") -> Mapping:
    mapping = mm.create("sparse", kind=kind, pages=MAX_PAGES)
    mm.write(mapping, FEW, _page(7))
    return mapping


def test_all_that_walks_a_mapping() -> None:
    mm = MemoryManager(PAGE)
    heap, file = _few(mm), _few(mm, "file")
    child, copy = mm.fork(heap), mm.reflink(file, name="copy")
    mm.write(child, FEW[::2], _page(8))
    mm.check()
    np.testing.assert_array_equal(mm.read(child, FEW, size=1)[:, 0], [8, 7, 8, 7, 8, 7])
    np.testing.assert_array_equal(mm.read(copy, FEW, size=1)[:, 0], 7)
    assert mm.merge().merged
    mm.truncate(child, 1 << 35)
    mm.truncate(child, MAX_PAGES)
    np.testing.assert_array_equal(mm.read(child, FEW, size=1)[:, 0], [8, 7, 8, 7, 0, 0])
    for mapping in (heap, file, child, copy):
        mm.drop(mapping)
    mm.check()
    assert mm.counters.pages == 0


def test_a_mapping_that_grows_keeps_its_pages() -> None:
    mm = MemoryManager(PAGE)
    file = mm.create("grown", kind="file", pages=1)
    for index in FEW:
        mm.file_write(file, index, _page(9))
    np.testing.assert_array_equal(mm.read(file, FEW, size=1)[:, 0], 9)
    mm.check()


def test_a_device_reaches_them(engine: Devices) -> None:
    mm = MemoryManager(PAGE, device_engine=engine(1))
    heap = _few(mm)
    device = mm.device(0)
    np.testing.assert_array_equal(device.read(heap, [*FEW, 1 << 30], size=1)[:, 0], [7] * 6 + [0])
    device.write(heap, [1 << 34, FEW[3]], _page(3))
    np.testing.assert_array_equal(mm.read(heap, [1 << 34, FEW[3]], size=1)[:, 0], 3)
    mm.check()
    # Another mapping gets the branches that this one gives back, without its leaves.
    mm.drop(heap)
    other = _few(mm)
    np.testing.assert_array_equal(device.read(other, [1 << 34, *FEW], size=1)[:, 0], [0] + [7] * 6)
    mm.check()


@pytest.mark.slow
def test_a_fork_takes_little_memory() -> None:
    # The directories of two would take 8 GiB.
    script = f"""
import resource
import gpudedup as gd
mm = gd.MemoryManager({PAGE}, devices=1, device_engine="cpu")
heap = mm.create("sparse", pages={MAX_PAGES})
mm.write(heap, {FEW}, bytes({PAGE}))
child = mm.fork(heap)
mm.device(0).read(child, {FEW}, size=8)
mm.check()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
assert int(peak.split()[1]) < 1 << 20, peak
"""
    subprocess.run([sys.executable, "-c", script], check=True)
