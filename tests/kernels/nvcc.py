"""The compile gate with nvcc, where a toolkit is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpudedup.kernels import source

from .gate import ARCHITECTURES, Variant
from .nvrtc import Program

OPTIONS = (
    "-std=c++17",
    "-Werror", "all-warnings",
    "-Xptxas", "-v,-warn-spills,-warn-lmem-usage",
)  # fmt: skip


def find() -> str | None:
    """Return the path of nvcc; None: not installed."""
    return shutil.which("nvcc")


def architectures(nvcc: str) -> list[int]:
    """Return the gate's architectures that this nvcc knows."""
    command = [nvcc, "--list-gpu-code"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in ARCHITECTURES if f"sm_{arch}" in known]


def compile_variant(nvcc: str, variant: Variant, archs: Sequence[int]) -> list[Program]:
    """Compile for several architectures in one call.

    :param variant: file, page size and layout; its architecture is ignored
    :returns: a program per architecture, all with the whole log; one without a cubin on failure
    """
    return compile_text(nvcc, source(variant.file), variant.macros, archs)


def compile_text(
    nvcc: str, text: str, macros: Sequence[str], archs: Sequence[int]
) -> list[Program]:
    """Compile a text as :func:`compile_variant` does.

    Outputs go to a folder of their own: run as root, nvcc deletes even /dev/null.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.cu").write_text(text)
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        keep = ["--keep", "--keep-dir", ".", "-fatbin", "-o", "kernel.fatbin", "kernel.cu"]
        done = subprocess.run(
            [nvcc, *OPTIONS, *macros, *targets, *keep],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        log = done.stdout + done.stderr
        if done.returncode:
            return [Program(None, log or f"nvcc ended with {done.returncode}")]
        cubins = sorted(Path(folder).glob("*.cubin"))
        return [Program(cubin.read_bytes(), log) for cubin in cubins]
