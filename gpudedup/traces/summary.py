"""Summarise what a trace holds."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gpudedup.schema import OPERATIONS
from gpudedup.traces.events import Trace, as_trace
from gpudedup.traces.operations import COUNTS_PAGES


@dataclass(frozen=True, slots=True)
class Summary:
    """What a trace holds.

    :param events: events of the trace
    :param pages: pages of all events, with repetitions
    :param page_size: bytes per page; None: not stated
    :param source: how the trace was made
    :param mappings, nodes, devices: one more than the highest that an event names
    :param seconds: time from the earliest event to the latest; None: no event has a time
    :param operations: word, events and pages of each operation that occurs
    """

    events: int
    pages: int
    page_size: int | None
    source: str
    mappings: int
    nodes: int
    devices: int
    seconds: float | None
    operations: list[tuple[str, int, int]]


def summary(trace: str | os.PathLike[str] | pa.Table | Trace) -> Summary:
    """Read all of a trace, and summarise it.

    :raises TraceError: if it cannot be read
    """
    trace = as_trace(trace)
    events = np.zeros(len(OPERATIONS), np.int64)
    pages = np.zeros(len(OPERATIONS), np.int64)
    mappings = nodes = devices = 0
    times: list[int] = []
    for piece in trace.pieces():
        events += np.bincount(piece.operation, minlength=len(OPERATIONS))
        counted = np.where(COUNTS_PAGES[piece.operation], piece.count, 0)
        # Not by bincount's weights: they are floats, which round.
        np.add.at(pages, piece.operation, counted.astype(np.int64))
        mappings = max(mappings, int(piece.mapping.max(initial=-1)) + 1)
        nodes = max(nodes, int(piece.node.max(initial=-1)) + 1)
        devices = max(devices, int(piece.device.max(initial=-1)) + 1)
        timed = piece.time_ns[piece.timed]
        if len(timed):
            times += [int(timed.min()), int(timed.max())]
    return Summary(
        events=int(events.sum()),
        pages=int(pages.sum()),
        page_size=trace.page_size,
        source=trace.source,
        mappings=mappings,
        nodes=nodes,
        devices=devices,
        seconds=(max(times) - min(times)) / 1e9 if times else None,
        operations=[
            (word, int(n), int(of))
            for word, n, of in zip(OPERATIONS, events, pages, strict=True)
            if n
        ],
    )
