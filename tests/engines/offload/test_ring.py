"""The ring alone: order, and pieces that are not filled before they were read."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from gpudedup.devices.host import HostDevice
from gpudedup.engines.base import PageClass, PageSource
from gpudedup.engines.offload.ring import RING_BYTES, Order, Piece, Ring, Task
from gpudedup.engines.representatives import new_partition
from gpudedup.errors import DeviceError

from .common import SIZE, unique


@pytest.mark.parametrize("numbers", list(permutations(range(4))))
def test_functions_are_called_in_order(numbers: tuple[int, ...]) -> None:
    order, called = Order(), []
    for at, number in enumerate(numbers):
        order.call(number, lambda number=number: called.append(number))  # type: ignore[misc]
        there = set(numbers[: at + 1])
        assert called == [n for n in range(4) if set(range(n + 1)) <= there]


class Slow(HostDevice):
    """A device that reads a piece when the upload is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def finish(self, event: Any) -> None:
        piece, rows = event
        assert piece.rows[: len(rows)].tolist() == rows
        held = piece.pages[: len(rows) * SIZE].reshape(-1, SIZE)
        assert (held == self.pages[rows]).all(), "filled again before it was read"
        self.seen += rows

    pages: Any = None


def ring_of(pages: Any, threads: int, **options: Any) -> tuple[Ring, Any]:
    source = PageSource.of_array(pages)
    result = new_partition(len(pages), None)
    usual = {"piece_bytes": 4 * SIZE, "drop_zeros": True, "pinned": HostDevice().pinned}
    return Ring(source, result, threads=threads, **{**usual, **options}), result


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_all_pages_arrive_in_the_order_of_their_rows(threads: int) -> None:
    pages = unique(200)
    pages[[0, 7, 8, 9, 10, 11, 150]] = 0
    ring, result = ring_of(pages, threads)
    device, order = Slow(), Order()
    device.pages = pages
    placed: list[list[int]] = []
    lasts: list[bool] = []

    def place(piece: Piece, last: bool) -> None:
        rows = piece.rows[: piece.count].tolist()
        placed.append(rows)
        lasts.append(last)
        if rows:
            piece.device, piece.uploaded = device, (piece, rows)

    ring.add(Task(0, 90, 0, order, place))
    ring.add(Task(90, 200, 23, order, place))
    for _ in range(threads):
        ring.add(None)
    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(ring.work, threading.Event()) for _ in range(threads)]:
            worker.result()
    zero = np.flatnonzero(~pages.any(axis=1)).tolist()
    assert [row for rows in placed for row in rows] == sorted(set(range(200)) - set(zero))
    assert np.flatnonzero(result.classes == PageClass.ZERO).tolist() == zero
    assert lasts == [at in (22, 50) for at in range(51)]
    assert ring.seconds > 0
    # Those in the ring at the end are read later.
    assert len(device.seen) > 200 - 7 - 4 * (threads + 4)


def test_stopped_threads_end() -> None:
    ring, _ = ring_of(unique(4), 2)
    stop = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(ring.work, stop) for _ in range(2)]
        stop.set()
        for worker in workers:
            worker.result()


def test_a_device_that_fails_ends_the_thread() -> None:
    ring, _ = ring_of(unique(400), 1)

    class Lost(HostDevice):
        def finish(self, event: Any) -> None:
            raise DeviceError("lost")

    def place(piece: Piece, last: bool) -> None:
        piece.device = Lost()

    ring.add(Task(0, 400, 0, Order(), place))
    with pytest.raises(DeviceError, match=r"^lost$"):
        ring.work(threading.Event())


@pytest.mark.parametrize(
    ("threads", "piece_bytes", "pages"),
    [(1, 0, 1), (1, SIZE, 1), (2, 4 << 20, (4 << 20) // SIZE), (60, 4 << 20, (1 << 20) // SIZE)],
)
def test_the_ring_stays_small(threads: int, piece_bytes: int, pages: int) -> None:
    made: list[int] = []

    def pinned(size: int) -> Any:
        made.append(size)
        return np.empty(size, np.uint8)

    ring, _ = ring_of(unique(1), threads, piece_bytes=piece_bytes, pinned=pinned)
    assert ring.pages == pages
    assert made == [pages * SIZE] * (threads + 4)
    assert sum(made) <= RING_BYTES
    assert [ring.pieces(rows) for rows in (1, pages, pages + 1)] == [1, 1, 2]
