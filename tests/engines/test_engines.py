"""What every engine must do: the same bodies on the CPU, on the kernels' shim, and on a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from gpudedup.engines.base import Engine, PageClass, PageSource

from .common import check_classes, file_source, joined, oracle, population, reference_digest


@pytest.mark.parametrize("bits", [128, 64, 8, 0])
@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_equals_dict_of_bytes(engine: Engine, page_size: int, bits: int) -> None:
    for seed, count in enumerate((0, 1, 2, 37, 400)):
        pages = population(seed, count if page_size < 65536 else count // 20, page_size)
        result = engine.partition(PageSource.of_array(pages), digest_bits=bits)
        assert result.representative.tolist() == oracle(pages)
        check_classes(result, pages)


@pytest.mark.parametrize("page_size", [512 << k for k in range(13)])
def test_digests_are_the_references(engine: Engine, tmp_path: Path, page_size: int) -> None:
    pages = population(page_size, 8, page_size)
    pages[3] = 0
    with file_source(tmp_path / "pages", pages, 24) as source:
        for result in (engine.partition(source), engine.partition(PageSource.of_array(pages))):
            found = [int(low) | int(high) << 64 for low, high in result.digests]
            assert found == [reference_digest(p.tobytes()) for p in pages]


@pytest.mark.parametrize("bits", [8, 3])
def test_digests_are_cut_at_their_low_bits(engine: Engine, bits: int) -> None:
    pages = population(4, 50, 1024)
    result = engine.partition(PageSource.of_array(pages), digest_bits=bits)
    kept = [reference_digest(p.tobytes()) & (1 << bits) - 1 for p in pages]
    assert result.digests[:, 0].tolist() == kept
    assert not result.digests[:, 1].any()


@pytest.mark.parametrize("bits", [8, 0])
def test_collisions_are_counted_and_split(engine: Engine, tmp_path: Path, bits: int) -> None:
    count = 3000 if bits else 500
    pages = population(7, count, 512)
    expected = oracle(pages)
    with file_source(tmp_path / "pages", pages, 10) as from_file:
        for source in (PageSource.of_array(pages), from_file):
            result = engine.partition(source, digest_bits=bits)
            assert result.representative.tolist() == expected
            lowest = result.representative == np.arange(count)
            anchors = np.flatnonzero((result.classes == PageClass.CONTENT) & lowest)
            digests = np.unique(result.digests[anchors], axis=0)
            assert len(digests) <= 1 << bits
            assert result.collisions == len(anchors) - len(digests) > count // 6


def test_without_verification_equal_digests_are_equal_pages(engine: Engine) -> None:
    pages = np.random.default_rng(1).integers(1, 256, (300, 512), dtype=np.uint8)
    result = engine.partition(PageSource.of_array(pages), digest_bits=0, verify=False)
    assert (result.representative == 0).all()
    assert result.collisions == 0


def test_aliases_are_not_read(engine: Engine) -> None:
    """Rows of the second half alias the first half's frames; their own bytes are wrong."""
    pages = population(3, 200, 4096)
    rng = np.random.default_rng(3)
    alias_of = np.arange(200)
    alias_of[100:] = rng.permutation(100)
    content = pages.copy()
    content[100:] = 77
    result = engine.partition(PageSource.of_array(content), alias_of=alias_of)
    first = np.array(oracle(pages[:100]))
    assert result.representative.tolist() == [*first, *first[alias_of[100:]]]
    assert (result.classes[100:] == PageClass.ALIAS).all()
    assert not (result.classes[:100] == PageClass.ALIAS).any()


def test_an_alias_of_an_unreadable_frame_names_that_frame(engine: Engine, tmp_path: Path) -> None:
    pages = population(9, 20, 512)
    alias_of = np.arange(20)
    alias_of[19] = 18
    with file_source(tmp_path / "pages", pages) as source:
        (tmp_path / "pages").write_bytes(pages[:15].tobytes())
        result = engine.partition(source, alias_of=alias_of)
    assert (result.classes[15:19] == PageClass.UNREADABLE).all()
    assert result.classes[19] == PageClass.ALIAS
    assert result.representative.tolist() == [*oracle(pages[:15]), 15, 16, 17, 18, 18]


@pytest.mark.parametrize("lost", [1, 4095, 4096, 20000])
def test_rows_beyond_the_end_of_the_file_are_unreadable(
    engine: Engine, tmp_path: Path, lost: int
) -> None:
    pages = population(5, 300, 4096)
    with file_source(tmp_path / "pages", pages) as source:
        (tmp_path / "pages").write_bytes(pages.tobytes()[: pages.nbytes - lost])
        result = engine.partition(source)
    gone = -(-lost // 4096)
    unreadable = np.flatnonzero(result.classes == PageClass.UNREADABLE)
    assert unreadable.tolist() == list(range(300 - gone, 300))
    assert result.representative.tolist() == [
        *oracle(pages[:-gone]),
        *range(300 - gone, 300),
    ]


def test_files_and_memory_in_one_population(engine: Engine, tmp_path: Path) -> None:
    """Stretches of two files and of memory in turn, some of one row, some out of order."""
    pages = [population(seed, 200, 1024) for seed in (1, 1, 2)]
    pieces = [(0, 0, 50), (1, 150, 200), (2, 0, 1), (0, 50, 51), (2, 7, 200), (1, 0, 150)]
    with ExitStack() as files:
        stores = [
            PageSource.of_array(pages[0]),
            files.enter_context(file_source(tmp_path / "a", pages[1], 4096)),
            files.enter_context(file_source(tmp_path / "b", pages[2], 12)),
        ]
        result = engine.partition(joined(stores, pieces))
    together = np.concatenate([pages[at][start:stop] for at, start, stop in pieces])
    assert result.representative.tolist() == oracle(together)
    check_classes(result, together)


def test_many_filled_pages(engine: Engine) -> None:
    """Words that are equal in their low half, differ in one bit, or are negative as integers."""
    rng = np.random.default_rng(1)
    words = rng.integers(1, 1 << 63, 500, dtype=np.uint64)
    words = np.concatenate([words, words ^ np.uint64(1 << 63), words & np.uint64(0xFFFFFFFF)])
    words = rng.choice(np.concatenate([words, [0]]), 4000)
    pages = words[:, None].repeat(64, axis=1).view(np.uint8)
    result = engine.partition(PageSource.of_array(pages))
    assert result.representative.tolist() == oracle(pages)
    check_classes(result, pages)
