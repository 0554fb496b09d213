"""One device at work: what it needs, what it says of its rows, and how it stops."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.devices.base import Device, OutOfDeviceMemory
from gpudedup.engines.base import PageClass, PageSource, Partition, digest_mask
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload import pipeline, ring
from gpudedup.engines.offload.engine import run_lines
from gpudedup.engines.offload.pipeline import (
    Chunk,
    Options,
    Pipeline,
    are_one_run,
    budget,
    chunk_that_fits,
    table_slots,
)
from gpudedup.engines.offload.ring import Ring
from gpudedup.engines.offload.staging import LEFT, stage_rows
from gpudedup.engines.representatives import new_partition
from gpudedup.errors import DeviceError, ExitCode, UsageError

from ...kernels.shim.device import ShimDevice
from ..common import joined, needed, on_device, oracle, population
from .common import SIZE, Told, unique

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")


def cut(pages: int, step: int, address: int = 0) -> list[Chunk]:
    """Return chunks of ``step`` rows; the last has what is left."""
    return [
        Chunk(start, min(start + step, pages), address + start * SIZE if address else 0)
        for start in range(0, pages, step)
    ]


def line_of(
    device: Device,
    source: PageSource,
    chunks: Sequence[Chunk],
    alias_of: Any = None,
    *,
    drop_zeros: bool = True,
    threads: int = 2,
    piece: int = 3,
    **options: Any,
) -> tuple[Line, Partition]:
    """Make a pipeline and its ring; without options it verifies, and may use all memory.

    :param piece: pages per piece
    """
    result = new_partition(source.pages, alias_of)
    usual = {"verify": True, "mask": digest_mask(128), "memory": None}
    ring = Ring(
        source, result, threads=threads, piece_bytes=piece * SIZE, drop_zeros=drop_zeros,
        pinned=device.pinned,
    )  # fmt: skip
    line = Pipeline(device, source, list(chunks), result, ring, Options(**{**usual, **options}))
    return Line(line, ring, threads), result


@dataclass
class Line:
    """A pipeline, and the ring that fills its buffers."""

    pipeline: Pipeline
    ring: Ring
    threads: int

    @property
    def left(self) -> int:
        """Return how many rows are LEFT."""
        return self.pipeline.left

    def run(self, stop: threading.Event, report: Callable[[int], None]) -> None:
        """Run it."""
        run_lines([self.pipeline], self.ring, self.threads, stop, report)


def done(line: Line, report: Callable[[int], None] = lambda rows: None) -> None:
    line.run(threading.Event(), report)


@pytest.mark.parametrize(
    ("memory", "usable"), [(None, 9216), (0, 0), (9215, 9215), (9217, 9216), (1 << 40, 9216)]
)
def test_a_tenth_of_what_is_free_is_left_to_others(memory: int | None, usable: int) -> None:
    assert budget(ShimDevice(memory=10240), memory) == usable


def test_the_table_is_two_thirds_full_at_most() -> None:
    assert [table_slots(pages) for pages in (0, 1, 2, 3, 1000)] == [1, 2, 4, 5, 1501]


@pytest.mark.parametrize(
    ("spare", "pages"), [(-5, 1), (0, 1), (3 * 529 * 4 - 1, 3), (3 * 529 * 4, 4), (3 * 530 * 4, 4)]
)
def test_chunks_of_all_slots_fit(spare: int, pages: int) -> None:
    assert chunk_that_fits(spare, SIZE) == pages * SIZE


@pytest.mark.parametrize(
    ("address", "in_place"), [(0, False), (4096, True), (4096 + 16, True), (4096 + 8, False)]
)
def test_kernels_read_aligned_pages_of_the_device(address: int, in_place: bool) -> None:
    assert Chunk(0, 1, address).in_place == in_place


@pytest.mark.parametrize(
    ("chunks", "one"),
    [
        ([], True),
        ([Chunk(5, 9, 512)], True),
        ([Chunk(5, 9, 512), Chunk(9, 12, 8)], True),
        ([Chunk(5, 9, 512), Chunk(10, 12, 8)], False),
        ([Chunk(5, 9)], False),
        ([Chunk(5, 9, 512), Chunk(9, 12)], False),
    ],
)
def test_rows_on_the_device_without_a_gap_are_one_run(chunks: list[Chunk], one: bool) -> None:
    assert are_one_run(chunks) == one


@pytest.mark.parametrize(
    ("starts", "address", "staged"),
    [
        ([0, 100], 0, 100),
        ([0, 40, 80, 81, 100], 0, 40),
        ([0, 30, 100], 1 << 20, 0),
        ([0, 30, 100], (1 << 20) + 8, 70),
        ([0, 100], (1 << 20) + 8, 100),
    ],
)
def test_what_is_needed_is_needed_to_the_byte(starts: list[int], address: int, staged: int) -> None:
    """Notes and table for 100 pages; in each slot the largest chunk, and its pages if they move."""
    chunks = [Chunk(a, b, address) for a, b in pairwise(starts)]
    slots, largest = min(3, len(chunks)), max(chunk.stop - chunk.start for chunk in chunks)
    least = 100 * 24 + 151 * 20 + 4 + 16 + slots * (staged * SIZE + largest * 17)
    source, device = PageSource.of_array(unique(100)), ShimDevice()
    line_of(device, source, chunks, memory=least)
    with pytest.raises(OutOfDeviceMemory) as raised:
        line_of(device, source, chunks, memory=least - 1)
    assert str(raised.value) == (
        f"{device.name}: 100 pages need {least} bytes of device memory, of which {least - 1} may be"
        " used"
    )
    assert raised.value.exit_code == ExitCode.ENGINE_UNUSABLE


@pytest.mark.parametrize(
    ("most", "asked", "kept"),
    [
        (40 * SIZE, [40], 40),
        (40 * SIZE - 1, [40, 20], 20),
        (10 * SIZE, [40, 20, 10], 10),
        (6 * SIZE - 1, [40, 20, 10, 5], 5),
    ],
)
def test_pages_that_stay_are_halved_until_they_fit(most: int, asked: list[int], kept: int) -> None:
    """All pages come twice; the second is left to the host if the first is not kept."""
    pages, device = unique(20, copies=2), Told(most)
    line, result = line_of(device, PageSource.of_array(pages), cut(40, 5))
    assert device.asked[-len(asked) :] == [room * SIZE for room in asked]
    done(line)
    assert result.representative.tolist() == oracle(pages)
    kinds = result.classes.tolist()
    assert kinds.count(LEFT) == 20 - min(kept, 20)
    assert kinds.count(PageClass.CONTENT) == 20 + min(kept, 20)
    assert line.left == 20 - min(kept, 20)


@pytest.mark.parametrize("room", [0, 1, 7, 20])
def test_as_many_pages_stay_as_memory_is_left_for(room: int) -> None:
    pages, device = unique(20, copies=2), Told()
    limit = needed(40, SIZE, chunk=5) + room * SIZE + SIZE - 1
    line, result = line_of(device, PageSource.of_array(pages), cut(40, 5), memory=limit)
    done(line)
    assert result.classes.tolist().count(LEFT) == 20 - room
    assert ("copy_pages" in dict(device.launches)) == (room > 0)


def test_without_comparison_no_page_stays() -> None:
    pages, device = unique(20, copies=2), Told()
    line, result = line_of(device, PageSource.of_array(pages), cut(40, 5), verify=False)
    done(line)
    assert set(dict(device.launches)) == {"digest", "insert", "resolve", "insert_words", "settle"}
    assert max(device.asked) < 40 * SIZE
    assert result.representative.tolist() == oracle(pages)
    assert not result.classes.any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.sampled_from([1, 2, 5, 20, 60]), min_size=1, max_size=6),
    bits=st.sampled_from([128, 4]),
    room=st.sampled_from([None, 0, 5]),
    verify=st.booleans(),
    drop_zeros=st.booleans(),
    threads=st.sampled_from([1, 3, 7]),
    piece=st.sampled_from([1, 4, 100]),
)
def test_what_it_says_of_its_rows(
    seed: int, sizes: list[int], bits: int, room: int | None, verify: bool,
    drop_zeros: bool, threads: int, piece: int,
) -> None:  # fmt: skip
    """Chunks of the host and of the device, between them some of another one's, and aliases."""
    rng, device = np.random.default_rng(seed), ShimDevice(seed=seed % 1000)
    pages, stops = population(seed, sum(sizes), SIZE), np.cumsum(sizes).tolist()
    parts, chunks, alias_of, keep = [], [], np.arange(len(pages)), []
    for start, stop in pairwise([0, *stops]):
        part, address = np.ascontiguousarray(pages[start:stop]), 0
        parts.append(PageSource.of_array(part))
        if shift := rng.choice([0, 0, 16, 8]):
            parts[-1], memory = on_device(device, part, int(shift))
            keep.append(memory)
            address = int(parts[-1].base[0])
        elif start:
            alias_of[stop - 1] = rng.integers(start)
        if rng.integers(4):
            chunks.append(Chunk(start, stop, address))
    source = joined(parts, [(at, 0, part.pages) for at, part in enumerate(parts)])
    limit = None if room is None else needed(len(pages), SIZE, 3, max(sizes)) + room * SIZE
    line, result = line_of(
        device, source, chunks, alias_of, mask=digest_mask(bits), memory=limit,
        verify=verify, drop_zeros=drop_zeros, threads=threads, piece=piece,
    )  # fmt: skip
    done(line)
    copies = [name for name, _ in device.launches].count("copy_pages")
    assert copies <= sum(not chunk.in_place for chunk in chunks)
    mine = [row for chunk in chunks for row in range(chunk.start, chunk.stop)]
    kinds, heads = result.classes.tolist(), result.representative.tolist()
    for row in set(range(len(pages))) - set(mine):
        assert (kinds[row] % PageClass.ALIAS, heads[row]) == (0, alias_of[row])
    known = CpuEngine(1).partition(PageSource.of_array(pages), digest_bits=bits)
    anchors: dict[bytes, int] = {}
    lowest: dict[bytes, int] = {}
    dropped = {
        row
        for chunk in chunks
        if drop_zeros and not chunk.address
        for row in range(chunk.start, chunk.stop)
    }
    assert line.left == kinds.count(LEFT)
    for row in mine:
        kind, head = known.classes[row], row
        if alias_of[row] < row:
            kind, head = PageClass.ALIAS, int(alias_of[row])
        elif kind == PageClass.ZERO and row in dropped:
            head = row
        elif kind in (PageClass.ZERO, PageClass.FILLED):
            head = lowest.setdefault(pages[row].tobytes(), row)
        elif kind == PageClass.CONTENT:
            assert result.digests[row].tobytes() == known.digests[row].tobytes()
            head = anchors.setdefault(known.digests[row].tobytes(), row)
            if head != row:
                equal = not verify or (pages[row] == pages[head]).all()
                kept = not verify or room is None or kinds[row] != LEFT
                kind = PageClass.CONTENT if equal and kept else LEFT
        assert (kinds[row], heads[row]) == (kind, head)


