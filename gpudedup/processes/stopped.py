"""Stop processes while they are read."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from gpudedup.errors import ImageError
from gpudedup.processes.procfs import thread_states

PATIENCE_S = 5.0
"""Seconds that threads may take to stop: one that waits for a disk stops only when it is served."""

_HALTED = frozenset("TtZX")
"""States of threads that a signal or a tracer stopped, or that are dead."""


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Stop all threads of ``pids`` (SIGSTOP) during the block, and resume them (SIGCONT) after it.

    Processes that were stopped before stay so. A signal that kills this process without unwinding,
    as SIGKILL does, leaves all of them stopped.

    :raises ImageError: if a process does not stop in time, or may not be stopped
    """
    with ExitStack() as stack:
        for pid in pids:
            try:
                # Unlike a pid, a descriptor is never reused for another process.
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, fd)
            if _running(pid):
                stack.callback(_resume, fd)
                try:
                    signal.pidfd_send_signal(fd, signal.SIGSTOP)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    raise ImageError(f"pid {pid}", "no permission to stop it") from None
        deadline = time.monotonic() + PATIENCE_S
        for pid in pids:
            while running := _running(pid):
                if time.monotonic() > deadline:
                    tid, state = next(iter(running.items()))
                    raise ImageError(
                        f"pid {pid}",
                        f"thread {tid} did not stop within {PATIENCE_S:g} s (state {state})",
                    )
                time.sleep(0.001)
        yield


def _running(pid: int) -> dict[int, str]:
    return {tid: state for tid, state in thread_states(pid).items() if state not in _HALTED}


def _resume(fd: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(fd, signal.SIGCONT)
