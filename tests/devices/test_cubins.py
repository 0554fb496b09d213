"""Kernels compile with CuPy's NVRTC and nothing else, and their binaries are kept safely."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gpudedup.devices import cubins
from gpudedup.devices.cubins import Cubins
from gpudedup.errors import DeviceError

from .fake_cupy import Nvrtc

needs_cupy = pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the binaries, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpudedup"


@needs_cupy
@pytest.mark.parametrize("architecture", [75, 90, 120])
def test_every_kernel_compiles_without_a_toolkit(architecture: int, tmp_path: Path) -> None:
    script = f"""
        import shutil, sys, warnings
        from pathlib import Path
        warnings.simplefilter("ignore")
        import cupy
        from gpudedup.devices.cubins import Cubins
        from gpudedup.kernels import KERNELS, layouts

        assert not shutil.which("nvcc")
        assert not list(Path(sys.prefix).rglob("cuda_runtime*.h"))
        made = Cubins(cupy.cuda.nvrtc, {architecture})
        for name, kernel in KERNELS.items():
            sizes = (512, 4096, 1 << 16) if kernel.by_page_size else (0,)
            for size in sizes:
                for layout in layouts(size) if size else ("",):
                    binary = made.get(name, size, layout)
                    assert binary[:4] == b"\\x7fELF" and name.encode() in binary, name
    """
    # Nothing of the environment that could lead to a toolkit.
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/nowhere", "CUDA_PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@needs_cupy
def test_a_newer_device_gets_code_that_the_driver_compiles_on(folder: Path) -> None:
    nvrtc = _nvrtc()
    newest = max(nvrtc.getSupportedArchs())
    text = Cubins(nvrtc, newest + 10).get("set_words")
    assert f".target sm_{newest}".encode() in text


@needs_cupy
def test_an_older_device_is_refused() -> None:
    nvrtc = _nvrtc()
    with pytest.raises(DeviceError, match=r"^compute capability 3.5: NVRTC compiles from \d"):
        Cubins(nvrtc, 35)


@needs_cupy
def test_what_does_not_compile_says_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "source", lambda file: "\n__device__ int y = nowhere;\n")
    with pytest.raises(DeviceError, match=r"^copy.cu does not compile: .*\(2\): error: .*nowhere"):
        Cubins(_nvrtc(), 80).get("copy_pages")
    assert not folder.exists()


def _nvrtc() -> Any:
    from cupy.cuda import nvrtc

    return nvrtc


def _damage(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize(
    "harm",
    [_damage, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()],
)
def test_a_binary_is_made_once_and_again_if_damaged(
    folder: Path, harm: Callable[[Path], object]
) -> None:
    nvrtc = Nvrtc()
    first = Cubins(nvrtc, 80).get("digest", 4096, "quad")
    assert Cubins(nvrtc, 80).get("digest", 4096, "quad") == first
    assert nvrtc.compiled == 1
    (kept,) = folder.iterdir()
    harm(kept)
    assert Cubins(nvrtc, 80).get("digest", 4096, "quad") == first
    assert nvrtc.compiled == 2
    Cubins(nvrtc, 80).get("digest", 4096, "octet")
    Cubins(nvrtc, 90).get("digest", 4096, "quad")
    assert nvrtc.compiled == 4
    assert len(list(folder.iterdir())) == 3


def test_a_folder_of_others_is_neither_read_nor_written(folder: Path) -> None:
    nvrtc = Nvrtc()
    folder.mkdir()
    Cubins(nvrtc, 80).get("set_words")
    folder.chmod(0o777)
    Cubins(nvrtc, 80).get("set_words")
    Cubins(nvrtc, 80).get("copy_pages")
    assert nvrtc.compiled == 3
    assert len(list(folder.iterdir())) == 1


def test_a_full_disk_or_no_home_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvrtc = Nvrtc()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Cubins(nvrtc, 80).get("set_words")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Cubins(nvrtc, 80).get("set_words")
    assert nvrtc.compiled == 2