@pytest.mark.parametrize(("shift", "moved"), [(0, 0), (8, 40 * SIZE), (16, 0)])
def test_pages_on_the_device_stay_there(shift: int, moved: int) -> None:
    """Only those that no kernel can read where they are go through a buffer, on the device."""
    pages, device = unique(20, copies=2), Told()
    source, _memory = on_device(device, pages, shift)
    device.uploaded = 0
    line, result = line_of(device, source, cut(40, 16, int(source.base[0])))
    done(line)
    assert (device.uploaded, device.moved) == (0, moved)
    assert ("copy_pages" in dict(device.launches)) == (moved > 0)
    assert not result.classes.any()
    assert not line.left
    assert result.representative.tolist() == oracle(pages)


def test_pages_that_need_not_be_looked_at_are_reported_too() -> None:
    pages, device = np.zeros((40, SIZE), np.uint8), Told()
    reported: list[int] = []
    line, _ = line_of(device, PageSource.of_array(pages), cut(40, 16))
    done(line, reported.append)
    assert (reported, device.uploaded, device.launches) == ([16, 16, 8], 0, [])
    line, _ = line_of(device, PageSource.of_array(pages[:0]), [])
    done(line, reported.append)
    assert len(reported) == 3


def test_rows_are_reported_once_their_results_are_there() -> None:
    """Not when their work is queued: with three chunks in flight that is much too early."""
    pages = unique(60)
    source = PageSource.of_array(pages)
    expected = CpuEngine(1).partition(source)
    line, result = line_of(ShimDevice(), source, cut(60, 10))
    rows = 0

    def report(more: int) -> None:
        nonlocal rows
        rows += more
        there = (result.digests == expected.digests).all(axis=1)
        assert int(np.count_nonzero(there)) == rows

    done(line, report)
    assert rows == 60


