"""A merge finds and shares the same pages with every scan engine."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy

from ..engines.common import population
from ..kernels.shim.device import ShimDevice

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")


@pytest.mark.parametrize("use_zero_pages", [False, True])
def test_a_device_finds_what_to_merge(use_zero_pages: bool) -> None:
    held = population(3, 400, 4096)
    policy = MergePolicy(kinds=("anon", "file"), use_zero_pages=use_zero_pages)
    counters = []
    for engine in (CpuEngine(1), OffloadEngine([ShimDevice()], 2, chunk_bytes=64 << 10)):
        mm = MemoryManager(4096)
        mapping, file = mm.create("heap", pages=300), mm.create("/a", kind="file", pages=100)
        mm.write(mapping, range(300), held[:300])
        mm.file_write(file, range(100), held[300:])
        mm.merge(policy, engine=engine)
        mm.check()
        assert np.array_equal(mm.read(mapping, range(300)), held[:300])
        assert np.array_equal(mm.read(file, range(100)), held[300:])
        counters.append(mm.counters)
    assert counters[0] == counters[1]
    assert counters[0].pages_sharing > 50
