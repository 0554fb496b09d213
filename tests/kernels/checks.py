"""Checks that fail if a kernel breaks its promise.

Tests call them with the kernels as they are, under the address sanitiser, and with mutants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.schema import MAX_PAGE_SIZE, MIN_PAGE_SIZE

from ..engines.common import reference_digest
from .common import UNWRITTEN, Kernels

CONTENT, ZERO, FILLED, ALIAS, UNREADABLE, FOLLOWER, LEFT = range(7)
ALL = (1 << 64) - 1
MIX = 0x9E3779B97F4A7C15
FREE = np.uint64(ALL)
UNWRITTEN_WORD = np.uint64(int.from_bytes(bytes([UNWRITTEN] * 8), "little"))

PAGE_SIZES = [
    1 << bits for bits in range(MIN_PAGE_SIZE.bit_length() - 1, MAX_PAGE_SIZE.bit_length())
]

Pages = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


def pages_of_all_kinds(count: int, page_size: int, seed: int = 0) -> Pages:
    """Return pages of noise, of zeros, of one word repeated, and those two with one bit flipped."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(0, 256, (count, page_size), dtype=np.uint8)
    for i in range(count):
        kind = (i + seed) % 8
        if kind in (1, 3, 4):
            pages[i] = 0
        elif kind in (2, 5, 6, 7):
            pages[i] = np.tile(pages[i, :8], page_size // 8)
        if kind in (3, 5):
            pages[i, rng.integers(0, 8)] ^= 1 << rng.integers(0, 8)
        if kind in (4, 6):
            pages[i, page_size - 1 - rng.integers(0, 8)] ^= 1 << rng.integers(0, 8)
        if kind == 7:
            pages[i, rng.integers(0, page_size)] ^= 1 << rng.integers(0, 8)
    return pages


def digests_of(pages: Pages, low_mask: int = ALL, high_mask: int = ALL) -> Words:
    """Return (n, 2) uint64 digests by the reference library, masked."""
    whole = [reference_digest(page.tobytes()) for page in pages]
    return np.array([(d & ALL & low_mask, d >> 64 & high_mask) for d in whole], np.uint64)


def check_digest(
    kernels: Kernels,
    page_size: int,
    layout: str = "",
    *,
    count: int = 33,
    seed: int = 0,
    low_mask: int = ALL,
    high_mask: int = ALL,
) -> None:
    """Digest pages; compare with xxhash and NumPy."""
    pages = pages_of_all_kinds(count, page_size, seed)
    digests = kernels.unwritten((count, 2), np.uint64)
    classes = kernels.unwritten(count, np.uint8)
    heads = kernels.unwritten(count, np.uint64)
    arguments = (kernels.buffer(pages), count, digests, classes, heads, low_mask, high_mask)
    kernels("digest", *arguments, page_size=page_size, layout=layout)
    words = pages.view(np.uint64)
    same = (words == words[:, :1]).all(1)
    expected = np.where(same, np.where(words[:, 0] == 0, ZERO, FILLED), CONTENT)
    np.testing.assert_array_equal(classes.array, expected)
    np.testing.assert_array_equal(digests.array, digests_of(pages, low_mask, high_mask))
    filled = np.where(expected == FILLED, words[:, 0], UNWRITTEN_WORD)
    np.testing.assert_array_equal(heads.array, filled)


@dataclass(frozen=True)
class Grouping:
    """A stream of digests, inserted in chunks.

    :param digests: (n, 2) uint64
    :param chunk: pages per chunk
    :param slots: slots of the table, more than pages
    :param room: pages that fit into the memory for anchors; None: anchors stay where they are
    :param classes: (n,) uint8; None: all CONTENT
    """

    digests: Words
    chunk: int
    slots: int
    room: int | None = None
    classes: npt.NDArray[np.uint8] | None = None


def check_group(kernels: Kernels, case: Grouping, page_size: int = 512) -> None:
    """Insert and resolve chunk after chunk; compare with a dict."""
    total = len(case.digests)
    table = kernels.buffer(np.full(case.slots, FREE))
    used = kernels.buffer(np.zeros(1, np.uint32))
    store = 0 if case.room is None else 1 << 40
    lowest: dict[tuple[int, int], int] = {}
    places: set[int] = set()
    anchors = 0
    address: Words = np.zeros(0, np.uint64)
    for first in range(0, total, case.chunk):
        count = min(case.chunk, total - first)
        end = first + count
        given = np.zeros(total, np.uint8) if case.classes is None else case.classes
        digests = kernels.buffer(case.digests[:end])
        classes = kernels.buffer(given[first:end])
        found = kernels.unwritten(count, np.uint64)
        heads = kernels.unwritten(count, np.uint64)
        where = kernels.buffer(np.append(address, np.full(count, UNWRITTEN_WORD)))
        kernels("insert", digests, first, count, classes, table, case.slots, found)
        np.testing.assert_array_equal(classes.array, given[first:end])
        for i in range(count):
            if given[first + i] == CONTENT:
                low, high = map(int, case.digests[first + i])
                lowest.setdefault((low, high), first + i)
        # No kernel reads the bytes: any address will do.
        pages = digests.address
        kernels("resolve", pages, page_size, first, count, classes, heads, table, found, where,
                store, case.room or 0, used)  # fmt: skip
        np.testing.assert_array_equal(where.array[:first], address)
        for i in range(count):
            number, place = first + i, int(where.array[first + i])
            if given[number] != CONTENT:
                expected = (given[number], UNWRITTEN_WORD, UNWRITTEN_WORD)
                assert (classes.array[i], heads.array[i], found.array[i]) == expected
                assert not place
                continue
            low, high = map(int, case.digests[number])
            anchor = lowest[low, high]
            is_anchor = anchor == number
            assert heads.array[i] == anchor
            assert classes.array[i] == (CONTENT if is_anchor else FOLLOWER)
            slot = int(found.array[i])
            assert table.array[slot] == (high & ~0xFFFFFFFF) | anchor
            if not is_anchor:
                assert not place
                continue
            anchors += 1
            if case.room is None:
                assert place == pages + page_size * i
            elif place:
                assert not (place - store) % page_size
                assert 0 <= place - store < page_size * case.room
                assert place not in places, "two anchors in one place"
                places.add(place)
        address = where.array.copy()
        if case.room is not None:
            assert len(places) == min(anchors, case.room) == min(int(used.array[0]), case.room)
    taken = table.array[table.array != FREE]
    assert len(taken) == len(lowest)
    assert sorted(taken & np.uint64(0xFFFFFFFF)) == sorted(lowest.values())


def stream(seed: int, count: int, contents: int, bits: int = 128) -> Words:
    """Draw (count, 2) uint64 digests of ``contents`` contents, cut to ``bits`` low bits."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 1 << 64, (contents, 2), dtype=np.uint64)
    masks = [(1 << min(bits, 64)) - 1, (1 << max(bits - 64, 0)) - 1]
    return pool[rng.integers(0, contents, count)] & np.array(masks, np.uint64)


def starting_at_the_end(count: int) -> Words:
    """Return distinct digests of two tags whose probes all start at the last slot of any table."""
    inverse = pow(MIX, -1, 1 << 64)
    rows = [((ALL - i // 2) * inverse & ALL, i % 2 << 32 | i // 4) for i in range(count)]
    return np.array(rows, np.uint64)


@dataclass(frozen=True)
class Settling:
    """A stream of pages whose classes and anchors are known, settled in chunks.

    :param classes: (n,) uint8 after the comparison: CONTENT, ZERO, FILLED, FOLLOWER or LEFT
    :param heads: (n,) uint64: the word of FILLED, the anchor of CONTENT, FOLLOWER and LEFT
    :param chunk: pages per chunk
    :param slots: slots of the table of words, more than pages
    :param offset: number of page 0 in the results
    """

    classes: npt.NDArray[np.uint8]
    heads: Words
    chunk: int
    slots: int
    offset: int = 0


def settling(
    seed: int,
    count: int,
    words: int,
    chunk: int,
    slots: int,
    offset: int = 0,
    kinds: tuple[int, ...] = (CONTENT, ZERO, FILLED, FILLED, FOLLOWER, LEFT),
) -> Settling:
    """Draw a stream of ``count`` pages, the same-filled ones of ``words`` words."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(kinds, count).astype(np.uint8)
    pool = np.append(rng.integers(1, 1 << 64, words, dtype=np.uint64), [np.uint64(ALL)])
    heads = np.arange(count, dtype=np.uint64)
    follows = np.isin(classes, (FOLLOWER, LEFT))
    heads[follows] = rng.integers(0, heads[follows] + 1, dtype=np.uint64)
    filled = classes == FILLED
    heads[filled] = rng.choice(pool, filled.sum())
    return Settling(classes, heads, chunk, slots, offset)


def words_at_the_end(count: int) -> Settling:
    """Return pages of distinct words whose probes all start at the last slot of any table."""
    inverse = pow(MIX, -1, 1 << 64)
    words = np.array([(ALL - i) * inverse & ALL for i in range(count)], np.uint64)
    both = np.tile(words, 2)
    return Settling(np.full(2 * count, FILLED, np.uint8), both, count + 7, 2 * count + 1)


def check_settle(kernels: Kernels, case: Settling) -> None:
    """Settle chunk after chunk; compare with a dict."""
    total = len(case.classes)
    words = kernels.buffer(np.zeros(case.slots, np.uint64))
    lowest = kernels.buffer(np.full(case.slots + 1, 0xFFFFFFFF, np.uint32))
    marks = kernels.buffer(np.zeros(total // 32 + 1, np.uint32))
    counts = kernels.buffer(np.zeros(4, np.uint32))
    seen: dict[int, int] = {}
    lefts = zeros = sharing = 0
    shared: set[int] = set()
    for first in range(0, total, case.chunk):
        end = min(first + case.chunk, total)
        count = end - first
        given, before = case.classes[first:end], case.heads[first:end].copy()
        before[given == ZERO] = UNWRITTEN_WORD
        classes, heads = kernels.buffer(given), kernels.buffer(before)
        found = kernels.unwritten(count, np.uint64)
        kernels("insert_words", first, count, classes, heads, words, lowest, case.slots, found)
        np.testing.assert_array_equal(classes.array, given)
        np.testing.assert_array_equal(heads.array, before)
        filled = given == FILLED
        assert (found.array[~filled] == UNWRITTEN_WORD).all()
        np.testing.assert_array_equal(words.array[found.array[filled]], before[filled])
        expected = []
        for i, (kind, head) in enumerate(zip(given.tolist(), before.tolist(), strict=True)):
            word = 0 if kind == ZERO else head
            same = kind in (ZERO, FILLED)
            expected.append(case.offset + (seen.setdefault(word, first + i) if same else head))
            lefts, zeros = lefts + (kind == LEFT), zeros + (kind == ZERO)
            number = expected[-1] - case.offset
            if kind == FOLLOWER or (kind == FILLED and number != first + i):
                sharing += 1
                shared.add(number)
        kernels(
            "settle", first, count, case.offset, classes, heads, lowest, case.slots, found, marks,
            counts,
        )  # fmt: skip
        settled = np.where(given == FOLLOWER, CONTENT, given)
        np.testing.assert_array_equal(classes.array, settled)
        np.testing.assert_array_equal(heads.array, np.array(expected, np.uint64))
        assert counts.array.tolist() == [lefts, zeros, sharing, len(shared)]
        bits = np.unpackbits(marks.array.view(np.uint8), bitorder="little")
        assert set(np.flatnonzero(bits).tolist()) == shared
    assert lowest.array[case.slots] == seen.pop(0, 0xFFFFFFFF)
    taken = words.array != 0
    known = dict(zip(words.array[taken].tolist(), lowest.array[:-1][taken].tolist(), strict=True))
    assert known == seen
    assert (lowest.array[:-1][~taken] == 0xFFFFFFFF).all()


def check_compare(
    kernels: Kernels, page_size: int, *, first: int = 37, seed: int = 0, groups: int = 3
) -> None:
    """Compare copies that differ in at most one bit; anchors lie in the chunk, elsewhere, nowhere.

    Each of ``groups`` anchors has a follower for every bit of :func:`_sample_bits`, flipped.
    """
    rng = np.random.default_rng(seed)
    places = _sample_bits(page_size, rng)
    earlier = rng.integers(0, 256, (first, page_size), dtype=np.uint8)
    rows: list[tuple[Pages, int, int, int]] = []  # bytes, class, anchor, class expected
    for group in range(groups):
        own = rng.integers(0, 256, page_size, dtype=np.uint8)
        in_chunk = group % 2 == 0 or not first
        anchor = first + len(rows) if in_chunk else int(rng.integers(0, first))
        if in_chunk:
            rows.append((own, CONTENT, anchor, CONTENT))
        else:
            own = earlier[anchor]
        for bit in (*places, None):
            page = own.copy()
            if bit is not None:
                page[bit // 8] ^= 1 << bit % 8
            rows.append((page, FOLLOWER, anchor, FOLLOWER if bit is None else LEFT))
            if rng.integers(0, 4) == 0:
                rows.append((own, FOLLOWER, anchor, FOLLOWER))
            if rng.integers(0, 4) == 0:
                rows.append((page, int(rng.integers(0, 3)), anchor, -1))
    nowhere = first + len(rows)
    rows.append((rows[0][0], CONTENT, nowhere, CONTENT))
    rows.append((rows[0][0], FOLLOWER, nowhere, LEFT))

    pages = kernels.buffer(np.stack([row[0] for row in rows]))
    before = np.array([row[1] for row in rows], np.uint8)
    classes = kernels.buffer(before)
    heads = kernels.buffer(np.array([row[2] for row in rows], np.uint64))
    elsewhere = kernels.buffer(earlier)
    addresses = [elsewhere.address + page_size * i for i in range(first)]
    addresses += [pages.address + page_size * i for i in range(len(rows))]
    addresses[nowhere] = 0
    address = kernels.buffer(np.array(addresses, np.uint64))
    kernels("compare", pages, page_size, first, len(rows), classes, heads, address)
    after = np.array([row[3] for row in rows])
    np.testing.assert_array_equal(classes.array, np.where(after < 0, before, after))


def _sample_bits(page_size: int, rng: np.random.Generator) -> list[int]:
    """Return the numbers of bits at the edges of loads, and some between."""
    edges = {at for step in (16, 64, 512, 2048, page_size // 2) for at in (step - 1, step)}
    edges |= {0, page_size - 1, page_size - 16, page_size - 512}
    edges |= set(rng.integers(0, page_size, 8).tolist())
    return [8 * at + int(rng.integers(0, 8)) for at in sorted(edges) if 0 <= at < page_size]


def check_copy(
    kernels: Kernels, page_size: int, *, gather: bool, scatter: bool, count: int = 21, seed: int = 0
) -> None:
    """Copy pages; compare with NumPy. Some addresses are zero where there are any."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (count + 5, page_size), dtype=np.uint8)
    target = np.full((count + 5, page_size), UNWRITTEN, np.uint8)
    read, write = kernels.buffer(source), kernels.buffer(target)
    rows = np.arange(count)
    reads = rng.integers(0, len(source), count) if gather else rows
    writes = rng.permutation(len(target))[:count] if scatter else rows
    kept = np.ones(count, bool)
    addresses: list[Any] = []
    for used, buffer, numbers in ((scatter, write, writes), (gather, read, reads)):
        at = (buffer.address + page_size * numbers).astype(np.uint64)
        if used:
            skipped = rng.integers(0, 4, count) == 0
            at[skipped] = 0
            kept &= ~skipped
        addresses += [kernels.buffer(at) if used else 0, 0 if used else buffer.address]
    kernels("copy_pages", *addresses, count, page_size)
    target[writes[kept]] = source[reads[kept]]
    write.check()
    np.testing.assert_array_equal(write.array, target)


def check_read(kernels: Kernels, pairs: int, seed: int = 0) -> None:
    """Add up words; compare with NumPy's sum modulo 2^64."""
    words = np.random.default_rng(seed).integers(0, 1 << 64, 2 * pairs, dtype=np.uint64)
    total = kernels.buffer(np.array([7], np.uint64))
    kernels("read_words", kernels.buffer(words), pairs, total)
    assert total.array[0] == np.uint64(7) + words.sum(dtype=np.uint64)
