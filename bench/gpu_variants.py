"""Measure the variants of kernels between which only a card decides, and their grids.

Candidates of a step do the same work in interleaved rounds. One is the default, with which the
others are compared; each bears the name of the one switch that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from gpu_measures import Step

from gpudedup.devices.base import Device, DeviceMemory
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.kernels import KERNELS, SWITCHES, layouts, variants
from gpudedup.measuring.device import in_place
from gpudedup.measuring.launches import Bench, Work, half_duplicates, halves
from gpudedup.measuring.populations import PAGE_SIZE, content_ids, fill
from gpudedup.measuring.rounds import Comparison, interleave_clocked

DEFAULT = "default"

MEASURED = 4 << 30
"""Bytes of pages at most: enough to pass every cache, and short."""

NOISE = 64 << 20
"""Bytes of random pages, repeated: speeds do not depend on which pages are equal."""

BLOCK_PAGES = (64 << 10, 128 << 10, 2 << 20)
"""Page sizes to measure in layout ``block``."""

GRIDS = (4, 8, 16)
"""Blocks per multiprocessor to measure, beside those that are resident, and the default."""

CHUNKS = (64 << 20, 256 << 20, 1 << 30)
"""Bytes of pages that a scan in place takes at a time."""

SCANS: dict[str, Mapping[str, int]] = {
    DEFAULT: {},
    "no switch": {"LOADING": 0, "INSERTING": 0, "RESIDENT": 2},
    "LOADING plain": {"LOADING": 0},
    "LOADING not in L1": {"LOADING": 2},
    "INSERTING warp": {"INSERTING": 2},
}
"""Switches of all kernels of a scan."""


class Switched:
    """A device whose launches have other switches, for all kernels that know them."""

    def __init__(self, device: Device, switches: Mapping[str, int]) -> None:
        self._device, self._switches = device, switches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def _known(self, kernel: str) -> dict[str, int]:
        known = SWITCHES.get(KERNELS[kernel].file, {})
        return {name: value for name, value in self._switches.items() if name in known}

    def launch(self, kernel: str, *arguments: Any, **more: Any) -> None:
        """Queue a kernel."""
        self._device.launch(kernel, *arguments, **more, switches=self._known(kernel))

    def resident_blocks(self, kernel: str, **more: Any) -> int:
        """Return the blocks of a kernel that a multiprocessor runs at once."""
        return self._device.resident_blocks(kernel, **more, switches=self._known(kernel))


def sweeps(bench: Bench) -> Iterator[Step]:
    """Yield the steps that compare variants, those of the engine's own page size first."""
    size = min(bench.size, MEASURED)
    memory = noise(bench, size, unit(size))
    yield Step("variants of digest", 10, partial(digest_variants, bench, memory))
    yield Step("variants of insert", 5, partial(insert_variants, bench))
    yield Step("variants of compare and read", 5, partial(compare_variants, bench, memory))
    yield Step("grids", 10, partial(grids, bench, memory))
    del memory
    yield Step("variants of a scan", 20, partial(scan_variants, bench))


