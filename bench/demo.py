"""Three workers of one service, captured and scanned: what ``make demo`` shows.

Each worker loads the same sources of Python's library, keeps a buffer that it has not filled yet,
and has data of its own. Nothing here is special to the tool; the commands are printed as run.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

WORKER = """
import ctypes, os, pathlib, random
# Where the kernel lets only parents read a process (Yama), say that anybody may.
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))
sources = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
library = b"".join(path.read_bytes() for path in sources)
buffer = bytearray(4 << 20)
own = random.Random(os.getpid()).randbytes(4 << 20)
print("ready", flush=True)
input()
"""


def run(*words: str) -> None:
    """Print a command and run it."""
    print("$", shlex.join(words), flush=True)
    code = subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], check=False)
    if code.returncode:
        sys.exit(code.returncode)


def main() -> None:
    """Start the workers, capture them, scan the dump."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        pids = [word for worker in workers for word in ("--pid", str(worker.pid))]
        run("gpudedup", "capture", *pids, "--stop", "--force", "-o", "dump.arrow")
        run("gpudedup", "scan", "dump.arrow")
    finally:
        for worker in workers:
            worker.kill()


if __name__ == "__main__":
    main()
