"""CUDA kernels of the scan engine and of the manager's page tables; installed as gpudedup.kernels.

The first lines of each file state its grid, alignment, loads in flight and oracle. Files include
nothing but one another, so that NVRTC, nvcc and (under the shim of the tests) g++ compile the same
text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

LAYOUTS = ("quad", "octet", "block")
"""Layouts of threads over pages to digest, see ``digest.cu``."""

SMALLEST_BLOCK_PAGE = 64 << 10
"""Bytes of the smallest page that layout ``block`` takes."""

SWITCHES: dict[str, dict[str, dict[int, str]]] = {
    "digest.cu": {
        "LOADING": {0: "plain", 1: "evict first", 2: "not in L1"},
        "RESIDENT": {2: "2 blocks", 3: "3 blocks"},
    },
    "group.cu": {"INSERTING": {0: "always", 1: "lower", 2: "warp"}},
    "compare.cu": {"LOADING": {0: "plain", 1: "evict first", 2: "not in L1"}},
    "read.cu": {"LOADING": {0: "plain", 1: "evict first", 2: "not in L1"}},
}
"""Macros of a file that choose between variants with equal results, until a card has decided;
their values by number. The defaults are in :func:`defines`; ``bench/gpu.py`` measures all.
"""

FEWEST_BLOCKS = 8
"""Blocks of a grid per multiprocessor at least, if there are pages for them: more than are resident
let those that are done early take work from the others."""

_DEFAULTS = {"LOADING": 1, "INSERTING": 1, "RESIDENT": 2}

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

_BY_PAGE_SIZE = {kernel.file for kernel in KERNELS.values() if kernel.by_page_size}


def blocks(
    kernel: str, pages: int, multiprocessors: int, layout: str = "", *, resident: int = 1
) -> int:
    """Return the blocks of a grid for ``pages`` pages, at least 1.

    There are no more than the fewest whole *waves* with :data:`FEWEST_BLOCKS`: in the last wave, no
    multiprocessor is half empty. Blocks take further pages in strides.

    :param layout: layout of ``digest``
    :param resident: blocks that a multiprocessor runs at once, by ``Device.resident_blocks``
    """
    each = 1 if layout == "block" else KERNELS[kernel].pages
    waves = -(-FEWEST_BLOCKS // resident)
    return max(1, min(-(-pages // each), waves * resident * multiprocessors))


def layouts(page_size: int) -> tuple[str, ...]:
    """Return the layouts that suit a page size in bytes, the best first."""
    return ("block",) if page_size >= SMALLEST_BLOCK_PAGE else ("octet", "quad")


def defines(
    file: str, page_size: int = 0, layout: str = "", switches: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the macros with which a file is compiled.

    :param page_size: bytes, for files whose kernels are compiled for one page size
    :param layout: one of :data:`LAYOUTS`; empty: the best
    :param switches: values of :data:`SWITCHES` other than the defaults
    :raises ValueError: if the file has no such switch, or the switch no such value
    """
    known = SWITCHES.get(file, {})
    macros = {name: _DEFAULTS[name] for name in known}
    if file in _BY_PAGE_SIZE:
        chosen = layout or layouts(page_size)[0]
        macros |= {"PAGE_SIZE": page_size, "LAYOUT": LAYOUTS.index(chosen)}
        if chosen == "block" and page_size == SMALLEST_BLOCK_PAGE:
            # Larger pages take no more registers than leave room for 3 blocks, on sm_90 and older.
            macros["RESIDENT"] = 3
    for name, value in (switches or {}).items():
        if value not in known.get(name, ()):
            raise ValueError(f"{file} has no variant {name}={value}")
        macros[name] = value
    return macros


def variants(file: str, page_size: int = 0, layout: str = "") -> list[dict[str, int]]:
    """Return the switches of each variant with one value other than its default.

    Parameters are as for :func:`defines`. Three blocks spill registers but in layout ``block``.
    """
    usual = defines(file, page_size, layout)
    spills = usual.get("LAYOUT") != LAYOUTS.index("block")
    return [
        {name: value}
        for name, values in SWITCHES.get(file, {}).items()
        for value in values
        if value != usual[name] and not ((name, value) == ("RESIDENT", 3) and spills)
    ]


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
