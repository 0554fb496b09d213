"""What devices leave to the host: pages whose digest is known before but whose bytes must decide.

They are a population of their own, which the CPU engine splits: pages that a device found nominated
but not equal (their anchor did not fit into its memory, or a digest collided) with these anchors;
and, where several devices took part, the anchors that more than one of them has.
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
    """Split what devices left, by bytes; return ``result`` with the collisions.

    Afterwards no row is LEFT, and every anchor has the lowest row of its content.
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
    # The second reading of a file may fail. Then nothing is known of the rows that this page had
    # to be compared with; an anchor was read once, and stays.
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
    """Return the anchors whose digest another one may have: half of it is the same."""
    anchors = np.flatnonzero(result.classes == PageClass.CONTENT)
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
    """Return a source of some rows of ``source``, ascending; what lies on a device is fetched."""
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
    """Return pages that lie on devices, (n, page_size) uint8, in host memory."""
    pages = np.empty((len(addresses), page_size), np.uint8)
    streams = [device.stream() for device in devices]
    for at, address in enumerate(addresses.tolist()):
        holder = next(i for i, device in enumerate(devices) if device.holds(address))
        devices[holder].download(pages[at], address, streams[holder])
    for device, stream in zip(devices, streams, strict=True):
        device.finish(device.record(stream))
    return pages
