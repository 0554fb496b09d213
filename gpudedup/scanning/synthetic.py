"""Synthetic images, whose totals are known without a scan.

A page is zero or has a *content*, numbered from 0: first those of the groups of duplicates, then
the unique ones. Word w of content c is SplitMix64 started from a mix of c and the seed, so any page
can be made from its number alone. For a given w the word is a bijection of c, so different contents
differ in every word; for a given c it is a bijection of w, so no page is zero or same-filled.

A row's place in the order zero, duplicate, unique is a keyed permutation of its number. So an image
is made piece by piece in bounded memory, and its pages do not depend on the size of the pieces or
on the machine. With the same seed, equal content numbers are equal contents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.splitmix import GAMMA, Words, mix
from gpudedup.errors import OutputError, UsageError
from gpudedup.images.base import BATCH_BYTES
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.output import check_room, whole_file
from gpudedup.scanning.counts import Totals
from gpudedup.schema import check_page_size

TILE_BYTES = 256 << 10
"""Bytes of pages made at a time: with their scratch space they stay in a core's L2."""

MAX_PAGES = 1 << 40
"""Pages of an image must be fewer, and so must those of a group."""

ZERO_PAGE = -1
"""Content number of a zero page."""

_HALF_ROUNDS = 6
"""Rounds of the Feistel network; four make a pseudo-random permutation (Luby and Rackoff)."""

