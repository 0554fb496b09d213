"""Mutated files: case ``number`` of a seed is always the same, whatever ran before it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpudedup.images.dumps.merged_writer import SEAL_MAGIC

from .bases import Base

PAGE_SIZES = (512, 4096, 4096, 65536, 2 << 20)
"""Page sizes that files are read with, if they do not say their own."""

EDGES = [
    *((1 << bit) + more for bit in (0, 3, 8, 12, 16, 31, 32, 47, 63) for more in (-1, 0, 1)),
    (1 << 64) - 1, (1 << 64) - 8, (1 << 63) - 8, (1 << 32) - 8, 5, 6, 64, 255, 512,
]  # fmt: skip
"""Numbers at which something ends."""

MOST_STRETCH = 600


@dataclass
class Case:
    """A mutated file.

    :param size: bytes of the file, which ends with a hole if ``data`` is shorter
    :param edits: what was done to the base
    """

    base: Base
    data: bytearray
    size: int
    page_size: int
    edits: list[str] = field(default_factory=list)


def case(bases: Sequence[Base], seed: int, number: int) -> Case:
    """Return a case."""
    rng = random.Random(seed << 40 | number)
    base = bases[rng.randrange(len(bases))]
    one = Case(base, bytearray(base.data), base.size, rng.choice(PAGE_SIZES))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        edit = rng.choice(EDITS if base.spots else PLAIN)
        if one.data:
            edit(one, rng, bases)
    if base.sealed and len(one.data) == len(base.data) and rng.random() < 0.7:
        _seal(one, base.sealed)
    one.size = max(one.size, len(one.data), 1)
    return one


def _flip(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    at, bit = rng.randrange(len(one.data)), rng.randrange(8)
    one.data[at] ^= 1 << bit
    one.edits.append(f"bit {bit} of {at}")


def _put(one: Case, at: int, width: int, number: int) -> None:
    number &= (1 << 8 * width) - 1
    one.data[at : at + width] = number.to_bytes(width, "little")
    one.edits.append(f"{number:#x} at {at}, {width} bytes")


def _interesting(one: Case, rng: random.Random, before: int) -> int:
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(EDGES)
    if kind == 2:
        return before + rng.choice((-64, -16, -8, -4, -1, 1, 4, 8, 16, 64))
    if kind == 3:
        return len(one.data) + rng.choice((-64, -8, -1, 0, 1, 8))
    if kind == 4:
        return rng.randrange(len(one.data) + 1)
    return rng.getrandbits(64)


def _word(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(one.data)) // width * width
    before = int.from_bytes(one.data[at : at + width], "little")
    _put(one, at, width, _interesting(one, rng, before))


def _header_number(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    at, width = rng.choice(one.base.spots)
    if at + width <= len(one.data):
        before = int.from_bytes(one.data[at : at + width], "little")
        _put(one, at, width, _interesting(one, rng, before))


def _header_number_of_another(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    (at, width), (source, size) = rng.choice(one.base.spots), rng.choice(one.base.spots)
    if at + width <= len(one.data) and source + size <= len(one.data):
        _put(one, at, width, int.from_bytes(one.data[source : source + size], "little"))


def _cut(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    at = rng.randrange(max(one.size, len(one.data)) + 1)
    del one.data[at:]
    one.size = at
    one.edits.append(f"cut off at {at}")


def _stretch(rng: random.Random, length: int) -> tuple[int, int]:
    start = rng.randrange(length)
    return start, start + rng.randrange(1, MOST_STRETCH)


def _splice(one: Case, rng: random.Random, bases: Sequence[Base]) -> None:
    other = rng.choice(bases)
    start, stop = _stretch(rng, len(other.data))
    piece, at = other.data[start:stop], rng.randrange(len(one.data))
    over = rng.choice((0, len(piece)))
    one.data[at : at + over] = piece
    one.edits.append(f"{start}:{stop} of {other.name!r} over {at}:{at + over}")


def _double(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    start, stop = _stretch(rng, len(one.data))
    at = rng.choice((start, rng.randrange(len(one.data))))
    one.data[at:at] = one.data[start:stop]
    one.edits.append(f"{start}:{stop} again at {at}")


def _remove(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    start, stop = _stretch(rng, len(one.data))
    one.size = max(0, one.size - len(one.data[start:stop]))
    del one.data[start:stop]
    one.edits.append(f"without {start}:{stop}")


def _lengthen(one: Case, rng: random.Random, _: Sequence[Base]) -> None:
    more = rng.choice((1, 8, 511, 4096, 70_000))
    one.size = max(one.size, len(one.data)) + more
    one.edits.append(f"{more} zeros more")


Edit = Callable[[Case, random.Random, Sequence[Base]], None]

PLAIN: list[Edit] = [_flip, _word, _word, _splice, _double, _remove, _cut, _lengthen]
EDITS: list[Edit] = [
    *PLAIN, _flip, *[_header_number] * 9, *[_header_number_of_another] * 3,
]  # fmt: skip


def _seal(one: Case, frames: tuple[int, int]) -> None:
    """Give a merged dump the hash of what it is now, so that its reader goes on."""
    at = one.data.rfind(SEAL_MAGIC) - 8 - 32
    first, stop = frames
    if stop <= at:
        hashed = hashlib.sha256(one.data[:first] + one.data[stop:at] + one.data[at + 32 :])
        one.data[at : at + 32] = hashed.digest()
        one.edits.append("sealed again")
