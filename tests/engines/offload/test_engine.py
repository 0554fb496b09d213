"""The offload engine on devices that run late: pages uploaded, kept and left; failures."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.devices.base import Bytes, Device, OutOfDeviceMemory
from gpudedup.engines.base import PageSource, Partition, Tally
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload import engine as offload_engine
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.engines.offload.reconcile import reconcile
from gpudedup.errors import DeviceError, UsageError

from ...kernels.shim.compile import SCHEDULES, Schedule
from ...kernels.shim.device import ShimDevice
from ..common import file_source, joined, needed, on_device, oracle, population
from .common import Told

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")


def engine(devices: Sequence[Device], page_size: int, **options: Any) -> OffloadEngine:
    return OffloadEngine(
        devices,
        2,
        **{
            "chunk_bytes": 16 * page_size,
            "in_place_bytes": 32 * page_size,
            "piece_bytes": 5 * page_size,
            **options,
        },
    )


def assert_same(found: Partition, expected: Partition) -> None:
    for name in ("digests", "classes", "representative"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.collisions == expected.collisions


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 300),
    devices=st.integers(1, 3),
    bits=st.sampled_from([128, 128, 6]),
    room=st.sampled_from([None, 0, 1, 7, 40]),
    chunk=st.sampled_from([1, 5, 16, 1000]),
    piece=st.sampled_from([1, 3, 1000]),
    drop_zeros=st.booleans(),
    verify=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=4),
)
def test_nothing_changes_the_result(
    seed: int,
    count: int,
    devices: int,
    bits: int,
    room: int | None,
    chunk: int,
    piece: int,
    drop_zeros: bool,
    verify: bool,
    cuts: list[int],
) -> None:
    """Devices, their memory, chunks, place of pages; against the CPU engine on host memory."""
    page_size = 512
    pages = population(seed, count, page_size)
    rng = np.random.default_rng(seed)
    shims = [ShimDevice(seed=int(rng.integers(1 << 30))) for _ in range(devices)]
    borders = sorted({0, count, *(cut % count for cut in cuts)})
    stores, memories = [], []
    for start, stop in pairwise(borders):
        part = np.ascontiguousarray(pages[start:stop])
        if rng.integers(2):
            source, memory = on_device(shims[rng.integers(devices)], part, int(rng.choice([0, 8])))
            memories.append(memory)
        else:
            source = PageSource.of_array(part)
        stores.append(source)
    source = joined(stores, [(at, 0, s.pages) for at, s in enumerate(stores)])
    memory_used = None if room is None else needed(count, page_size, 3, 1000) + room * page_size
    result = engine(
        shims,
        page_size,
        memory=memory_used,
        chunk_bytes=chunk * page_size,
        piece_bytes=piece * page_size,
        drop_zeros=drop_zeros,
    ).partition(source, digest_bits=bits, verify=verify)
    expected = CpuEngine(1).partition(PageSource.of_array(pages), digest_bits=bits, verify=verify)
    assert_same(result, expected)


@pytest.mark.parametrize("room", [0, 1, 10, 1000])
def test_what_does_not_fit_is_compared_on_the_host(tmp_path: Path, room: int) -> None:
    pages = population(1, 400, 4096)
    device = ShimDevice()
    limited = engine([device], 4096, memory=needed(400, 4096) + room * 4096)
    with file_source(tmp_path / "pages", pages, 8) as source:
        result = limited.partition(source)
    assert result.representative.tolist() == oracle(pages)
    names = [name for name, _ in device.launches]
    assert ("copy_pages" in names) == (room > 0)
    assert names.count("digest") == len(range(0, 400, 16))


def test_a_page_crosses_the_bus_once_and_a_zero_page_never() -> None:
    pages = population(2, 300, 4096)
    zeros = int((~pages.any(axis=1)).sum())
    assert zeros > 20
    for drop_zeros, sent in ((True, 300 - zeros), (False, 300)):
        device = Told()
        result = engine([device], 4096, drop_zeros=drop_zeros).partition(PageSource.of_array(pages))
        assert result.representative.tolist() == oracle(pages)
        assert device.uploaded == sent * 4096


def test_pages_in_device_memory_do_not_move() -> None:
    pages = population(3, 200, 1024)
    device = Told()
    source, _memory = on_device(device, pages)
    device.uploaded = 0
    result = engine([device], 1024).partition(source)
    assert_same(result, CpuEngine(1).partition(PageSource.of_array(pages)))
    assert device.uploaded == 0
    assert "copy_pages" not in {name for name, _ in device.launches}


def test_results_that_cannot_be_pinned_are_downloaded_all_the_same() -> None:
    class Unpinned(ShimDevice):
        def pinned(self, size: int) -> Bytes:
            """Return pinned memory, but not for more than 64 pages."""
            if size > 64:
                raise OutOfDeviceMemory("cudaErrorMemoryAllocation")
            return super().pinned(size)

    pages = population(3, 200, 1024)
    device = Unpinned()
    source, _memory = on_device(device, pages)
    assert_same(
        engine([device], 1024).partition(source), CpuEngine(1).partition(PageSource.of_array(pages))
    )


@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("bits", [128, 4])
def test_what_one_device_settles_is_final(
    monkeypatch: pytest.MonkeyPatch, shift: int, bits: int
) -> None:
    """No pass over the rows on the host, unless a page was left: with 4 bits many are."""
    pages = np.concatenate([population(11, 150, 512), population(12, 50, 512)])
    pages[:3] = pages[40:43]
    device = Told()
    source, _memory = on_device(device, pages, shift)
    passes: list[str] = []

    def noting(*given: Any, **options: Any) -> Partition:
        passes.append("reconcile")
        return reconcile(*given, **options)

    monkeypatch.setattr(offload_engine, "reconcile", noting)
    result = engine([device], 512).partition(source, digest_bits=bits)
    assert passes == ["reconcile"] * (bits == 4)
    assert_same(result, CpuEngine(1).partition(PageSource.of_array(pages), digest_bits=bits))
    assert set(result.classes.tolist()) == {0, 1, 2}
    rows = np.arange(200)
    beyond = (result.representative != rows) & (result.classes != 1)
    shared = len(set(result.representative[beyond].tolist()))
    zero = int((result.classes == 1).sum())
    tally = Tally(zero, int(beyond.sum()), shared)
    assert result.tally == (tally if bits == 128 else None)


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [0, 1, 0], [2, 1, 0]])
def test_each_device_settles_its_own_pages(order: list[int]) -> None:
    """One run of rows each, or several; contents, words and zeros are on all of them."""
    devices = [ShimDevice(seed=at) for at in range(3)]
    pages = population(13, 40, 512)
    held = [on_device(devices[at], pages) for at in order]
    source = joined([store for store, _ in held], [(at, 0, 40) for at in range(len(order))])
    expected = CpuEngine(1).partition(PageSource.of_array(np.tile(pages, (len(order), 1))))
    assert_same(engine(devices, 512).partition(source), expected)


@pytest.mark.parametrize(("shift", "chunks"), [(0, 4), (8, 12)])
def test_pages_of_the_device_that_must_move_come_in_chunks_that_fit(
    shift: int, chunks: int
) -> None:
    """They need buffers as the host's pages do, so memory decides; read in place they need none."""
    pages = population(3, 100, 4096)
    device = Told()
    source, _memory = on_device(device, pages, shift)
    limited = engine([device], 4096, memory=needed(100, 4096, chunk=9))
    assert_same(limited.partition(source), CpuEngine(1).partition(PageSource.of_array(pages)))
    assert [name for name, _ in device.launches].count("digest") == chunks
    assert device.moved == (pages.nbytes if shift else 0)


