"""The GPU benchmark runs on the shim too, so that its mistakes show without a GPU."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudedup.kernels import KERNELS
from gpudedup.measuring import device
from gpudedup.measuring.populations import expected

from .kernels.gate import read_table
from .kernels.shim.device import ShimDevice

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not BENCH.is_dir():
        pytest.skip("no bench/ here")
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module("gpu")


def _run(bench: Any, folder: Path, budget: float = 1e6) -> Any:
    run = bench.Run(folder, budget)
    run.do_all(bench.measurements(bench.Bench(ShimDevice(), 4 << 20, 3000, 1)))
    return run


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_it_measures_what_it_names(bench: Any, tmp_path: Path) -> None:
    run = _run(bench, tmp_path)
    found = run.comparisons
    assert [comparison.case["what"] for comparison in found] == [
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
    assert "not measured" not in bench.goals(found)
    assert len(bench.goals(found).splitlines()) == len(bench.GOALS)
    log = _log(tmp_path)
    assert [line["step"] for line in log][:2] == ["random: right?", "ceilings"]
    assert log[2]["digest"]["ratios"] == found[2].ratios
    assert not run.wrong
    assert not run.left_out


def test_a_wrong_result_is_dumped_and_the_run_goes_on(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(ids: Any) -> Any:
        right = expected(ids)
        right[[5, 77]] += 1
        return right

    monkeypatch.setattr(device, "expected", wrong)
    run = _run(bench, tmp_path)
    assert run.wrong == 4
    assert len(run.comparisons) == 9
    with np.load(tmp_path / "wrong-random-right-resident.npz") as dump:
        assert dump["rows"].tolist() == [5, 77]
        assert (dump["right"] == dump["found"] + 1).all()
        assert dump["digests"].shape == (2, 2)
    assert _log(tmp_path)[0]["streamed"].startswith("WRONG in 2 rows, the first [5, 77]: ")


def test_a_step_that_fails_does_not_end_the_run(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(import_module("gpu_measures"), "digests", fail)
    run = _run(bench, tmp_path)
    assert run.wrong == 1
    assert len(run.comparisons) == 8
    assert _log(tmp_path)[2]["error"] == "ValueError: no such thing"
    assert "digest: not measured" in bench.goals(run.comparisons)


def test_what_does_not_fit_is_named(bench: Any, tmp_path: Path) -> None:
    run = _run(bench, tmp_path, budget=0)
    assert len(run.left_out) == len(_log(tmp_path)) == 10
    assert not run.comparisons
    assert not run.wrong


@pytest.mark.parametrize(("code", "wrong"), [("print('3 passed')", 0), ("1 / 0", 1)])
def test_what_tests_print_is_noted(bench: Any, tmp_path: Path, code: str, wrong: int) -> None:
    run = bench.Run(tmp_path, 100)
    run.do(bench.Step("tests", 1, partial(bench._outcome, run, [sys.executable, "-c", code])))
    assert run.wrong == wrong
    (line,) = _log(tmp_path)
    assert line["found"].startswith(f"exit code {wrong}: " + ("WRONG" if wrong else "3 passed"))


class Compiled(ShimDevice):
    """The shim, with the registers that the compile gate's table has."""

    capability, more = 90, 0

    def resources(self, kernel: str, page_size: int, layout: str) -> tuple[int, int]:
        """Return registers and bytes of local memory."""
        key = kernel, page_size, layout, self.capability
        return next(row.registers for row in read_table()[1] if row.key == key) + self.more, 0


def test_a_kernel_that_takes_more_than_in_the_table_is_told(bench: Any) -> None:
    compiled = Compiled()
    assert bench.smoke(compiled) == {"capability": 90, "not as in the table": {}}
    assert {name for name, _ in compiled.launches} == set(KERNELS) - {"read_words"}
    compiled.more = 1
    found = bench.smoke(compiled)["not as in the table"]
    assert found["digest 4096 octet"]["registers"] == found["digest 4096 octet"]["in the table"] + 1


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
