"""The program of a helper process: by ptrace it stops processes, or borrows a userfaultfd.

:mod:`gpudedup.processes.helper` runs it as ``python -I -S tracer.py PARENT SECONDS JOB PID ...``,
so it imports the standard library only; its stdin is a socket to the parent. It is a process of its
own so that nothing is left behind whoever dies: if the parent does, it lets all processes go on; if
it dies itself, the kernel does. All signals but SIGKILL and SIGSTOP are blocked.

It answers with one JSON object: ``{}``, with the userfaultfd attached where that was the job, or
``{"kind": "image" or "unsupported", "pid": PID, "reason": TEXT}`` just before it exits. It works
until the parent ends, or shuts the socket down.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_EVENT_STOP = 128
"""PTRACE_EVENT_STOP: a stop by PTRACE_INTERRUPT or SIGSTOP; other stops deliver a signal."""

_WALL = 0x40000000
_DEAD = "ZX"
"""States of threads that have ended."""

_HALTED = frozenset("TtZX")
"""States of threads that a signal or a tracer stopped, or that have ended."""

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


class Refused(Exception):
    """A process cannot be stopped or used; the arguments are those of the answer."""

    def __init__(self, kind: str, pid: int, reason: str) -> None:
        self.answer = {"kind": kind, "pid": pid, "reason": reason}
        super().__init__(reason)


class Tracer:
    """Traces threads for the parent.

    :param channel: socket to the parent
    :param parent: pid of the parent
    :param patience: seconds that threads may take to stop
    """

    def __init__(self, channel: socket.socket, parent: int, patience: float) -> None:
        self._channel = channel
        self._patience = patience
        self._threads: dict[int, bool] = {}  # traced threads, and whether they are stopped
        self._signalled: dict[int, int] = {}  # pidfds of processes that got SIGSTOP
        woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._woken = woken
        # Not the end of the socket alone: children that the parent forked may have it too.
        self._parent = os.pidfd_open(parent)
        if os.getppid() != parent:
            self.end()
        self._poll = select.poll()
        for fd in (channel.fileno(), self._parent, woken):
            self._poll.register(fd, select.POLLIN)

    def stop(self, pids: list[int]) -> None:
        """Stop all threads of ``pids``; a process that is gone is left out."""
        # A thread that is not stopped yet may start another one.
        while new := [(pid, tid) for pid in pids for tid in self._new_threads(pid)]:
            for pid, tid in new:
                if pid not in self._signalled:
                    self._seize(pid, tid, or_signal=True)
            self._wait_until_stopped({tid: pid for pid, tid in new})
        self._wait_until_signalled()

    def userfaultfd(self, pid: int) -> int:
        """Return a userfaultfd of the memory of ``pid``, and let the process go on."""
        at = _syscall_instruction(pid)
        self._seize(pid, pid, or_signal=False)
        self._wait_until_stopped({pid: pid})
        if pid not in self._threads:
            raise ProcessLookupError
        fd = _borrow(pid, at)
        self._let_go()
        return fd

    def listen(self, timeout: float | None = None) -> None:
        """Wait for a change of a traced thread; end with the parent."""
        for fd, _ in self._poll.poll(None if timeout is None else timeout * 1e3):
            if fd == self._woken:
                with suppress(BlockingIOError):
                    os.read(self._woken, 1 << 16)
                self._reap()
            elif fd == self._parent or not self._receive():
                self.end()

    def end(self) -> NoReturn:
        """Let all processes go on, and exit."""
        self._let_go()
        os._exit(0)

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(1 << 16)
        except ConnectionError:
            return b""

    def _new_threads(self, pid: int) -> list[int]:
        states = {} if pid in self._signalled else thread_states(pid)
        return [t for t, s in states.items() if s not in _DEAD and t not in self._threads]

    def _seize(self, pid: int, tid: int, *, or_signal: bool) -> None:
        """Trace a thread and ask it to stop; or stop its process, where only that is allowed."""
        try:
            _ptrace(_SEIZE, tid)
            self._threads[tid] = False
            _ptrace(_INTERRUPT, tid)
        except OSError as error:
            if thread_states(pid).get(tid, "X") in _DEAD:
                return
            tracer = _field(tid, "TracerPid")
            if tracer not in ("0", str(os.getpid())):
                reason = f"held by pid {tracer}, a debugger or another gpudedup"
            elif error.errno == errno.EPERM and or_signal and self._signal(pid):
                return
            elif error.errno == errno.EPERM:
                hint = "run as its user with kernel.yama.ptrace_scope=0, or as root"
                reason = f"no permission to stop it (ptrace): {hint}"
            else:
                reason = f"cannot be stopped: {error.strerror}"
            raise Refused("image", pid, reason) from None

    def _signal(self, pid: int) -> bool:
        """Send SIGSTOP to a process; return False if that is not allowed either.

        Yama (ptrace_scope=1) lets an ancestor of the process read its memory, but not trace it from
        here. A process that was stopped before stays so.
        """
        try:
            fd = os.pidfd_open(pid)
            if set(thread_states(pid).values()) <= _HALTED:
                os.close(fd)
                self._signalled[pid] = -1
                return True
            self._signalled[pid] = fd
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return True

    def _wait_until_signalled(self) -> None:
        """Wait until the processes that got SIGSTOP have stopped: no child's, so nobody tells."""
        deadline = time.monotonic() + self._patience
        for pid in self._signalled:
            while running := {t: s for t, s in thread_states(pid).items() if s not in _HALTED}:
                if time.monotonic() > deadline:
                    tid, state = next(iter(running.items()))
                    raise Refused("image", pid, _slow(tid, self._patience, state))
                self.listen(0.001)

    def _wait_until_stopped(self, pids: dict[int, int]) -> None:
        """Wait for all traced threads; ``pids`` has the process of each new one."""
        deadline = time.monotonic() + self._patience
        while running := [tid for tid, still in self._threads.items() if not still]:
            left = deadline - time.monotonic()
            if left > 0:
                self.listen(left)
                continue
            tid = running[0]
            state = thread_states(pids[tid]).get(tid, "X")
            if state not in _DEAD:
                raise Refused("image", pids[tid], _slow(tid, self._patience, state))
            # Of a main thread that ends before the others there is no word.
            del self._threads[tid]

    def _reap(self) -> None:
        """Take note of all traced threads that stopped or ended."""
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL | os.WNOHANG)
            except ChildProcessError:
                return
            if not tid:
                return
            if not os.WIFSTOPPED(status):
                # Also lets its own parent know.
                self._threads.pop(tid, None)
            elif status >> 16 == _EVENT_STOP:
                self._threads[tid] = True
            else:
                with suppress(ProcessLookupError):
                    _ptrace(_CONT, tid, data=os.WSTOPSIG(status))

    def _let_go(self) -> None:
        """Detach what is stopped; what is not yet is detached when this process exits."""
        for tid in [tid for tid, still in self._threads.items() if still]:
            with suppress(OSError):
                _ptrace(_DETACH, tid)
            del self._threads[tid]
        for fd in self._signalled.values():
            with suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGCONT)
        self._signalled.clear()


