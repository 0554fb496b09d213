"""Passes of the CPU engine: batches, threads that meet, runs of anchors in files."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.engines.base import PageClass, PageSource
from gpudedup.engines.cpu import engine as cpu
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.cpu.passes import partition_rows

from ..common import check_classes, file_source, joined, oracle, population


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
        PageSource.of_array(pages), digest_bits=bits, batch_pages=batch
    )
    assert result.representative.tolist() == oracle(pages)
    check_classes(result, pages)


@pytest.mark.parametrize("bits", [8, 0])
def test_collisions_are_counted_and_split_the_same_for_any_threads(
    tmp_path: Path, bits: int
) -> None:
    count = 6000 if bits else 600
    pages = population(7, count, 512)
    with file_source(tmp_path / "pages", pages, 10) as from_file:
        results = [
            CpuEngine(threads).partition(source, digest_bits=bits, batch_pages=batch)
            for threads in (1, 3)
            for batch in (1, 64)
            for source in (PageSource.of_array(pages), from_file)
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
        # Contents that appear only at the end.
        pages[-20:] = rng.integers(0, 256, (10, 512), dtype=np.uint8).repeat(2, axis=0)
        result = CpuEngine(8).partition(PageSource.of_array(pages), digest_bits=bits, batch_pages=2)
        assert result.representative.tolist() == oracle(pages)
        assert result.collisions == (0 if bits == 128 else 50 - 2)


@pytest.mark.parametrize("batch", [1, 16, 256])
def test_files_and_memory_in_one_population(tmp_path: Path, batch: int) -> None:
    """Stretches of two files and of memory in turn, some of one row, some out of order."""
    pages = [population(seed, 200, 1024) for seed in (1, 1, 2)]
    pieces = [(0, 0, 50), (1, 150, 200), (2, 0, 1), (0, 50, 51), (2, 7, 200), (1, 0, 150)]
    with ExitStack() as files:
        stores = [
            PageSource.of_array(pages[0]),
            files.enter_context(file_source(tmp_path / "a", pages[1], 4096)),
            files.enter_context(file_source(tmp_path / "b", pages[2], 12)),
        ]
        source = joined(stores, pieces)
        results = [CpuEngine(t).partition(source, batch_pages=batch) for t in (1, 3)]
    together = np.concatenate([pages[at][start:stop] for at, start, stop in pieces])
    for result in results:
        assert result.representative.tolist() == oracle(together)
        check_classes(result, together)


@pytest.mark.parametrize("bits", [128, 8])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_runs_of_duplicates_in_files(tmp_path: Path, batch: int, bits: int) -> None:
    """Anchors of the duplicates lie one after another, across the border of two stretches."""
    rng = np.random.default_rng(batch)
    pages = rng.integers(0, 256, (300, 1024), dtype=np.uint8)
    pages = np.concatenate([pages, pages, pages[40:260], pages[::-1], pages[:100:2]])
    with file_source(tmp_path / "pages", pages) as whole:
        source = joined([whole], [(0, 0, 130), (0, 130, len(pages))])
        result = CpuEngine(1).partition(source, batch_pages=batch, digest_bits=bits)
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
        CpuEngine(2).partition(PageSource.of_array(pages), progress=stop)
    assert CpuEngine(2).partition(PageSource.of_array(pages)).representative.tolist() == oracle(
        pages
    )
