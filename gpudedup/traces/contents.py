"""Make what events write from a seed and the index of a page, the same on every machine.

A store writes 8 bytes to the beginning of a page: the word w(seed, index), SplitMix64's finaliser
of ``seed + (index + 1) * gamma``. A file write, or a write through a pin, writes a whole page,
whose word k is the finaliser of ``w + k * gamma``. An atomic addition adds w to the first word. So
equal seeds make equal pages at the same index of different mappings.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.compiled import splitmix
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.splitmix import GAMMA, Words

mixed = njit(nogil=True)(splitmix.mixed)


@njit(nogil=True)
def word_of(seed, index):  # type: ignore[no-untyped-def]
    """Return the word of a seed and an index, uint64."""
    return mixed(np.uint64(seed) + np.uint64(index + 1) * np.uint64(GAMMA))


@compiled
def _fill_words(seed, index, words):  # type: ignore[no-untyped-def]
    for i in range(len(index)):
        words[i] = word_of(seed[i], index[i])


@compiled
def _fill_pages(words, pages):  # type: ignore[no-untyped-def]
    for i in range(len(words)):
        for k in range(pages.shape[1]):
            pages[i, k] = mixed(words[i] + np.uint64(k) * np.uint64(GAMMA))


def words_of(seed: Words, index: npt.NDArray[np.int64]) -> Words:
    """Return the words that stores write, (n,) uint64; seed and index are (n,) too."""
    words = np.empty(len(index), np.uint64)
    _fill_words(seed, index, words)
    return words


def bytes_of(words: Words) -> npt.NDArray[np.uint8]:
    """Return words as little-endian bytes, (n, 8) uint8; a view."""
    return words.view(np.uint8).reshape(-1, 8)


def pages_of(words: Words, page_size: int) -> npt.NDArray[np.uint8]:
    """Return the whole pages that (n,) words of :func:`words_of` make, (n, page_size) uint8."""
    pages = np.empty((len(words), page_size // 8), np.uint64)
    _fill_pages(words, pages)
    return pages.view(np.uint8)
