"""Checks that fail if a kernel of page tables breaks its promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup.kernels import ATOMIC, BRANCH_LEAVES, FLAGS, LEAF_PAGES, PRESENT, WRITE

from .checks import ALL, UNWRITTEN_WORD, Words
from .common import UNWRITTEN, Buffer, Kernels


def check_set(kernels: Kernels, count: int, *, seed: int = 0) -> None:
    """Store words at random places, in two calls; compare with NumPy."""
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

    Some entries have all bits, others lack PRESENT, WRITE or ATOMIC; some alias another page's
    frame, read-only; a leaf and two branches are missing. One more branch lies beyond the end.

    :param frames: number of frames
    :param physical: no table: pages are the addresses of their frames
    """

    BRANCHES = 4
    PLACES = (0, 1, BRANCH_LEAVES - 1, 3 * BRANCH_LEAVES, 4 * BRANCH_LEAVES - 1)
    """Where leaves are, but for one; none in branches 1 and 2."""

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
        """Expected bytes of the memory in which the frames lie."""
        self._held = kernels.buffer(self.bytes)
        self._first = -self._held.address % (FLAGS + 1)
        self.frame_of: dict[int, int] = {}
        """Number of the frame of each page."""
        self._flags: dict[int, int] = {}
        if physical:
            self.frame_of = {self._address(frame): frame for frame in range(frames)}
            self._flags = dict.fromkeys(self.frame_of, PRESENT | WRITE | ATOMIC)
            self.directory: Buffer | int = 0
            self.branches = 0
            return
        self.branches = self.BRANCHES
        linked = np.sort(rng.permutation(self.PLACES)[:-1])
        inside = (LEAF_PAGES * linked[:, None] + np.arange(LEAF_PAGES)).ravel()
        pages = rng.permutation(inside)[: frames + frames // 4].tolist()
        for i, page in enumerate(pages):
            self.frame_of[page] = i if i < frames else int(rng.integers(0, frames))
            bits = (PRESENT, PRESENT | WRITE, PRESENT | ATOMIC, WRITE | ATOMIC)
            odd = i % 8 < len(bits)
            whole = bits[i % 8] if odd else PRESENT | WRITE | ATOMIC
            self._flags[page] = whole if i < frames else PRESENT
        near = (LEAF_PAGES * np.array(self.PLACES)[:, None] + np.arange(LEAF_PAGES)).ravel()
        lacking = BRANCH_LEAVES * LEAF_PAGES * np.array([1, 3]) + [0, -1]
        self._absent = np.setdiff1d(np.append(near, lacking), pages)
        # Entries beyond the end are valid: a kernel that looks there does not miss the page.
        beyond = BRANCH_LEAVES * self.branches
        leaves = kernels.buffer(np.zeros((len(linked) + 1, LEAF_PAGES), np.uint64))
        branches = kernels.buffer(np.zeros((self.branches + 1, BRANCH_LEAVES), np.uint64))
        self.directory = kernels.buffer(np.zeros(self.branches + 1, np.uint64))
        words = {}
        for i, place in enumerate((*linked.tolist(), beyond)):
            leaf, (branch, inside) = leaves.address + 512 * i, divmod(place, BRANCH_LEAVES)
            words[self.directory.address + 8 * branch] = branches.address + 4096 * branch
            words[branches.address + 4096 * branch + 8 * inside] = leaf
            for page in range(LEAF_PAGES * place, LEAF_PAGES * (place + 1)):
                if place == beyond:
                    words[leaf + 8 * (page % LEAF_PAGES)] = self._entry(0, ATOMIC | PRESENT | WRITE)
                elif page in self.frame_of:
                    entry = self._entry(self.frame_of[page], self._flags[page])
                    words[leaf + 8 * (page % LEAF_PAGES)] = entry
        at, values = (np.array(list(part), np.uint64) for part in (words, words.values()))
        kernels("set_words", kernels.buffer(at), kernels.buffer(values), len(words))
        self._kept = leaves, branches

    def pages(self, count: int) -> Words:
        """Draw distinct pages, about a third of them without an entry."""
        if self._physical:
            drawn = self._rng.permutation(list(self.frame_of))[: count - 1]
            return np.append(drawn, 0).astype(np.uint64)
        there = self._rng.permutation(list(self.frame_of))[: count - count // 3]
        beyond = LEAF_PAGES * BRANCH_LEAVES * self.branches
        outside = [beyond, beyond + LEAF_PAGES - 1, beyond + LEAF_PAGES, 1 << 63, ALL]
        gone = self._rng.permutation(self._absent)[: max(0, count - len(there) - len(outside))]
        drawn = np.array([*there.tolist(), *gone.tolist(), *outside], np.uint64)[:count]
        return self._rng.permutation(drawn)

    def missed(self, pages: Words, needed: int) -> npt.NDArray[np.bool_]:
        """Return which pages lack one of the bits ``needed``, (n,) bool."""
        flags = [self._flags.get(page, 0) for page in pages.tolist()]
        return np.array([needed & ~bits != 0 for bits in flags], bool)

    def place(self, page: int) -> int:
        """Return where in :attr:`bytes` a page begins."""
        return int(self._first + self.page_size * self.frame_of[page])

    def check(self) -> None:
        """Fail unless the memory of the frames is :attr:`bytes`."""
        self._held.check()
        np.testing.assert_array_equal(self._held.array, self.bytes)

    def _address(self, frame: int) -> int:
        return int(self._held.address + self._first + self.page_size * frame)

    def _entry(self, frame: int, flags: int) -> int:
        return self._address(frame) | flags


@dataclass(frozen=True)
class Part:
    """The part of each page to access, and the layout of the rows on the other side.

    :param shift: bytes by which the first row lies beyond an address aligned to 16
    :param stride: bytes from row to row of a store; None: rows are contiguous
    """

    offset: int
    size: int
    shift: int = 0
    stride: int | None = None


def parts(page_size: int) -> list[Part]:
    """Return parts that are moved in words of every width, and an empty part."""
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
    kernels("load_pages", table.directory, table.branches, kernels.buffer(pages), count,
            part.offset, part.size, out.address + part.shift,
            0 if physical else missed)  # fmt: skip
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
    kernels("store_pages", table.directory, table.branches, kernels.buffer(pages), count,
            part.offset, part.size, held.address + part.shift, stride,
            0 if physical else missed)  # fmt: skip
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
    """Add to few words many times; check the sums, and the value before of every row.

    :param in_order: rows must be added in order
    """
    rng = np.random.default_rng(seed)
    table = PageTable(kernels, page_size, rng, physical=physical)
    pages = rng.choice(table.pages(15), count)
    last = page_size // 8 - 1
    words = rng.choice([0, 1, last - 1, last], count).astype(np.uint32)
    values = rng.integers(1, 1 << 64, count, dtype=np.uint64)
    before = kernels.unwritten(count, np.uint64)
    missed = kernels.unwritten(count, np.uint8)
    kernels("add_words", table.directory, table.branches, kernels.buffer(pages),
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
        # Follow the word: each value that a row found is what exactly one other row left.
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
