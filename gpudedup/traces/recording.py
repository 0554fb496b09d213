"""Record the writes of a running process: a capture of its memory, and the trace that follows.

The process is stopped during the capture; from then on the kernel lists the written pages of every
interval, but not how often they were written nor with what: a replay writes contents of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError, UnsupportedHereError, UsageError
from gpudedup.images.dumps.reader import open_arrow
from gpudedup.processes.capture import capture_held
from gpudedup.processes.procfs import Vma, read_status, read_vmas
from gpudedup.processes.stopped import stopped
from gpudedup.processes.write_watch import Ranges, watch
from gpudedup.schema import Operation
from gpudedup.traces.events import Events
from gpudedup.traces.writer import trace_file

MIN_INTERVAL_S = 0.001
"""Seconds from one scan to the next, at least: about what a scan of some GiB takes."""

MAX_DURATION_S = 30 * 24 * 3600
"""Seconds of a recording, at most: the number of its scans fits into half a seed."""

_TAKEN = "another recorder, or the process itself, watches them, or the kernel refuses"


@dataclass(frozen=True, slots=True)
class Recording:
    """Results of a recording.

    :param image: path of the capture
    :param image_pages, mappings: pages and mappings of the capture
    :param how: ``soft-dirty`` or ``write-protect``
    :param looks: scans for written pages
    :param events: rows of the trace
    :param pages: written pages, each counted once per scan
    :param seconds: time from the capture to the last scan
    :param losses, notes: unreadable parts of the capture, and notes for the user, a line each
    :param unwatched: pages of private, writable memory whose writes were not seen
    """

    image: str
    image_pages: int
    mappings: int
    how: str
    looks: int
    events: int
    pages: int
    seconds: float
    losses: list[str]
    notes: list[str]
    unwatched: int = 0


def default_image(path: str | os.PathLike[str]) -> str:
    """Return the default path of the capture for a trace: ``t.image.arrow`` for ``t.arrow``."""
    return str(Path(path).with_suffix(".image.arrow"))


def record_trace(
    pid: int,
    path: str | os.PathLike[str],
    *,
    image: str | os.PathLike[str] | None = None,
    interval: float = 0.1,
    duration: float = 5.0,
    method: str = "auto",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Capture a process, then record which pages of its private memory it writes.

    :param image: path of the capture; None: :func:`default_image`
    :param interval: seconds from one scan to the next
    :param duration: seconds to record, unless the process ends sooner
    :param method: one of :data:`gpudedup.processes.write_watch.METHODS`
    :param force: replace existing files
    :param progress: called with milliseconds done and in all
    :raises UnsupportedHereError: if writes cannot be watched here, or no page of the process can
    :raises ImageError: if there is no such process, no permission, or somebody else holds it
    :raises OutputError: if a file cannot be written
    :raises UsageError: if an argument lies outside its range
    """
    if not duration <= MAX_DURATION_S:
        raise UsageError(f"duration {duration:g} s: not up to {MAX_DURATION_S} s")
    if not MIN_INTERVAL_S <= interval <= duration:
        least = f"{MIN_INTERVAL_S:g} s"
        raise UsageError(f"interval {interval:g} s: not from {least} up to the duration")
    dump = default_image(path) if image is None else os.fspath(image)
    if Path(dump).resolve() == Path(path).resolve():
        raise UsageError(f"{dump}: image and trace are two files")
    page_size = os.sysconf("SC_PAGE_SIZE")
    try:
        status = read_status(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise ImageError(f"pid {pid}", "no such process") from None
    if status.lacks:
        raise ImageError(f"pid {pid}", status.lacks)
    pid = status.pid
    with trace_file(path, page_size, f"writes of pid {pid}", force=force) as write:
        watched = watch(pid, method)
        try:
            with stopped([pid]) as holder:
                vmas = _vmas(pid, page_size)
                private = [v for v in vmas if _private(v)]
                pages = sum(v.pages for v in private)
                free = [v for v in private if watched.can_watch(v)]
                _check_watched(pid, pages, sum(v.pages for v in free))
                captured = capture_held(pid, dump, holder, force=force)
                seen = watched.begin([(v.first, v.first + v.pages) for v in free])
                _check_watched(pid, pages, seen)
                holder.check()
                began = time.monotonic()
            rows = _Rows(vmas, _sizes(dump))
            looks = ended = 0
            while not ended and looks * interval < duration:
                looks += 1
                time.sleep(max(0.0, began + looks * interval - time.monotonic()))
                at = time.monotonic() - began
                try:
                    ranges = watched.written()
                except ProcessLookupError:
                    ended = 1
                    break
                if len(events := rows.of(ranges, looks, int(at * 1e9))):
                    write(events)
                if progress:
                    progress(int(min(at, duration) * 1e3), int(duration * 1e3))
            seconds = time.monotonic() - began
        finally:
            watched.close()
    notes = list(captured.notes)
    if ended:
        notes.append(f"pid {pid}: ended after {seconds:.1f} s; what it wrote last is not known")
    if unwatched := pages - seen:
        notes.append(f"pid {pid}: {unwatched} pages of private memory are not watched: {_TAKEN}")
    if watched.how == "soft-dirty":
        notes.append("what is written just while the process is looked at is lost")
    return Recording(
        dump, captured.pages, captured.mappings, watched.how, looks, rows.events, rows.pages,
        seconds, captured.losses, notes, unwatched,
    )  # fmt: skip


def _vmas(pid: int, page_size: int) -> list[Vma]:
    try:
        return read_vmas(pid, page_size)
    except (FileNotFoundError, ProcessLookupError):
        raise ImageError(f"pid {pid}", "no such process") from None


def _check_watched(pid: int, pages: int, seen: int) -> None:
    """Refuse a recording that would see nothing."""
    if not seen:
        reason = f"none of its {pages} pages of private memory can be watched: {_TAKEN}"
        raise UnsupportedHereError(f"pid {pid}: {reason}")


def _private(vma: Vma) -> bool:
    words = vma.flags.split()
    return "wr" in words and "sh" not in words and not vma.excluded


def _sizes(path: str) -> npt.NDArray[np.int64]:
    """Return the pages that each mapping of a dump has in a manager, (mappings,) int64."""
    with open_arrow(path) as image:
        return image.rows.sizes(len(image.mappings))


class _Rows:
    """Turns ranges of written pages into events; updates ``sizes``, (vmas,) int64 lengths."""

    def __init__(self, vmas: list[Vma], sizes: npt.NDArray[np.int64]) -> None:
        self._first = np.array([v.first for v in vmas], np.int64)
        self._sizes = sizes
        self.events = self.pages = 0

    def of(self, ranges: Ranges, look: int, time_ns: int) -> Events:
        """Return the events of one scan; each range lies within one watched mapping."""
        mapping = np.searchsorted(self._first, ranges[:, 0], side="right") - 1
        index = ranges[:, 0] - self._first[mapping]
        rows: list[tuple[int, int, int, int]] = []
        for m, at, count in zip(
            mapping.tolist(), index.tolist(), ranges[:, 1].tolist(), strict=True
        ):
            if at + count > self._sizes[m]:
                # First writes to pages beyond the last that the capture stores.
                self._sizes[m] = at + count
                rows.append((Operation.TRUNCATE, m, at + count, 0))
            rows.append((Operation.WRITE, m, at, count))
        events = Events.empty(self.events, len(rows))
        if rows:
            made = np.array(rows, np.int64)
            events.operation[:], events.mapping[:] = made[:, 0], made[:, 1]
            events.index[:], events.count[:] = made[:, 2], made[:, 3]
            # The mapping is part of the seed, so that writes do not make mappings equal.
            events.seed[:] = look << 32 | made[:, 1]
        events.time_ns[:], events.timed[:] = time_ns, True
        self.events += len(rows)
        self.pages += int(ranges[:, 1].sum())
        return events
