"""A process that forks a child for each command, so that none waits for imports and compilation.

It reads lines: a list of arguments in JSON begins a command, and its process number is printed;
``wait`` waits until the command, and every process that it left behind, has ended, and prints the
exit code. Before a child is forked no thread runs but jemalloc's, which takes care of forks itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from gpudedup.cli.main import main

PR_SET_CHILD_SUBREAPER = 36
PATIENCE_S = 60.0


def threads() -> set[str]:
    tasks = Path("/proc/self/task")
    return {
        (task / "comm").read_text().strip()
        for task in tasks.iterdir()
        if task.name != str(os.getpid())
    }


def run(arguments: list[str]) -> int:
    """Run a command in this process: what is imported and compiled stays for its children."""
    sys.argv = ["gpudedup", *arguments]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(end.code or 0)


def warm_traces(image: str, path: str) -> int:
    """Generate a trace and replay it, but for the reading of its file: pyarrow has threads for it.

    :param path: file to write it to
    """
    import pyarrow as pa

    import gpudedup as gd

    gd.generate_trace(image, path, gd.Mix("write-heavy", 500))
    table = pa.ipc.open_file(pa.BufferReader(Path(path).read_bytes())).read_all()
    gd.replay(image, table, device_engine="cpu")
    return 0


def wait(pid: int) -> list[int]:
    """Return the exit code of a child, and how many processes it left behind that do not end."""
    _, status = os.waitpid(pid, 0)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)
        except ChildProcessError:
            return [os.waitstatus_to_exitcode(status), 0]
    return [os.waitstatus_to_exitcode(status), 1]


def serve(errors: Path) -> list[str]:
    """Serve until the input ends; return the arguments in a child."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pid = 0
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "warm up":
            answer: object = run(words[1:])
        elif words[0] == "warm traces":
            answer = warm_traces(*words[1:])
        elif words[0] == "wait":
            answer = wait(pid)
        else:
            others = threads() - {"jemalloc_bg_thd"}
            assert not others, f"threads before a fork: {others}"
            sys.stdout.flush()
            # A signal is for the command, not for what this module does before it.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            pid = os.fork()
            if not pid:
                answers.close()
                os.dup2(os.open(errors, os.O_WRONLY | os.O_TRUNC), 2)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                return list(words)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            answer = pid
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return []


if __name__ == "__main__":
    if given := serve(Path(sys.argv[1])):
        # What is left is Python's own end, of a larger process than a command is.
        os._exit(run(given))
