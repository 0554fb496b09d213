"""What is printed arrives as a whole, or the command fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_does_not_fit_fails(small_disk: Path, unbuffered: str) -> None:
    """A disk that is almost full takes a part of the result first."""
    filling = small_disk / "filling"
    with filling.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    # One page is free, of which the file has all but ten bytes.
    out = small_disk / "out"
    os.truncate(filling, filling.stat().st_size - 4096)
    out.write_bytes(bytes(4086))
    with out.open("ab", buffering=0) as file:
        done = subprocess.run(
            [sys.executable, "-m", "gpudedup", "info", "--json"],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr) == (1, "gpudedup: No space left on device\n")
    assert out.stat().st_size == 4096
