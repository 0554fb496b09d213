"""Stores, loads, forks, pins and writebacks during merges: no store is lost or seen elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from .common import PAGE
from .stress import PAGES, Merger, Stress, Writer, filled, look, numbers_in


@pytest.mark.parametrize("verify_each", [False, True])
def test_stores_while_merging(verify_each: bool) -> None:
    mm = MemoryManager(PAGE, nodes=2)
    writers = [Writer(mm, n, kind) for n, kind in enumerate(("anon", "anon", "file"))]

    def read(rng: np.random.Generator) -> None:
        writer = writers[rng.integers(0, 3)]
        # No writer truncates the first half of its pages.
        look(numbers_in(mm.read(writer.mapping, rng.integers(0, PAGES // 2, 50))), writer)

    def fork(rng: np.random.Generator) -> None:
        writer = writers[rng.integers(0, 2)]
        child: Mapping = mm.fork(writer.mapping)
        index = np.arange(PAGES // 2)
        before = numbers_in(mm.read(child, index))
        look(before, writer)
        mm.write(child, [0, 1], filled(np.array([7, 8])))
        before[:2] = (7, 8)
        with mm.splice(child, index) as buffer:
            mm.migrate(child, index, node=1)
            assert np.array_equal(numbers_in(mm.read(child, index)), before)
            mm.drop(child)
            assert buffer.bytes() == filled(before).tobytes()

    merger = Merger(mm, verify_each)
    Stress().run([*(w.work for w in writers), read, fork, merger.work])
    for writer in writers:
        writer.compare(np.arange(PAGES))
    mm.check()
    assert sum(r.merged for r in merger.reports) > 0
    assert sum(r.written for r in merger.reports) > 0
    for writer in writers:
        mm.drop(writer.mapping)
    left = mm.counters
    assert left.frames == left.pins == left.dirty == left.pages_shared == left.pages_unshared == 0
    mm.check()
