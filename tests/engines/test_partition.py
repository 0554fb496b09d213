"""Grouping and compare against a dict of bytes, on random populations."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.engines.base import PageClass, PageStore
from gpudedup.engines.cpu import CpuEngine

Pages = npt.NDArray[np.uint8]


def population(seed: int, count: int, page_size: int) -> Pages:
    """Zero, same-filled, unique, duplicate and near-miss pages, shuffled."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 6, count)
    pool = rng.integers(0, 256, (max(1, count // 8), page_size), dtype=np.uint8)
    pages = rng.integers(0, 256, (count, page_size), dtype=np.uint8)
    pages[kinds == 0] = 0
    pages[kinds == 1] = rng.integers(0, 3, ((kinds == 1).sum(), 1), dtype=np.uint8)
    for kind in (2, 3, 4, 5):
        rows = np.flatnonzero(kinds == kind)
        if kind != 5:
            pages[rows] = pool[rng.integers(0, len(pool), len(rows))]
        if kind == 3:
            pages[rows, -1] ^= 1
        if kind == 4:
            pages[rows, 0] ^= 128
    return pages


def oracle(pages: Pages) -> npt.NDArray[np.int64]:
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(p.tobytes(), i) for i, p in enumerate(pages)], np.int64)


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
    assert result.representative.tolist() == oracle(pages).tolist()
    words = pages.reshape(count, page_size // 8, 8)
    same = (words == words[:, :1]).all(axis=(1, 2))
    zero = ~pages.any(axis=1)
    assert (result.classes == PageClass.ZERO).tolist() == zero.tolist()
    assert (result.classes == PageClass.FILLED).tolist() == (same & ~zero).tolist()


def test_collisions_are_counted_and_split_the_same_for_any_threads(tmp_path: Path) -> None:
    pages = population(7, 6000, 512)
    path = tmp_path / "pages"
    path.write_bytes(b"odd offset" + pages.tobytes())
    fd = os.open(path, os.O_RDONLY)
    file_store = PageStore(
        512, np.array([0, 6000]), np.array([fd], np.int32), np.array([10], np.uint64)
    )
    results = [
        CpuEngine(threads).partition(store, digest_bits=8, batch_pages=batch)
        for threads in (1, 3)
        for batch in (1, 64)
        for store in (PageStore.of_array(pages), file_store)
    ]
    os.close(fd)
    for result in results:
        assert result.representative.tolist() == oracle(pages).tolist()
        assert result.collisions == results[0].collisions
        assert np.array_equal(result.digests, results[0].digests)
    anchors = np.flatnonzero(
        (results[0].classes == PageClass.CONTENT)
        & (results[0].representative == np.arange(len(pages)))
    )
    digests = np.unique(results[0].digests[anchors], axis=0)
    assert results[0].collisions == len(anchors) - len(digests) > 1000


def test_without_verification_equal_digests_are_equal_pages() -> None:
    pages = np.random.default_rng(1).integers(1, 256, (300, 512), dtype=np.uint8)
    result = CpuEngine(2).partition(PageStore.of_array(pages), digest_bits=0, verify=False)
    assert (result.representative == 0).all()
    assert result.collisions == 0


def test_aliases_are_not_read() -> None:
    pages = population(3, 200, 4096)
    alias_of = np.arange(200)
    alias_of[100:] = np.arange(100)
    content = pages.copy()
    content[100:] = 77
    result = CpuEngine(2).partition(PageStore.of_array(content), alias_of=alias_of)
    assert result.representative.tolist() == np.tile(oracle(pages[:100]), 2).tolist()
    assert (result.classes[100:] == PageClass.ALIAS).all()


@pytest.mark.parametrize("lost", [1, 4095, 4096, 20000])
def test_rows_beyond_the_end_of_the_file_are_unreadable(tmp_path: Path, lost: int) -> None:
    pages = population(5, 300, 4096)
    path = tmp_path / "pages"
    path.write_bytes(pages.tobytes()[: pages.nbytes - lost])
    fd = os.open(path, os.O_RDONLY)
    store = PageStore(4096, np.array([0, 300]), np.array([fd], np.int32), np.zeros(1, np.uint64))
    result = CpuEngine(2).partition(store)
    os.close(fd)
    gone = -(-lost // 4096)
    unreadable = np.flatnonzero(result.classes == PageClass.UNREADABLE)
    assert unreadable.tolist() == list(range(300 - gone, 300))
    assert result.representative[:-gone].tolist() == oracle(pages[:-gone]).tolist()
