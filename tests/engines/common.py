"""Populations of pages, their exact groups, and sources that hold them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Device, DeviceMemory
from gpudedup.engines.base import DEVICE_MEMORY, PageClass, PageSource, Partition
from gpudedup.engines.cpu.engine import CpuEngine

Pages = npt.NDArray[np.uint8]


def population(seed: int, count: int, page_size: int) -> Pages:
    """Return zero, same-filled, unique, duplicate and near-miss pages, mixed."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 6, count)
    pool = rng.integers(0, 256, (max(1, count // 8), page_size), dtype=np.uint8)
    pages = rng.integers(0, 256, (count, page_size), dtype=np.uint8)
    pages[kinds == 0] = 0
    pages[kinds == 1] = rng.integers(0, 3, ((kinds == 1).sum(), 1), dtype=np.uint8)
    for kind in (2, 3, 4, 5):
        rows = np.flatnonzero(kinds == kind)
        if kind != 5:
            pages[rows] = pool[rng.integers(0, len(pool), len(rows))]
        if kind == 3:
            pages[rows, -1] ^= 1
        if kind == 4:
            pages[rows, 0] ^= 128
    return pages


def reference_digest(page: bytes) -> int:
    """Return XXH3-128 by the reference library; where it is not installed, by the CPU engine.

    GPU tests run on machines with little but CuPy; elsewhere the library checks the CPU engine.
    """
    with suppress(ImportError):
        import xxhash

        return int(xxhash.xxh3_128_intdigest(page))
    stored = np.frombuffer(page, np.uint8).reshape(1, -1)
    low, high = CpuEngine(1).partition(PageSource.of_array(stored)).digests[0].tolist()
    return int(low | high << 64)


def oracle(pages: Pages) -> list[int]:
    """Return the lowest row with the same bytes, for every row."""
    first: dict[bytes, int] = {}
    return [first.setdefault(p.tobytes(), i) for i, p in enumerate(pages)]


def check_classes(result: Partition, pages: Pages) -> None:
    """Check the classes of zero and same-filled pages."""
    words = pages.reshape(len(pages), pages.shape[1] // 8, 8)
    same = (words == words[:, :1]).all(axis=(1, 2))
    zero = ~pages.any(axis=1)
    assert (result.classes == PageClass.ZERO).tolist() == zero.tolist()
    assert (result.classes == PageClass.FILLED).tolist() == (same & ~zero).tolist()


@contextmanager
def file_source(path: Path, pages: Pages, offset: int = 0) -> Iterator[PageSource]:
    """Write pages to ``path`` behind ``offset`` other bytes; yield a source of these pages."""
    path.write_bytes(b"\xa5" * offset + pages.tobytes())
    fd = os.open(path, os.O_RDONLY)
    try:
        yield PageSource(
            pages.shape[1],
            np.array([0, len(pages)], np.int64),
            np.array([fd], np.int32),
            np.array([offset], np.uint64),
        )
    finally:
        os.close(fd)


def joined(stores: Sequence[PageSource], pieces: Sequence[tuple[int, int, int]]) -> PageSource:
    """Return a source made of pieces of other sources.

    :param pieces: (source, first row, last row + 1), each from a source of one stretch
    """
    first, fd, base = [0], [], []
    for at, start, stop in pieces:
        source = stores[at]
        first.append(first[-1] + stop - start)
        fd.append(source.fd[0])
        base.append(int(source.base[0]) + start * source.page_size)
    return PageSource(
        stores[0].page_size,
        np.array(first, np.int64),
        np.array(fd, np.int32),
        np.array(base, np.uint64),
        keep=tuple(stores),
    )


def on_device(device: Device, pages: Pages, shift: int = 0) -> tuple[PageSource, DeviceMemory]:
    """Put pages into a device's memory, ``shift`` bytes behind an aligned address."""
    memory = device.allocate(pages.nbytes + shift)
    stream = device.stream()
    device.upload(memory.address + shift, pages.reshape(-1), stream)
    device.finish(device.record(stream))
    source = PageSource(
        pages.shape[1],
        np.array([0, len(pages)], np.int64),
        np.array([DEVICE_MEMORY], np.int32),
        np.array([memory.address + shift], np.uint64),
        keep=(memory,),
    )
    return source, memory


def needed(pages: int, page_size: int, slots: int = 3, chunk: int = 16) -> int:
    """Return bytes of a device without which it cannot work at all."""
    notes = pages * 24 + 20 * (pages + pages // 2 + 1) + 4 + 4 * (pages // 32 + 1)
    return notes + slots * chunk * (page_size + 17)
