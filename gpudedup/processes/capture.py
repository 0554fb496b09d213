"""Capture the memory of running processes into a dump.

A capture has the pages that ``/proc/PID/pagemap`` reports in memory or in swap; reading swap faults
it in. Pages never touched are holes and are not faulted in; so are pages of files and shared memory
that the process has not mapped in. PROT_NONE memory is read like any other. Mappings of device
registers and the kernel's own clocks are excluded unread.

Populated pages are found, then read, then their frames are compared with those before the read.
Only with ``stop`` is the image that of one point in time. Without it a page may hold bytes of
different moments, a page discarded in between reads as zero, and a frame may have belonged to one
process first and to another later.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import BATCH_BYTES
from gpudedup.images.dumps.writer import DumpWriter, Written
from gpudedup.images.losses import Loss, lines
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.processes.helper import Helper
from gpudedup.processes.pagemap import (
    FrameInfo,
    Pagemap,
    frames,
    hides_frames,
    pagemap_flags,
    populated,
    runs,
)
from gpudedup.processes.procfs import Status, Vma, read_status, read_vmas
from gpudedup.processes.stopped import stopped

_WINDOW = 1 << 14
"""Entries of ``pagemap`` read at a time: few, to be fresh when the content is read."""

_READ_BYTES = 1 << 20
"""Bytes per read of ``/proc/PID/mem``: large enough for speed, small enough for the cache."""


def capture(
    pids: Sequence[int],
    path: str,
    *,
    stop: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write the populated pages of the processes ``pids`` to a dump.

    If a process ends meanwhile, pages resident at the start but not read count as unreadable.

    :param pids: processes; a thread stands for its process, and a process is read once
    :param stop: stop all processes until the dump is written
    :param force: replace an existing file
    :param progress: called with pages done and pages expected
    :raises ImageError: if there is nothing to read, no permission to, or a process does not stop
        or is held already
    :raises OutputError: if the dump exists (without force), has no room, or cannot be written
    :raises UnsupportedHereError: if no helper process, which holds the others, can be started
    :raises UsageError: if ``pids`` is empty, or ``stop`` would stop the caller
    """
    with ExitStack() as stack:
        wanted = _Wanted(pids)
        if stop and os.getpid() in wanted.statuses:
            raise UsageError(f"pid {os.getpid()}: cannot stop the process that does the capture")
        found = list(wanted.statuses)
        holder = stack.enter_context(stopped(found)) if stop and found else None
        return _write(wanted, path, holder, force, progress)


def capture_held(pid: int, path: str, holder: Helper, *, force: bool = False) -> Written:
    """Do as :func:`capture` for one process that ``holder`` (of :func:`stopped`) holds already."""
    return _write(_Wanted([pid]), path, holder, force, None)


def _write(
    wanted: _Wanted,
    path: str,
    holder: Helper | None,
    force: bool,
    progress: Callable[[int, int], None] | None,
) -> Written:
    losses, notes = wanted.losses, list(map(str, wanted.without_memory))
    page_size = os.sysconf("SC_PAGE_SIZE")
    with ExitStack() as stack:
        sources = []
        for status in wanted.statuses.values():
            source = _open(status, page_size, losses, notes)
            if source:
                stack.callback(source.close)
                sources.append(source)
        if not sources:
            raise [*losses, *wanted.without_memory][0].error()
        if not holder:
            notes.append("read while running: not the state of one point in time")
        known = FrameInfo(page_size)
        stack.callback(known.close)
        mappings = [_mapping(s, vma, page_size) for s in sources for vma in s.vmas]
        what = f"{len(sources)} {'stopped' if holder else 'running'} process"
        what += "es" if len(sources) > 1 else ""
        expected = sum(v.resident for s in sources for v in s.vmas if not v.excluded)
        with DumpWriter(
            path, page_size, mappings, source=what, force=force, pages=expected
        ) as dump:
            report = progress or (lambda done, total: None)
            reader = _Reader(dump, known, losses, expected, report)
            reader.read(sources)
            if not reader.rows:
                first = Loss(f"pid {sources[0].status.pid}", "nothing in memory")
                raise [*losses, first][0].error()
            if holder:
                holder.check()
    if reader.hidden:
        notes.append("no frame numbers (CAP_SYS_ADMIN): shared pages will count as duplicates")
    return Written(reader.rows, len(mappings), dump.absent, lines(losses), notes)


