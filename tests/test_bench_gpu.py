"""The GPU benchmark runs on the shim too, so that its mistakes show without a GPU."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from .kernels.shim.device import ShimDevice

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not BENCH.is_dir():
        pytest.skip("no bench/ here")
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module("gpu")


def test_it_measures_what_it_names(bench: Any, tmp_path: Path) -> None:
    found = bench.measure(bench.Bench(ShimDevice(), 4 << 20, 3000, 1))
    whats = [comparison.case["what"] for comparison in found]
    assert whats == [
        "the device's memory",
        "the bus, pinned",
        "digest",
        "grouping of 3000 digests",
        "scan of resident pages, random",
        "streamed, random",
        "scan of resident pages, mix",
        "streamed, mix",
        "compare",
    ]
    assert {f"digest {4096} {layout} / read" for layout in ("quad", "octet")} < set(found[2].ratios)
    assert len(bench.goals(found).splitlines()) == 4
    harness = import_module("harness")
    record = json.loads(harness.write("gpu", "?", found, folder=tmp_path, gpu="shim").read_text())
    assert record["gpu"] == "shim"
    assert len(record["comparisons"]) == len(found)


def test_a_wrong_result_is_not_measured(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("gpu_measures"), "expected", lambda ids: ids)
    with pytest.raises(SystemExit, match="WRONG RESULT"):
        bench.measure(bench.Bench(ShimDevice(), 1 << 20, 100, 1))


def test_without_a_gpu_it_says_so(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise bench.UnsupportedHereError("there is no NVIDIA driver")

    monkeypatch.setattr(bench, "open_devices", none)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 4
    assert capsys.readouterr().err == "no GPU to measure: there is no NVIDIA driver\n"
