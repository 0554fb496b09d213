"""Pieces are read ahead as far as buffers reach, and no further."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from gpudedup.merged.read_ahead import DEPTH, ahead


class AtOnce(Executor):
    """Works as soon as it is asked to, which is as early as a thread could."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except ValueError as error:
            done.set_exception(error)
        return done


@pytest.mark.parametrize("count", [0, 1, DEPTH - 1, DEPTH, 20])
def test_a_piece_keeps_its_buffer_until_the_next_is_asked_for(count: int) -> None:
    buffers = [-1] * DEPTH
    done = []

    def work(number: int) -> int:
        buffers[number % DEPTH] = number
        done.append(number)
        return number

    for at, number in enumerate(ahead(AtOnce(), work, count)):
        assert number == at == buffers[at % DEPTH]
        assert done == list(range(min(at + DEPTH, count))), "all buffers are in use"
    assert len(done) == count


def test_an_error_comes_with_its_own_piece() -> None:
    def work(number: int) -> int:
        if number == 1:
            raise ValueError("piece 1")
        return number

    pieces = ahead(AtOnce(), work, 9)
    assert next(pieces) == 0
    with pytest.raises(ValueError, match="piece 1"):
        next(pieces)
