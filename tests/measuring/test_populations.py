"""Populations are what they are said to be; what differs from the known answer is noticed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gpudedup.errors import ExitCode, WrongResultError
from gpudedup.measuring import populations
from gpudedup.measuring.populations import (
    POPULATIONS,
    check_all,
    check_equal,
    content_ids,
    expected,
    fill,
    over_tasks,
)


def test_the_shares_of_mix() -> None:
    ids = content_ids("mix", 10_000)
    often = Counter(ids.tolist())
    assert often[0] == 3000
    # The unique ones have the lower numbers; of what duplicates are drawn from, a few come up once.
    unique = sum(0 < each <= 10_000 for each in ids.tolist())
    assert unique == 4000
    assert max(often[each] for each in often if 0 < each <= 10_000) == 1
    assert len([each for each in often if each > 10_000]) <= 10_000 / 13.6
    assert (np.diff(ids) < 0).any(), "not shuffled"
    assert (ids == content_ids("mix", 10_000)).all()


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("page_size", [512, 4096])
def test_pages_are_equal_where_their_contents_are(population: str, page_size: int) -> None:
    ids = content_ids(population, 500)
    pages = fill(ids, page_size)
    first: dict[bytes, int] = {}
    for row, page in enumerate(pages):
        first.setdefault(page.tobytes(), row)
    right = [first[page.tobytes()] for page in pages]
    assert expected(ids).tolist() == right
    assert {ids[row] for row in range(500) if not pages[row].any()} <= {0}
    assert len(first) == len(set(ids.tolist()))


@pytest.mark.parametrize("threads", [1, 3])
def test_tasks_cover_all_rows(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(populations, "TASK_BYTES", 3 * 512)
    found = over_tasks(lambda start, stop: list(range(start, stop)), 10, 512, threads)
    assert sorted(row for rows in found for row in rows) == list(range(10))
    assert len(found) == 4


def test_a_task_that_fails_is_told() -> None:
    def fail(start: int, stop: int) -> None:
        raise ValueError("no such task")

    with pytest.raises(ValueError, match="no such task"):
        over_tasks(fail, 10, 512, 2)


def test_a_wrong_result_is_named() -> None:
    check_equal("x", np.arange(3), np.arange(3))
    check_all("x", np.ones(3, np.bool_))
    with pytest.raises(WrongResultError) as equal:
        check_equal("scan", np.array([0, 7, 2, 9]), np.arange(4))
    assert str(equal.value) == "scan: wrong in 2 of 4 rows; in row 1 7, not 1"
    with pytest.raises(WrongResultError) as each:
        check_all("copy", np.array([True, False, True]))
    assert str(each.value) == "copy: wrong in 1 of 3 rows, the first 1"
    assert equal.value.exit_code == ExitCode.FAILED