def _slow(tid: int, patience: float, state: str) -> str:
    return f"thread {tid} did not stop within {patience:g} s (state {state})"


def _borrow(pid: int, at: int) -> int:
    """Make a stopped process open a userfaultfd, and return a duplicate of it.

    The registers and the signal mask of its main thread are as before at the end, and its own
    descriptor is closed. A system call that it was in resumes, or ends as after a signal without a
    handler.
    """
    registers = _Registers()
    _ptrace(_GETREGS, pid, data=ctypes.addressof(registers))
    old = list(registers)
    if old[_CS] != _USER_CODE_64:
        raise Refused("unsupported", pid, f"pid {pid} is no 64-bit process")
    mask = ctypes.c_ulonglong()
    _ptrace(_GETSIGMASK, pid, 8, ctypes.addressof(mask))
    # Not SIGTRAP, which ends a single step: where it is blocked, the kernel resets its handler.
    blocked = ctypes.c_ulonglong(~(1 << (signal.SIGTRAP - 1)) & (1 << 64) - 1)
    _ptrace(_SETSIGMASK, pid, 8, ctypes.addressof(blocked))
    try:
        theirs = _call(pid, old, at, _USERFAULTFD, os.O_CLOEXEC | _USER_MODE_ONLY)
        if theirs < 0:
            raise Refused("unsupported", pid, f"userfaultfd: {os.strerror(-theirs)}")
        try:
            return _take_over(pid, theirs)
        finally:
            _call(pid, old, at, _CLOSE, theirs)
    finally:
        _ptrace(_SETREGS, pid, data=ctypes.addressof(registers))
        _ptrace(_SETSIGMASK, pid, 8, ctypes.addressof(mask))


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
    raise Refused("unsupported", pid, f"pid {pid} has no vDSO with a system call")