class _Wanted:
    """The processes of a capture: ``statuses`` by pid, each once, and what became of the others."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.losses: list[Loss] = []
        self.statuses, self.without_memory = _statuses(pids, self.losses)


def _statuses(pids: Sequence[int], losses: list[Loss]) -> tuple[dict[int, Status], list[Loss]]:
    """Return the processes with memory by pid, each once, and a loss for each without memory."""
    if not pids:
        raise UsageError("no process to capture")
    found: dict[int, Status] = {}
    without: list[Loss] = []
    for pid in pids:
        name = f"pid {pid}"
        try:
            status = read_status(pid)
        except (FileNotFoundError, ProcessLookupError):
            losses.append(Loss(name, "no such process"))
            continue
        if status.lacks:
            without.append(Loss(name, status.lacks))
        else:
            found[status.pid] = status
    return found, without


@dataclass(frozen=True, slots=True)
class _Source:
    """A process with its memory open: the descriptors stay valid if the pid is reused."""

    status: Status
    vmas: list[Vma]
    mem: int
    pagemap: Pagemap

    def close(self) -> None:
        try:
            os.close(self.mem)
        finally:
            self.pagemap.close()


def _open(status: Status, page_size: int, losses: list[Loss], notes: list[str]) -> _Source | None:
    name = f"pid {status.pid}"
    with ExitStack() as stack:
        try:
            vmas = read_vmas(status.pid, page_size)
            if not vmas:
                raise ProcessLookupError
            mem = os.open(f"/proc/{status.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, mem)
            pagemap = Pagemap(status.pid, page_size)
        except (FileNotFoundError, ProcessLookupError):
            losses.append(Loss(name, "no such process"))
            return None
        except PermissionError as error:
            hint = "run as its user with kernel.yama.ptrace_scope=0, or as root"
            raise ImageError(name, f"no permission to read {error.filename}: {hint}") from None
        except OSError as error:
            raise ImageError(name, f"{error.filename}: {error.strerror}") from None
        stack.pop_all()
    if status.pid == os.getpid():
        notes.append(f"{name}: did the capture itself; its own buffers are in the dump")
    return _Source(status, vmas, mem, pagemap)


def _mapping(source: _Source, vma: Vma, page_size: int) -> Mapping:
    domain = f"uid:{source.status.uid}"
    start = vma.first * page_size
    return Mapping(source.status.owner, domain, vma.kind, vma.name, start, vma.flags)


class _Batch:
    """Rows of any mappings that wait to be written, at most :data:`BATCH_BYTES` of pages."""

    def __init__(self, page_size: int) -> None:
        size = BATCH_BYTES // page_size
        self._pages = np.empty((size, page_size), np.uint8)
        self._mapping = np.empty(size, np.int32)
        self._index = np.empty(size, np.uint64)
        self._frame = np.empty(size, np.uint64)
        self._node = np.empty(size, np.int16)
        self._flags = np.empty(size, np.uint32)
        self._rows = self._written = 0

    @property
    def free(self) -> npt.NDArray[np.uint8]:
        """Return the buffer for the bytes of the next rows, (free rows, page_size) uint8."""
        return self._pages[self._rows :]

    def add(
        self,
        mapping: int,
        index: npt.NDArray[np.int64],
        frame: npt.NDArray[np.uint64],
        node: npt.NDArray[np.int16],
        flags: npt.NDArray[np.uint32],
    ) -> None:
        """Append rows whose bytes are already at the beginning of :attr:`free`."""
        place = slice(self._rows, self._rows + len(index))
        self._mapping[place] = mapping
        self._index[place] = index
        self._frame[place] = frame
        self._node[place] = node
        self._flags[place] = flags
        self._rows = place.stop

    def flush(self, dump: DumpWriter) -> None:
        """Write the rows and empty the batch."""
        columns = PageColumns(
            self._written, self._mapping, self._index, self._frame, self._node, self._flags
        )
        if self._rows:
            dump.write(columns.slice(0, self._rows), self._pages[: self._rows])
        self._written += self._rows
        self._rows = 0


class _Reader:
    """Read processes, one mapping after another, into one dump; append to ``losses``.

    :param expected: pages that there were at the beginning
    """

    def __init__(
        self,
        dump: DumpWriter,
        known: FrameInfo,
        losses: list[Loss],
        expected: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.rows = 0
        self.hidden = False
        self._dump = dump
        self._known = known
        self._losses = losses
        self._progress = progress
        self._batch = _Batch(dump.page_size)
        self._expected = expected

    def read(self, sources: Sequence[_Source]) -> None:
        """Read all mappings, numbered in the order of ``sources``."""
        self._report()
        number = 0
        for source in sources:
            missing: list[int] = []
            for vma in source.vmas:
                if vma.excluded:
                    self._dump.absent.excluded += vma.pages
                else:
                    missing.append(self._read_vma(source, vma, number))
                number += 1
            if lost := sum(missing):
                reason = f"{lost} pages of {np.count_nonzero(missing)} mappings: the process ended"
                self._losses.append(Loss(f"pid {source.status.pid}", reason))
        self._flush()

    def _read_vma(self, source: _Source, vma: Vma, number: int) -> int:
        """Read one mapping; return the number of pages missing because the process ended."""
        at, stop = vma.first, vma.first + vma.pages
        before = self.rows
        failed = missing = 0
        reason = ""
        while (at := source.pagemap.next_populated(at, stop)) < stop:
            at, unread, error = self._read_window(source, vma, number, at)
            failed += unread
            reason = error or reason
        rows = self.rows - before
        if not source.pagemap.alive():
            # Its page table is gone: only the count at the beginning is known.
            missing, failed = max(vma.resident, rows + failed) - rows, 0
        if failed:
            name = vma.name or f"anonymous memory at {vma.first * self._dump.page_size:#x}"
            reason = f"{failed} pages of {name}: {reason}"
            self._losses.append(Loss(f"pid {source.status.pid}", reason))
        self._dump.absent.unreadable += failed + missing
        self._dump.absent.holes += vma.pages - rows - failed - missing
        return missing

    def _read_window(self, source: _Source, vma: Vma, number: int, at: int) -> tuple[int, int, str]:
        """Read populated pages from page ``at`` on, as many as fit into the batch.

        :return: next page to read, number of unreadable pages, and the reason
        """
        if not len(self._batch.free):
            self._flush()
        entries = source.pagemap.entries(at, min(vma.first + vma.pages - at, _WINDOW))
        places = populated(entries)[: len(self._batch.free)]
        if len(places) == len(self._batch.free):
            entries = entries[: places[-1] + 1]
        read, error = _read_pages(source.mem, at + places, self._batch.free)
        there = places[read]
        again = source.pagemap.entries(at, len(entries))
        frame = frames(entries[there], again[there])
        flags = pagemap_flags(entries[there]) | self._known.flags(frame)
        self._batch.add(number, at - vma.first + there, frame, self._known.nodes(frame), flags)
        self.hidden |= hides_frames(entries)
        self.rows += len(there)
        return at + len(entries), len(places) - len(there), error

    def _flush(self) -> None:
        self._batch.flush(self._dump)
        self._report()

    def _report(self) -> None:
        done = self.rows + self._dump.absent.unreadable
        self._progress(done, max(done, self._expected))


def _read_pages(
    mem: int, pages: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.bool_], str]:
    """Read the readable ones of ``pages`` (numbers, ascending) into the first rows of ``out``.

    :param mem: descriptor of ``/proc/PID/mem``
    :param out: (n, page_size) uint8, at least one row for each page
    :return: which pages could be read, (len(pages),) bool, and why the rest could not
    """
    page_size = out.shape[1]
    most = max(1, _READ_BYTES // page_size)
    flat = out.reshape(-1).data
    read = np.ones(len(pages), np.bool_)
    row, reason = 0, ""
    for first, stop in runs(pages):
        at = first
        while at < stop:
            room = flat[row * page_size : (row + min(stop - at, most)) * page_size]
            try:
                got = _read_memory(mem, room, int(pages[at]) * page_size) // page_size
            except OSError as error:
                got, reason = 0, error.strerror or str(error)
            if not got:
                # Pages after this one may be readable.
                read[at] = False
                at += 1
            row += got
            at += got
    return read, reason


def _read_memory(mem: int, out: memoryview, address: int) -> int:
    """Read memory into ``out``; return the bytes, fewer before what cannot be read.

    :raises OSError: if none can be read
    """
    got = os.preadv(mem, [out], address)
    while got % mmap.PAGESIZE and (more := os.preadv(mem, [out[got:]], address + got)):
        got += more
    return got
