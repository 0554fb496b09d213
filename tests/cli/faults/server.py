"""Run commands in forks of a process that has loaded and compiled everything: a run takes 0.1 s.

The server is ``python -W error server.py LIBRARY``, with LIBRARY preloaded. Each line on stdin is a
JSON object: ``{"warm": [words]}`` runs a command in the server itself; ``{"run": [words], "folder":
..., "out": file, "err": file, "seconds": n}`` runs one in a fork, and is answered by
``{"status": wait status}`` when it and all processes that it left have ended.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

_SET_CHILD_SUBREAPER = 36
_MOMENT = time.gmtime(1_700_000_000)


class Server:
    """The server, from outside.

    Python objects come from malloc, so that the calls of mmap are always the same; stdout has no
    buffer, so that what is printed takes as many calls as can be.
    """

    def __init__(self, library: Path, control: Path) -> None:
        self._running = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ, "LD_PRELOAD": str(library), "GPUDEDUP_FAULTS": str(control),
                "PYTHONMALLOC": "malloc", "PYTHONUNBUFFERED": "1",
            },
        )  # fmt: skip

    def _ask(self, **question: object) -> dict[str, Any]:
        assert self._running.stdin
        assert self._running.stdout
        self._running.stdin.write(json.dumps(question) + "\n")
        self._running.stdin.flush()
        answer: dict[str, Any] = json.loads(self._running.stdout.readline())
        return answer

    def warm(self, words: list[str], folder: Path) -> None:
        """Run a command in the server, so that what it loads and compiles is there."""
        code = self._ask(warm=words, folder=str(folder))["code"]
        assert code == 0, f"{words}: code {code}"

    def run(self, words: list[str], folder: Path, out: Path, err: Path, seconds: float) -> int:
        """Run a command in a fork, and return its wait status; -1: it did not end in time."""
        answer = self._ask(
            run=words, folder=str(folder), out=str(out), err=str(err), seconds=seconds
        )
        return int(answer["status"])

    def close(self) -> None:
        """End the server."""
        assert self._running.stdin
        assert self._running.stdout
        self._running.stdin.close()
        self._running.wait(60)
        self._running.stdout.close()


def _warm(words: list[str], folder: str) -> int:
    from gpudedup.cli import main

    os.chdir(folder)
    sys.argv = ["gpudedup", *words]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    if code:
        sys.stderr.write(said.getvalue())
    return code


def _wait(pid: int, seconds: float) -> int:
    """Wait for a process and all that it left; kill them when time is up."""
    deadline = time.monotonic() + seconds
    status = -1
    while True:
        try:
            ended, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if ended == pid:
            status = how
        elif not ended:
            if time.monotonic() > deadline:
                for child in _children():
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                os.waitpid(-1, 0)
                status = -1
                deadline = time.monotonic() + seconds
            time.sleep(0.001)


def _children() -> list[int]:
    return [
        int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ]


def _descriptors() -> set[int]:
    """Return the open descriptors."""
    names = [path.name for path in Path("/proc/self/fd").iterdir()]
    # Without that of the folder that is listed.
    return {int(name) for name in names if Path("/proc/self/fd", name).exists()}


def _run(library: Any, question: dict[str, Any]) -> NoReturn:
    """Be the command, in a fork."""
    for fd, name in ((1, question["out"]), (2, question["err"])):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, fd)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(question["folder"])
    os.environ["GPUDEDUP_FAULTS_ROLE"] = "1"
    sys.argv = ["gpudedup", *question["run"]]
    before = _descriptors()
    code: Any = "no exit"
    from gpudedup.cli import main

    faulthandler.dump_traceback_later(question["seconds"] / 2)
    library.gpudedup_faults_begin()
    try:
        main()
    except SystemExit as end:
        code = end.code
    library.gpudedup_faults_end()
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    for fd in _descriptors() - before:
        with suppress(OSError):
            sys.stderr.write(f"left open: {Path(f'/proc/self/fd/{fd}').readlink()}\n")
    library.gpudedup_faults_begin()
    sys.exit(code)


def _serve(library: Any) -> dict[str, Any] | None:
    """Answer questions; return the one that this fork is to do, or None at the end."""
    for line in sys.stdin:
        question: dict[str, Any] = json.loads(line)
        if "warm" in question:
            answer = {"code": _warm(question["warm"], question["folder"])}
        else:
            gc.collect()
            gc.freeze()
            pid = os.fork()
            if not pid:
                return question
            answer = {"status": _wait(pid, question["seconds"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    loaded = ctypes.CDLL(sys.argv[1])
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    time.gmtime = lambda *_: _MOMENT
    if wanted := _serve(loaded):
        _run(loaded, wanted)
