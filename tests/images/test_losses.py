"""Losses as lines: the place and the reason, as an error has them."""

from __future__ import annotations

import pytest

from gpudedup.errors import ImageError
from gpudedup.images.losses import Loss, lines


@pytest.mark.parametrize("offset", [None, 0, 4096])
def test_a_loss_reads_like_the_error_of_the_same_place(offset: int | None) -> None:
    loss = Loss("a: b.mem", "1 page could not be read", offset)
    assert str(loss) == str(ImageError("a: b.mem", "1 page could not be read", offset))
    error = loss.error()
    # The name has a colon: nothing is taken apart at one.
    assert (error.path, error.reason, error.offset) == (loss.where, loss.reason, offset)


def test_what_is_only_counted_has_a_line_of_its_own() -> None:
    losses = [Loss("pid 3", "no such process"), Loss("a", "cut", 8)]
    assert lines([]) == []
    assert lines(losses) == ["pid 3: no such process", "a: offset 8: cut"]
    assert lines(losses, 5) == [*lines(losses), "and 5 more such places"]
