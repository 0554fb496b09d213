"""Run code in a child that has little more memory than it begins with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_MORE = 2 << 30
"""Bytes of addresses that the child may have beyond those that it begins with."""

_LIMITED = """
import resource
import sys

{before}

path = sys.argv[1]
with open("/proc/self/statm") as file:
    base = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + {more},) * 2)
began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print("done:", {run})
except ({errors}) as error:
    print("refused:", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began)
"""


def bounded(path: Path, before: str, run: str, errors: str) -> tuple[str, int]:
    """Evaluate ``run``, in which ``path`` is a file, in a child with 2 GiB more than its base.

    :param before: statements that run without a limit: imports, compilation
    :param errors: exceptions that may be raised
    :return: ``done:`` and the value, or ``refused:`` and the message; bytes that the child grew by
    """
    code = _LIMITED.format(before=before, more=_MORE, run=run, errors=errors)
    child = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300, check=False
    )
    assert child.returncode == 0, child.stderr
    said, grown = child.stdout.rstrip().rsplit("\n", 1)
    return said, int(grown) * 1024
