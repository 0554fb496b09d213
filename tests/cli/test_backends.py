"""Engines on the command line: which one runs and why, and how a command ends when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpudedup.devices import cuda
from gpudedup.errors import UnsupportedHereError

from ..engines.common import population
from ..kernels.shim.device import ShimDevice
from .conftest import Run

REASON = "there is no NVIDIA driver"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(population(1, 300, 4096).tobytes())
    return path


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(numbers: object) -> None:
        raise UnsupportedHereError(REASON)

    monkeypatch.setattr(cuda, "open_devices", none)


def let_there_be(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    """Replace devices by shims; return the list of device numbers that each scan requests."""
    if shutil.which("g++") is None:
        pytest.skip("g++ compiles the kernels for the CPU; it is not installed")
    asked: list[Any] = []

    def open_devices(numbers: Any) -> list[ShimDevice]:
        asked.append(numbers)
        return [ShimDevice(**options) for _ in numbers or [0]]

    monkeypatch.setattr(cuda, "open_devices", open_devices)
    return asked


@pytest.mark.usefixtures("no_device")
def test_no_device(run: Run, image: Path) -> None:
    done = run("scan", image, "--backend", "cuda")
    assert (done.code, done.out) == (4, "")
    assert done.err == f"gpudedup: backend cuda: {REASON}\n"
    done = run("scan", image)
    assert done.code == 0
    assert " on cpu: " in done.out
    assert done.out.endswith(f"\nNot on cuda: {REASON}.\n")
    engine = json.loads(run("scan", image, "--json").out)["engine"]
    assert (engine["name"], engine["passed_over"]) == ("cpu", f"cuda: {REASON}")
    assert "Not on" not in run("scan", image, "--backend", "cpu").out
    assert f"cuda     no       {REASON}" in run("info").out


def test_a_device_is_taken(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = let_there_be(monkeypatch)
    totals = json.loads(run("scan", image, "--json", "--backend", "cpu").out)["totals"]
    found = json.loads(run("scan", image, "--json").out)
    assert found["engine"]["name"] == "cuda"
    assert found["totals"] == totals
    assert {"staging_s", "transfer_s", "kernel_s"} < set(found["timings"])
    done = run("scan", image, "--devices", "1,0", "--device-memory", "64M")
    # Device 0 was open.
    assert asked == [[0], [1]]
    assert (done.code, done.err) == (0, "")
    assert " on cuda: shim (" in done.out
    assert "\nSide by side in it: filling buffers " in done.out


def test_a_device_that_is_lost(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_there_be(monkeypatch, fail_after=20)
    done = run("scan", image, "--backend", "cuda")
    assert (done.code, done.out, done.err) == (1, "", "gpudedup: device lost\n")
    done = run("scan", image)
    assert done.code == 0
    assert done.out.endswith("\nNot on cuda: device lost.\n")


def test_too_little_device_memory(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_there_be(monkeypatch)
    arguments = ("scan", image, "--device-memory", "20K")
    done = run(*arguments, "--backend", "cuda")
    assert (done.code, done.out) == (4, "")
    assert "300 pages need" in done.err
    assert run(*arguments).code == 0


@pytest.mark.parametrize("words", [("--devices", "0,x"), ("--devices", ""), ("--devices", "0,0")])
def test_devices_that_are_none(run: Run, image: Path, words: tuple[str, ...]) -> None:
    done = run("scan", image, *words)
    assert done.code == 2
    assert "devices" in done.err or "is not a list of numbers" in done.err