Write = Callable[[int, npt.NDArray[np.uint8]], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Parameters of a synthetic image.

    :param pages: number of pages
    :param page_size: bytes
    :param zero: share of zero pages, rounded to whole pages
    :param duplicate: share of pages whose non-zero content another page has too; as near as whole
        groups allow
    :param group_sizes: pages of a group of duplicates, 2 or more; several values are used in turn
    :param owners: mappings, of (nearly) equal length, that the pages are split into
    :param seed: 0 to 2**64 - 1
    :raises UsageError: if no image can be made so
    """

    pages: int
    page_size: int = 4096
    zero: float = 0.3
    duplicate: float = 0.3
    group_sizes: tuple[int, ...] = (4,)
    owners: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_page_size(self.page_size)
        if self.pages < 1:
            raise UsageError(f"pages {self.pages}: must be at least 1")
        if self.pages >= MAX_PAGES:
            raise UsageError(f"pages {self.pages}: more than a scan numbers, 2**40")
        for name, share in (("zero", self.zero), ("duplicate", self.duplicate)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} {share}: a share lies between 0 and 1")
        if self.zero + self.duplicate > 1:
            raise UsageError(f"zero {self.zero} and duplicate {self.duplicate}: more than 1")
        if min(self.group_sizes, default=0) < 2:
            raise UsageError(f"group sizes {self.group_sizes}: each must be at least 2")
        if max(self.group_sizes) >= MAX_PAGES:
            raise UsageError(f"group sizes {self.group_sizes}: each must be below 2**40")
        if not 1 <= self.owners <= self.pages:
            raise UsageError(f"owners {self.owners}: not from 1 to {self.pages}, the pages")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed {self.seed}: not from 0 to 2**64 - 1")


def answer(recipe: Recipe) -> Totals:
    """Return the totals that a scan of the recipe's image must find."""
    n = recipe.pages
    zero = round(recipe.zero * n)
    groups, duplicates = _whole_groups(recipe.duplicate * n, n - zero, recipe.group_sizes)
    unique = n - zero - duplicates
    return Totals(
        pages=n,
        bytes=n * recipe.page_size,
        frames=n,
        zero_frames=zero,
        distinct_contents=(zero > 0) + groups + unique,
        unique_frames=unique,
        shared_contents=groups,
        sharing_frames=duplicates - groups,
        saved_bytes=(duplicates - groups + zero) * recipe.page_size,
    )


def _whole_groups(wanted: float, limit: int, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return (groups, pages) nearest to ``wanted`` pages, up to ``limit``; the fewer of a tie."""
    turns = min(int(wanted), limit) // sum(sizes)
    best = groups, pages = turns * len(sizes), turns * sum(sizes)
    for size in sizes:
        groups, pages = groups + 1, pages + size
        if pages <= limit and abs(pages - wanted) < abs(best[1] - wanted):
            best = groups, pages
    return best


def generate(
    recipe: Recipe,
    path: str | os.PathLike[str],
    *,
    format: Literal["arrow", "raw"] = "arrow",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Totals:
    """Write the recipe's image to ``path`` and return its totals.

    :param format: ``arrow``: a dump, with recipe and totals as JSON in its metadata
        (``gpudedup.recipe``, ``gpudedup.answer``); ``raw``: page bytes alone, without owners
    :param force: replace an existing file
    :param progress: called with pages done and in total
    :raises UsageError: if ``format`` is neither
    :raises OutputError: if the file exists (without force) or cannot be written; nothing is left
    """
    if format not in ("arrow", "raw"):
        raise UsageError(f"format {format!r}: not one of arrow, raw")
    known = answer(recipe)
    sink = _raw_file(recipe, path, force) if format == "raw" else _dump(recipe, known, path, force)
    step = max(1, BATCH_BYTES // recipe.page_size)
    pages = np.empty((min(step, recipe.pages), recipe.page_size), np.uint8)
    try:
        with sink as write:
            for first in range(0, recipe.pages, step):
                piece = pages[: recipe.pages - first]
                fill_pages(recipe, known, first, piece)
                write(first, piece)
                if progress:
                    progress(first + len(piece), recipe.pages)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from None
    return known


@contextmanager
def _dump(
    recipe: Recipe, known: Totals, path: str | os.PathLike[str], force: bool
) -> Iterator[Write]:
    starts = np.arange(recipe.owners + 1, dtype=np.uint64)
    starts = starts * np.uint64(recipe.pages // recipe.owners) + np.minimum(
        starts, np.uint64(recipe.pages % recipe.owners)
    )
    with DumpWriter(
        path,
        recipe.page_size,
        [Mapping(f"synthetic[{i}]", "", "anon", "", 0) for i in range(recipe.owners)],
        source="synthetic",
        metadata={
            "gpudedup.recipe": json.dumps(asdict(recipe)),
            "gpudedup.answer": json.dumps(asdict(known)),
        },
        force=force,
        pages=recipe.pages,
    ) as dump:

        def write(first: int, pages: npt.NDArray[np.uint8]) -> None:
            row = np.arange(first, first + len(pages), dtype=np.uint64)
            owner = np.searchsorted(starts, row, side="right") - 1
            dump.write(
                PageColumns(first, owner.astype(np.int32), row - starts[owner], frame=row), pages
            )

        yield write


@contextmanager
def _raw_file(recipe: Recipe, path: str | os.PathLike[str], force: bool) -> Iterator[Write]:
    # Unbuffered: a buffered file writes again on closing what did not fit on the disk.
    with (
        whole_file(path, force=force) as temporary,
        temporary.open("wb", buffering=0) as file,
    ):
        check_room(path, recipe.pages * recipe.page_size)

        def write(_: int, pages: npt.NDArray[np.uint8]) -> None:
            # Zero pages too: a hole would be absent.
            rest = pages.reshape(-1).data
            while rest:
                rest = rest[file.write(rest) :]

        yield write


def fill_pages(recipe: Recipe, known: Totals, first: int, out: npt.NDArray[np.uint8]) -> None:
    """Make rows ``first .. first + n - 1`` of the recipe's image.

    :param known: the recipe's :func:`answer`
    :param out: (n, page_size) uint8, C-contiguous
    """
    content = contents_of_rows(recipe, known, first, len(out))
    key = _keys(recipe.seed)[0]
    words = out.view("<u8")
    steps = np.arange(words.shape[1], dtype=np.uint64) * np.uint64(GAMMA)
    tile = max(1, TILE_BYTES // recipe.page_size)
    scratch = np.empty((2, tile, len(steps)), np.uint64)
    for start in range(0, len(out), tile):
        here = content[start : start + tile]
        rows = np.flatnonzero(here != ZERO_PAGE)
        states = mix(here[rows].astype(np.uint64) + key)
        made, spare = scratch[:, : len(rows)]
        np.add(states[:, None], steps, out=made)
        piece = words[start : start + tile]
        piece[here == ZERO_PAGE] = 0
        piece[rows] = mix(made, spare)


def contents_of_rows(
    recipe: Recipe, known: Totals, first: int, count: int
) -> npt.NDArray[np.int64]:
    """Return the contents of rows ``first .. first + count - 1``, (count,) int64.

    :param known: the recipe's :func:`answer`
    """
    rows = np.arange(first, first + count, dtype=np.uint64)
    place = shuffled(rows, recipe.pages, recipe.seed).astype(np.int64) - known.zero_frames
    groups = known.shared_contents
    duplicates = groups + known.sharing_frames
    ends = list(accumulate(recipe.group_sizes))
    turn, rest = np.divmod(place, ends[-1])
    group = turn * len(ends) + np.searchsorted(ends, rest, side="right")
    content = np.where(place < duplicates, group, place - duplicates + groups)
    content[place < 0] = ZERO_PAGE
    return content


def shuffled(rows: Words, pages: int, seed: int) -> Words:
    """Return the places of ``rows`` under a permutation of 0 .. pages - 1 keyed by ``seed``.

    A Feistel network permutes the next power of two; a place beyond the end is permuted again,
    until it lies inside.

    :param rows: (n,) uint64, each below ``pages``
    """
    bits = (pages - 1).bit_length()
    keys = _keys(seed)[1:]
    place = _feistel(rows, bits, keys)
    while len(beyond := np.flatnonzero(place >= pages)):
        place[beyond] = _feistel(place[beyond], bits, keys)
    return place


def _feistel(x: Words, bits: int, keys: Words) -> Words:
    """Permute 0 .. 2**bits - 1; each half in turn is masked with a hash of the other."""
    half = bits // 2
    shift = np.uint64(half)
    low_mask, high_mask = np.uint64((1 << half) - 1), np.uint64((1 << (bits - half)) - 1)
    low, high = x & low_mask, x >> shift
    for low_key, high_key in keys.reshape(-1, 2):
        low ^= mix(high + low_key) & low_mask
        high ^= mix(low + high_key) & high_mask
    return high << shift | low


def _keys(seed: int) -> Words:
    """Return SplitMix64's first outputs: the key of the contents, then the keys of the rounds."""
    steps = np.arange(1, 2 + _HALF_ROUNDS, dtype=np.uint64) * np.uint64(GAMMA)
    return mix(steps + np.uint64(seed))
