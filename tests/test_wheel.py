"""The wheel, as a user gets it: built, installed into an empty environment, run elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import gpudedup

ROOT = Path(gpudedup.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, without what an earlier build left."""
    out = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, out)
    for name in ("gpudedup", "kernels"):
        shutil.copytree(ROOT / name, out / name, ignore=shutil.ignore_patterns("__pycache__"))
    # A link, as in a checkout; the wheel is built from a source distribution, which has none.
    shutil.rmtree(out / "gpudedup" / "kernels")
    (out / "gpudedup" / "kernels").symlink_to("../kernels")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*build, str(out)], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_it_holds_every_module_and_kernel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source in (ROOT / "gpudedup").rglob("*"):
        if source.suffix in (".py", ".typed"):
            assert str(source.relative_to(ROOT)) in names
    for source in (ROOT / "kernels").iterdir():
        if source.suffix in (".py", ".cu", ".cuh"):
            assert f"gpudedup/kernels/{source.name}" in names
    assert sum(name.endswith(".py") for name in names) == len(
        [*(ROOT / "gpudedup").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]
    )
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)


def test_it_scans_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "empty"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # Dependencies come from this environment, gpudedup does not: without site-packages' .pth files
    # the checkout is not importable.
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet",
         str(wheel)],
        check=True,
    )  # fmt: skip
    where = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "PYTHONPATH": sysconfig.get_path("purelib"),
    }

    def run(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=where, check=True, capture_output=True, text=True
        ).stdout

    home = run(str(python), "-c", "import gpudedup, gpudedup.kernels; print(gpudedup.__file__)")
    assert home.startswith(str(environment))
    gpudedup_command = str(environment / "bin" / "gpudedup")
    answer = json.loads(run(gpudedup_command, "generate", "-o", "g.arrow", "--size", "1M"))
    assert json.loads(run(gpudedup_command, "scan", "g.arrow", "--json"))["totals"] == answer
    assert "could be shared" in run(gpudedup_command, "scan", "g.arrow")
