"""Digests against the reference library."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from numba import njit

from gpudedup.compiled.xxh3 import digest_page


@njit(nogil=True)
def digest_at(page, page_size):  # type: ignore[no-untyped-def]
    return digest_page(np.uint64(page), page_size, np.empty(8, np.uint64))


@pytest.mark.parametrize("page_size", [512 << k for k in range(13)])
@pytest.mark.parametrize("shift", [0, 1, 8, 56])
def test_equals_reference(page_size: int, shift: int) -> None:
    rng = np.random.default_rng([page_size, shift])
    buffer = rng.integers(0, 256, page_size + shift, dtype=np.uint8)
    for page in (buffer[shift:], np.zeros(page_size, np.uint8), np.full(page_size, 0xFF, np.uint8)):
        low, high = digest_at(page.ctypes.data, page_size)
        assert int(low) | int(high) << 64 == xxhash.xxh3_128_intdigest(page.tobytes())
