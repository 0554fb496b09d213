"""A kill at any moment, or a full disk, leaves the old file or the new one, never half of one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpudedup as gd

from .common import as_others_see, sha, write_dump

KILLS = 100

SERVER = """
import os, sys
import gpudedup as gd
a, b, merged, restored = sys.argv[1:]

def write(turn):
    gd.merge_images([b, a] if turn % 2 else a, merged, backend="cpu", force=True)
    gd.restore(merged, restored, force=True)

# What takes long is done here once, so that children are killed at work.
write(0)
for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        for turn in range(1 << 30):
            write(turn)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    a, b = write_dump(tmp_path / "a", range(40)), write_dump(tmp_path / "b", range(30, 90))
    out = tmp_path / "out"
    out.mkdir()
    merged, restored = out / "m", out / "r"
    whole = []
    for inputs in (a, [b, a]):
        gd.merge_images(inputs, merged, force=True)
        whole.append(as_others_see(merged))
    rng = random.Random(5)
    cut = 0
    left: list[Path] = []
    arguments = [a, b, merged, restored]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin
        assert server.stdout
        for _ in range(KILLS):
            server.stdin.write("go\n")
            server.stdin.flush()
            pid = int(server.stdout.readline())
            time.sleep(rng.uniform(0, 0.06))
            os.kill(pid, signal.SIGSTOP)
            cut += is_writing(pid)
            os.kill(pid, signal.SIGKILL)
            assert server.stdout.readline() == "dead\n"
            assert not gd.verify(merged, threads=1).damage
            assert as_others_see(merged) in whole
            assert as_others_see(restored) in whole
            left += [path for path in out.iterdir() if path not in (merged, restored)]
        server.stdin.close()
    assert cut > KILLS // 4, "most were killed between two files"
    # Only between getting a name and taking the target's place a file may be left.
    assert len(set(left)) <= KILLS // 8
    assert all(path.suffix == ".tmp" and as_others_see(path) in whole for path in set(left))


def is_writing(pid: int) -> bool:
    """Return whether a process has a file open that has no name."""
    links = (str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())
    return any(link.endswith(" (deleted)") for link in links)


@pytest.mark.parametrize("command", ["merge", "restore"])
def test_no_room_leaves_the_old(tmp_path: Path, command: str) -> None:
    """A limit on the size of files stands for a disk that is full at that byte."""
    raw, merged = tmp_path / "r.mem", tmp_path / "m"
    raw.write_bytes(random.Random(1).randbytes(256 << 10))
    gd.merge_images(raw, merged)
    arguments = {
        "merge": ["merge", str(raw), "-o", str(merged), "--force"],
        "restore": ["restore", str(merged), "-o", str(tmp_path / "old"), "--force"],
    }[command]
    (tmp_path / "old").write_text("old")
    before = {path.name: sha(path) for path in tmp_path.iterdir()}
    for limit in (100, 4096, 200 << 10, 262144 + 5000):
        code = (
            "import resource, sys; from gpudedup.cli import main\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
            "main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr == f"gpudedup: {arguments[-2]}: File too large\n"
        assert {path.name: sha(path) for path in tmp_path.iterdir()} == before
