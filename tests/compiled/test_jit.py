"""Compiled code on disk: found again, never stale, and never needed."""

from __future__ import annotations

import os
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gpudedup
from gpudedup.compiled import jit
from gpudedup.compiled.jit import compiled

PROBE = """
from gpudedup.compiled.helper import number
from gpudedup.compiled.jit import compiled

@compiled
def double(x):
    return number(x) * 2
"""

HELPER = """
from numba import njit

@njit
def number(x):
    return x + {}
"""

CALL = """
from gpudedup.compiled.probe import double
answer = double(20)
stats = double.stats
print(answer, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""

SCAN = """
import numpy as np
import gpudedup
pages = np.zeros((4, 512), np.uint8)
pages[1:3] = 7
print(gpudedup.__file__, gpudedup.scan(pages).totals.distinct_contents)
"""

Run = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a copy of the package with one more compiled function, and no compiled code yet."""
    source, copy = Path(gpudedup.__file__).parent, tmp_path / "site" / "gpudedup"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "compiled" / "probe.py").write_text(PROBE)
    (copy / "compiled" / "helper.py").write_text(HELPER.format(1))
    return copy


@pytest.fixture
def run(package: Path, tmp_path: Path) -> Run:
    """Return a function that runs Python code on the copy, in a process of its own."""

    def call(code: str, cache: str = str(tmp_path / "cache")) -> str:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")},
            "PYTHONPATH": str(package.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": cache,
            "XDG_CACHE_HOME": cache,
        }
        # -P: else modules of the working folder would come before the copy.
        words = [sys.executable, "-P", "-W", "error", "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return call


def make_unwritable(package: Path) -> None:
    """Put a file where ``__pycache__`` would be: root may write to any directory."""
    (package / "compiled" / "__pycache__").write_text("not a directory")


def test_the_second_process_compiles_nothing(run: Run, package: Path) -> None:
    assert run(CALL) == "42 0 1"
    assert run(CALL) == "42 1 0"
    assert list((package / "compiled" / "__pycache__").glob("probe.double*.nbi"))


def test_a_change_in_what_it_calls_makes_it_stale(run: Run, package: Path) -> None:
    """numba alone would check probe.py only, and answer 42."""
    helper = package / "compiled" / "helper.py"
    run(CALL)
    helper.write_text(HELPER.format(2))
    assert run(CALL) == "44 0 1"
    helper.write_text(HELPER.format(1))
    assert run(CALL) == "42 1 0"


@pytest.mark.parametrize(
    ("caller", "constant"),
    [("traces", "mm/probed.py"), ("traces", "engines/probed.py"), ("engines", "kernels/probed.py")],
)
def test_so_does_a_constant_of_any_room(
    run: Run, package: Path, caller: str, constant: str
) -> None:
    """Replays run passes of the memory manager; the host device reads bits of ``kernels``."""
    room = f"gpudedup.{constant.removesuffix('.py').replace('/', '.')}"
    (package / constant).write_text(HELPER.format(1))
    (package / caller / "probe.py").write_text(PROBE.replace("gpudedup.compiled.helper", room))
    call = CALL.replace("gpudedup.compiled.probe", f"gpudedup.{caller}.probe")
    assert run(call) == "42 0 1"
    assert run(call) == "42 1 0"
    (package / constant).write_text(HELPER.format(2))
    assert run(call) == "44 0 1"


def test_a_package_that_cannot_be_written(run: Run, package: Path, tmp_path: Path) -> None:
    make_unwritable(package)
    assert run(CALL) == "42 0 1"
    assert run(CALL) == "42 1 0"
    assert list((tmp_path / "cache").rglob("probe.double*.nbi"))


class Planted:
    """Unpickled, it makes a file: code of whoever wrote the cache runs."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def plant(cache: Path, trace: Path) -> None:
    """Replace all compiled code below ``cache``."""
    indices = [*cache.rglob("probe.double*.nbi")]
    assert indices
    for index in indices:
        index.write_bytes(pickle.dumps(Planted(trace)))


@pytest.mark.parametrize("unsafe", ["owner", "parent", "mode", None])
def test_code_of_others_is_not_loaded(
    run: Run, package: Path, tmp_path: Path, unsafe: str | None
) -> None:
    """Without a fault the planted code runs, or this test would not see it."""
    if unsafe in ("owner", "parent") and os.geteuid():
        pytest.skip("root alone gives files away")
    make_unwritable(package)
    home, trace = tmp_path / "cache", tmp_path / "it ran"
    home.mkdir()
    run(CALL)
    plant(home, trace)
    if unsafe == "owner":
        for path in [*home.rglob("*"), home]:
            os.chown(path, 65534, 65534)
    elif unsafe == "parent":
        os.chown(home, 65534, 65534)
    elif unsafe == "mode":
        (home / "numba").chmod(0o777)
    before = sorted(home.rglob("*"))
    assert run(CALL) == "42 0 1"
    assert trace.exists() == (unsafe is None)
    assert sorted(home.rglob("*")) == before or not unsafe


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_nor_beside_the_source(run: Run, package: Path, tmp_path: Path) -> None:
    """The user's own directory takes the place of the one beside the source."""
    run(CALL)
    beside, trace = package / "compiled" / "__pycache__", tmp_path / "it ran"
    plant(beside, trace)
    os.chown(beside, 65534, 65534)
    assert run(CALL) == "42 0 1"
    assert run(CALL) == "42 1 0"
    assert not trace.exists()


def test_no_home_directory(
    run: Run, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``~`` that stands for nothing is a folder of the working folder, which may be anybody's."""
    make_unwritable(package)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(CALL, cache="~/.cache") == "42 0 1"
    assert run(CALL, cache="~/.cache") == "42 0 1"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_no_place_at_all(run: Run, package: Path) -> None:
    make_unwritable(package)
    assert run(CALL, cache=os.devnull) == "42 0 1"
    assert run(SCAN, cache=os.devnull) == f"{package / '__init__.py'} 2"


def test_a_full_disk(run: Run) -> None:
    """No file may grow beyond 512 bytes: the index fits, the code does not."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
    assert run(limit + CALL) == "42 0 1"
    assert run(CALL) == "42 0 1"
    assert run(CALL) == "42 1 0"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x05garbage", None])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    """Emptied, overwritten, or cut in half; each call makes a new function, as a process would."""
    source = tmp_path / "add.py"
    source.write_text("def add(x):\n    return x + 1\n")

    def call() -> tuple[int, int, int]:
        add = compiled(runpy.run_path(str(source))["add"])
        hits, misses = add.stats.cache_hits, add.stats.cache_misses
        return add(41), sum(hits.values()), sum(misses.values())

    assert call() == (42, 0, 1)
    (path,) = (tmp_path / "__pycache__").glob(f"add.add*.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert call() == (42, 0, 1)
    assert call() == (42, 1, 0)


def test_a_checkout_s_kernels_are_hashed_too(tmp_path: Path) -> None:
    """In a checkout ``gpudedup/kernels`` is a link, which a walk over the package skips."""
    package = tmp_path / "gpudedup"
    (package / "compiled").mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    (package / "kernels").symlink_to("../kernels")
    kernels, found = tmp_path / "kernels" / "__init__.py", set()
    for text in ("LEAF_PAGES = 64", "LEAF_PAGES = 32"):
        kernels.write_text(text)
        jit.hash_of_sources.cache_clear()
        found.add(jit.hash_of_sources(package))
    assert len(found) == 2
