"""Pages with several frames (replicas, cached pages), and files that share frames (reflinks)."""

from __future__ import annotations

import numpy as np
import pytest

from gpudedup.errors import UsageError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy

from ..common import PAGE, page, pages, rows

FILES = MergePolicy(kinds=("anon", "file"))


@pytest.fixture
def mm() -> MemoryManager:
    return MemoryManager(PAGE, nodes=3)


@pytest.fixture
def file(mm: MemoryManager) -> Mapping:
    mapping = mm.create("/a", kind="file", pages=100)
    mm.file_write(mapping, range(8), pages(*range(1, 9)))
    return mapping


def served(mm: MemoryManager, mapping: Mapping, index: int, node: int) -> int:
    """Return the node of the frame that serves a load from ``node``."""
    from gpudedup.mm.passes.access import frames_of
    from gpudedup.mm.state.steps import node_of

    frames = np.empty(1, np.uint32)
    found, _ = mm.memory.locate(mapping, np.array([index]))
    frames_of(mm.memory.state, found, node, frames)
    return int(node_of(mm.memory.state, frames[0]))


def test_truncate_of_a_replicated_file_page(mm: MemoryManager, file: Mapping) -> None:
    mm.replicate(file, range(8), node=1)
    mm.replicate(file, range(4), node=2)
    assert (mm.counters.replicas, mm.counters.frames) == (12, 20)
    mm.truncate(file, 3)
    mm.check()
    assert (mm.counters.replicas, mm.counters.frames) == (6, 9)
    mm.truncate(file, 0)
    assert mm.counters.frames == mm.counters.replicas == mm.counters.dirty == 0
    mm.check()


def test_loads_are_served_by_the_nearest(mm: MemoryManager, file: Mapping) -> None:
    assert mm.replicate(file, [0, 1, 0, 50], node=1).all()
    assert [served(mm, file, 0, node) for node in range(3)] == [0, 1, 0]
    for node in range(3):
        assert rows(mm.read(file, range(8), node=node)) == rows(pages(*range(1, 9)))
    mm.check()


def test_a_store_collapses_replicas_first(mm: MemoryManager, file: Mapping) -> None:
    mm.replicate(file, range(8), node=1)
    mm.write(file, 0, b"x", offset=0)
    assert mm.read(file, 0, node=1)[0, 0] == ord("x")
    assert mm.counters.replicas == 7
    mm.collapse(file, [1, 1, 50])
    assert (mm.counters.replicas, mm.counters.collapses) == (6, 2)
    mm.write(file, 1, page(9))
    mm.check()
    assert mm.counters.frames == 8 + 6


def test_replicas_of_a_merged_frame(mm: MemoryManager, file: Mapping) -> None:
    heap = mm.create("heap", pages=10)
    mm.write(heap, range(4), pages(1, 1, 2, 2))
    mm.merge(FILES)
    mm.replicate(heap, [0, 2], node=2)
    assert served(mm, file, 0, 2) == 2, "all aliases have them"
    mm.write(heap, 0, page(5))
    mm.check()
    assert mm.counters.replicas == 2, "the others still read them"
    assert rows(mm.read(file, [0, 1], node=2)) == rows(pages(1, 2))
    mm.unmerge(heap, range(heap.pages))
    mm.unmerge(file, range(file.pages))
    mm.check()
    mm.write(file, range(8), page(7))
    assert mm.counters.replicas == 0


def test_merging_replicated_pages(mm: MemoryManager) -> None:
    heap = mm.create("heap", pages=6)
    mm.write(heap, range(6), page(1))
    mm.replicate(heap, range(6), node=1)
    mm.merge()
    mm.check()
    assert (mm.counters.frames, mm.counters.replicas) == (2, 1)
    assert served(mm, heap, 5, 1) == 1


def test_a_pinned_page_is_not_replicated(mm: MemoryManager, file: Mapping) -> None:
    with mm.pin(file, 0):
        assert mm.replicate(file, [0, 1], node=1).tolist() == [False, True]
    with mm.pin(file, 1, write=True) as pin:
        assert mm.counters.replicas == 0
        pin.write(page(20))
        assert rows(mm.read(file, 1, node=1)) == rows([page(20)])
    mm.check()


def test_migration_lets_replicas_go(mm: MemoryManager, file: Mapping) -> None:
    mm.replicate(file, range(8), node=1)
    assert mm.migrate(file, range(8), node=2).all()
    assert mm.counters.replicas == 0
    assert served(mm, file, 0, 1) == 2
    mm.check()


@pytest.fixture
def slow(mm: MemoryManager) -> Mapping:
    """Return a mapping whose frames are on node 2."""
    mapping = mm.create("pmem", kind="file", pages=10, node=2)
    mm.file_write(mapping, range(5), pages(*range(1, 6)))
    return mapping


def home_of(mm: MemoryManager, mapping: Mapping, index: int) -> bytes:
    found, _ = mm.memory.locate(mapping, np.array([index]))
    state = mm.memory.state
    home = state.ring[state.frame[found]]
    out = np.empty((1, PAGE), np.uint8)
    mm.memory.read(home, out)
    return out.tobytes()


