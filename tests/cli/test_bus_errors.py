"""A mapped file that cannot be read any more ends a command with one line, not with SIGBUS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

SCAN = """
import mmap, os, sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pyarrow.compute as pc, pyarrow as pa
import gpudedup
from gpudedup.cli import main
from gpudedup.compiled.jit import compiled
from gpudedup.output import whole_file

@compiled
def total(pages):
    sum = 0
    for at in range(len(pages)):
        sum += pages[at]
    return sum

def in_threads(pages):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(total, np.split(pages, 4)))

touch = {
    "numba, four threads": in_threads,
    "numpy": np.sum,
    "Python": bytes,
    "Arrow": lambda pages: pc.sum(pa.array(pages)),
}[sys.argv.pop()]

def generate(recipe, output, **_):
    '''In the place of the command's work: the map of a file that is cut off under it.'''
    total(np.zeros(4, np.uint8))
    path = Path(str(output) + ".in")
    path.write_bytes(bytes(64 << 12))
    with path.open("rb") as file:
        pages = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    with whole_file(output) as temporary:
        temporary.write_text("half")
        os.truncate(path, 4096)
        touch(pages)

gpudedup.generate = generate
main()
"""


@pytest.mark.parametrize("touch", ["numba, four threads", "numpy", "Python", "Arrow"])
def test_the_file_is_named_and_nothing_is_left(tmp_path: Path, touch: str) -> None:
    """Whoever touches the map: compiled code without the GIL, or code that holds it."""
    arguments = ["generate", "-o", str(tmp_path / "a b\n"), "--size", "4096", touch]
    done = subprocess.run(
        [sys.executable, "-c", SCAN, *arguments], capture_output=True, text=True, check=False
    )
    name = str(tmp_path / "a b\\012.in")
    reason = "cannot be read any more: cut off meanwhile, or a bad disk"
    assert (done.returncode, done.stderr) == (1, f"gpudedup: {name}: {reason}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a b\n.in"]


def test_the_library_has_no_handler(run: Run, tmp_path: Path) -> None:
    """After a command in this process, as before it."""

    def handled() -> bool:
        status = Path("/proc/self/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> 6 & 1)

    before = handled()
    assert run("generate", "-o", tmp_path / "x", "--size", "4096").code == 0
    assert handled() == before
