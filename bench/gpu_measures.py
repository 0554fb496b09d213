"""The steps of ``gpu.py`` that measure; what they measure is in ``gpudedup.measuring.device``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from gpudedup.measuring.device import (
    ceilings,
    check,
    comparing,
    digests,
    grouping,
    resident,
    streamed,
)
from gpudedup.measuring.launches import Bench
from gpudedup.measuring.populations import PAGE_SIZE, POPULATIONS, content_ids, fill


@dataclass(frozen=True)
class Step:
    """One piece of a run.

    :param name: what it measures or checks
    :param seconds: about how long it takes with 8 GiB of pages
    :param run: does it; returns comparisons, wrong results, or what is to be noted
    """

    name: str
    seconds: float
    run: Callable[[], object]


def measurements(bench: Bench) -> Iterator[Step]:
    """Yield the steps that measure, each population's correctness first."""
    for population in POPULATIONS:
        ids = content_ids(population, bench.size // PAGE_SIZE)
        host = fill(ids)
        memory = bench.upload(host)
        yield Step(f"{population}: right?", 15, partial(check, bench, memory, host, ids))
        if population == "random":
            yield Step("ceilings", 5, partial(ceilings, bench, host))
            yield Step("digests", 20, partial(digests, bench, memory))
            yield Step("grouping", 10, partial(grouping, bench, memory))
        resident_scan = partial(resident, bench, memory, host, population)
        yield Step(f"{population}, resident", 30, resident_scan)
        yield Step(f"{population}, streamed", 60, partial(streamed, bench, host, population))
        if population == "mix":
            yield Step("comparing", 5, partial(comparing, bench, memory))
