"""The GPU benchmark runs on the shim too, so that its mistakes show without a GPU."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudedup.kernels import KERNELS
from gpudedup.measuring import device as device_measures
from gpudedup.measuring import launches
from gpudedup.measuring.populations import content_ids, expected, fill

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

    monkeypatch.setattr(device_measures, "expected", wrong)
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


def test_variants_are_measured_against_the_default(bench: Any, tmp_path: Path) -> None:
    run, device = bench.Run(tmp_path, 1e6), ShimDevice()
    run.do_all(bench.sweeps(bench.Bench(device, 8 << 20, 3000, 1)))
    assert not run.wrong
    found = {comparison.case["what"]: comparison for comparison in run.comparisons}
    candidates = {what: set(comparison.seconds) for what, comparison in found.items()}
    loads = {"default", "LOADING plain", "LOADING not in L1"}
    inserts = {"default", "INSERTING always", "INSERTING warp"}
    grids = {"default", "4 blocks, resident", "8 blocks", "16 blocks"}
    assert candidates == {
        "variants of digest 4096 octet": loads,
        "variants of digest 4096 quad": loads,
        "variants of digest 65536 block": loads | {"RESIDENT 2 blocks"},
        "variants of digest 131072 block": loads | {"RESIDENT 3 blocks"},
        "variants of digest 2097152 block": loads | {"RESIDENT 3 blocks"},
        "variants of insert, half new": inserts,
        "variants of insert, all equal": inserts,
        "variants of compare, own anchors": loads,
        "variants of compare, one anchor for 256": loads,
        "variants of read": loads,
        "grids of digest": grids,
        "grids of compare": grids,
        "grids of read_words": grids,
        "grids of insert": grids,
        "variants of a scan, mix": {*loads, "no switch", "INSERTING warp"},
        "chunks of a scan, mix": {"default", "chunks of 64 MiB", "chunks of 256 MiB"},
    }
    for comparison in run.comparisons:
        others = set(comparison.seconds) - {"default"}
        assert set(comparison.ratios) == {f"{name} / default" for name in others}
    assert {grid for name, grid in device.launches if name == "read_words"} == {8, 16, 32}


@pytest.mark.parametrize("shared", [1, 256])
def test_pages_that_are_compared_are_equal(bench: Any, shared: int) -> None:
    """Or compare would end at the first step, and do nothing in the next round."""
    variants = import_module("gpu_variants")
    device = ShimDevice()
    made = bench.Bench(device, 0, 0, 1)
    size = 5 << 20
    if shared == 1:
        memory = variants.noise(made, size, variants.unit(size))
        launch = made.comparing(*launches.halves(memory, variants.unit(size)))
    else:
        memory = variants.noise(made, size, 4096)
        launch = made.comparing(memory, memory, shared)
    launch.queue(device, device.stream())
    _, _, classes, heads, _ = launch.keep
    found, first = np.empty(launch.pages, np.uint8), np.empty(launch.pages, np.uint64)
    device.download(found, classes.address, device.stream())
    device.download(first, heads.address, device.stream())
    device.synchronize()
    assert (found == launches.FOLLOWER).all()
    assert len(np.unique(first)) == -(-launch.pages // shared)
    assert launch.pages == (size >> 12) // (2 if shared == 1 else 1)


@pytest.mark.parametrize("name", ["no switch", "INSERTING warp"])
def test_a_scan_with_other_switches_is_the_same(bench: Any, name: str) -> None:
    variants = import_module("gpu_variants")
    ids = content_ids("mix", 300)
    sizes: list[Any] = []

    class Recording(ShimDevice):
        def launch(self, kernel: str, *arguments: Any, **more: Any) -> None:
            sizes.append((kernel, more["switches"]))
            super().launch(kernel, *arguments, **more)

    device = Recording()
    memory = bench.Bench(device, 0, 0, 1).upload(fill(ids))
    switched = variants.Switched(device, variants.SCANS[name])
    found = variants.OffloadEngine([switched]).partition(device_measures.in_place(memory))
    assert (found.representative == expected(ids)).all()
    wanted = variants.SCANS[name]
    assert dict(sizes)["insert"] == {"INSERTING": wanted["INSERTING"]}
    assert dict(sizes)["compare"] == {k: v for k, v in wanted.items() if k == "LOADING"}
    assert not dict(sizes)["resolve"].keys() - {"INSERTING"}


@pytest.mark.parametrize(("code", "wrong"), [("print('3 passed')", 0), ("1 / 0", 1)])
def test_what_tests_print_is_noted(bench: Any, tmp_path: Path, code: str, wrong: int) -> None:
    run = bench.Run(tmp_path, 100)
    run.do(bench.Step("tests", 1, partial(bench._outcome, run, [sys.executable, "-c", code])))
    assert run.wrong == wrong
    (line,) = _log(tmp_path)
    assert line["found"].startswith(f"exit code {wrong}: " + ("WRONG" if wrong else "3 passed"))


class Compiled(ShimDevice):
    """The shim, with the registers that the compile gate's table has."""

    capability, more, local = 90, 0, 0

    def __init__(self) -> None:
        super().__init__()
        self.switched: set[tuple[Any, ...]] = set()

    def resources(
        self,
        kernel: str,
        page_size: int,
        layout: str,
        switches: Mapping[str, int] | None = None,
    ) -> tuple[int, int]:
        """Return registers and bytes of local memory."""
        if switches:
            self.switched.add((kernel, *switches.items()))
            return 0, self.local
        key = kernel, page_size, layout, self.capability
        return next(row.registers for row in read_table()[1] if row.key == key) + self.more, 0


def test_a_kernel_that_takes_more_than_in_the_table_is_told(bench: Any) -> None:
    compiled = Compiled()
    assert bench.smoke(compiled) == {"capability": 90, "not as in the table": {}}
    assert {name for name, _ in compiled.launches} == set(KERNELS) - {"read_words"}
    assert ("digest", ("RESIDENT", 2)) in compiled.switched
    assert ("insert", ("INSERTING", 2)) in compiled.switched
    compiled.local = 8
    found = bench.smoke(compiled)["not as in the table"]
    assert found["compare 0  {'LOADING': 0}"] == {"local bytes": 8}
    compiled.more, compiled.local = 1, 0
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
