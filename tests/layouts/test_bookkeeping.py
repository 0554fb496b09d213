"""The layouts of the bookkeeping: what must hold in each, and costs that are worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpudedup.errors import InvariantError, UsageError
from gpudedup.layouts.base import Region
from gpudedup.layouts.bookkeeping import LAYOUTS, Bookkeeping
from gpudedup.layouts.compare import LayoutEvent, compare_layouts, content
from gpudedup.schema import LAYOUT_COSTS

from ..mm.common import PAGE, page, pages, rows

LEAF, TREE, FRAME, ALIAS, DESCRIPTOR, HIDDEN = 576, 16, 64, 48, 8 + 2 * 8, 8

each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def books_of(layout: str, **options: Any) -> Bookkeeping:
    return Bookkeeping(layout, PAGE, **options)


def file_of(books: Bookkeeping, *contents: int, node: int = 0) -> Region:
    made = books.create("f", kind="file", pages=len(contents), node=node)
    books.file_write(made, range(len(contents)), pages(*contents))
    return made


def spent(books: Bookkeeping, act: Callable[[], object]) -> tuple[int, int]:
    """Return the look-ups and steps that one call costs; check the books after it."""
    before = books.costs
    act()
    after = books.costs
    books.check()
    return after.lookups - before.lookups, after.walks - before.walks


# Truncate: what made Wilcox object.


@each_layout
@pytest.mark.parametrize("replicas", [False, True])
def test_a_truncate_of_merged_pages_ends_and_leaves_the_others(layout: str, replicas: bool) -> None:
    books = books_of(layout)
    first, second = file_of(books, 1, 2, 3), file_of(books, 1, 2, 4)
    assert books.merge() == 2
    if replicas:
        books.replicate(second, range(3), node=1)
    books.truncate(second, 1)
    books.check()
    assert second.pages == 1
    assert rows(books.read(first, range(3), node=1)) == rows(pages(1, 2, 3))
    assert rows(books.read(second, [0], node=1)) == rows(pages(1))
    books.truncate(second, 3)
    assert not books.read(second, [1, 2]).any()
    books.truncate(first, 0)
    assert rows(books.read(second, [0])) == rows(pages(1))
    books.drop(first)
    books.drop(second)
    books.check()
    assert books.costs.frames == books.costs.metadata_bytes == books.costs.pages_shared == 0


@each_layout
def test_a_truncate_of_replicated_pages_frees_all_of_them(layout: str) -> None:
    books = books_of(layout, nodes=3)
    file = file_of(books, 1, 2)
    books.replicate(file, [0, 1], node=1)
    books.replicate(file, [0], node=2)
    assert books.costs.frames == 5
    books.truncate(file, 1)
    books.check()
    assert books.costs.frames == 3
    books.punch(file, 0)
    books.check()
    assert books.costs.frames == 0


@each_layout
def test_a_truncate_that_cannot_let_go_raises(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    books = books_of(layout)
    file = file_of(books, 1)
    monkeypatch.setattr("gpudedup.layouts.tree.Tree.put", lambda self, index, entry: None)
    with pytest.raises(InvariantError, match="page 0 of 'f' outlived a truncate"):
        books.truncate(file, 0)


@each_layout
def test_a_path_that_misses_raises(layout: str) -> None:
    books = books_of(layout)
    first, second = file_of(books, 1), file_of(books, 1)
    books.merge()
    structures: Any = books._layout
    if layout == "frame":
        (shared,) = (held for held in structures._pages.values() if held.merged)
        shared.last, shared.first.after = shared.first, None
        with pytest.raises(InvariantError, match="does not know page 0"):
            books.truncate(second, 0)
    elif layout == "tagged":
        structures._count[structures.home_frame(first, 0)] += 1
        with pytest.raises(InvariantError, match="1 entries of shared frames are nowhere"):
            books.migrate(first, 0, node=1)
    else:
        structures._trees_hidden[0].put(1, None)
        with pytest.raises(InvariantError, match="hidden page 1 is in no tree"):
            books.read(second, 0)


# Costs, worked by hand. Pairs are (look-ups, steps), in the order of LAYOUTS.


@pytest.mark.parametrize(
    ("layout", "write", "near", "far", "size"),
    [
        ("frame", (1, 0), (1, 0), (1, 0), TREE + LEAF + FRAME),
        ("tagged", (1, 0), (1, 0), (1, 0), TREE + LEAF + FRAME),
        # A write looks in both trees; a load from node 1 in that node's, then in the home tree.
        ("inode", (2, 0), (1, 0), (2, 0), 2 * TREE + LEAF + FRAME),
    ],
)
def test_a_page_of_its_own(layout: str, write: Any, near: Any, far: Any, size: int) -> None:
    books = books_of(layout)
    heap = books.create("heap", pages=1)
    assert spent(books, lambda: books.write(heap, 0, page(1))) == write
    assert spent(books, lambda: books.read(heap, 0)) == near
    assert spent(books, lambda: books.read(heap, 0, node=1)) == far
    assert spent(books, lambda: books.write(heap, 0, page(2))) == write
    assert books.costs.metadata_bytes == size
    assert books.costs.copies == 0


@pytest.mark.parametrize(
    ("layout", "fork", "size", "load", "breaks", "last"),
    [
        # The child is second in the list. The last sharer is known by the frame's count.
        ("frame", (1, 1), TREE + LEAF + 2 * ALIAS, (1, 0), (1, 2), (1, 0)),
        # Entry and descriptor; fork scans the entry and counts the frame of the copied descriptor.
        ("tagged", (1, 2), TREE + LEAF + 2 * DESCRIPTOR, (2, 0), (2, 1), (2, 0)),
        # The hidden page and the child's reference are put. A break: both trees, then the hidden
        # page. The last sharer: both trees, and both of the hidden inode; it takes the page back.
        ("inode", (2, 1), 2 * TREE + 2 * LEAF + HIDDEN, (2, 0), (3, 0), (4, 0)),
    ],
)
def test_a_fork_and_its_break(
    layout: str, fork: Any, size: int, load: Any, breaks: Any, last: Any
) -> None:
    books = books_of(layout)
    parent = books.create("heap", pages=1)
    books.write(parent, 0, page(1))
    before = books.costs.metadata_bytes
    assert spent(books, lambda: books.fork(parent)) == fork
    assert books.costs.metadata_bytes - before == size
    child = books.mappings[1]
    assert spent(books, lambda: books.read(child, 0)) == load
    assert spent(books, lambda: books.write(child, 0, page(2))) == breaks
    assert spent(books, lambda: books.write(parent, 0, page(3))) == last
    assert rows(books.read(child, 0)) == rows(pages(2))
    assert books.costs.copies == 1
    books.drop(child)
    books.check()
    assert books.costs.metadata_bytes == before


@pytest.mark.parametrize(
    ("layout", "sharers", "migrate"),
    [
        # A step and a look-up for each alias; the look-up of the page itself finds the frame.
        ("frame", 2, (2, 2)),
        ("frame", 5, (5, 5)),
        # Entry and descriptor; then ten entries of every mapping but the last, and one of that.
        ("tagged", 2, (2, 11)),
        ("tagged", 5, (2, 41)),
        # Both trees, and both of the hidden inode.
        ("inode", 2, (4, 0)),
        ("inode", 5, (4, 0)),
    ],
)
def test_a_migration_of_a_shared_page(layout: str, sharers: int, migrate: Any) -> None:
    books = books_of(layout)
    parent = books.create("heap", pages=10)
    books.write(parent, range(10), page(1))
    for _ in range(sharers - 1):
        books.fork(parent)
    assert spent(books, lambda: books.migrate(parent, 0, node=1)) == migrate
    assert books.costs.copies == 1
    assert books.costs.frames == 10
    for mapping in books.mappings:
        assert rows(books.read(mapping, range(10))) == rows(pages(*[1] * 10))


@pytest.mark.parametrize(
    ("layout", "replicate", "near", "far", "write"),
    [
        ("frame", (1, 0), (1, 0), (1, 1), (1, 1)),
        ("tagged", (1, 0), (2, 0), (2, 0), (2, 1)),
        ("inode", (2, 0), (1, 0), (1, 0), (2, 0)),
    ],
)
def test_a_replica(layout: str, replicate: Any, near: Any, far: Any, write: Any) -> None:
    books = books_of(layout)
    file = file_of(books, 1)
    assert spent(books, lambda: books.replicate(file, 0, node=1)) == replicate
    assert books.costs.frames == 2
    assert spent(books, lambda: books.read(file, 0, node=0)) == near
    assert spent(books, lambda: books.read(file, 0, node=1)) == far
    assert spent(books, lambda: books.write(file, 0, page(2))) == write
    assert books.costs.frames == 1
    assert rows(books.read(file, 0, node=1)) == rows(pages(2))


@pytest.mark.parametrize(
    ("layout", "merge", "truncate", "last"),
    [
        # Two frames surveyed; one entry repointed. The second alias is second in the list.
        ("frame", (1, 2), (0, 3), (0, 2)),
        # Two entries surveyed; the first looked up and described; both looked up and the
        # descriptor copied. A truncate meets the entry, and the frame of its descriptor.
        ("tagged", (4, 3), (0, 2), (0, 2)),
        # Two entries surveyed; both trees for each, and the hidden page put. The last truncate
        # looks in both trees of the hidden inode.
        ("inode", (5, 2), (0, 1), (2, 1)),
    ],
)
def test_a_merge_and_its_truncates(layout: str, merge: Any, truncate: Any, last: Any) -> None:
    books = books_of(layout)
    first, second = file_of(books, 1), file_of(books, 1)
    assert spent(books, books.merge) == merge
    assert (books.costs.pages_shared, books.costs.pages_sharing) == (1, 1)
    assert spent(books, lambda: books.truncate(second, 0)) == truncate
    assert (books.costs.pages_shared, books.costs.pages_sharing) == (1, 0)
    assert spent(books, lambda: books.truncate(first, 0)) == last
    assert books.costs.frames == 0
    assert [(o.operation, o.calls, o.pages) for o in books.costs.operations] == [
        ("create", 2, 0), ("file_write", 2, 2), ("merge", 1, 0), ("truncate", 2, 0),
    ]  # fmt: skip
    assert sum(o.lookups for o in books.costs.operations) == books.costs.lookups
    assert sum(o.walks for o in books.costs.operations) == books.costs.walks


@pytest.mark.parametrize(("layout", "frames"), [("frame", 2), ("tagged", 3), ("inode", 2)])
def test_replicas_of_a_merged_page_serve_both_files_or_one(layout: str, frames: int) -> None:
    books = books_of(layout)
    files = file_of(books, 1), file_of(books, 1)
    books.merge()
    for file in files:
        books.replicate(file, 0, node=1)
    books.check()
    assert books.costs.frames == frames
    assert books.costs.frames_peak == frames
    books.collapse(files[0], 0)
    books.check()
    assert books.costs.frames == frames - 1


@each_layout
def test_a_merged_frame_has_no_more_pages_than_the_cap(layout: str) -> None:
    books = books_of(layout, max_page_sharing=3)
    file_of(books, *[1] * 8, 2)
    assert books.merge() == 5
    books.check()
    costs = books.costs
    assert (costs.frames, costs.pages_shared, costs.pages_sharing) == (4, 3, 5)
    assert books.merge() == 0
    assert not books.unmerge(books.mappings[0], range(9)).any()
    books.check()
    assert (books.costs.frames, books.costs.pages_shared) == (9, 0)


@each_layout
def test_a_file_write_of_whole_pages_copies_nothing(layout: str) -> None:
    books = books_of(layout)
    file = file_of(books, 1, 2)
    copy = books.reflink(file, name="copy")
    books.file_write(copy, 0, page(3))
    assert books.costs.copies == 0
    books.file_write(copy, 1, b"ab", offset=2)
    books.file_write(copy, 3, page(4))
    assert books.costs.copies == 1
    books.check()
    expected = pages(3, 2, 0, 4)
    expected[1, 2:4] = np.frombuffer(b"ab", np.uint8)
    assert rows(books.read(copy, range(4))) == rows(expected)
    assert rows(books.read(file, range(2), offset=1, size=7)) == rows(pages(1, 2)[:, 1:8])


def test_corrupted_books_are_found() -> None:
    spoils: dict[str, Callable[[Any], None]] = {
        "frame": lambda own: next(iter(own._pages.values())).__setattr__("aliases", 2),
        "tagged": lambda own: own._count.update(dict.fromkeys(own._count, 2)),
        "inode": lambda own: own._index_of.update({1: 1}),
    }
    for layout, spoil in spoils.items():
        books = books_of(layout)
        file_of(books, 1)
        books.check()
        spoil(books._layout)
        with pytest.raises(InvariantError):
            books.check()


@each_layout
def test_wrong_arguments(layout: str) -> None:
    books = books_of(layout)
    heap = books.create("heap", pages=2)
    file = books.create("f", kind="file")
    other = books_of(layout).create("heap", pages=2)
    for wrong in (
        lambda: books.read(heap, 2),
        lambda: books.read(heap, -1),
        lambda: books.read(heap, 0, node=2),
        lambda: books.read(heap, 0, offset=1, size=PAGE),
        lambda: books.read(other, 0),
        lambda: books.write(heap, 0, b"short"),
        lambda: books.file_write(heap, 0, page(1)),
        lambda: books.fork(file),
        lambda: books.reflink(heap, name="copy"),
        lambda: books.migrate(heap, 0, node=-1),
        lambda: books.truncate(heap, -1),
        lambda: books.create("x", kind="tape"),
        lambda: books_of("hash"),
        lambda: books_of(layout, nodes=0),
        lambda: books_of(layout, max_page_sharing=1),
    ):
        with pytest.raises(UsageError):
            wrong()
    books.drop(heap)
    with pytest.raises(UsageError, match="was dropped"):
        books.read(heap, 0)


# Traces.

TRACE = [
    LayoutEvent("create", 1, count=8),
    LayoutEvent("write", 1, 0, 4, seed=1),
    LayoutEvent("fork", 1, 2),
    LayoutEvent("write", 2, 0, 2, seed=9),
    LayoutEvent("create_file", 3, count=8, node=1),
    LayoutEvent("file_write", 3, 0, 6, seed=1),
    LayoutEvent("merge"),
    LayoutEvent("replicate", 3, 0, 6, node=0),
    LayoutEvent("read", 3, 0, 6, node=0),
    LayoutEvent("migrate", 1, 0, 2, node=1),
    LayoutEvent("truncate", 3, count=2),
    LayoutEvent("reflink", 3, 4),
    LayoutEvent("unmerge", 3, 0, 1),
    LayoutEvent("collapse", 4, 0, 2),
    LayoutEvent("punch", 2, 0, 1),
    LayoutEvent("drop", 1),
]


def test_a_trace_under_all_layouts() -> None:
    table = compare_layouts(TRACE, page_size=PAGE)
    assert table.schema.equals(LAYOUT_COSTS, check_metadata=True)
    assert table["layout"].to_pylist() == list(LAYOUTS)
    assert len(set(table["copies"].to_pylist())) == 1
    for row in table.to_pylist():
        assert row["lookups"] == sum(o["lookups"] for o in row["operations"])
        assert [o["operation"] for o in row["operations"]][-1] == "drop"
    assert compare_layouts(TRACE, page_size=PAGE).equals(table)


def test_layouts_that_read_different_bytes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = "gpudedup.layouts.tagged.TaggedLayout.find"
    monkeypatch.setattr(find, lambda self, region, index, node: 0)
    with pytest.raises(InvariantError, match="do not read the same bytes"):
        compare_layouts(TRACE, page_size=PAGE)


@pytest.mark.parametrize(
    "event",
    [
        LayoutEvent("burn"),
        LayoutEvent("read", 7),
        LayoutEvent("create", 1),
        LayoutEvent("read", 1, 8),
    ],
)
def test_events_that_do_not_fit(event: LayoutEvent) -> None:
    with pytest.raises(UsageError):
        compare_layouts([TRACE[0], event], page_size=PAGE)


def test_contents_differ_and_zero_is_zero() -> None:
    found = content(0, 100, PAGE)
    assert found.shape == (100, PAGE)
    assert not found[0].any()
    assert len(set(rows(found))) == 100
    assert rows(content(7, 3, PAGE)) == rows(found[7:10])
