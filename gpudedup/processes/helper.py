"""Run :mod:`gpudedup.processes.tracer`, the process that traces others, and talk to it.

A thread of this process could trace as well, but its stops would be taken by whoever in the program
waits for any child; and a signal that ended the program would leave a traced process where it is.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from gpudedup.errors import ImageError, UnsupportedHereError
from gpudedup.processes import tracer

PATIENCE_S = 5.0
"""Seconds that threads may take to stop: one that waits for a disk stops only when it is served."""


class Helper:
    """Context manager: a process that does one job, and lets go of everything at the end.

    It does the same if this process ends, by SIGKILL too.

    :param job: ``stop``: stop all threads of ``pids``; ``userfaultfd``: borrow one of ``pids[0]``
    :param pids: at least one
    :ivar descriptors: what came with the answer; the caller closes them
    :raises ImageError: if a process is gone, does not stop in time, or may not be traced
    :raises UnsupportedHereError: if the job is not possible here
    """

    def __init__(self, job: str, pids: Sequence[int]) -> None:
        self.descriptors: list[int] = []
        self._pids = pids
        self._job = job
        self._pid, self._pidfd = 0, -1
        self._channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> Self:
        try:
            self._start()
            self._hear()
        except BaseException:
            self._close()
            raise
        return self

    def check(self) -> None:
        """Raise ImageError if the helper has ended, and the processes go on already."""
        if select.select([self._pidfd], [], [], 0)[0]:
            pids = ", ".join(map(str, self._pids))
            raise ImageError(f"pid {pids}", "did not stay stopped: the process that held it ended")

    def _start(self) -> None:
        words = [str(word) for word in (os.getpid(), PATIENCE_S, self._job, *self._pids)]
        try:
            try:
                self._pid = self._spawn(words)
            except PermissionError:
                # This process became another user, for whom the interpreter is out of reach.
                self._pid = self._fork(words)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            reason = f"cannot start a process to stop others with: {error.strerror}"
            raise UnsupportedHereError(reason) from None
        self._theirs.close()

    def _spawn(self, words: list[str]) -> int:
        python = sys.executable or ""
        return os.posix_spawn(
            python,
            [python, "-I", "-S", tracer.__file__, *words],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._theirs.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            # No terminal can end it.
            setsid=True,
            setsigmask=signal.valid_signals(),
        )

    def _fork(self, words: list[str]) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if pid := os.fork():
                return pid
            try:
                os.setsid()
                os.dup2(self._theirs.fileno(), 0)
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 1)
                os.dup2(null, 2)
                tracer.main(words)
            finally:
                os._exit(1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _hear(self) -> None:
        try:
            said, self.descriptors, flags, _ = socket.recv_fds(self._channel, 1 << 16, 1)
        except ConnectionError:
            said, flags = b"", 0
        if flags & socket.MSG_CTRUNC:
            pids = ", ".join(map(str, self._pids))
            raise ImageError(f"pid {pids}", f"its {self._job}: {os.strerror(errno.EMFILE)}")
        if not said:
            raise UnsupportedHereError("the process that stops others ended without a word")
        answer = json.loads(said)
        if answer.get("kind") == "unsupported":
            raise UnsupportedHereError(answer["reason"])
        if answer:
            raise ImageError(f"pid {answer['pid']}", answer["reason"])

    def _close(self) -> None:
        # From the last to the first, whatever one of them raises.
        with ExitStack() as closing:
            if self._pidfd >= 0:
                closing.callback(os.close, self._pidfd)
                self._pidfd = -1
            closing.callback(self._wait)
            closing.callback(self._theirs.close)
            closing.callback(self._channel.close)
            # Not closed only: children that this process forked may have the socket too.
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)

    def _wait(self) -> None:
        if self._pid:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
