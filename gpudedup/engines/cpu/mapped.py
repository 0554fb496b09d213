"""Map files for as long as a read lease keeps them from shrinking.

A mapping spares the copy that ``pread`` makes: 1.35 to 1.4 times the speed where the page cache
holds a file in large folios. Where it holds single pages, as tmpfs does, faults cost more than the
copy, and the file is not mapped. Touching a mapped page beyond the end of a file that shrank raises
SIGBUS. A *read lease* (fcntl(2), F_SETLEASE) prevents that: truncating the file or opening it for
writing blocks until the lease is released, before the next task (or until ``lease-break-time`` has
passed, 45 s by default); later tasks use ``pread``. So do files that cannot be leased: those open
for writing, those of another user, and those on a file system without leases. What no lease
prevents, a disk that fails or a lease taken back from a stopped process, still raises SIGBUS; the
command line names the file then and ends (:mod:`gpudedup.cli.bus_errors`).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageSource

MADV_POPULATE_READ = 22
"""Advice of madvise since Linux 5.14; Python 3.11 has no name for it."""

MAX_FILES = 32
"""Files mapped at most: each costs two descriptors, and a system call per task."""

SAMPLES = 16
SAMPLE_BYTES = 1 << 20
"""Bytes of each of the :data:`SAMPLES` parts of a file that are mapped to count its faults."""

FAULT_BYTES = 80 << 10
"""Bytes a fault must map on average. Small folios are mapped by 64 KiB a fault; the dump on ext4
that this constant was set by had about 100 KiB a fault, and was faster mapped."""

Addresses = npt.NDArray[np.uint64]


class MappedFiles:
    """Context that maps the files of a source; a worker takes one :meth:`task` at a time."""

    def __init__(self, source: PageSource) -> None:
        self._nowhere: Addresses = np.zeros(len(source.fd), np.uint64)
        self._addresses = self._nowhere.copy()
        self._leases: list[int] = []
        self._lock = threading.Lock()
        self._users = 0
        self._open = ExitStack()
        for fd in np.unique(source.fd[source.fd >= 0])[:MAX_FILES]:
            with suppress(OSError, ValueError):
                self._map(source, int(fd))

    def _map(self, source: PageSource, fd: int) -> None:
        """Map one file; OSError if it cannot be leased or populated, ValueError if empty."""
        with ExitStack() as opened:
            # A lease belongs to an open file description: a new one, since ``fd`` may be shared.
            own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, own)
            # By default the kernel sends SIGIO, which would end the process; SIGURG is ignored.
            fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            memory = opened.enter_context(mmap.mmap(own, 0, prot=mmap.PROT_READ))
            if not _is_in_large_folios(memory):
                return
            start = np.uint64(np.frombuffer(memory, np.uint8).ctypes.data)
            bytes_ = (np.diff(source.first_row) * source.page_size).astype(np.uint64)
            inside = (source.fd == fd) & (source.base + bytes_ <= np.uint64(len(memory)))
            self._addresses[inside] = start + source.base[inside]
            self._leases.append(own)
            self._open.push(opened.pop_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._leases.clear()
        self._open.close()

    @contextmanager
    def task(self) -> Iterator[Addresses]:
        """Yield the address of each stretch, (k,) uint64, valid in the block; 0: not mapped."""
        with self._lock:
            if self._is_wanted():
                self._addresses = self._nowhere
            self._give_back_if_unused()
            addresses = self._addresses
            self._users += 1
        try:
            yield addresses
        finally:
            with self._lock:
                self._users -= 1
                self._give_back_if_unused()

    def _is_wanted(self) -> bool:
        return any(fcntl.fcntl(own, fcntl.F_GETLEASE) != fcntl.F_RDLCK for own in self._leases)

    def _give_back_if_unused(self) -> None:
        if self._addresses is self._nowhere and not self._users:
            self._give_back()


def _is_in_large_folios(memory: mmap.mmap) -> bool:
    """Return whether a mapped file takes few faults, by samples: its start often takes more."""
    step = max(SAMPLE_BYTES, len(memory) // SAMPLES // mmap.PAGESIZE * mmap.PAGESIZE)
    before, size = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt, 0
    for start in range(0, len(memory), step):
        sample = min(SAMPLE_BYTES, len(memory) - start)
        memory.madvise(MADV_POPULATE_READ, start, sample)
        size += sample
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    memory.madvise(mmap.MADV_DONTNEED)
    return faults <= 2 + size // FAULT_BYTES
