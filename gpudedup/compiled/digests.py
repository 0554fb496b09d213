"""Digests of pages in memory, without grouping them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.jit import compiled
from gpudedup.compiled.xxh3 import digest_page


@compiled
def digest_into(address, page_size, out):  # type: ignore[no-untyped-def]
    """Write the digests of consecutive pages at an address, uint64, to ``out``, (n, 2) uint64."""
    acc = np.empty(8, np.uint64)
    for i in range(len(out)):
        page = np.uint64(address) + np.uint64(i * page_size)
        out[i, 0], out[i, 1] = digest_page(page, page_size, acc)


def digest_pages(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the low and high half of each page's XXH3-128, (n, 2) uint64.

    :param pages: (n, page_size) uint8, C-contiguous; page_size as for :func:`digest_page`
    """
    out = np.empty((len(pages), 2), np.uint64)
    digest_into(np.uint64(pages.ctypes.data), pages.shape[1], out)
    return out
