"""JSON in the metadata of a dump: anything but what we write is an ImageError of one line."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gpudedup.errors import ImageError
from gpudedup.images.dumps.inputs import MERGED, inputs_of
from gpudedup.images.dumps.writer import ABSENT
from gpudedup.images.opening import open_image

from .arrow_files import batch, plain
from .test_merged import encoded

TEXTS = {
    "a list": "[]",
    "a number": "3",
    "a string": '"x"',
    "null": "null",
    "false": "false",
    "infinite": "1e999",
    "not a number": "NaN",
    "nothing": " ",
    "half": '{"holes": 1',
    "a list of objects": '[{"holes": 1}]',
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"holes": ' * 100_000 + "1" + "}" * 100_000,
    "a long number": '{"holes": ' + "9" * 10_000 + "}",
}


def refused(path: Path) -> str:
    """Return the reason for which the inputs of a dump are refused."""
    with pytest.raises(ImageError) as caught, open_image(path) as image:
        inputs_of(image)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert len(line) < len(str(path)) + 200
    return caught.value.reason


@pytest.mark.parametrize("case", TEXTS)
def test_absent_pages(tmp_path: Path, case: str) -> None:
    for one in (batch(0, 3), encoded()):
        path = plain(tmp_path / "dump", [one], metadata={ABSENT: TEXTS[case]})
        assert refused(path) == f"metadata {ABSENT}: not counts of pages"


@pytest.mark.parametrize("case", TEXTS)
def test_inputs(tmp_path: Path, case: str) -> None:
    path = plain(tmp_path / "dump", [encoded()], metadata={MERGED: TEXTS[case]})
    assert refused(path) == f"metadata {MERGED}: not what a merge writes"


ABSENT_COUNTS = {"holes": 1, "excluded": 0, "unreadable": 2}
RECORD: dict[str, Any] = {
    "version": 1,
    "policy": {},
    "inputs": [
        {
            "name": "a.core", "format": "elf", "rows": 4, "mappings": 1, "frame_base": 0,
            "absent": ABSENT_COUNTS, "metadata": None,
        },
        {
            "name": "b", "format": "arrow", "rows": 2, "mappings": 1, "frame_base": None,
            "absent": ABSENT_COUNTS, "metadata": {"gpudedup.source": "test"},
        },
    ],
}  # fmt: skip

VALUES: list[Any] = [
    None, True, False, -1, 0, 1.0, 1e999, 1 << 64, "", "x", "\ud800", [], ["x"], [[]], {}, {"x": 1},
    {"x": "\udfff"}, {"x": "x"}, {"holes": -1, "excluded": 0, "unreadable": 0},
]  # fmt: skip

LEFT_OUT = object()

PLACES = [
    ("version",), ("inputs",), ("inputs", 0), ("inputs", 1),
    *(("inputs", at, name) for at in (0, 1) for name in RECORD["inputs"][0]),
    ("inputs", 1, "metadata", "gpudedup.source"), ("inputs", 1, "absent", "holes"),
]  # fmt: skip


def is_fine(place: tuple[str | int, ...], value: object) -> bool:
    """Return whether a merge may write ``value``; counts of absent pages that lack are 0."""
    match place[-1]:
        case "frame_base":
            return value is None or (type(value) is int and 0 <= value < 1 << 64)
        case "holes":
            return type(value) is int and value >= 0 and value < 1 << 64
        case "name" | "format" | "gpudedup.source":
            return type(value) is str and value.isascii()
        case "metadata":
            return value in (None, {}, {"x": "x"})
        case "absent":
            return value == {}
    return False


def with_record(path: Path, record: object) -> Path:
    return plain(path, [encoded()], metadata={MERGED: json.dumps(record)})


def test_a_record_that_is_right(tmp_path: Path) -> None:
    with open_image(with_record(tmp_path / "dump", RECORD)) as image:
        found = inputs_of(image)
    assert [(one.name, one.rows, one.frame_base) for one in found] == [
        ("a.core", 4, 0),
        ("b", 2, None),
    ]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_value_of_a_wrong_type(tmp_path: Path, place: tuple[str | int, ...]) -> None:
    """Each part of the record is replaced, and left out."""
    for value in [*VALUES, LEFT_OUT]:
        record = deepcopy(RECORD)
        part: Any = record
        for step in place[:-1]:
            part = part[step]
        if value is LEFT_OUT:
            del part[place[-1]]
        else:
            part[place[-1]] = value
        path = with_record(tmp_path / "dump", record)
        if is_fine(place, value) or (value is LEFT_OUT and len(place) == 4):
            with open_image(path) as image:
                found = inputs_of(image)
            assert [set(one.absent) for one in found] == [set(ABSENT_COUNTS)] * 2
        else:
            reason = refused(path)
            assert MERGED in reason or reason.startswith("merged dump of version"), value
