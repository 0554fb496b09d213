"""Numbers and names as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudedup.report.units import plural, printable, share, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (13 << 20, "13 MiB"),
        (3 << 60, "3 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@given(st.integers(0, 1 << 63))
def test_size_is_near(count: int) -> None:
    number, unit = size(count).split()
    scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(unit)
    assert abs(float(number) * scale - count) <= max(0.051 * scale, 0)
    assert float(number) < 1024


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "-"),
        (0, 9, "0.0 %"),
        (1, 10**6, "<0.1 %"),
        (10**6 - 1, 10**6, ">99.9 %"),
        (9, 9, "100.0 %"),
        (1, 3, "33.3 %"),
    ],
)
def test_share(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_plural() -> None:
    assert [plural(n, "page") for n in (0, 1, 2000)] == ["0 pages", "1 page", "2,000 pages"]


@given(st.text(), st.integers(2, 20))
def test_printable_is_safe_and_short(text: str, width: int) -> None:
    safe = printable(text, width)
    assert safe.isprintable()
    assert len(safe) <= width
    assert len(printable(text)) == len(text)


def test_the_end_of_a_path_says_most() -> None:
    assert printable("/usr/lib/x86_64-linux-gnu/libc.so.6", 10) == "…libc.so.6"
