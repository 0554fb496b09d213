"""Measure the engines and the manager of this machine, beside the machine's own limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from gpudedup.arguments import as_number
from gpudedup.devices.base import Device
from gpudedup.engines.base import Progress
from gpudedup.engines.cpu.engine import thread_count
from gpudedup.errors import DeviceError, UnsupportedHereError, UsageError, WrongResultError
from gpudedup.kernels import layouts
from gpudedup.measuring import device as on_device
from gpudedup.measuring import host, manager
from gpudedup.measuring.launches import Bench
from gpudedup.measuring.machine import free_memory, machine
from gpudedup.measuring.populations import PAGE_SIZE, POPULATIONS, content_ids, fill
from gpudedup.measuring.rounds import Comparison, interleave
from gpudedup.measuring.sections import Section, section

SIZE, QUICK_SIZE = 2 << 30, 512 << 20
ROUNDS, QUICK_ROUNDS = 7, 3
MIN_SIZE, MAX_ROUNDS = 1 << 20, 10_000

MEMORY_PER_BYTE = 2
"""Bytes of host memory taken per byte of pages: the copy, the engine's tables, staging."""

DEVICE_MEMORY_PER_BYTE = 4
"""Bytes of device memory per byte of pages: pages twice, the engine's tables and buffers."""

MANAGER_PART = 8
"""The manager's pages are this part of all; it keeps several copies of them."""

OPERATIONS = 1 << 20
"""Loads, stores or pins that are timed as one sample: fewer take less than a millisecond."""

GROUPED_PART, MAX_GROUPED = 256, 16 << 20
"""Bytes of pages per random digest that is grouped on a device; digests at most."""

CPU, MANAGER, GPU = "cpu", "manager", "gpu"
SECTIONS = {CPU: 2, MANAGER: 3, GPU: 9}
"""Sections of each part."""


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """What was not measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    :param size: bytes of pages of each population
    :param rounds: rounds in which candidates take turns
    :param threads: host threads of the engines
    """

    size: int
    rounds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How fast this machine is; a wrong result would have been an error.

    :param machine: what the figures depend on; no host name
    :param gpu: model of the GPU measured; empty: none
    :param options: how much was measured
    :param sections: what was measured
    :param not_measured: parts that were left out, or could not be measured
    """

    machine: dict[str, Any]
    gpu: str
    options: Options
    sections: tuple[Section, ...]
    not_measured: tuple[NotMeasured, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "schema_version": 1,
            "machine": {**self.machine, "gpu": self.gpu or None},
            "options": {**asdict(self.options), "page_size": PAGE_SIZE},
            "sections": [each.as_dict() for each in self.sections],
            "not_measured": [asdict(each) for each in self.not_measured],
        }


def benchmark(
    *,
    cpu: bool = True,
    gpu: bool | None = None,
    quick: bool = False,
    size: int | None = None,
    rounds: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure how fast this machine's engines are, beside reading and copying the same bytes.

    Candidates take turns in rounds, in an order that rotates. Results are compared with the known
    answer before they are timed.

    :param cpu: measure the CPU engine and the memory manager
    :param gpu: measure device 0; None: where it can be used
    :param quick: fewer rounds of fewer pages
    :param size: bytes of pages; None: :data:`SIZE`, less where memory is little
    :param rounds: None: :data:`ROUNDS`
    :param threads: host threads; None: one per usable core
    :param progress: called with the sections done and in total
    :raises UnsupportedHereError: if ``gpu`` is True and no GPU can be used
    :raises DeviceError: if ``gpu`` is True and the GPU fails
    :raises WrongResultError: if a result is not the known one
    :raises UsageError: if a number is out of range, or memory too little
    """
    options = _options(quick, size, rounds, threads)
    missing: list[NotMeasured] = []
    device: Device | None = None
    if gpu is False:
        missing.append(NotMeasured("GPU", "not asked for"))
    else:
        try:
            device = _open()
        except UnsupportedHereError as error:
            if gpu:
                raise UnsupportedHereError(f"no GPU to measure: {error}") from None
            missing.append(NotMeasured("GPU", str(error)))
    parts: dict[str, Iterator[Section]] = {}
    if cpu:
        parts |= {CPU: _cpu(options), MANAGER: _manager(options)}
    else:
        missing.append(NotMeasured("CPU and memory manager alone", "not asked for"))
    sections: list[Section] = []
    if device is not None:
        parts[GPU] = _gpu(options, device)
    try:
        _measure(parts, sections, progress)
    except DeviceError as error:
        if gpu:
            raise
        done = sum(each.part == GPU for each in sections)
        what = f"GPU, {SECTIONS[GPU] - done} of {SECTIONS[GPU]} tables"
        missing.append(NotMeasured(what, str(error)))
    name = device.name if device else ""
    return Benchmark(machine(), name, options, tuple(sections), tuple(missing))


