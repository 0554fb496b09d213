"""CUDA devices that stay open between scans: opened once in a process, with what they compiled.

A forked child has no use of them: CUDA does not work across a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence

from gpudedup.devices.base import Device

_lock = threading.Lock()
_kept: dict[int, Device] = {}
_parents: list[dict[int, Device]] = []
"""Devices of parent processes, never freed: that would take calls of CUDA, which fail here."""


def kept_devices(numbers: Sequence[int] | None = None) -> list[Device]:
    """Return devices; those that are not open are opened, and stay so.

    :param numbers: CUDA's numbers of the devices; None: device 0
    :raises UnsupportedHereError: if a device cannot be used
    """
    from gpudedup.devices import cuda

    wanted = [0] if numbers is None else list(numbers)
    with _lock:
        missing = [number for number in wanted if number not in _kept]
        if missing:
            _kept.update(zip(missing, cuda.open_devices(missing), strict=True))
        return [_kept[number] for number in wanted]


def discard(devices: Iterable[Device]) -> None:
    """Keep these devices no longer: the next call that asks for them opens them anew."""
    gone = list(devices)
    with _lock:
        for number in [n for n, device in _kept.items() if device in gone]:
            del _kept[number]


def close_devices() -> None:
    """Give back the devices that scans keep, with their memory and pinned host memory.

    A scan under way, and results in pinned memory, keep theirs until they are dropped. The next
    scan opens the devices anew.
    """
    with _lock:
        _kept.clear()


def _forget_parents_devices() -> None:
    global _lock, _kept
    _parents.append(_kept)
    _kept = {}
    # Another thread of the parent may have held it.
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parents_devices)
