"""Make another process open a userfaultfd, and duplicate its descriptor.

A userfaultfd belongs to the memory of the process that opens it; no process can open one for
another. So ptrace stops the process, makes it run the ``syscall`` instruction of its vDSO, and
restores its registers and signal mask; a system call that it was in resumes, or ends as after a
signal without a handler. The process's own descriptor is closed at once. Linux on x86-64 only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpudedup.errors import ImageError, UnsupportedHereError

PATIENCE_S = 5.0
"""Seconds that the process may take to stop: one that waits for a disk stops when it is served."""

_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_EVENT_STOP = 128
"""PTRACE_EVENT_STOP: a stop by PTRACE_INTERRUPT or SIGSTOP; other stops deliver a signal."""

_WALL = 0x40000000

_CLOSE, _USERFAULTFD, _PIDFD_GETFD = 3, 323, 438
_USER_MODE_ONLY = 1
"""Needs no privileges. Asynchronous protection resolves faults in kernel mode all the same."""

_SYSCALL = b"\x0f\x05"
_USER_CODE_64 = 0x33
"""Register ``cs`` of 64-bit code."""

# struct user_regs_struct of x86-64, in words.
_RAX, _RDI, _ORIG_RAX, _RIP, _CS = 10, 14, 15, 16, 17
_Registers = ctypes.c_ulonglong * 27

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def borrowed_userfaultfd(pid: int) -> int:
    """Return a userfaultfd of the memory of ``pid``; closing it lifts all protection set with it.

    :raises UnsupportedHereError: if this machine, or this process, does not support it
    :raises ImageError: if the process is gone, does not stop, or may not be traced
    """
    if platform.machine() != "x86_64":
        raise UnsupportedHereError(f"calls are injected on x86_64 only, not {platform.machine()}")
    name = f"pid {pid}"
    try:
        if "\nSeccomp:\t0\n" not in Path(f"/proc/{pid}/status").read_text(errors="replace"):
            # A filter may kill the process for the call.
            raise UnsupportedHereError(f"{name} filters its system calls (seccomp)")
        at = _syscall_instruction(pid)
        with _uninterrupted(), _traced(pid) as old:
            if old[_CS] != _USER_CODE_64:
                raise UnsupportedHereError(f"{name} is no 64-bit process")
            theirs = _call(pid, old, at, _USERFAULTFD, os.O_CLOEXEC | _USER_MODE_ONLY)
            if theirs < 0:
                raise UnsupportedHereError(f"userfaultfd: {os.strerror(-theirs)}")
            try:
                return _take_over(pid, theirs)
            finally:
                _call(pid, old, at, _CLOSE, theirs)
    except (FileNotFoundError, ProcessLookupError):
        raise ImageError(name, "no such process") from None
    except PermissionError:
        hint = "run as its user with kernel.yama.ptrace_scope=0, or as root"
        raise ImageError(
            name, f"no permission to trace it, or somebody else does: {hint}"
        ) from None


def _syscall_instruction(pid: int) -> int:
    """Return the address of a ``syscall`` instruction in the process's vDSO."""
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        if line.endswith("[vdso]"):
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                place = os.pread(fd, end - start, start).find(_SYSCALL)
            finally:
                os.close(fd)
            if place >= 0:
                return start + place
    raise UnsupportedHereError(f"pid {pid} has no vDSO with a system call")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block all signals: one that ended this process would resume the other at a wrong address."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _traced(pid: int) -> Iterator[list[int]]:
    """Stop the main thread of a process; yield its registers, which are restored at the end."""
    _ptrace(_SEIZE, pid)
    try:
        _ptrace(_INTERRUPT, pid)
        while (status := _wait(pid)) >> 16 != _EVENT_STOP:
            _ptrace(_CONT, pid, data=os.WSTOPSIG(status))
        registers = _Registers()
        _ptrace(_GETREGS, pid, data=ctypes.addressof(registers))
        old = list(registers)
        mask = ctypes.c_ulonglong()
        _ptrace(_GETSIGMASK, pid, 8, ctypes.addressof(mask))
        # Not SIGTRAP, which ends a single step: where it is blocked, the kernel resets its handler.
        blocked = ctypes.c_ulonglong(~(1 << (signal.SIGTRAP - 1)) & (1 << 64) - 1)
        _ptrace(_SETSIGMASK, pid, 8, ctypes.addressof(blocked))
        try:
            yield old
        finally:
            _ptrace(_SETREGS, pid, data=ctypes.addressof(registers))
            _ptrace(_SETSIGMASK, pid, 8, ctypes.addressof(mask))
    finally:
        _ptrace(_DETACH, pid)


def _call(pid: int, old: list[int], at: int, number: int, *arguments: int) -> int:
    """Make the process do a system call; return its result."""
    registers = _Registers(*old)
    registers[_RAX], registers[_RIP] = number, at
    # -1: no system call for the kernel to restart.
    registers[_ORIG_RAX] = (1 << 64) - 1
    for place, value in zip((_RDI,), arguments, strict=True):
        registers[place] = value
    _ptrace(_SETREGS, pid, data=ctypes.addressof(registers))
    while registers[_RIP] == at:
        # Again, if a SIGSTOP, which cannot be blocked, stopped the process first.
        _ptrace(_SINGLESTEP, pid)
        _wait(pid)
        _ptrace(_GETREGS, pid, data=ctypes.addressof(registers))
    return ctypes.c_longlong(registers[_RAX]).value


def _take_over(pid: int, theirs: int) -> int:
    """Return a duplicate of another process's descriptor."""
    process = os.pidfd_open(pid)
    try:
        mine: int = _libc.syscall(_PIDFD_GETFD, process, theirs, 0)
    finally:
        os.close(process)
    if mine < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return mine


def _wait(pid: int) -> int:
    """Return the wait status of a process that stops.

    :raises ProcessLookupError: if the process ends
    :raises ImageError: if it does not stop in time
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found, status = os.waitpid(pid, _WALL | os.WNOHANG)
        if found and os.WIFSTOPPED(status):
            return status
        if found:
            raise ProcessLookupError(errno.ESRCH, "ended")
        if time.monotonic() > deadline:
            raise ImageError(f"pid {pid}", f"did not stop within {PATIENCE_S:g} s")
        time.sleep(0.0005)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"ptrace of {pid}")