def _measure(
    parts: Mapping[str, Iterator[Section]], sections: list[Section], progress: Progress | None
) -> None:
    """Add the sections of all parts, as they are measured."""
    total = sum(SECTIONS[part] for part in parts)
    for each in chain(*parts.values()):
        sections.append(each)
        if progress:
            progress(len(sections), total)


def _open() -> Device:
    from gpudedup.devices.cuda import open_devices

    (device,) = open_devices()
    return device


def _options(quick: bool, size: int | None, rounds: int | None, threads: int | None) -> Options:
    free = free_memory()
    if size is None:
        size = QUICK_SIZE if quick else SIZE
        if free is not None:
            size = max(MIN_SIZE, min(size, free // (2 * MEMORY_PER_BYTE)))
        size -= size % MIN_SIZE
    size = as_number(size, "size")
    if size < MIN_SIZE or size % PAGE_SIZE:
        raise UsageError(f"size {size}: must be a multiple of {PAGE_SIZE}, at least {MIN_SIZE}")
    if free is not None and size * MEMORY_PER_BYTE > free:
        raise UsageError(f"size {size}: takes {size * MEMORY_PER_BYTE} bytes, {free} are free")
    if rounds is None:
        rounds = QUICK_ROUNDS if quick else ROUNDS
    if not 1 <= as_number(rounds, "rounds") <= MAX_ROUNDS:
        raise UsageError(f"rounds {rounds}: not from 1 to {MAX_ROUNDS}")
    return Options(size, rounds, thread_count(threads))


def _cpu(options: Options) -> Iterator[Section]:
    """Yield a section for each population."""
    for population in POPULATIONS:
        work = host.HostWork(population, options.size, options.threads)
        work.check()
        found = host.compare(work, options.rounds)
        # Its pages, before those of the next are made.
        del work
        yield section(CPU, f"scan of {population}", found, against=(host.READ, host.READ_AHEAD))


def _manager(options: Options) -> Iterator[Section]:
    """Yield breaks, operations that copy nothing, and merging."""
    size = max(MIN_SIZE, options.size // MANAGER_PART // PAGE_SIZE * PAGE_SIZE)
    breaks = manager.Breaks(size)
    breaks.check()
    yield section(
        MANAGER, "stores that break COW", breaks.compare(options.rounds),
        against=(manager.COPY,), unit="pages", amount=breaks.n,
    )  # fmt: skip
    del breaks
    single = manager.Single(size)
    single.check()
    turns = max(1, OPERATIONS // single.n)
    found = interleave(
        {name: _repeated(work, turns) for name, work in single.candidates().items()},
        size=single.n * turns,
        rounds=options.rounds,
    )
    yield section(MANAGER, "operations that copy nothing", found, unit="pages")
    del single
    merges = manager.Merges(size, options.threads)
    merges.check()
    found = merges.compare(options.rounds)
    yield section(
        MANAGER, "merging of mix", found,
        against=(manager.SCAN,), unit="pages", amount=len(merges.ids),
        others={manager.APPLY: ("pages", found.case["moved"])}, alone=(manager.APPLY,),
    )  # fmt: skip


def _repeated(work: Callable[[], object], turns: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(turns):
            work()

    return run


def _gpu(options: Options, device: Device) -> Iterator[Section]:
    """Yield the card's own limits, each kernel, and whole scans."""
    # The same bytes on the host and on the device: what fits in both.
    size = min(options.size, device.free_memory() // DEVICE_MEMORY_PER_BYTE)
    size -= size % PAGE_SIZE
    grouped = min(MAX_GROUPED, size // GROUPED_PART)
    bench = Bench(device, size, grouped, options.rounds, options.threads)

    def made(found: Comparison, against: tuple[str, ...] = (), **more: Any) -> Section:
        return section(GPU, found.case["what"], found, against=against, **more)

    for population in POPULATIONS:
        ids = content_ids(population, size // PAGE_SIZE)
        pages = fill(ids)
        memory = bench.upload(pages)
        for wrong in on_device.check(bench, memory, pages, ids):
            raise WrongResultError(
                f"{wrong.what} scan of {population} on {device.name}: wrong in"
                f" {len(wrong.rows)} of {len(ids)} rows, the first {wrong.rows[0]}"
            )
        if population == "random":
            yield from map(made, on_device.ceilings(bench, pages))
            shape = PAGE_SIZE, layouts(PAGE_SIZE)[0]
            yield made(on_device.digests(bench, memory, [shape]), ("read",))
            yield _grouping(on_device.grouping(bench, memory), grouped, len(pages))
        yield made(on_device.resident(bench, memory, pages, population), ("read", "CPU engine"))
        yield made(on_device.streamed(bench, pages, population), ("upload", "CPU engine"))
        if population == "mix":
            yield made(on_device.comparing(bench, memory), ("read",))
        del memory, pages


def _grouping(found: Comparison, grouped: int, pages: int) -> Section:
    _, digest = found.seconds
    return section(
        GPU, "grouping", found,
        against=(digest,), unit="digests", amount=grouped, others={digest: ("pages", pages)},
    )  # fmt: skip
