"""Grouping and compare against a dict of bytes, on random populations."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.engines import cpu
from gpudedup.engines.base import PageClass, PageStore, Partition
from gpudedup.engines.cpu import CpuEngine
from gpudedup.engines.partition import partition_rows

from .common import Pages, file_store, joined, oracle, population


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 400),
    page_size=st.sampled_from([512, 1024, 4096, 16384]),
    bits=st.sampled_from([128, 64, 8, 0]),
    threads=st.integers(1, 4),
    batch=st.sampled_from([1, 3, 256]),
)
def test_equals_dict_of_bytes(
    seed: int, count: int, page_size: int, bits: int, threads: int, batch: int
) -> None:
    pages = population(seed, count, page_size)
    result = CpuEngine(threads).partition(
        PageStore.of_array(pages), digest_bits=bits, batch_pages=batch
    )
    assert result.representative.tolist() == oracle(pages)
    check_classes(result, pages)


def check_classes(result: Partition, pages: Pages) -> None:
    words = pages.reshape(len(pages), pages.shape[1] // 8, 8)
    same = (words == words[:, :1]).all(axis=(1, 2))
    zero = ~pages.any(axis=1)
    assert (result.classes == PageClass.ZERO).tolist() == zero.tolist()
    assert (result.classes == PageClass.FILLED).tolist() == (same & ~zero).tolist()


@pytest.mark.parametrize("page_size", [512 << k for k in range(13)])
def test_digests_are_the_references(tmp_path: Path, page_size: int) -> None:
    pages = population(page_size, 8, page_size)
    with file_store(tmp_path / "pages", pages, 24) as store:
        for result in (
            CpuEngine(1).partition(store),
            CpuEngine(2).partition(PageStore.of_array(pages), batch_pages=3),
        ):
            found = [int(low) | int(high) << 64 for low, high in result.digests]
            assert found == [xxhash.xxh3_128_intdigest(p.tobytes()) for p in pages]


@pytest.mark.parametrize("bits", [8, 0])
def test_collisions_are_counted_and_split_the_same_for_any_threads(
    tmp_path: Path, bits: int
) -> None:
    count = 6000 if bits else 600
    pages = population(7, count, 512)
    with file_store(tmp_path / "pages", pages, 10) as from_file:
        results = [
            CpuEngine(threads).partition(store, digest_bits=bits, batch_pages=batch)
            for threads in (1, 3)
            for batch in (1, 64)
            for store in (PageStore.of_array(pages), from_file)
        ]
    expected = oracle(pages)
    for result in results:
        assert result.representative.tolist() == expected
        assert result.collisions == results[0].collisions
        assert np.array_equal(result.digests, results[0].digests)
    anchors = np.flatnonzero(
        (results[0].classes == PageClass.CONTENT)
        & (results[0].representative == np.arange(len(pages)))
    )
    digests = np.unique(results[0].digests[anchors], axis=0)
    assert len(digests) <= 1 << bits
    assert results[0].collisions == len(anchors) - len(digests) > count // 6


@pytest.mark.parametrize("bits", [128, 1])
def test_threads_that_meet_at_the_same_contents(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Tiny batches and tasks, many threads, few contents, first seen by several threads at once."""
    monkeypatch.setattr(cpu, "TASK_BYTES", 512)
    rng = np.random.default_rng(bits)
    contents = rng.integers(0, 256, (40, 512), dtype=np.uint8)
    for _ in range(20):
        pages = contents[rng.integers(0, len(contents), 3000)]
        # At the end of every run some that only now appear.
        pages[-20:] = rng.integers(0, 256, (10, 512), dtype=np.uint8).repeat(2, axis=0)
        result = CpuEngine(8).partition(PageStore.of_array(pages), digest_bits=bits, batch_pages=2)
        assert result.representative.tolist() == oracle(pages)
        assert result.collisions == (0 if bits == 128 else 50 - 2)


def test_without_verification_equal_digests_are_equal_pages() -> None:
    pages = np.random.default_rng(1).integers(1, 256, (300, 512), dtype=np.uint8)
    result = CpuEngine(2).partition(PageStore.of_array(pages), digest_bits=0, verify=False)
    assert (result.representative == 0).all()
    assert result.collisions == 0


@pytest.mark.parametrize("threads", [1, 4])
def test_aliases_are_not_read(threads: int) -> None:
    """The second half shares the frames of the first, in another order; its bytes are wrong."""
    pages = population(3, 200, 4096)
    rng = np.random.default_rng(3)
    alias_of = np.arange(200)
    alias_of[100:] = rng.permutation(100)
    content = pages.copy()
    content[100:] = 77
    result = CpuEngine(threads).partition(
        PageStore.of_array(content), alias_of=alias_of, batch_pages=7
    )
    first = np.array(oracle(pages[:100]))
    assert result.representative.tolist() == [*first, *first[alias_of[100:]]]
    assert (result.classes[100:] == PageClass.ALIAS).all()
    assert not (result.classes[:100] == PageClass.ALIAS).any()