def _call(pid: int, old: list[int], at: int, number: int, *arguments: int) -> int:
    """Make the process do a system call; return its result."""
    registers = _Registers(*old)
    registers[_RAX], registers[_RIP] = number, at
    # -1: no system call for the kernel to restart.
    registers[_ORIG_RAX] = (1 << 64) - 1
    for place, value in zip((_RDI,), arguments, strict=True):
        registers[place] = value
    _ptrace(_SETREGS, pid, data=ctypes.addressof(registers))
    delivered = 0
    while registers[_RIP] == at:
        # Again, if a SIGSTOP, which cannot be blocked, came first; it is passed on.
        _ptrace(_SINGLESTEP, pid, data=delivered)
        _, status = os.waitpid(pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(errno.ESRCH, "ended")
        delivered = signal.SIGSTOP if status >> 8 == signal.SIGSTOP else 0
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


def thread_states(pid: int) -> dict[int, str]:
    """Return the state letter, as in ``ps``, of every thread; empty if the process is gone."""
    states: dict[int, str] = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (task / "stat").read_bytes()
                states[int(task.name)] = chr(stat[stat.rindex(b")") + 2])
    return states


def _field(tid: int, name: str) -> str:
    """Return a field of a thread's ``status``; "0" if the thread is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{tid}/status").read_text(errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1]
    return "0"


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"ptrace of {tid}")


def _answer(pid: int, work: Callable[[], list[int]]) -> tuple[dict[str, object], list[int]]:
    """Return the answer to a job, and the descriptors that go with it."""
    try:
        return {}, work()
    except Refused as refusal:
        return refusal.answer, []
    except (FileNotFoundError, ProcessLookupError):
        return Refused("image", pid, "no such process").answer, []
    except PermissionError as error:
        where = error.filename or error.strerror
        hint = "run as its user with kernel.yama.ptrace_scope=0, or as root"
        return Refused("image", pid, f"no permission to trace it ({where}): {hint}").answer, []
    except OSError as error:
        reason = f"{error.filename or 'trace'}: {error.strerror}"
        return Refused("image", pid, reason).answer, []


def main(arguments: list[str]) -> NoReturn:
    """Do the job that the arguments name, of one process at least, then wait for the end."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGCHLD})
    user = os.geteuid()
    if os.getuid() != user:
        # Files of other processes are opened as the effective user, but traced as the real one.
        os.setresuid(user, user, user)
    os.closerange(3, 1 << 30)
    parent, patience, job, *rest = arguments
    pids = [int(word) for word in rest]
    channel = socket.socket(fileno=0)
    tracer = Tracer(channel, int(parent), float(patience))

    def work() -> list[int]:
        if job == "stop":
            tracer.stop(pids)
            return []
        if platform.machine() != "x86_64":
            reason = f"calls are injected on x86_64 only, not {platform.machine()}"
            raise Refused("unsupported", pids[0], reason)
        return [tracer.userfaultfd(pids[0])]

    answer, descriptors = _answer(pids[0], work)
    with suppress(OSError):
        socket.send_fds(channel, [json.dumps(answer).encode()], descriptors)
    for fd in descriptors:
        os.close(fd)
    while not answer:
        tracer.listen()
    tracer.end()


if __name__ == "__main__":
    main(sys.argv[1:])
