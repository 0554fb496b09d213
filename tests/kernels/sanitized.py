"""The checks of this folder under a sanitiser, with buffers of the exact size.

Run as a program by ``test_sanitized.py``: a process must load the address sanitiser at its start.
The argument is a name in :data:`PROGRAMS`. With ``--gpu`` the kernels run on a GPU, for
compute-sanitizer, from memory that the driver allocates one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from unittest.mock import patch

import numpy as np

from gpudedup.devices import cubins
from gpudedup.devices.base import Device
from gpudedup.devices.cuda import open_devices
from gpudedup.kernels import source

from .checks import (
    Grouping,
    check_compare,
    check_copy,
    check_digest,
    check_group,
    check_read,
    check_settle,
    settling,
    starting_at_the_end,
    stream,
    words_at_the_end,
)
from .common import DeviceKernels, Kernels
from .shim.compile import SCHEDULES, Schedule, build
from .table_checks import Part, check_load, check_page_table

DIGESTS = [
    (4096, "quad", 33), (512, "octet", 7), (4096, "octet", 5), (64 << 10, "block", 5),
    (128 << 10, "block", 3),
]  # fmt: skip

ON_GPU = "--gpu"


def _each(blocks: int = 2, **switches: int) -> Iterator[Kernels]:
    """Yield the kernels on the shim under each schedule; or on the GPU."""
    if ON_GPU in sys.argv:
        yield DeviceKernels(_gpu(), blocks, sanitize=True, switches=switches)
        return
    for schedule in SCHEDULES:
        yield Kernels(schedule, blocks=blocks, sanitize=True, switches=switches)


@cache
def _gpu() -> Device:
    return open_devices(pooled=False)[0]


def digest() -> None:
    """Digest numbers of pages that no layout divides."""
    for kernels in _each():
        for page_size, layout, count in DIGESTS:
            check_digest(kernels, page_size, layout, count=count)
            check_digest(kernels, page_size, layout, count=1)


def group() -> None:
    """Group in a table that is nearly full, and keep the anchors that there is room for."""
    for kernels in (*_each(blocks=4), *_each(blocks=4, INSERTING=2)):
        check_group(kernels, Grouping(starting_at_the_end(150), 60, 151))
        check_group(kernels, Grouping(stream(1, 400, 100), 150, 401, room=20))
        check_group(kernels, Grouping(stream(2, 300, 100), 300, 512))


def settle() -> None:
    """Settle with tables of words that are nearly full."""
    for kernels in _each(blocks=4):
        check_settle(kernels, settling(1, 400, 30, 150, 401, offset=9))
        check_settle(kernels, words_at_the_end(70))


def the_others() -> None:
    """Compare and copy the smallest pages and larger ones; read any number of words."""
    for kernels in _each():
        for page_size in (512, 1024, 8192):
            check_compare(kernels, page_size)
            for gather, scatter in ((False, False), (True, False), (False, True), (True, True)):
                check_copy(kernels, page_size, gather=gather, scatter=scatter)
        for pairs in (1, 2048, 5000):
            check_read(kernels, pairs)


def page_table() -> None:
    """Access pages through a table and without one, every part of them."""
    for kernels in _each():
        for page_size, physical in ((512, False), (4096, False), (1024, True)):
            check_page_table(kernels, page_size, physical=physical)


def _mutated(old: str, new: str) -> Kernels:
    def mutate(file: str, text: str) -> str:
        assert old in text, "the source has changed: adapt the mutant"
        return text.replace(old, new)

    if ON_GPU in sys.argv:
        patch.object(cubins, "source", lambda file: mutate(file, source(file))).start()
        return DeviceKernels(_gpu(), sanitize=True)
    return Kernels(sanitize=True, mutate=mutate)


def tail() -> None:
    """Read beyond the last page."""
    kernels = _mutated("min(QUAD * quad + p, count - 1)", "(QUAD * quad + p)")
    check_digest(kernels, 4096, "quad", count=5)


def no_way_round() -> None:
    """Probe beyond the end of the table."""
    kernels = _mutated("slot + 1 < slots ? slot + 1 : 0", "slot + 1")
    check_group(kernels, Grouping(starting_at_the_end(20), 20, 40))


def beyond_a_row() -> None:
    """Load beyond the end of a row, and write beyond the end of the last."""
    kernels = _mutated("if (at + STEP * k < size)", "")
    check_load(kernels, 512, Part(64, 64), count=1)


def no_way_round_words() -> None:
    """Probe beyond the end of the table of words."""
    kernels = _mutated("slot + 1 < slots ? slot + 1 : 0", "slot + 1")
    check_settle(kernels, words_at_the_end(20))


SHARED = """
extern "C" __global__ void __launch_bounds__(32) beyond(u64* out, u32 index) {
    __shared__ u64 words[8];
    __shared__ u64 others[8];
    u64* at = words + index;
    others[0] = 1;
    *at = 2;
    *out = words[0] + others[0];
}
"""


def shared() -> None:
    """Write beyond a shared variable."""
    text = "typedef unsigned u32; typedef unsigned long long u64;" + SHARED
    out = np.zeros(1, np.uint64)
    library = build("beyond.cu", sanitize=True, text=text)
    for index in (0, 8):
        arguments = (np.uint64(out.ctypes.data), np.uint32(index))
        library.launch("beyond", 1, arguments, threads=32, schedule=Schedule())


RIGHT = (digest, group, settle, the_others, page_table)
WRONG = (tail, no_way_round, no_way_round_words, beyond_a_row, shared)
PROGRAMS: dict[str, Callable[[], None]] = {program.__name__: program for program in RIGHT + WRONG}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
