"""Stop processes while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gpudedup.processes.helper import Helper


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[Helper]:
    """Stop all threads of ``pids`` during the block; give the process that holds them.

    They are stopped by ptrace, not by SIGSTOP, which anybody's SIGCONT undoes: nobody else can hold
    them meanwhile, or let them go on. Processes that were stopped before stay so. However this
    process ends, the others go on.

    :param pids: at least one
    :raises ImageError: if a process does not stop in time, may not be stopped, or is held already
    :raises UnsupportedHereError: if no helper process can be started
    """
    with Helper("stop", pids) as helper:
        yield helper
