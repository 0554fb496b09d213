"""Run a trace on the memory of an image, merged or not, and report what the events did."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from gpudedup.arguments import MAX_DEVICES, MAX_NODES
from gpudedup.devices.base import Device
from gpudedup.errors import InvariantError, TraceError, UsageError
from gpudedup.images.opening import image_of
from gpudedup.mm.counters import Counters
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy, MergeReport
from gpudedup.traces.accounts import Accounts
from gpudedup.traces.checking import check_trace, places_named
from gpudedup.traces.digest import Digest, digest_of
from gpudedup.traces.events import Trace, as_trace
from gpudedup.traces.player import Player

SCHEMA_VERSION = 1
"""Version of what :meth:`Replay.as_dict` returns."""

STAGES = ("load_s", "check_s", "merge_s", "run_s", "digest_s", "verify_s")
"""``check_s`` checks the trace; ``digest_s`` also checks the manager after the last event."""

SAMPLES = 200
"""Samples of memory per replay, beside the first."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Replay:
    """Results of a replay.

    :param trace, image: paths or names
    :param page_size: bytes per page
    :param mappings: mappings of the image
    :param nodes: NUMA nodes of the manager
    :param devices: names of its devices; ``cpu (N)``: host memory in place of device N's
    :param events: events of the trace
    :param merged: report of the merge before the first event; None: there was none
    :param causes: one row per operation, :data:`gpudedup.schema.CAUSES`
    :param samples: memory over time, :data:`gpudedup.schema.SAMPLES`
    :param counters: counters of the manager after the last event
    :param digest: digest of what all mappings hold then, hexadecimal
    :param verified: True if the same events on memory that is never merged left equal contents
    :param timings: seconds per stage, by the names in :data:`STAGES`
    """

    trace: str
    image: str
    page_size: int
    mappings: int
    nodes: int
    devices: tuple[str, ...]
    events: int
    merged: MergeReport | None
    causes: pa.Table
    samples: pa.Table
    counters: Counters
    digest: str
    verified: bool
    timings: dict[str, float]

    @property
    def totals(self) -> dict[str, int]:
        """Return the sums of the integer columns of :attr:`causes`."""
        columns = [f.name for f in self.causes.schema if pa.types.is_integer(f.type)]
        return {name: sum(self.causes.column(name).to_pylist()) for name in columns}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and totals as values that JSON can hold."""
        return {
            "schema_version": SCHEMA_VERSION,
            "trace": {"path": self.trace, "events": self.events},
            "image": {
                "path": self.image, "page_size": self.page_size, "mappings": self.mappings,
            },
            "nodes": self.nodes,
            "devices": list(self.devices),
            "merged": None if self.merged is None else self.merged.as_dict(),
            "totals": self.totals,
            "causes": self.causes.to_pylist(),
            "samples": self.samples.to_pylist(),
            "counters": self.counters.as_dict(),
            "digest": self.digest,
            "verified": self.verified,
            "timings": self.timings,
        }  # fmt: skip


def replay(
    source: Any,
    trace: str | os.PathLike[str] | pa.Table | Trace,
    *,
    policy: MergePolicy | None = None,
    merge: bool = True,
    nodes: int | None = None,
    devices: int | None = None,
    device_engine: str | Sequence[Device] = "auto",
    samples: int = SAMPLES,
    verify: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Run the events of a trace on the pages of an image.

    The trace is checked first, so that one that does not fit changes nothing; only the end of a
    pin or splice that is not held is found while the events run.

    :param source: path, image, or array of pages, (n, page_size) uint8; or a manager, whose
        mappings the trace numbers in their order, and which keeps what the events leave
    :param trace: path, or table of :func:`gpudedup.schema.trace_schema`
    :param policy: policy of the first merge and of merge events; None: KSM's defaults
    :param merge: merge before the first event
    :param nodes, devices: nodes and devices of the manager; None: as many as image and trace name
    :param device_engine: as for :class:`gpudedup.mm.manager.MemoryManager`
    :param samples: rows of :attr:`Replay.samples` after the first, at most
    :param verify: run the events also on memory that is never merged, and compare all contents
    :param progress: called with events done and events in all
    :raises TraceError: if the trace cannot be read, or does not fit the image
    :raises ImageError: if the image cannot be read
    :raises UsageError: if an argument lies outside its range, or does not go with a manager
    :raises InvariantError: if ``verify`` finds contents that differ, or the manager contradicts
        itself after the last event
    """
    if samples < 1:
        raise UsageError(f"samples {samples}: must be at least 1")
    events = as_trace(trace)
    run = _Run(events, policy or MergePolicy(), samples, progress)
    if isinstance(source, MemoryManager):
        if verify:
            raise UsageError("verify needs an image: a manager is there only once")
        if (nodes, devices) != (None, None):
            raise UsageError("nodes and devices are those of the manager")
        return run.on(source, "manager", merge)[0]
    with ExitStack() as opened:
        image = image_of(source, opened)
        if events.page_size not in (None, image.page_size):
            reason = f"pages of {events.page_size} bytes, those of {image.path} {image.page_size}"
            raise TraceError(events.path, reason)
        if nodes is None or devices is None:
            named = places_named(events)
            nodes = min(max(image.rows.nodes(), named[0]), MAX_NODES) if nodes is None else nodes
            devices = min(named[1], MAX_DEVICES) if devices is None else devices
            run.clock("check_s")

        def manager() -> MemoryManager:
            made = MemoryManager.from_image(
                image, nodes=nodes, devices=devices, device_engine=device_engine
            )
            run.clock("load_s")
            return made

        done, digest = run.on(manager(), image.path, merge)
        if not verify:
            return done
        other = run.plainly(manager())
        if digest != other:
            at = digest.differs_at(other)
            raise InvariantError(f"mapping {at}: its contents differ from those of memory unmerged")
        return replace(done, verified=True, timings=run.seconds)


