"""The text report of unusual scans: no pages, one owner, many owners, collisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import gpudedup as gd
from gpudedup.report.text import CONTENTS, OWNERS, text

PAGE = 512


def test_nothing_read() -> None:
    report = text(gd.scan(np.zeros((0, PAGE), np.uint8)))
    assert "No page could be read: there is nothing to share." in report
    assert "By kind" not in report


def test_one_owner_has_no_split() -> None:
    report = text(gd.scan(np.full((3, PAGE), 5, np.uint8)))
    assert "between owners" not in report
    assert "By owner" not in report
    assert "(same-filled)" in report


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "many.arrow"
    gd.generate(gd.Recipe(pages=300, zero=0, duplicate=1, group_sizes=(2,), owners=15), path)
    report = text(gd.scan(path))
    assert report.count("\nsynthetic[") == OWNERS
    assert f"and {15 - OWNERS} owners more" in report
    shared = report[report.index("Most shared contents") :].split("\n\n")[0]
    assert len(shared.splitlines()) == 2 + CONTENTS


def test_collisions_are_told() -> None:
    result = gd.scan(np.zeros((1, PAGE), np.uint8))
    assert "collision" not in text(result)
    split = replace(result, partition=replace(result.partition, collisions=2))
    assert "2 digest collisions split." in text(split)


def test_neighbours_that_are_shared_alike_are_one_line() -> None:
    pages = np.random.default_rng(3).integers(0, 256, (20, PAGE), dtype=np.uint8)
    report = text(gd.scan([pages, pages[5:10], np.full((4, PAGE), 1, np.uint8)]))
    shared = report[report.index("Most shared contents") :].split("\n\n")[0]
    assert [line.split()[:3] for line in shared.splitlines()[2:]] == [
        ["5", "2", "2.5"],
        ["1", "4", "1.5"],
    ]
    assert "array0 anon 0xa00" in shared
