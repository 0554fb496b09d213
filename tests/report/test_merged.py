"""What is printed of merging, restoring and verifying: every word of small ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpudedup.images.base import Absent
from gpudedup.images.dumps.inputs import Input
from gpudedup.merged.merging import Merged
from gpudedup.merged.restoring import RestoredImage
from gpudedup.merged.verifying import Verified
from gpudedup.report.merged import inputs, intact, merged, merged_record, restored

from .common import NOISE, PAGE

DONE = Merged(
    pages=1000, page_size=PAGE, mappings=1, frames=250, kept=0, size=1 << 20, absent=Absent(),
    losses=[], notes=[], seconds={"open_s": 0.25, "scan_s": 1.0000004},
)  # fmt: skip


def told(**changes: Any) -> str:
    return merged("m.arrow", replace(DONE, **changes))


def test_a_merge() -> None:
    assert told() == (
        "m.arrow: 1,000 pages in 1 mapping\n"
        "250 frames of 4 KiB; 3.9 MiB of pages in a file of 1 MiB: 74.4 % saved.\n"
        "Every match was compared byte by byte. 1.25 s.\n"
    )
    absent = Absent(holes=1234, excluded=5, unreadable=1)
    assert told(absent=absent, pages=1, frames=1, mappings=2).splitlines()[:2] == [
        "m.arrow: 1 page in 2 mappings; not in it: 1,234 never populated, 5 excluded, 1 unreadable",
        "1 frame of 4 KiB; 4 KiB of pages in a file of 1 MiB.",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"size": 4096000}, "250 frames of 4 KiB; 3.9 MiB of pages in a file of 3.9 MiB."),
        (
            {"size": 4095999},
            "250 frames of 4 KiB; 3.9 MiB of pages in a file of 3.9 MiB: <0.1 % saved.",
        ),
        (
            {"kept": 249, "page_size": 512},
            "250 frames of 512 B, 1 of them new; 500 KiB of pages in a file of 1 MiB.",
        ),
        (
            {"kept": 250, "size": 2048000},
            "250 frames of 4 KiB, 0 of them new; 3.9 MiB of pages in a file of 2.0 MiB: 50.0 %"
            " saved.",
        ),
    ],
)
def test_what_is_saved_and_what_is_new(changes: dict[str, Any], line: str) -> None:
    assert told(**changes).splitlines()[1] == line


def test_the_record_of_a_merge() -> None:
    record = merged_record(f"m{NOISE}.arrow", replace(DONE, kept=40, absent=Absent(1, 2, 3)))
    assert json.loads(json.dumps(record)) == {
        "schema_version": 1,
        "path": f"m{NOISE}.arrow",
        "page_size": PAGE,
        "pages": 1000,
        "mappings": 1,
        "absent": {"holes": 1, "excluded": 2, "unreadable": 3},
        "frames": 250,
        "new_frames": 210,
        "bytes": 1000 * PAGE,
        "file_bytes": 1 << 20,
        "timings": {"open_s": 0.25, "scan_s": 1.0},
    }


def test_files_that_were_restored() -> None:
    files = [
        RestoredImage(Path("out/a.mem"), "vm 1", 1, 1 << 30),
        RestoredImage(Path("out/b.mem"), "vm 2", 12345, 3 << 19),
    ]
    assert restored(files) == (
        "out/a.mem: 1 page of vm 1, 1 GiB with holes\n"
        "out/b.mem: 12,345 pages of vm 2, 1.5 MiB with holes\n"
    )
    assert restored([]) == ""


def listed(*names: str, format: str = "raw") -> str:
    made: Any = SimpleNamespace(
        inputs=[Input(name, format, 1234 * at, at, 0, {}, None) for at, name in enumerate(names)]
    )
    return inputs(made)


def test_what_a_dump_was_made_of() -> None:
    assert listed("a b.mem", "[red]b[/red]") == (
        "    format   pages   mappings   name\n"
        "0   raw          0          0   a b.mem\n"
        "1   raw      1,234          1   [red]b[/red]\n"
    )
    assert listed() == "   format   pages   mappings   name\n"


def test_a_dump_that_is_intact() -> None:
    found = Verified(12345, 1000, PAGE, 1, [], 0)
    assert intact("m.arrow", found) == (
        "m.arrow: intact. 1,000 frames of 4 KiB match their digests, 12,345 pages in 1 mapping"
        " refer to them"
    )


def test_names_are_safe_for_a_terminal() -> None:
    name = f"a{NOISE}b"
    for report in (
        merged(name, DONE),
        restored([RestoredImage(Path(name), "x", 1, 1), RestoredImage(Path("x"), name, 1, 1)]),
        listed(name),
        intact(name, Verified(1, 1, PAGE, 1, [], 0)),
    ):
        assert "".join(report.split("\n")).isprintable()
        assert "a\N{REPLACEMENT CHARACTER}[31m" in report


def test_a_format_is_safe_for_a_terminal() -> None:
    assert "\x1b" not in listed("a", format="raw\x1b[31m")


def test_names_are_no_emoji() -> None:
    assert listed("a:cat:b.mem").endswith("   a:cat:b.mem\n")
