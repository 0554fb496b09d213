"""XXH3-128 of whole pages, seed 0, compiled by numba; bit-exact with the reference library.

Pages of 512 B and more take XXH3's long path only: stripes of 64 bytes update eight accumulators,
16 stripes make a block, blocks are chained by a scramble. Source: XXH3 in xxhash.h (BSD-2).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.intrinsics import accumulator, multiply_high

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def _words(offset: int, count: int) -> tuple[int, ...]:
    return tuple(
        int.from_bytes(SECRET[offset + 8 * i : offset + 8 * i + 8], "little") for i in range(count)
    )


P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

START = np.array([P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1], np.uint64)
SCRAMBLE_KEYS = np.array(_words(128, 8), np.uint64)
LOW_KEYS = np.array(_words(11, 8), np.uint64)
HIGH_KEYS = np.array(_words(117, 8), np.uint64)

_add_16_stripes = accumulator(16, _words(0, 23))
_add_15_stripes = accumulator(15, _words(0, 22))
_add_7_stripes = accumulator(7, _words(0, 14))
_add_last_stripe = accumulator(1, _words(121, 8))


@njit(nogil=True, inline="always")
def _fold(a, b):  # type: ignore[no-untyped-def]
    """Return the low xor the high half of the 128-bit product."""
    return multiply_high(a, b) ^ (a * b)


@njit(nogil=True, inline="always")
def _merge(acc, keys, start):  # type: ignore[no-untyped-def]
    h = start
    for i in range(0, 8, 2):
        h += _fold(acc[i] ^ keys[i], acc[i + 1] ^ keys[i + 1])
    h ^= h >> np.uint64(37)
    h *= np.uint64(0x165667919E3779F9)
    return h ^ (h >> np.uint64(32))


@njit(nogil=True)
def digest_page(page, page_size, acc):  # type: ignore[no-untyped-def]
    """Return XXH3-128 of one page as (low, high), uint64.

    :param page: address of the page, any alignment
    :param page_size: power of two from 512 to 2 MiB
    :param acc: (8,) uint64, scratch
    """
    at = acc.ctypes.data
    for i in range(8):
        acc[i] = START[i]
    if page_size == 512:
        _add_7_stripes(np.uint64(at), np.uint64(page))
    else:
        for block in range(page_size // 1024 - 1):
            _add_16_stripes(np.uint64(at), np.uint64(page + 1024 * block))
            for i in range(8):
                a = acc[i]
                acc[i] = (a ^ (a >> np.uint64(47)) ^ SCRAMBLE_KEYS[i]) * np.uint64(P32_1)
        _add_15_stripes(np.uint64(at), np.uint64(page + page_size - 1024))
    _add_last_stripe(np.uint64(at), np.uint64(page + page_size - 64))
    size = np.uint64(page_size)
    low = _merge(acc, LOW_KEYS, size * np.uint64(P64_1))
    high = _merge(acc, HIGH_KEYS, ~(size * np.uint64(P64_2)))
    return low, high
