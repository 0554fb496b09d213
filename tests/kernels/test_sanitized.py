"""The address sanitiser is silent about the kernels, and not about planted faults."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .common import needs_compiler
from .sanitized import RIGHT, WRONG
from .shim.compile import COMPILER

pytestmark = needs_compiler

ROOT = Path(__file__).parents[2]


@cache
def sanitizer() -> str:
    """Return the path of the sanitiser's library; empty if there is none."""
    ask = [COMPILER or "g++", "-print-file-name=libasan.so"]
    found = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    return str(found) if found.is_absolute() and found.exists() else ""


def run(name: str) -> subprocess.CompletedProcess[str]:
    if not sanitizer():
        pytest.skip("needs libasan, the address sanitiser of g++")
    # detect_leaks=0: Python leaks much. LD_PRELOAD: the sanitiser must be the first library.
    environment = os.environ | {"LD_PRELOAD": sanitizer(), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", f"{__package__}.sanitized", name]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", [program.__name__ for program in RIGHT])
def test_no_kernel_leaves_its_buffers(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert "AddressSanitizer" not in done.stderr


@pytest.mark.parametrize("name", [program.__name__ for program in WRONG])
def test_a_planted_fault_is_found(name: str) -> None:
    done = run(name)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr, done.stderr
    assert "buffer-overflow" in done.stderr
