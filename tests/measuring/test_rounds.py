"""Candidates take turns in an order that rotates; ratios are those of the rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpudedup.measuring.rounds import Comparison, interleave, interleave_clocked, timed
from gpudedup.measuring.sections import Spread, section


def test_each_round_begins_with_another_candidate() -> None:
    turns: list[str] = []

    def candidate(name: str) -> Callable[[], float]:
        def run() -> float:
            turns.append(name)
            return len(turns)

        return run

    found = interleave_clocked({name: candidate(name) for name in "abc"}, size=6, rounds=4, x=1)
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert found.seconds == {"a": [4, 9, 11, 13], "b": [5, 7, 12, 14], "c": [6, 8, 10, 15]}
    assert (found.case, found.size) == ({"x": 1}, 6)


@pytest.mark.parametrize(("warm", "calls"), [(True, 3), (False, 2)])
def test_the_warming_call_is_no_sample(warm: bool, calls: int) -> None:
    done: list[int] = []
    found = interleave({"a": lambda: done.append(1)}, size=1, rounds=2, warm=warm)
    assert (len(done), len(found.seconds["a"])) == (calls, 2)
    assert timed(lambda: done.append(1))() >= 0


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    # Medians of each alone, 2 and 2, would give 1.
    found = Comparison({}, 1, {"a": [1, 2, 8], "b": [4, 1, 2]})
    assert found.ratio("a", "b") == 0.5
    assert found.ratios == {"a / b": 0.5}


def test_a_section_has_rates_and_spreads_of_rounds() -> None:
    found = Comparison({}, 8, {"read": [1, 2, 4], "scan": [2, 8, 4], "apply": [1, 1, 1]})
    made = section(
        "cpu", "x", found, against=("read",), others={"apply": ("pages", 3)}, alone=("apply",)
    )
    read, scan, apply = made.lines
    assert (read.rate, read.ratios) == (Spread(4, 2, 8), {})
    assert (scan.rate, scan.ratios) == (Spread(2, 1, 4), {"read": Spread(0.5, 0.25, 1)})
    assert (apply.unit, apply.rate, apply.ratios) == ("pages", Spread(3, 3, 3), {})
    assert made.as_dict()["lines"][1] == {
        "name": "scan",
        "unit": "bytes",
        "amount": 8,
        "seconds": [2, 8, 4],
        "ratios": {"read": {"median": 0.5, "lowest": 0.25, "highest": 1}},
        "rate": {"median": 2, "lowest": 1, "highest": 4},
    }


def test_a_ratio_of_unlike_amounts_is_that_of_the_rates() -> None:
    found = Comparison({}, 10, {"group": [2.0], "digest": [4.0]})
    made = section("gpu", "x", found, against=("digest",), others={"digest": ("pages", 40)})
    assert made.lines[0].ratios == {"digest": Spread(0.5, 0.5, 0.5)}
