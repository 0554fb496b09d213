"""A benchmark as text."""

from __future__ import annotations

import re
from dataclasses import replace

from gpudedup.measuring.benchmark import Benchmark, NotMeasured, Options
from gpudedup.measuring.sections import Line, Section, Spread
from gpudedup.report.benchmark import benchmarked

READ = Line("read", "bytes", 4 * 10**9, (1.0, 0.5, 2.0))
SCAN = Line("exact scan", "bytes", 10**9, (0.125, 0.1, 0.125), {"read": Spread(0.456, 0.1, 2)})
LOAD = Line("load", "pages", 3 * 10**6, (0.001, 0.001, 0.001))
DONE = Benchmark(
    {"cpu": "AMD \x1b[31mEPYC", "cores": 2, "memory_gib": 23.5, "kernel": "6.1"},
    "",
    Options(size=1 << 30, rounds=3, threads=2),
    (
        Section("cpu", "scan of mix", ("read",), (READ, SCAN)),
        Section("manager", "operations", (), (LOAD,)),
    ),
    (NotMeasured("GPU", "there is no NVIDIA driver"),),
)
VERSIONS = {"gpudedup": "0.1.0", "python": "3.12", "system": "Linux 6.1", "numba": "0.65"}


def test_rates_spreads_and_ratios() -> None:
    report = benchmarked(DONE, VERSIONS)
    lines = [re.split(r" {2,}", line.strip()) for line in report.splitlines()]
    assert lines[0] == ["AMD \N{REPLACEMENT CHARACTER}[31mEPYC, 2 cores, 23.5 GiB"]
    assert lines[1] == ["gpudedup 0.1.0, python 3.12, numba 0.65, Linux 6.1"]
    assert lines[2] == ["1 GiB of pages of 4 KiB, 2 threads, 3 rounds"]
    assert lines[4:12] == [
        ["CPU: scan of mix; 3.7 GiB"],
        ["rate", "lowest .. highest", "/ read"],
        ["read", "4.00", "GB/s", "2.00 .. 8.00"],
        ["exact scan", "8.00", "GB/s", "8.00 .. 10.0", "0.46"],
        [""],
        ["Memory manager: operations; 3,000,000 pages"],
        ["rate", "lowest .. highest"],
        ["load", "3,000", "M pages/s", "3,000 .. 3,000"],
    ]
    assert lines[-1] == ["Not measured: GPU: there is no NVIDIA driver"]


def test_rounds_that_differ_much_are_told() -> None:
    assert "In 1 of 3 lines the rounds differ by more than a factor of 2" in benchmarked(
        DONE, VERSIONS
    )
    steady = replace(DONE, sections=DONE.sections[1:])
    assert "the rounds differ" not in benchmarked(steady, VERSIONS)


def test_the_gpu_is_named() -> None:
    report = benchmarked(replace(DONE, gpu="NVIDIA H200 (0)", not_measured=()), VERSIONS)
    assert report.splitlines()[0].endswith("23.5 GiB, NVIDIA H200 (0)")
    assert "Not measured" not in report