def test_an_alias_of_an_unreadable_frame_names_that_frame(tmp_path: Path) -> None:
    pages = population(9, 20, 512)
    alias_of = np.arange(20)
    alias_of[19] = 18
    with file_store(tmp_path / "pages", pages) as store:
        (tmp_path / "pages").write_bytes(pages[:15].tobytes())
        result = CpuEngine(1).partition(store, alias_of=alias_of)
    assert (result.classes[15:19] == PageClass.UNREADABLE).all()
    assert result.classes[19] == PageClass.ALIAS
    assert result.representative.tolist() == [*oracle(pages[:15]), 15, 16, 17, 18, 18]


@pytest.mark.parametrize("lost", [1, 4095, 4096, 20000])
def test_rows_beyond_the_end_of_the_file_are_unreadable(tmp_path: Path, lost: int) -> None:
    pages = population(5, 300, 4096)
    with file_store(tmp_path / "pages", pages) as store:
        (tmp_path / "pages").write_bytes(pages.tobytes()[: pages.nbytes - lost])
        result = CpuEngine(2).partition(store)
    gone = -(-lost // 4096)
    unreadable = np.flatnonzero(result.classes == PageClass.UNREADABLE)
    assert unreadable.tolist() == list(range(300 - gone, 300))
    assert result.representative.tolist() == [
        *oracle(pages[:-gone]),
        *range(300 - gone, 300),
    ]


@pytest.mark.parametrize("batch", [1, 16, 256])
def test_files_and_memory_in_one_population(tmp_path: Path, batch: int) -> None:
    """Stretches of two files and of memory in turn, some of one row, some out of order."""
    pages = [population(seed, 200, 1024) for seed in (1, 1, 2)]
    pieces = [(0, 0, 50), (1, 150, 200), (2, 0, 1), (0, 50, 51), (2, 7, 200), (1, 0, 150)]
    with ExitStack() as files:
        stores = [
            PageStore.of_array(pages[0]),
            files.enter_context(file_store(tmp_path / "a", pages[1], 4096)),
            files.enter_context(file_store(tmp_path / "b", pages[2], 12)),
        ]
        store = joined(stores, pieces)
        results = [CpuEngine(t).partition(store, batch_pages=batch) for t in (1, 3)]
    together = np.concatenate([pages[at][start:stop] for at, start, stop in pieces])
    for result in results:
        assert result.representative.tolist() == oracle(together)
        check_classes(result, together)


def test_many_filled_pages() -> None:
    """Words that are equal in their low half, differ in one bit, or are negative as integers."""
    rng = np.random.default_rng(1)
    words = rng.integers(1, 1 << 63, 500, dtype=np.uint64)
    words = np.concatenate([words, words ^ np.uint64(1 << 63), words & np.uint64(0xFFFFFFFF)])
    words = rng.choice(np.concatenate([words, [0]]), 4000)
    pages = words[:, None].repeat(64, axis=1).view(np.uint8)
    result = CpuEngine(2).partition(PageStore.of_array(pages), batch_pages=10)
    assert result.representative.tolist() == oracle(pages)
    check_classes(result, pages)


@pytest.mark.parametrize("bits", [128, 8])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_runs_of_duplicates_in_files(tmp_path: Path, batch: int, bits: int) -> None:
    """Their anchors lie one after another, across the border of two stretches."""
    rng = np.random.default_rng(batch)
    pages = rng.integers(0, 256, (300, 1024), dtype=np.uint8)
    pages = np.concatenate([pages, pages, pages[40:260], pages[::-1], pages[:100:2]])
    with file_store(tmp_path / "pages", pages) as whole:
        store = joined([whole], [(0, 0, 130), (0, 130, len(pages))])
        result = CpuEngine(1).partition(store, batch_pages=batch, digest_bits=bits)
    assert result.representative.tolist() == oracle(pages)


def test_progress_ends_the_scan_if_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = population(11, 64, 512)
    asked = threading.Event()
    work = partition_rows

    def wait_and_work(*arguments: Any) -> Any:
        asked.wait()
        return work(*arguments)

    def stop(done: int, total: int) -> None:
        assert (done, total) == (0, 64)
        asked.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "partition_rows", wait_and_work)
    with pytest.raises(KeyboardInterrupt):
        CpuEngine(2).partition(PageStore.of_array(pages), progress=stop)
    assert CpuEngine(2).partition(PageStore.of_array(pages)).representative.tolist() == oracle(
        pages
    )
