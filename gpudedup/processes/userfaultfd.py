"""Make another process open a userfaultfd, and duplicate its descriptor.

A userfaultfd belongs to the memory of the process that opens it; no process can open one for
another. So a helper process (:mod:`gpudedup.processes.tracer`) stops the process by ptrace, makes
it run the ``syscall`` instruction of its vDSO, and restores its registers and signal mask; a system
call that it was in resumes, or ends as after a signal without a handler. The process's own
descriptor is closed at once. Linux on x86-64 only.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from gpudedup.errors import ImageError, UnsupportedHereError
from gpudedup.processes.helper import Helper


def borrowed_userfaultfd(pid: int) -> int:
    """Return a userfaultfd of the memory of ``pid``; closing it lifts all protection set with it.

    :raises UnsupportedHereError: if this machine, or this process, does not support it
    :raises ImageError: if the process is gone, does not stop, or may not be traced
    """
    if platform.machine() != "x86_64":
        raise UnsupportedHereError(f"calls are injected on x86_64 only, not {platform.machine()}")
    name = f"pid {pid}"
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ImageError(name, "no such process") from None
    if "\nSeccomp:\t0\n" not in status:
        # A filter may kill the process for the call.
        raise UnsupportedHereError(f"{name} filters its system calls (seccomp)")
    helper = Helper("userfaultfd", [pid])
    try:
        with helper:
            (fd,) = helper.descriptors
            os.set_inheritable(fd, False)
    except BaseException:
        # Open, it would protect the process's pages on.
        for each in helper.descriptors:
            os.close(each)
        raise
    return fd