class _Run:
    """Runs a trace, and times the stages."""

    def __init__(
        self, trace: Trace, policy: MergePolicy, samples: int, progress: Progress | None
    ) -> None:
        if samples < 1:
            raise UsageError(f"samples {samples}: must be at least 1")
        self._trace = trace
        self._policy = policy
        self._samples = samples
        self._progress = progress or (lambda done, total: None)
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._since = time.perf_counter()

    def clock(self, stage: str) -> None:
        """Charge the time since the last call to a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now

    def on(self, manager: MemoryManager, name: str, merge: bool) -> tuple[Replay, Digest]:
        """Run the trace on a manager whose pages come from ``name``."""
        mappings = manager.mappings
        total = check_trace(self._trace, mappings, manager.nodes, len(manager.devices))
        self.clock("check_s")
        merged = manager.merge(self._policy) if merge else None
        self.clock("merge_s")
        accounts = Accounts(manager)
        player = Player(manager, self._policy, accounts, self._trace.path)
        try:
            self._play(player, accounts, total)
            self.clock("run_s")
            counters = manager.counters
            digest = digest_of(manager, player.mappings)
        finally:
            player.let_all_go()
        self._check(manager)
        self.clock("digest_s")
        result = Replay(
            self._trace.path, name, manager.page_size, len(mappings), manager.nodes,
            tuple(device.name for device in manager.devices), total, merged, accounts.causes(),
            accounts.samples(), counters, digest.whole, False, self.seconds,
        )  # fmt: skip
        return result, digest

    def plainly(self, manager: MemoryManager) -> Digest:
        """Return the digest of what the events leave in a manager that never merges."""
        accounts = Accounts(manager)
        player = Player(manager, None, accounts, self._trace.path)
        try:
            for events in self._trace.pieces():
                player.play(events)
            digest = digest_of(manager, player.mappings)
        finally:
            player.let_all_go()
        self._check(manager)
        self.clock("verify_s")
        return digest

    def _check(self, manager: MemoryManager) -> None:
        try:
            manager.check()
        except InvariantError as error:
            reason = f"{self._trace.path}: after the last event the memory manager contradicts"
            raise InvariantError(f"{reason} itself: {error}") from None

    def _play(self, player: Player, accounts: Accounts, total: int) -> None:
        samples = min(self._samples, max(total, 1))
        borders = iter(np.unique(np.linspace(0, total, samples + 1).astype(np.int64))[1:])
        border, done, time_ns = next(borders, 0), 0, None
        accounts.sample(0, None)
        for piece in self._trace.pieces():
            at = 0
            while at < len(piece):
                events = piece.slice(at, min(at + int(border) - done, len(piece)))
                player.play(events)
                at += len(events)
                done += len(events)
                if events.timed.any():
                    time_ns = int(events.time_ns[events.timed][-1])
                if done == border:
                    accounts.sample(done, time_ns)
                    border = next(borders, 0)
            self._progress(done, total)
