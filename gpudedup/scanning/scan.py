"""Scan images: open the inputs, partition their pages by content, count."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageClass, Partition, Progress
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.select import Choice, choose
from gpudedup.errors import DeviceError, UsageError
from gpudedup.images.losses import lines
from gpudedup.images.memory import MemoryImage
from gpudedup.images.opening import images_of
from gpudedup.scanning.counts import Totals, count
from gpudedup.scanning.population import Population
from gpudedup.scanning.result import EngineUsed, Scan
from gpudedup.scanning.stored import aliases_of_stored, of_rows


def scan(
    inputs: Any,
    *,
    backend: str = "auto",
    verify: bool = True,
    threads: int | None = None,
    devices: Sequence[int] | None = None,
    device_memory: int | None = None,
    format: str | None = None,
    page_size: int | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Find which pages of ``inputs``, taken as one population, are equal.

    :param inputs: one or several of: path of an image, :class:`gpudedup.images.base.Image`,
        array of pages ((n, page_size) uint8, C-contiguous: NumPy, DLPack, or in device memory with
        ``__cuda_array_interface__``). An :class:`Image` stays open.
    :param backend: ``auto``, ``cpu`` or ``cuda``; ``auto`` prefers a device, and uses the CPU if
        none works or it fails: see :attr:`EngineUsed.passed_over`
    :param verify: compare bytes; False: equal digests count as equal pages
    :param threads: host threads; None: one per usable core
    :param devices: CUDA numbers of the devices to use; None: device 0
    :param device_memory: limit of bytes used per device; None: nine tenths of the free bytes
    :param format: format of all paths: ``arrow``, ``elf``, ``raw``; None: recognised by content
    :param page_size: bytes, for formats that do not record it; None: 4096
    :param progress: called with rows done and in total
    :raises ImageError: if an input cannot be read, or page sizes differ
    :raises UsageError: if an argument is out of range
    :raises UnsupportedHereError: if ``backend`` cannot be used on this machine
    :raises DeviceError: if a device fails and ``backend`` is ``cuda``, or device memory holds pages
    """
    started = time.perf_counter()
    with ExitStack() as opened:
        population = Population.of(images_of(inputs, opened, format=format, page_size=page_size))
        choice = choose(
            _only_backend(population, backend),
            threads,
            devices=devices,
            device_memory=device_memory,
        )
        timings = {"open_s": time.perf_counter() - started}
        try:
            return _scan(population, choice, verify, progress, timings)
        except DeviceError as error:
            if backend != "auto" or _on_devices(population):
                raise
            host = Choice(CpuEngine(threads), f"cuda: {error}")
            return _scan(population, host, verify, progress, timings)


def _unread(partition: Partition, totals: Totals) -> npt.NDArray[np.int64]:
    """Return the rows that could not be read."""
    if totals.pages == len(partition.classes):
        return np.empty(0, np.int64)
    return np.flatnonzero(partition.classes == PageClass.UNREADABLE)


def _on_devices(population: Population) -> bool:
    return any(isinstance(image, MemoryImage) and image.on_device for image in population.images)


def _only_backend(population: Population, backend: str) -> str:
    """Return the backend that can read all pages; UsageError if ``backend`` cannot."""
    if not _on_devices(population):
        return backend
    if backend == "cpu":
        raise UsageError("backend cpu: an array lies in a device's memory")
    return "cuda"


def _scan(
    population: Population,
    choice: Choice,
    verify: bool,
    progress: Progress | None,
    before: dict[str, float],
) -> Scan:
    engine, started = choice.engine, time.perf_counter()
    engine.load(population.page_size)
    loaded = time.perf_counter()
    aliases, stored = population.alias_of(), population.stored_of()
    unread = aliases if stored is None else aliases_of_stored(population, aliases)
    resolved = time.perf_counter()
    partition = engine.partition(
        population.source(), alias_of=unread, verify=verify, progress=progress
    )
    if stored is not None:
        partition = of_rows(partition, stored, aliases)
    partitioned = time.perf_counter()
    totals = count(partition, population.page_size, engine.threads)
    stages = {
        "load_s": loaded - started,
        **before,
        "frames_s": resolved - loaded,
        **partition.seconds,
        "count_s": time.perf_counter() - partitioned,
    }
    return Scan(
        population=population,
        partition=partition,
        engine=EngineUsed(
            engine.name, engine.device, engine.threads, "xxh3-128", verify, choice.passed_over
        ),
        totals=totals,
        timings={**stages, **partition.busy, "total_s": sum(stages.values())},
        losses=lines(*population.losses(_unread(partition, totals))),
        notes=[line for image in population.images for line in image.notes],
    )