def unit(size: int) -> int:
    """Return after how many bytes the noise of ``size`` bytes repeats: twice at least."""
    return min(NOISE, size // 2 // PAGE_SIZE * PAGE_SIZE)


def noise(bench: Bench, size: int, filled: int) -> DeviceMemory:
    """Return device memory of random bytes, of which the first ``filled`` repeat."""
    device, stream = bench.device, bench.device.stream()
    words = np.random.default_rng(2).integers(0, 1 << 64, filled // 8, dtype=np.uint64)
    memory = device.allocate(size)
    device.upload(memory.address, words.view(np.uint8), stream)
    while filled < size:
        more = min(filled, size - filled)
        device.copy(memory.address + filled, memory.address, more, stream)
        filled += more
    device.finish(device.record(stream))
    return memory


def digest_variants(bench: Bench, memory: DeviceMemory) -> list[Comparison]:
    """Compare the variants of digest, by page size and layout."""
    cases = [(PAGE_SIZE, layout) for layout in layouts(PAGE_SIZE)]
    cases += [(size, "block") for size in BLOCK_PAGES if size <= memory.size]
    return [
        _variants(
            bench, bench.digesting(memory, size, layout), memory.size,
            f"variants of digest {size} {layout}",
        )
        for size, layout in cases
    ]  # fmt: skip


def insert_variants(bench: Bench) -> list[Comparison]:
    """Compare the variants of insert, on digests half of which are new, and on equal ones."""
    populations = {
        "half new": half_duplicates(bench.grouped),
        "all equal": np.ones((bench.grouped, 2), np.uint64),
    }
    found = []
    for name, values in populations.items():
        work, refill = bench.inserting(values)
        found.append(
            _variants(bench, work, 16 * len(values), f"variants of insert, {name}", refill)
        )
    return found


def compare_variants(bench: Bench, memory: DeviceMemory) -> list[Comparison]:
    """Compare the variants of compare, where each page has its own anchor or many have one."""
    own = bench.comparing(*halves(memory, unit(memory.size)))
    equal = noise(bench, memory.size // 2, PAGE_SIZE)
    shared = bench.comparing(equal, equal, shared=256)
    return [
        _variants(bench, own, memory.size, "variants of compare, own anchors"),
        _variants(bench, shared, memory.size, "variants of compare, one anchor for 256"),
        _variants(bench, bench.reading(memory), memory.size, "variants of read"),
    ]


def _variants(
    bench: Bench, work: Work, size: int, what: str, before: Callable[[], None] | None = None
) -> Comparison:
    """Compare the variants of one kernel with its default."""
    candidates = {DEFAULT: bench.timed(work, before)}
    file = KERNELS[work.kernel].file
    for switches in variants(file, work.page_size, work.layout):
        ((name, value),) = switches.items()
        label = f"{name} {SWITCHES[file][name][value]}"
        candidates[label] = bench.timed(work, before, switches=switches)
    return _compared(bench, candidates, size, what)


def grids(bench: Bench, memory: DeviceMemory) -> list[Comparison]:
    """Compare grids of :data:`GRIDS` blocks per multiprocessor, and of those that are resident."""
    device = bench.device
    insert, refill = bench.inserting(half_duplicates(bench.grouped))
    works: list[tuple[Work, int, Callable[[], None] | None]] = [
        (bench.digesting(memory, PAGE_SIZE, layouts(PAGE_SIZE)[0]), memory.size, None),
        (bench.comparing(*halves(memory, unit(memory.size))), memory.size, None),
        (bench.reading(memory), memory.size, None),
        (insert, 16 * bench.grouped, refill),
    ]
    found = []
    for work, size, before in works:
        resident = work.resident_blocks(device)
        candidates = {DEFAULT: bench.timed(work, before)}
        for count in sorted({*GRIDS, resident}):
            label = f"{count} blocks" + (", resident" if count == resident else "")
            grid = count * device.multiprocessors
            candidates[label] = bench.timed(work, before, grid=grid)
        found.append(_compared(bench, candidates, size, f"grids of {work.kernel}"))
    return found


def scan_variants(bench: Bench) -> list[Comparison]:
    """Compare exact scans of the mix in the device's memory, with switches and by chunk."""
    pages = fill(content_ids("mix", min(bench.size, MEASURED) // PAGE_SIZE))
    source = in_place(bench.upload(pages))

    def kernels(device: Any, in_place_bytes: int) -> Callable[[], float]:
        engine = OffloadEngine([device], in_place_bytes=in_place_bytes)
        return lambda: engine.partition(source).busy["kernel_s"]

    chunk = CHUNKS[-1]
    switched = {
        name: kernels(Switched(bench.device, switches), chunk) for name, switches in SCANS.items()
    }
    chunked = {DEFAULT: kernels(bench.device, chunk)}
    chunked |= {f"chunks of {size >> 20} MiB": kernels(bench.device, size) for size in CHUNKS[:-1]}
    return [
        _compared(bench, switched, pages.nbytes, "variants of a scan, mix"),
        _compared(bench, chunked, pages.nbytes, "chunks of a scan, mix"),
    ]


def _compared(
    bench: Bench, candidates: Mapping[str, Callable[[], float]], size: int, what: str
) -> Comparison:
    found = interleave_clocked(candidates, size=size, rounds=bench.rounds, what=what)
    for name in candidates:
        if name != DEFAULT:
            found.ratio(name, DEFAULT)
    return found