def test_pages_of_two_devices_that_must_move() -> None:
    """All pages may lie on one of the devices: it has notes of more than its share."""
    pages = population(3, 100, 4096)
    devices = [Told(), Told()]
    source, _memory = on_device(devices[1], pages, 8)
    limited = engine(devices, 4096, memory=needed(100, 4096, chunk=1))
    assert limited.partition(source).representative.tolist() == oracle(pages)
    assert [[name for name, _ in device.launches].count("digest") for device in devices] == [0, 100]


def test_chunks_are_dealt_in_turn() -> None:
    pages = population(4, 16 * 6, 1024)
    devices = [ShimDevice(seed=seed) for seed in range(3)]
    engine(devices, 1024).partition(PageSource.of_array(pages))
    for device in devices:
        assert [name for name, _ in device.launches].count("digest") == 2


def test_pages_that_lie_on_no_device_asked_for() -> None:
    holder, other = ShimDevice(), ShimDevice()
    source, _memory = on_device(holder, population(1, 4, 512))
    with pytest.raises(UsageError, match=r"lie in memory of none of: shim"):
        engine([other], 512).partition(source)
    with pytest.raises(UsageError, match="need the cuda engine"):
        CpuEngine(1).partition(source)


@pytest.mark.parametrize(("chunk", "chunks"), [(1, 100), (9, 12), (15, 7)])
def test_chunks_get_smaller_where_there_is_little_memory(chunk: int, chunks: int) -> None:
    pages = population(1, 100, 4096)
    device = ShimDevice()
    source = PageSource.of_array(pages)
    limited = engine([device], 4096, memory=needed(100, 4096, chunk=chunk), drop_zeros=False)
    assert limited.partition(source).representative.tolist() == oracle(pages)
    assert [name for name, _ in device.launches].count("digest") == chunks


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("progress", [None, lambda done, total: None])
def test_a_device_that_is_lost_at_any_moment(devices: int, progress: Any) -> None:
    pages = population(5, 64, 512)
    source = PageSource.of_array(pages)
    failures = 0
    for after in range(0, 80, 3):
        shims = [ShimDevice(fail_after=after), *(ShimDevice() for _ in range(devices - 1))]
        lost = None
        try:
            result = engine(shims, 512).partition(source, progress=progress)
        except DeviceError as error:
            lost = str(error)
        failures += lost == "device lost"
        assert lost == "device lost" or result.representative.tolist() == oracle(pages)
    assert 5 < failures < 27
    assert threading.active_count() < 20


def test_progress_counts_all_rows_and_may_end_the_scan() -> None:
    pages = population(6, 100, 512)
    source = PageSource.of_array(pages)
    told: list[tuple[int, int]] = []
    engine([ShimDevice()], 512).partition(
        source, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (100, 100)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine([ShimDevice()], 512).partition(source, progress=interrupt)


@pytest.mark.parametrize("option", [{"threads": 0}, {"memory": -1}])
def test_numbers_out_of_range(option: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"threads 0|device memory -1"):
        OffloadEngine([ShimDevice()], **option)  # type: ignore[arg-type]


def test_times_are_told_apart() -> None:
    result = engine([ShimDevice()], 512).partition(PageSource.of_array(population(1, 100, 512)))
    assert set(result.seconds) == {"stream_s", "verify_s", "settle_s"}
    assert set(result.busy) == {"staging_s", "transfer_s", "kernel_s"}
    assert all(seconds > 0 for seconds in result.busy.values())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_any_order_of_threads(schedule: Schedule) -> None:
    pages = population(8, 150, 1024)
    expected = CpuEngine(1).partition(PageSource.of_array(pages), digest_bits=5)
    device = ShimDevice(schedule=schedule, multiprocessors=1)
    result = engine([device], 1024).partition(PageSource.of_array(pages), digest_bits=5)
    assert_same(result, expected)
