"""Measure a device: its own ceilings, each kernel, and whole scans.

Kernels are timed by events on the device, scans by the wall clock too. Ceilings are measured on
random bytes: memory may be faster on zeros.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpudedup.devices.base import DeviceMemory
from gpudedup.engines.base import DEVICE_MEMORY, PageSource
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.kernels import layouts
from gpudedup.measuring.launches import Bench, Work, half_duplicates, halves
from gpudedup.measuring.populations import PAGE_SIZE, Digests, Ids, Pages, expected
from gpudedup.measuring.rounds import Comparison, interleave_clocked
from gpudedup.schema import MAX_PAGE_SIZE, MIN_PAGE_SIZE

SHAPES = tuple(
    (1 << power, layout)
    for power in range(MIN_PAGE_SIZE.bit_length() - 1, MAX_PAGE_SIZE.bit_length())
    for layout in layouts(1 << power)
)
"""Page sizes and layouts that the digest kernel is compiled for."""


def ceilings(bench: Bench, pages: Pages) -> list[Comparison]:
    """Measure the card's own limits: reads, copies, and the bus."""
    device, memory = bench.device, bench.upload(pages)
    half = memory.size // 2
    own = interleave_clocked(
        {
            "read": bench.read(memory),
            "copy, read and written": bench.by_events(
                lambda s: device.copy(memory.address, memory.address + half, half, s)
            ),
        },
        size=2 * half,
        rounds=bench.rounds,
        what="the device's memory",
    )
    pinned = device.pinned(min(256 << 20, half))
    bus = interleave_clocked(
        {
            "upload": bench.by_events(lambda s: device.upload(memory.address, pinned, s)),
            "download": bench.by_events(lambda s: device.download(pinned, memory.address, s)),
        },
        size=pinned.nbytes,
        rounds=bench.rounds,
        what="the bus, pinned",
    )
    return [own, bus]


def digests(
    bench: Bench, memory: DeviceMemory, shapes: Iterable[tuple[int, str]] = SHAPES
) -> Comparison:
    """Measure the digest kernel, by page size and layout, against reading the same bytes."""
    candidates = {"read": bench.read(memory)}
    for page_size, layout in shapes:
        work = bench.digesting(memory, page_size, layout)
        candidates[f"digest {page_size} {layout}"] = bench.timed(work)
    found = interleave_clocked(candidates, size=memory.size, rounds=bench.rounds, what="digest")
    for name in list(candidates)[1:]:
        found.ratio(name, "read")
    return found


def grouping(bench: Bench, memory: DeviceMemory) -> Comparison:
    """Measure grouping of random digests against the digest kernel, per page."""
    device, count = bench.device, bench.grouped
    insert, refill = bench.inserting(half_duplicates(count))
    _, classes, table, found = insert.keep
    heads, address, used = (device.allocate(size) for size in (8 * count, 8 * count, 4))
    stream = device.stream()
    device.fill(used.address, 0, 4, stream)
    device.finish(device.record(stream))
    u32, u64 = np.uint32, np.uint64
    resolve = Work(
        "resolve", count,
        (u64(memory.address), u32(PAGE_SIZE), u32(0), u32(count), u64(classes.address),
         u64(heads.address), u64(table.address), u64(found.address), u64(address.address),
         u64(0), u32(0), u64(used.address)),
        (memory, heads, address, used),
    )  # fmt: skip

    def queue(s: Any) -> None:
        insert.queue(device, s)
        resolve.queue(device, s)

    pages = memory.size // PAGE_SIZE
    digest = bench.digesting(memory, PAGE_SIZE, layouts(PAGE_SIZE)[0])
    found_times = interleave_clocked(
        {"group": bench.by_events(queue, refill), f"digest of {pages} pages": bench.timed(digest)},
        size=16 * count,
        rounds=bench.rounds,
        what=f"grouping of {count} digests",
    )
    per_page = found_times.ratio(f"digest of {pages} pages", "group") * pages / count
    found_times.ratios = {"time of grouping / time of digest, per page": round(per_page, 3)}
    return found_times


