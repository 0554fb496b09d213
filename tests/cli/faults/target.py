"""A process to capture or record, and what must be as before when a command has ended."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gpudedup.processes.tracer import thread_states

SOURCE = Path(__file__).parent / "target.cpp"
FLAGS = ("-std=c++17", "-O1", "-pthread", "-static")
"""A program without libraries has few pages, so that it is captured by few calls."""

PAGES = 8
KSM = Path("/sys/kernel/mm/ksm")
PATIENCE_S = 30


def build(compiler: str, folder: Path) -> Path:
    """Compile the target into ``folder``."""
    program = folder / "target"
    subprocess.run([compiler, *FLAGS, SOURCE, "-o", program], check=True)
    return program


class Target:
    """The process; it writes its area without pause, if ``writes``."""

    def __init__(self, program: Path, *, writes: bool = False) -> None:
        self._running = subprocess.Popen(
            [program, *["writes"] * writes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # Else the kernel writes into each thread on which processor it runs.
            env={"GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
        )
        assert self._running.stdout
        self.pid = self._running.pid
        self.area = int(self._running.stdout.readline())
        self.settings = settings()

    def close(self) -> None:
        self._running.kill()
        self._running.communicate()

    def memory(self, address: int, size: int) -> bytes:
        """Return bytes of its memory."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as file:
            file.seek(address)
            return file.read(size)

    def check_left_alone(self) -> None:
        """Check that it runs, is not traced, and that no setting of it or the kernel changed."""
        _until(lambda: set(thread_states(self.pid).values()) <= set("SRD"))
        status = Path(f"/proc/{self.pid}/status").read_text()
        assert "\nTracerPid:\t0\n" in status
        links = [str(fd.readlink()) for fd in Path(f"/proc/{self.pid}/fd").iterdir()]
        assert not [link for link in links if "userfaultfd" in link]
        flags = Path(f"/proc/{self.pid}/smaps").read_text()
        assert " uw " not in flags
        assert " um " not in flags
        assert settings() == self.settings
        assert self._running.stdin
        assert self._running.stdout
        self._running.stdin.write("?\n")
        assert self._running.stdout.readline() == "awake\n"


def can_protect() -> bool:
    """Return False where writes cannot be recorded by write protection."""
    release = tuple(int(word) for word in platform.release().split(".")[:2])
    return platform.machine() == "x86_64" and release >= (6, 7)


def settings() -> dict[str, str]:
    """Return KSM's settings."""
    names = ("run", "pages_to_scan", "sleep_millisecs", "max_page_sharing", "use_zero_pages")
    return {name: (KSM / name).read_text() for name in names if (KSM / name).exists()}


def _until(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline, "it stays stopped"
        time.sleep(0.001)