def test_a_cached_page_is_written_there_and_goes_home_on_flush(
    mm: MemoryManager, slow: Mapping
) -> None:
    assert mm.cache(slow, [0, 1, 1, 7], node=0).all()
    mm.check()
    assert served(mm, slow, 0, 2) == 0
    mm.write(slow, 0, page(9))
    assert home_of(mm, slow, 0) == page(1).tobytes()
    assert mm.flush(slow, range(10)) == 1
    assert home_of(mm, slow, 0) == page(9).tobytes()
    assert mm.flush(slow, range(10)) == 0
    mm.write(slow, 0, b"z", offset=0)
    mm.evict(slow, [0, 1])
    assert mm.counters.frames == 5
    assert served(mm, slow, 0, 0) == 2
    assert mm.read(slow, 0)[0, 0] == ord("z")
    mm.check()


def test_another_owner_finds_a_cached_page_at_home(mm: MemoryManager, slow: Mapping) -> None:
    heap = mm.create("heap", pages=10, node=2)
    mm.write(heap, range(5), pages(*range(1, 6)))
    mm.cache(heap, range(5), node=0)
    mm.write(heap, range(5), pages(*range(11, 16)))
    child = mm.fork(heap)
    assert mm.counters.replicas == 0
    assert rows(mm.read(child, range(5))) == rows(pages(*range(11, 16)))
    assert mm.cache(heap, 0, node=0).tolist() == [False], "it is shared"
    mm.cache(slow, range(5), node=0)
    mm.write(slow, 0, page(20))
    with mm.splice(slow, 0) as buffer:
        mm.write(slow, 0, page(21))
        assert buffer.bytes() == page(20).tobytes()
    assert mm.migrate(slow, 1, node=1).all()
    assert mm.replicate(slow, 2, node=0).all()
    mm.check()
    mm.cache(slow, 4, node=0)
    mm.write(slow, 4, page(30))
    mm.truncate(slow, 0)
    mm.check()


def test_a_pinned_cached_page_stays(mm: MemoryManager, slow: Mapping) -> None:
    mm.cache(slow, [0, 1], node=0)
    pin = mm.pin(slow, 0, write=True)
    pin.write(page(8))
    mm.evict(slow, [0, 1])
    assert (served(mm, slow, 0, 0), served(mm, slow, 1, 0)) == (0, 2)
    assert mm.flush(slow, 0) == 1
    pin.write(page(9))
    assert mm.flush(slow, 0) == 1, "its holder may have written it again"
    pin.unpin()
    mm.evict(slow, 0)
    assert rows(mm.read(slow, 0)) == rows([page(9)])
    mm.check()


def test_reflinked_files_share_until_one_is_written(mm: MemoryManager, file: Mapping) -> None:
    copy = mm.reflink(file, name="/b", owner="p2")
    assert (copy.name, copy.kind, copy.owner, copy.pages) == ("/b", "file", "p2", 100)
    assert (mm.counters.frames, mm.counters.dirty, mm.counters.written_back) == (8, 0, 8)
    assert mm.mappings == [file, copy], "the hidden mapping is nobody's"
    mm.check()
    mm.file_write(copy, [0, 150], page(50))
    assert rows(mm.read(file, range(8))) == rows(pages(*range(1, 9)))
    assert rows(mm.read(copy, [0, 1, 150])) == rows(pages(50, 2, 50))
    assert mm.counters.frames == 10
    mm.file_write(file, 0, page(51))
    assert (mm.counters.frames, mm.counters.reuses) == (10, 1), "only the hidden mapping was left"
    mm.check()
    again = mm.reflink(copy, name="/c")
    assert rows(mm.read(again, range(8))) == rows(pages(50, *range(2, 9)))
    mm.check()
    mm.truncate(file, 2)
    mm.drop(copy)
    mm.check()
    assert rows(mm.read(again, range(8))) == rows(pages(50, *range(2, 9)))
    mm.drop(again)
    mm.drop(file)
    assert mm.counters.frames == mm.counters.pages == 0
    assert not mm._mappings, "the hidden mappings went too"
    mm.check()


def test_reflinks_merge_replicate_and_migrate(mm: MemoryManager, file: Mapping) -> None:
    copy = mm.reflink(file, name="/b")
    heap = mm.create("heap", pages=8)
    mm.write(heap, range(8), pages(*range(1, 9)))
    mm.merge(FILES)
    mm.check()
    assert mm.counters.frames == 8
    mm.replicate(copy, range(4), node=1)
    mm.migrate(copy, range(4, 8), node=2)
    mm.check()
    for mapping in (file, copy, heap):
        assert rows(mm.read(mapping, range(8), node=1)) == rows(pages(*range(1, 9)))
        mm.write(mapping, range(8), page(40))
        mm.check()
    assert mm.counters.frames == 24


def test_a_pin_for_writing_keeps_a_page_from_its_reflink(mm: MemoryManager, file: Mapping) -> None:
    with mm.pin(file, [0, 1], write=True) as pin:
        copy = mm.reflink(file, name="/b")
        pin.write(page(60))
        assert rows(mm.read(copy, [0, 1, 2])) == rows(pages(1, 2, 3))
        assert rows(mm.read(file, [0, 1, 2])) == rows(pages(60, 60, 3))
        mm.check()
    assert mm.counters.frames == 10


def test_what_is_refused(mm: MemoryManager, file: Mapping) -> None:
    heap = mm.create("heap", pages=1)
    with pytest.raises(UsageError, match="no file"):
        mm.reflink(heap, name="x")
    with pytest.raises(UsageError, match="node 3"):
        mm.replicate(file, 0, node=3)
    with pytest.raises(UsageError, match="no page 100"):
        mm.cache(file, 100, node=0)