@pytest.mark.parametrize("chunks", [0, 1, 2, 4, 6])
def test_it_stops_between_chunks(chunks: int) -> None:
    """Three chunks are in flight; what was delivered by then is whole, the others are not there."""
    pages, stop = unique(60), threading.Event()
    reported: list[int] = []
    line, result = line_of(ShimDevice(), PageSource.of_array(pages), cut(60, 10))

    def report(rows: int) -> None:
        reported.append(rows)
        if len(reported) == chunks:
            stop.set()

    if not chunks:
        stop.set()
    line.run(stop, report)
    assert reported == [10] * chunks
    assert np.flatnonzero(result.digests.any(axis=1)).tolist() == list(range(10 * chunks))
    assert result.representative.tolist() == [*range(10 * chunks), *[0] * (60 - 10 * chunks)]


def fails_at_the_third(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let filling the third piece fail."""
    numbers = count(1)

    def fill(*_: Any) -> int:
        if next(numbers) == 3:
            raise InterruptedError
        return stage_rows(*_)  # type: ignore[no-any-return]

    monkeypatch.setattr(ring, "stage_rows", fill)


@pytest.mark.parametrize("what", ["fill", "report", "device"])
def test_after_an_error_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Whether it comes of filling a piece, of who is told, or of the device itself."""
    source = PageSource.of_array(unique(60))

    def interrupt(rows: int) -> None:
        raise InterruptedError

    if what == "fill":
        fails_at_the_third(monkeypatch)
    device = ShimDevice(fail_after=14 if what == "device" else None)
    line, _ = line_of(device, source, cut(60, 10), piece=10)
    with pytest.raises(DeviceError if what == "device" else InterruptedError):
        done(line, interrupt if what == "report" else print)
    ran = len(device.launches)
    assert ran > 0
    if what != "device":
        device.synchronize()
    assert len(device.launches) == ran


def test_nothing_is_under_way_where_there_was_too_little_memory() -> None:
    """The device has less memory than it said; the table is in it, the buffers are not."""
    device = Told(most=5 * SIZE)
    with pytest.raises(OutOfDeviceMemory):
        line_of(device, PageSource.of_array(unique(10)), cut(10, 10))
    gc.collect()
    device.synchronize()


def test_more_pages_than_a_device_can_number(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PageSource.of_array(unique(100))
    monkeypatch.setattr(pipeline, "MAX_PAGES", 99)
    line_of(ShimDevice(), source, cut(99, 40))
    with pytest.raises(UsageError, match=r"^100 pages: more than one device can number \(99\)$"):
        line_of(ShimDevice(), source, cut(100, 40))
