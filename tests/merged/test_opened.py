"""Merged dumps opened from Python: mappings read like arrays."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.errors import ImageError, UsageError

from ..images.common import open_files
from .common import MAPPINGS, PAGE, as_others_see, pages_of, write_dump

LETTERS = [1, 2, 0, 1, 3, 0, 4, 2, 5, 1, 6, 0, 7, 3, 3]


def test_every_page_of_every_mapping(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "d", LETTERS)
    gd.merge_images([dump, dump], tmp_path / "m")
    with gd.open_merged(tmp_path / "m") as store:
        assert list(store.mappings) == [*MAPPINGS, *MAPPINGS]
        assert store.owners == ["a[1]", "b[2]", "c[3]"]
        assert store.page_size == PAGE
        rows = as_others_see(dump)
        for number in range(10):
            pages = store[number]
            info = MAPPINGS[number % 5]
            mine = [
                (row["index"], row["content"])
                for row in rows
                if (row["mapping"]["owner"], row["mapping"]["name"]) == (info.owner, info.name)
            ]
            assert pages.info == info
            assert pages.index.tolist() == [index for index, _ in mine]
            assert len(pages) == mine[-1][0] + 1
            for index, content in mine:
                assert pages[index].tobytes() == content
                assert pages.read(index * PAGE + 7, 100) == content[7:107]
            assert pages.pages([i for i, _ in mine]).tobytes() == b"".join(c for _, c in mine)
            assert pages.pages(pages.index[::-1]).tobytes() == b"".join(c for _, c in mine[::-1])


def test_contiguous_frames_are_a_view(tmp_path: Path) -> None:
    letters = [1, 2, 3, 4, 0, 0, 5, 1]
    gd.merge_images(pages_of(letters), tmp_path / "m")
    expected = pages_of(letters)
    with gd.open_merged(tmp_path / "m") as store:
        pages = store["array0", ""]
        view = pages[0:4]
        assert (view == expected[:4]).all()
        assert not view.flags.owndata
        assert not view.flags.writeable
        copy = pages[3:8]
        assert (copy == expected[3:]).all()
        assert copy.flags.writeable
        assert pages[6].shape == (PAGE,)
        assert pages[np.int64(2)].shape == (PAGE,)
        assert (np.asarray(pages) == expected).all()
        assert (pages[:] == expected).all()
        assert (pages[::-2] == expected[::-2]).all()
        assert pages.read(0, len(letters) * PAGE) == expected.tobytes()
        assert pages.read(PAGE - 1, 2) == bytes([expected[0, -1], expected[1, 0]])
        assert pages.read(5, 0) == b""
        assert pages.pages([]).shape == (0, PAGE)
    # A view outlives the dump.
    assert (view == expected[:4]).all()


def test_by_address(tmp_path: Path) -> None:
    gd.merge_images(write_dump(tmp_path / "d", LETTERS), tmp_path / "m")
    with gd.open_merged(tmp_path / "m") as store:
        heap = store["a[1]", "[heap]"]
        assert store.read("a[1]", 0x10000, 40) == heap[0][:40].tobytes()
        assert [m.info.kind for m in store.find("b[2]")] == ["anon", "shmem"]
        assert [m.info.owner for m in store.find(kind="anon")] == ["a[1]", "b[2]"]
        with pytest.raises(UsageError, match="address 0x9 of 'a"):
            store.read("a[1]", 9, 1)


def test_what_is_absent_is_an_error(tmp_path: Path) -> None:
    gd.merge_images(write_dump(tmp_path / "d", LETTERS), tmp_path / "m")
    with gd.open_merged(tmp_path / "m") as store:
        pages = store[0]
        assert pages.index.tolist() == [0, 15, 30]
        for index in (1, -1, 31, 1 << 62):
            with pytest.raises(UsageError, match=f"page {index} of 'a"):
                pages.pages(index)
        for call in (
            lambda: pages.read(PAGE - 1, 2),
            lambda: pages.read(-1, 2),
            lambda: pages[:],
        ):
            with pytest.raises(UsageError):
                call()
        for which in (5, -1, ("a[1]", "x"), ("x", "[heap]")):
            with pytest.raises(KeyError):
                store[which]
        with pytest.raises(TypeError):
            len(5)  # type: ignore[arg-type]
    gd.merge_images([tmp_path / "d"] * 2, tmp_path / "twice")
    with (
        gd.open_merged(tmp_path / "twice") as store,
        pytest.raises(UsageError, match="2 mappings of 'a"),
    ):
        store["a[1]", "[heap]"]


def test_a_page_that_comes_twice(tmp_path: Path) -> None:
    """The later row counts, as in the memory manager."""
    from gpudedup.images.dumps.writer import DumpWriter
    from gpudedup.images.rows import PageColumns

    with DumpWriter(tmp_path / "d", PAGE, MAPPINGS[:1], source="test") as dump:
        index = np.array([3, 0, 3, 0, 3], np.uint64)
        dump.write(PageColumns(0, np.zeros(5, np.int32), index), pages_of([1, 2, 3, 4, 5]))
    gd.merge_images(tmp_path / "d", tmp_path / "m")
    with gd.open_merged(tmp_path / "m") as store:
        assert (store[0][[0, 3]] == pages_of([4, 5])).all()


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    gd.merge_images(write_dump(tmp_path / "d", LETTERS), tmp_path / "m")
    gc.collect()
    before = open_files()
    for _ in range(3):
        with gd.open_merged(tmp_path / "m") as store:
            store[0].pages(0)
    del store
    gc.collect()
    assert open_files() == before


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    gd.merge_images(pages_of(range(1, 200)), tmp_path / "m")
    with gd.open_merged(tmp_path / "m") as store:
        pages = store[0]
        assert len(pages) == 199
        os.truncate(tmp_path / "m", 4096 + 50 * PAGE)
        for index in (range(100, 110), [100, 3]):
            with pytest.raises(ImageError, match="the file became shorter"):
                pages.pages(list(index))
