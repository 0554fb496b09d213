"""The scan: open what was named, split it by bytes, count."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np

from gpudedup.engines.base import Engine, PageClass, PageStore, Progress
from gpudedup.engines.select import choose
from gpudedup.images.base import Image
from gpudedup.images.memory import open_array
from gpudedup.images.probe import open_image
from gpudedup.scanning.population import Population, population
from gpudedup.scanning.result import EngineUsed, Scan, count
from gpudedup.schema import MIN_PAGE_SIZE

MAX_LOSSES = 20
"""Lines about unreadable stretches; the rest is only counted."""


def scan(
    inputs: Any,
    *,
    backend: str = "auto",
    verify: bool = True,
    threads: int | None = None,
    format: str | None = None,
    page_size: int | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Find which pages of ``inputs``, taken as one population, are equal.

    :param inputs: one or several of: path of an image, :class:`gpudedup.images.base.Image`,
        array of pages ((n, page_size) uint8, C-contiguous, NumPy or DLPack). Images given opened
        stay open; the result needs no file any more.
    :param backend: ``auto``, ``cpu`` or ``cuda``
    :param verify: compare bytes; if not, equal digests count as equal pages
    :param threads: workers of the CPU engine; None: all cores
    :param format: of all paths, if it shall not be recognised: ``arrow``, ``elf`` or ``raw``
    :param page_size: bytes, for formats that do not tell; None: 4096
    :param progress: called now and then with rows done and rows in all
    :raises ImageError: if an input cannot be read as what it is, or page sizes differ
    :raises UsageError: if an argument is out of range
    :raises EngineUnusableError: if the engine asked for cannot be used here
    """
    started = time.perf_counter()
    engine = choose(backend, threads)
    # One page makes it compile, or load what it compiled before: told apart from the scan.
    engine.partition(PageStore.of_array(np.ones((1, MIN_PAGE_SIZE), np.uint8)))
    loaded = time.perf_counter()
    with ExitStack() as opened:
        images: list[Image] = []
        for item in _as_list(inputs):
            if isinstance(item, Image):
                images.append(item)
            elif isinstance(item, str | os.PathLike):
                image = open_image(item, format=format, page_size=page_size)
                images.append(opened.enter_context(image))
            else:
                images.append(open_array(item, f"array{len(images)}"))
        people = population(images)
        timings = {"load_s": loaded - started, "open_s": time.perf_counter() - loaded}
        return _scan(people, engine, verify, progress, timings)


def _as_list(inputs: Any) -> list[Any]:
    if isinstance(inputs, str | os.PathLike | Image) or not isinstance(inputs, Iterable):
        return [inputs]
    return [inputs] if hasattr(inputs, "__dlpack__") else list(inputs)


def _scan(
    people: Population,
    engine: Engine,
    verify: bool,
    progress: Progress | None,
    timings: dict[str, float],
) -> Scan:
    opened = time.perf_counter()
    aliases = people.alias_of()
    resolved = time.perf_counter()
    partition = engine.partition(people.store(), alias_of=aliases, verify=verify, progress=progress)
    partitioned = time.perf_counter()
    totals = count(partition, people.page_size)
    timings |= {
        "frames_s": resolved - opened,
        **partition.seconds,
        "count_s": time.perf_counter() - partitioned,
    }
    losses = [line for image in people.images for line in image.losses]
    return Scan(
        population=people,
        partition=partition,
        engine=EngineUsed(engine.name, engine.device, engine.threads, "xxh3-128", verify),
        totals=totals,
        timings={**timings, "total_s": sum(timings.values())},
        losses=losses + _unreadable(people, partition.classes == PageClass.UNREADABLE),
        notes=[line for image in people.images for line in image.notes],
    )


def _unreadable(people: Population, mask: Any) -> list[str]:
    """Return one line for each stretch of rows that could not be read."""
    rows = np.flatnonzero(mask)
    stretches = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []
    lines = []
    for stretch in stretches[:MAX_LOSSES]:
        image, offset = people.place(int(stretch[0]))
        lines.append(f"{image.path}: offset {offset}: {_pages(len(stretch))} could not be read")
    if len(stretches) > MAX_LOSSES:
        lines.append(f"and {len(stretches) - MAX_LOSSES} more such places")
    return lines


def _pages(count: int) -> str:
    return "1 page" if count == 1 else f"{count} pages"
