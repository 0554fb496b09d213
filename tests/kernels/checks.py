"""What each kernel promises, as functions that fail if it does not.

Tests call them with the kernels as they are, under the address sanitiser, and with mutants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.kernels import ATOMIC, FLAGS, LEAF_PAGES, PRESENT, WRITE
from gpudedup.schema import MAX_PAGE_SIZE, MIN_PAGE_SIZE

from ..engines.common import reference_digest
from .common import UNWRITTEN, Buffer, Kernels

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
    """Make pages of noise, of zeros, of one word, and those two with one bit changed somewhere."""
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
    """A stream of digests, taken in chunks.

    :param digests: (n, 2) uint64
    :param chunk: pages at a time
    :param slots: of the table, more than pages
    :param room: of the store, pages; None: the bytes stay where they are
    :param classes: (n,) uint8, or all CONTENT
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
        # Nothing reads the bytes, so that any memory will do.
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
    """Draw digests of pages of so many contents, shrunk to ``bits`` low bits."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 1 << 64, (contents, 2), dtype=np.uint64)
    masks = [(1 << min(bits, 64)) - 1, (1 << max(bits - 64, 0)) - 1]
    return pool[rng.integers(0, contents, count)] & np.array(masks, np.uint64)


def starting_at_the_end(count: int) -> Words:
    """Return digests, all different, that all start to probe at the last slot of any table.

    Half of them have tags in common.
    """
    inverse = pow(MIX, -1, 1 << 64)
    rows = [((ALL - i // 2) * inverse & ALL, i % 2 << 32 | i // 4) for i in range(count)]
    return np.array(rows, np.uint64)


def check_compare(
    kernels: Kernels, page_size: int, *, first: int = 37, seed: int = 0, groups: int = 3
) -> None:
    """Compare copies that differ in at most one bit; anchors lie in the chunk, elsewhere, nowhere.

    Each of ``groups`` anchors has followers with a change at every place that is looked at.
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


