"""Pages whose answer is known, and work on them in the engine's tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.compiled import splitmix
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.memory import zeros
from gpudedup.compiled.splitmix import GAMMA
from gpudedup.engines.cpu.engine import TASK_BYTES, usable_cores
from gpudedup.errors import WrongResultError
from gpudedup.threads import ThreadPool

PAGE_SIZE = 4096
POPULATIONS = ("random", "mix")
"""random: all pages unique; mix: 30 % zero, 40 % unique, 30 % duplicates, shuffled."""

DUPLICATED_PART = 13.6
"""Pages of mix per content that its duplicates are drawn from."""

_mixed = njit(nogil=True)(splitmix.mixed)

Pages = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]


def content_ids(population: str, pages: int, seed: int = 1) -> Ids:
    """Return for each page the number of its content, (pages,) int64; 0 is the zero page."""
    ids = np.arange(1, pages + 1)
    if population == "random":
        return ids
    rng = np.random.default_rng(seed)
    zero, unique = int(0.3 * pages), int(0.4 * pages)
    ids[:zero] = 0
    contents = max(1, int(pages / DUPLICATED_PART))
    ids[zero + unique :] = pages + 1 + rng.integers(0, contents, pages - zero - unique)
    rng.shuffle(ids)
    return ids


@compiled
def _fill(words, ids):  # type: ignore[no-untyped-def]
    """Fill page i with SplitMix64 of its content's number; 0 gives zeros."""
    for i in range(len(ids)):
        state = np.uint64(ids[i]) << np.uint64(20)
        for j in range(words.shape[1]):
            state += np.uint64(GAMMA)
            words[i, j] = np.uint64(0) if ids[i] == 0 else _mixed(state)


def fill(ids: Ids, page_size: int = PAGE_SIZE) -> Pages:
    """Return the pages of ``ids``, (n, page_size) uint8."""
    pages: Pages = zeros((len(ids), page_size), np.uint8)
    words = pages.view(np.uint64)
    # On all threads, so that where a machine has several nodes all of them hold pages.
    over_tasks(lambda a, b: _fill(words[a:b], ids[a:b]), len(ids), page_size, usable_cores())
    return pages


def expected(ids: Ids) -> Ids:
    """Return the lowest row with the same content, for every row."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def check_equal(what: str, found: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
    """Compare a result with the known answer, row by row.

    :param found, right: (n,) each
    :raises WrongResultError: if they differ
    """
    rows = np.flatnonzero(found != right)
    if len(rows):
        raise WrongResultError(
            f"{what}: wrong in {len(rows)} of {len(right)} rows; in row {rows[0]}"
            f" {found[rows[0]]}, not {right[rows[0]]}"
        )


def check_all(what: str, right: npt.NDArray[np.bool_]) -> None:
    """Raise unless every row is right.

    :param right: (n,) bool
    :raises WrongResultError: if one is not
    """
    if not right.all():
        wrong = np.flatnonzero(~right)
        raise WrongResultError(
            f"{what}: wrong in {len(wrong)} of {len(right)} rows, the first {wrong[0]}"
        )


def over_tasks(
    work: Callable[[int, int], Any], rows: int, page_size: int, threads: int
) -> list[Any]:
    """Call ``work(start, stop)`` for all rows, in the engine's tasks, on ``threads`` threads.

    :return: what the calls returned, in any order
    :raises ThreadError: if a thread cannot be started
    """
    step = max(1, TASK_BYTES // page_size)
    starts = iter(range(0, rows, step))
    found: list[Any] = []

    def run() -> None:
        # next() on a range iterator is atomic under the GIL, and so is append().
        while (start := next(starts, None)) is not None:
            found.append(work(start, min(start + step, rows)))

    with ThreadPool(threads) as pool:
        for worker in [pool.submit(run) for _ in range(threads)]:
            worker.result()
    return found
