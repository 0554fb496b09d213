"""How much memory do three workers of one service share, and how much more could they?

``make demo`` runs this. Each worker loads the sources of Python's library, allocates a buffer that
it does not fill, and has data of its own. The commands are printed as they are run; they leave
``dump.arrow`` in the folder.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import ExitStack

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
    # As a module: the command need not be on the path.
    done = subprocess.run([sys.executable, "-m", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Start the workers, capture them, scan the dump."""
    with ExitStack() as running:
        workers = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
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