def check_set(kernels: Kernels, count: int, *, seed: int = 0) -> None:
    """Store words here and there, in two calls; compare with NumPy."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 64, 2 * count + 3, dtype=np.uint64)
    held = kernels.buffer(words)
    for _ in range(2):
        where = rng.permutation(len(words))[:count]
        values = rng.integers(0, 1 << 64, count, dtype=np.uint64)
        values[rng.integers(0, 2, count) == 0] = 0
        at = (held.address + 8 * where).astype(np.uint64)
        kernels("set_words", kernels.buffer(at), kernels.buffer(values), count)
        words[where] = values
    held.check()
    np.testing.assert_array_equal(held.array, words)


class PageTable:
    """A mapping of a few frames, and a device's copy of its page table with much missing.

    Some pages have all that may be done with them, some not; some have a frame but are not
    present; some share a frame that may only be read; some leaves are not there. Behind the
    directory lies one more leaf, which is none of it.

    :param frames: how many
    :param physical: no table: pages go by the addresses of their frames
    """

    LEAVES = 5

    def __init__(
        self,
        kernels: Kernels,
        page_size: int,
        rng: np.random.Generator,
        *,
        frames: int = 20,
        physical: bool = False,
    ) -> None:
        self.page_size = page_size
        self._rng, self._physical = rng, physical
        self.bytes = rng.integers(0, 256, frames * page_size + FLAGS + 1, dtype=np.uint8)
        """All of the memory in which the frames lie, as it must be."""
        self._held = kernels.buffer(self.bytes)
        self._first = -self._held.address % (FLAGS + 1)
        self.frame_of: dict[int, int] = {}
        """Frames by pages."""
        self._flags: dict[int, int] = {}
        if physical:
            self.frame_of = {self._address(frame): frame for frame in range(frames)}
            self._flags = dict.fromkeys(self.frame_of, PRESENT | WRITE | ATOMIC)
            self.directory: Buffer | int = 0
            self.leaves = 0
            return
        self.leaves = self.LEAVES
        linked = np.sort(rng.permutation(self.leaves)[:-1])
        inside = (LEAF_PAGES * linked[:, None] + np.arange(LEAF_PAGES)).ravel()
        pages = rng.permutation(inside)[: frames + frames // 4].tolist()
        for i, page in enumerate(pages):
            self.frame_of[page] = i if i < frames else int(rng.integers(0, frames))
            bits = (PRESENT, PRESENT | WRITE, PRESENT | ATOMIC, WRITE | ATOMIC)
            odd = i % 8 < len(bits)
            whole = bits[i % 8] if odd else PRESENT | WRITE | ATOMIC
            self._flags[page] = whole if i < frames else PRESENT
        beyond = LEAF_PAGES * self.leaves
        self._absent = np.setdiff1d(np.arange(beyond), pages)
        leaves = kernels.buffer(np.zeros((self.leaves + 1, LEAF_PAGES), np.uint64))
        self.directory = kernels.buffer(np.zeros(self.leaves + 1, np.uint64))
        # Every entry that there is beyond: found, it would be taken for a right one.
        words = {
            leaves.address + 8 * page: self._address(self.frame_of[page]) | self._flags[page]
            for page in pages
        }
        for page in range(beyond, beyond + LEAF_PAGES):
            words[leaves.address + 8 * page] = self._address(0) | PRESENT | WRITE | ATOMIC
        for leaf in (*linked.tolist(), self.leaves):
            words[self.directory.address + 8 * leaf] = leaves.address + 8 * LEAF_PAGES * leaf
        at, values = (np.array(list(part), np.uint64) for part in (words, words.values()))
        kernels("set_words", kernels.buffer(at), kernels.buffer(values), len(words))
        self._kept = leaves

    def pages(self, count: int) -> Words:
        """Draw pages, all different; about a third of them is missing."""
        if self._physical:
            drawn = self._rng.permutation(list(self.frame_of))[: count - 1]
            return np.append(drawn, 0).astype(np.uint64)
        there = self._rng.permutation(list(self.frame_of))[: count - count // 3]
        beyond = LEAF_PAGES * self.leaves
        outside = [beyond, beyond + LEAF_PAGES - 1, beyond + LEAF_PAGES, 1 << 63, ALL]
        gone = self._rng.permutation(self._absent)[: max(0, count - len(there) - len(outside))]
        drawn = np.array([*there.tolist(), *gone.tolist(), *outside], np.uint64)[:count]
        return self._rng.permutation(drawn)

    def missed(self, pages: Words, needed: int) -> npt.NDArray[np.bool_]:
        """Return which of the pages may not be accessed so."""
        flags = [self._flags.get(page, 0) for page in pages.tolist()]
        return np.array([needed & ~bits != 0 for bits in flags], bool)

    def place(self, page: int) -> int:
        """Return where in :attr:`bytes` a page begins."""
        return int(self._first + self.page_size * self.frame_of[page])

    def check(self) -> None:
        """Fail if the memory of the frames is not what it must be."""
        self._held.check()
        np.testing.assert_array_equal(self._held.array, self.bytes)

    def _address(self, frame: int) -> int:
        return int(self._held.address + self._first + self.page_size * frame)


@dataclass(frozen=True)
class Part:
    """Which part of pages is accessed, and how the rows lie on the other side.

    :param shift: bytes before the first row, which is aligned to 16 without
    :param stride: between rows that are stored; None: they lie one after another
    """

    offset: int
    size: int
    shift: int = 0
    stride: int | None = None


def parts(page_size: int) -> list[Part]:
    """Return parts that are moved in words of each width, and one of no bytes."""
    half = page_size // 2
    return [
        Part(0, page_size),
        Part(0, page_size, stride=0),
        Part(0, page_size, shift=8),
        Part(16, page_size - 16),
        Part(half, half, stride=page_size),
        Part(8, page_size - 8),
        Part(1, page_size - 1, shift=1),
        Part(0, 0),
        Part(5, 1, shift=3),
        Part(64, 64, stride=80),
        Part(8, 8),
        Part(24, 8, stride=0),
        Part(16, 13),
        Part(page_size - 13, 13, stride=16),
        Part(3, 64, stride=0),
    ]


def check_load(
    kernels: Kernels,
    page_size: int,
    part: Part,
    *,
    count: int = 21,
    seed: int = 0,
    physical: bool = False,
) -> None:
    """Load rows through a table; compare with NumPy."""
    rng = np.random.default_rng(seed)
    table = PageTable(kernels, page_size, rng, frames=count, physical=physical)
    pages = table.pages(count)
    missed = kernels.unwritten(count, np.uint8)
    out = kernels.unwritten(part.shift + count * part.size, np.uint8)
    kernels("load_pages", table.directory, table.leaves, kernels.buffer(pages), count, part.offset,
            part.size, out.address + part.shift, 0 if physical else missed)  # fmt: skip
    out.check()
    gone = table.missed(pages, PRESENT)
    expected = np.full(out.array.size, UNWRITTEN, np.uint8)
    rows = expected[part.shift :].reshape(count, part.size)
    for i in np.flatnonzero(~gone):
        rows[i] = table.bytes[table.place(int(pages[i])) + part.offset :][: part.size]
    np.testing.assert_array_equal(out.array, expected)
    np.testing.assert_array_equal(missed.array, UNWRITTEN if physical else gone)
    table.check()


def check_store(
    kernels: Kernels,
    page_size: int,
    part: Part,
    *,
    count: int = 21,
    seed: int = 0,
    physical: bool = False,
) -> None:
    """Store rows through a table; compare with NumPy."""
    rng = np.random.default_rng(seed)
    # Not more frames than rows: pages that share one may not be stored to.
    table = PageTable(kernels, page_size, rng, frames=count, physical=physical)
    pages = table.pages(count)
    missed = kernels.unwritten(count, np.uint8)
    stride = part.size if part.stride is None else part.stride
    data = rng.integers(0, 256, part.shift + stride * (count - 1) + part.size, dtype=np.uint8)
    held = kernels.buffer(data)
    kernels("store_pages", table.directory, table.leaves, kernels.buffer(pages), count, part.offset,
            part.size, held.address + part.shift, stride, 0 if physical else missed)  # fmt: skip
    gone = table.missed(pages, PRESENT | WRITE)
    for i in np.flatnonzero(~gone):
        at = table.place(int(pages[i])) + part.offset
        table.bytes[at : at + part.size] = data[part.shift + stride * i :][: part.size]
    np.testing.assert_array_equal(missed.array, UNWRITTEN if physical else gone)
    held.check()
    np.testing.assert_array_equal(held.array, data)
    table.check()


def check_add(
    kernels: Kernels,
    page_size: int,
    *,
    count: int = 300,
    seed: int = 0,
    physical: bool = False,
    in_order: bool = False,
) -> None:
    """Add to few words many times; compare with sums, and see that the words went through them.

    :param in_order: rows must be done one after another
    """
    rng = np.random.default_rng(seed)
    table = PageTable(kernels, page_size, rng, physical=physical)
    pages = rng.choice(table.pages(15), count)
    last = page_size // 8 - 1
    words = rng.choice([0, 1, last - 1, last], count).astype(np.uint32)
    values = rng.integers(1, 1 << 64, count, dtype=np.uint64)
    before = kernels.unwritten(count, np.uint64)
    missed = kernels.unwritten(count, np.uint8)
    kernels("add_words", table.directory, table.leaves, kernels.buffer(pages),
            kernels.buffer(words), kernels.buffer(values), before, missed, count)  # fmt: skip
    gone = table.missed(pages, PRESENT | ATOMIC)
    np.testing.assert_array_equal(missed.array, gone)
    assert (before.array[gone] == UNWRITTEN_WORD).all()
    rows: dict[int, list[int]] = {}
    for i in np.flatnonzero(~gone).tolist():
        rows.setdefault(table.place(int(pages[i])) + 8 * int(words[i]), []).append(i)
    for at, mine in rows.items():
        word = table.bytes[at : at + 8].view(np.uint64)
        if in_order:
            reached = word[0] + np.cumsum(values[mine]) - values[mine]
            np.testing.assert_array_equal(before.array[mine], reached)
        # The words that were met, each of which only one row may have left for the next.
        left = {int(before.array[i]): values[i] for i in mine}
        while int(word[0]) in left:
            word += left.pop(int(word[0]))
        assert not left, "rows that met a word which never was"
    table.check()


def check_page_table(kernels: Kernels, page_size: int, *, physical: bool = False) -> None:
    """Check all kernels of a page table, some rows and parts of pages each."""
    check_set(kernels, 300)
    for seed, part in enumerate(parts(page_size)):
        check_load(kernels, page_size, part, seed=seed, physical=physical)
        check_store(kernels, page_size, part, seed=seed, physical=physical)
    check_add(kernels, page_size, physical=physical)
