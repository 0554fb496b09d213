"""CUDA kernels of the scan engine and of the manager's page tables; installed as gpudedup.kernels.

The first lines of each file state its grid, alignment, loads in flight and oracle. Files include
nothing but one another, so that NVRTC, nvcc and (under the shim of the tests) g++ compile the same
text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

LAYOUTS = ("quad", "octet", "block")
"""Layouts of threads over pages to digest, see ``digest.cu``."""

SMALLEST_BLOCK_PAGE = 64 << 10
"""Bytes of the smallest page that layout ``block`` takes."""

BLOCKS_PER_MULTIPROCESSOR = 8
"""Blocks of a grid per multiprocessor: all that fit; a grid takes more pages in strides."""

LEAF_PAGES = 64
"""Entries of a leaf of a device's page table, see ``page_table.cu``."""

BRANCH_LEAVES = 512
"""Leaves of a branch of a device's page table."""

PRESENT, WRITE, ATOMIC = 1, 2, 4
"""Bits of an entry that allow loads, stores and atomics."""

FLAGS = 511
"""Mask of an entry's bits below the frame's address."""


_DTYPES: dict[str, np.dtype[Any]] = {"u32": np.dtype(np.uint32), "u64": np.dtype(np.uint64)}


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a kernel is launched.

    :param file: source file
    :param pages: pages, or rows, that a block takes at a time
    :param parameters: types of its parameters, as ``common.cuh`` names them; pointers are u64
    :param threads: threads per block, as in its ``__launch_bounds__``
    :param by_page_size: True where it is compiled for one page size
    """

    file: str
    pages: int
    parameters: str
    threads: int = 256
    by_page_size: bool = False

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """Return the dtypes of its arguments."""
        return tuple(_DTYPES[name] for name in self.parameters.split())

    def nothing(self) -> tuple[np.generic, ...]:
        """Return arguments with which it does nothing: no rows. ``read_words`` has none such."""
        return tuple(dtype.type(0) for dtype in self.dtypes)


KERNELS = {
    "digest": Kernel("digest.cu", 32, "u64 u32 u64 u64 u64 u64 u64", by_page_size=True),
    "insert": Kernel("group.cu", 256, "u64 u32 u32 u64 u64 u64 u64"),
    "resolve": Kernel("group.cu", 256, "u64 u32 u32 u32 u64 u64 u64 u64 u64 u64 u32 u64"),
    "compare": Kernel("compare.cu", 256, "u64 u32 u32 u32 u64 u64 u64"),
    "insert_words": Kernel("settle.cu", 256, "u32 u32 u64 u64 u64 u64 u64 u64"),
    "settle": Kernel("settle.cu", 256, "u32 u32 u64 u64 u64 u64 u64 u64 u64 u64"),
    "copy_pages": Kernel("copy.cu", 8, "u64 u64 u64 u64 u32 u32"),
    "read_words": Kernel("read.cu", 1, "u64 u64 u64"),
    "set_words": Kernel("page_table.cu", 256, "u64 u64 u32"),
    "load_pages": Kernel("page_table.cu", 8, "u64 u64 u64 u32 u32 u32 u64 u64"),
    "store_pages": Kernel("page_table.cu", 8, "u64 u64 u64 u32 u32 u32 u64 u64 u64"),
    "add_words": Kernel("page_table.cu", 256, "u64 u64 u64 u64 u64 u64 u64 u32"),
}


def blocks(kernel: str, pages: int, multiprocessors: int, layout: str = "") -> int:
    """Return the blocks of a grid for ``pages`` pages, at least 1; ``layout`` is ``digest``'s."""
    each = 1 if layout == "block" else KERNELS[kernel].pages
    return max(1, min(-(-pages // each), BLOCKS_PER_MULTIPROCESSOR * multiprocessors))


def layouts(page_size: int) -> tuple[str, ...]:
    """Return the layouts that suit a page size in bytes, the best first."""
    return ("block",) if page_size >= SMALLEST_BLOCK_PAGE else ("octet", "quad")


def defines(page_size: int, layout: str = "") -> dict[str, int]:
    """Return the macros of a kernel that is compiled for one page size.

    :param layout: one of :data:`LAYOUTS`; empty: the best
    """
    chosen = layout or layouts(page_size)[0]
    return {"PAGE_SIZE": page_size, "LAYOUT": LAYOUTS.index(chosen)}


@cache
def source(file: str) -> str:
    """Return the text of ``file`` with its includes expanded.

    Compilers need no include path then, and caches that hash the text see all of it.
    """

    def included(match: re.Match[str]) -> str:
        line = text[: match.start()].count("\n") + 2
        return f'#line 1 "{match[1]}"\n{source(match[1])}\n#line {line} "{file}"'

    text = files(__name__).joinpath(file).read_text()
    return re.sub(r'^#include "(.+)"$', included, text, flags=re.MULTILINE)
