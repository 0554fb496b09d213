"""Numbers in calls of the manager: integers of any width; all else is refused, and nothing done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpudedup.errors import UsageError
from gpudedup.layouts.bookkeeping import Bookkeeping
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy

from .common import PAGE, page, rows

NO_NUMBERS = [1.5, 1.0, math.nan, math.inf, True, np.float32(1), np.True_, "1", 10**5000, [1]]

Call = Callable[[MemoryManager, Mapping, Any], object]

CALLS: dict[str, Call] = {
    "create pages": lambda mm, m, n: mm.create("x", pages=n),
    "create node": lambda mm, m, n: mm.create("x", node=n),
    "create start": lambda mm, m, n: mm.create("x", start=n),
    "read offset": lambda mm, m, n: mm.read(m, 0, offset=n),
    "read size": lambda mm, m, n: mm.read(m, 0, size=n),
    "read node": lambda mm, m, n: mm.read(m, 0, node=n),
    "write offset": lambda mm, m, n: mm.write(m, 0, b"x", offset=n),
    "file_write offset": lambda mm, m, n: mm.file_write(m, 0, b"x", offset=n),
    "truncate": lambda mm, m, n: mm.truncate(m, n),
    "migrate": lambda mm, m, n: mm.migrate(m, 0, node=n),
    "replicate": lambda mm, m, n: mm.replicate(m, 0, device=n),
    "cache": lambda mm, m, n: mm.cache(m, 0, node=n),
    "exclusive": lambda mm, m, n: mm.acquire_exclusive(m, 0, device=n),
    "device": lambda mm, m, n: mm.device(n),
    "device read": lambda mm, m, n: mm.device(0).read(m, 0, offset=n),
    "device size": lambda mm, m, n: mm.device(0).read(m, 0, size=n),
    "device write": lambda mm, m, n: mm.device(0).write(m, 0, b"x", offset=n),
    "nodes": lambda mm, m, n: MemoryManager(PAGE, nodes=n),
    "devices": lambda mm, m, n: MemoryManager(PAGE, devices=n, device_engine="cpu"),
    "page size": lambda mm, m, n: MemoryManager(n),
    "cap": lambda mm, m, n: MergePolicy(max_page_sharing=n),
    "layout nodes": lambda mm, m, n: Bookkeeping("frame", PAGE, nodes=n),
    "layout cap": lambda mm, m, n: Bookkeeping("frame", PAGE, max_page_sharing=n),
    "layout page size": lambda mm, m, n: Bookkeeping("frame", n),
    "layout pages": lambda mm, m, n: Bookkeeping("frame", PAGE).create("x", pages=n),
    "layout node": lambda mm, m, n: Bookkeeping("frame", PAGE).create("x", node=n),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_integer_is_refused_and_nothing_done(call: str) -> None:
    mm = MemoryManager(PAGE, nodes=2, devices=2, device_engine="cpu")
    file = mm.create("/a", kind="file", pages=3)
    mm.write(file, 0, page(1))
    before = mm.counters
    for wrong in NO_NUMBERS:
        with pytest.raises(UsageError, match=r"^[a-z_]+( of type \w+)?: (not )?an integer"):
            CALLS[call](mm, file, wrong)
        assert mm.mappings == [file]
        assert file.pages == 3
    assert mm.counters == before
    assert rows(mm.read(file, range(3))) == rows([page(1), page(0), page(0)])
    mm.check()


def test_integers_of_any_width_are_integers() -> None:
    small: Any = np.int8
    word: Any = np.uint64
    mm = MemoryManager(word(PAGE), nodes=word(2), devices=small(1), device_engine="cpu")
    heap = mm.create("heap", pages=small(100), node=small(1), start=word(1 << 63))
    assert (type(heap.pages), heap.pages, heap.start) == (int, 100, 1 << 63)
    mm.write(heap, small(99), page(1))
    mm.write(heap, small(99), b"x", offset=small(100))
    assert mm.read(heap, small(99), offset=small(100)).shape == (1, PAGE - 100)
    assert mm.device(word(0)).read(heap, 99, offset=small(100), size=small(1)) == ord("x")
    mm.truncate(heap, small(127))
    assert mm.migrate(heap, 99, node=small(0)).all()
    assert heap.pages == 127
    mm.check()
