"""Compare on the host what devices could not.

The CPU engine partitions these pages: LEFT rows (the device did not keep their anchor, or their
digest collides) with their anchors, and the lowest rows of contents that several devices may share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Device
from gpudedup.engines.aliases import first_rows
from gpudedup.engines.base import DEVICE_MEMORY, HOST_MEMORY, PageClass, PageSource, Partition
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload.staging import LEFT

Rows = npt.NDArray[np.int64]

_NO_KEY = np.uint64(2**64 - 1)


def reconcile(
    source: PageSource,
    result: Partition,
    devices: Sequence[Device],
    *,
    threads: int,
    verify: bool,
    digest_bits: int,
) -> Partition:
    """Partition the rows that devices left; return ``result`` with the number of collisions.

    Afterwards no row is LEFT, and the representative of each device's lowest row of a content, but
    of zero pages, is the lowest of all devices.
    """
    classes, representative = result.classes, result.representative
    left = np.flatnonzero(classes == LEFT)
    wanted = [left, representative[left]]
    if len(devices) > 1:
        wanted.append(_met_twice(result))
    rows = np.unique(np.concatenate(wanted))
    if not len(rows):
        return result
    found = CpuEngine(threads).partition(
        _part(source, rows, devices), verify=verify, digest_bits=digest_bits
    )
    unreadable = rows[found.classes == PageClass.UNREADABLE]
    # Reading a file again may fail. The LEFT rows that cannot be compared then are UNREADABLE; an
    # unreadable anchor stays, since its device did read it.
    lost = left[np.isin(left, unreadable) | np.isin(representative[left], unreadable)]
    kept = ~np.isin(rows, lost)
    _, first, content = np.unique(
        found.representative[kept], return_index=True, return_inverse=True
    )
    representative[rows[kept]] = rows[kept][first[content]]
    classes[left] = PageClass.CONTENT
    classes[lost], representative[lost] = PageClass.UNREADABLE, lost
    return replace(result, collisions=found.collisions)


def _met_twice(result: Partition) -> Rows:
    """Return the lowest rows whose digest has the same low half, but its lowest bit, as another's.

    Lowest of their contents on their devices; zero pages are not among them.
    """
    classes, representative = result.classes, result.representative
    lowest = representative == np.arange(len(classes))
    anchors = np.flatnonzero(
        lowest & ((classes == PageClass.CONTENT) | (classes == PageClass.FILLED))
    )
    if not len(anchors):
        return anchors
    keys = result.digests[anchors, 0] >> np.uint64(1)
    first = np.empty(len(keys), np.int64)
    slots = 1 << max(4, (len(keys) + len(keys) // 4).bit_length())
    first_rows(keys, _NO_KEY, np.full(slots, -1, np.int64), 0, first)
    later = np.flatnonzero(first != np.arange(len(keys)))
    met: Rows = anchors[np.concatenate([later, first[later]])]
    return met


def _part(source: PageSource, rows: Rows, devices: Sequence[Device]) -> PageSource:
    """Return a source of ``rows``, ascending; pages in device memory are downloaded."""
    size = np.uint64(source.page_size)
    stretch = np.searchsorted(source.first_row, rows, side="right") - 1
    fd = source.fd[stretch]
    base = source.base[stretch] + (rows - source.first_row[stretch]).astype(np.uint64) * size
    keep: tuple[object, ...] = source.keep
    away = np.flatnonzero(fd == DEVICE_MEMORY)
    if len(away):
        pages = _fetch(base[away], source.page_size, devices)
        fd[away] = HOST_MEMORY
        base[away] = np.uint64(pages.ctypes.data) + np.arange(len(away), dtype=np.uint64) * size
        keep += (pages,)
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = (fd[1:] != fd[:-1]) | (base[1:] != base[:-1] + size)
    first = np.flatnonzero(begins)
    return PageSource(source.page_size, np.append(first, len(rows)), fd[first], base[first], keep)


def _fetch(
    addresses: npt.NDArray[np.uint64], page_size: int, devices: Sequence[Device]
) -> npt.NDArray[np.uint8]:
    """Download pages in device memory; return (n, page_size) uint8."""
    pages = np.empty((len(addresses), page_size), np.uint8)
    streams = [device.stream() for device in devices]
    for at, address in enumerate(addresses.tolist()):
        holder = next(i for i, device in enumerate(devices) if device.holds(address))
        devices[holder].download(pages[at], address, streams[holder])
    for device, stream in zip(devices, streams, strict=True):
        device.finish(device.record(stream))
    return pages