def comparing(bench: Bench, memory: DeviceMemory) -> Comparison:
    """Measure the compare kernel on two equal halves of the pages."""
    device, half = bench.device, memory.size // 2 // PAGE_SIZE * PAGE_SIZE
    stream = device.stream()
    device.copy(memory.address + half, memory.address, half, stream)
    device.finish(device.record(stream))
    found = interleave_clocked(
        {
            "read": bench.read(memory),
            "compare": bench.timed(bench.comparing(*halves(memory, PAGE_SIZE))),
        },
        size=2 * half,
        rounds=bench.rounds,
        what="compare",
    )
    found.ratio("compare", "read")
    return found


def in_place(memory: DeviceMemory) -> PageSource:
    """Return a source of the pages in ``memory``."""
    return PageSource(
        PAGE_SIZE,
        np.array([0, memory.size // PAGE_SIZE], np.int64),
        np.array([DEVICE_MEMORY], np.int32),
        np.array([memory.address], np.uint64),
        keep=(memory,),
    )


def resident(bench: Bench, memory: DeviceMemory, pages: Pages, population: str) -> Comparison:
    """Measure exact scans of pages in the device's memory, beside the CPU on the same bytes."""
    store = in_place(memory)
    engine, cpu = OffloadEngine([bench.device], bench.threads), CpuEngine(bench.threads)
    in_memory = PageSource.of_array(pages)
    clocks = {
        "read": bench.read(memory),
        "scan, kernels": lambda: engine.partition(store).busy["kernel_s"],
        "scan": lambda: sum(engine.partition(store).seconds.values()),
        "CPU engine": lambda: sum(cpu.partition(in_memory).seconds.values()),
    }
    found = interleave_clocked(
        clocks,
        size=pages.nbytes,
        rounds=bench.rounds,
        what=f"scan of resident pages, {population}",
        cpu_threads=cpu.threads,
    )
    for name in ("scan, kernels", "scan"):
        found.ratio(name, "read")
        found.ratio(name, "CPU engine")
    return found


def streamed(bench: Bench, pages: Pages, population: str) -> Comparison:
    """Measure exact scans of pages in host memory, against the bus and the CPU."""
    device, store = bench.device, PageSource.of_array(pages)
    pinned = device.pinned(min(32 << 20, pages.nbytes))
    target = device.allocate(pinned.nbytes)

    def copy(stream: Any) -> None:
        for start in range(0, pages.nbytes, pinned.nbytes):
            device.upload(target.address, pinned[: pages.nbytes - start], stream)

    cpu = CpuEngine(bench.threads)
    found = interleave_clocked(
        {
            "upload": bench.by_events(copy),
            "streamed scan": lambda: sum(
                OffloadEngine([device], bench.threads).partition(store).seconds.values()
            ),
            "streamed scan, zeros sent": lambda: sum(
                OffloadEngine([device], bench.threads, drop_zeros=False)
                .partition(store)
                .seconds.values()
            ),
            "CPU engine": lambda: sum(cpu.partition(store).seconds.values()),
        },
        size=pages.nbytes,
        rounds=bench.rounds,
        what=f"streamed, {population}",
        cpu_threads=cpu.threads,
    )
    for name in ("streamed scan", "streamed scan, zeros sent"):
        found.ratio(name, "upload")
        found.ratio(name, "CPU engine")
    return found


@dataclass(frozen=True)
class Wrong:
    """A result that is wrong, with what one needs to find out why.

    :param what: which scan
    :param rows: (k,) int64, rows whose representative is wrong
    :param found, right: (k,) int64, their representatives
    :param digests: (k, 2) uint64, those that the device found
    :param classes: (k,) uint8
    """

    what: str
    rows: Ids
    found: Ids
    right: Ids
    digests: Digests
    classes: Pages


def check(bench: Bench, memory: DeviceMemory, pages: Pages, ids: Ids) -> list[Wrong]:
    """Return what is wrong with a resident and a streamed scan of ``pages``."""
    right, wrong = expected(ids), []
    sources = {"resident": in_place(memory), "streamed": PageSource.of_array(pages)}
    for what, source in sources.items():
        found = OffloadEngine([bench.device], bench.threads).partition(source)
        rows = np.flatnonzero(found.representative != right)
        if len(rows):
            wrong.append(
                Wrong(
                    what, rows, found.representative[rows], right[rows], found.digests[rows],
                    found.classes[rows],
                )
            )  # fmt: skip
    return wrong
