"""Devices that note what they are asked for, and pages for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpudedup.devices.base import Bytes, DeviceMemory, OutOfDeviceMemory

from ...kernels.shim.device import ShimDevice
from ..common import Pages

SIZE = 512
"""Bytes of a page."""


class Told(ShimDevice):
    """A device that notes what it is asked for.

    :param most: bytes of the largest piece of memory that there is
    """

    def __init__(self, most: int = 1 << 30, **options: Any) -> None:
        super().__init__(**options)
        self.most = most
        self.asked: list[int] = []
        self.uploaded = self.moved = 0

    def allocate(self, size: int) -> DeviceMemory:
        self.asked.append(size)
        if size > self.most:
            raise OutOfDeviceMemory(f"no {size} bytes in one piece")
        return super().allocate(size)

    def upload(self, address: int, source: Bytes, stream: Any) -> None:
        self.uploaded += source.nbytes
        super().upload(address, source, stream)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        self.moved += size
        super().copy(target, source, size, stream)


def unique(count: int, copies: int = 1) -> Pages:
    """Return different pages, all of them ``copies`` times one after another."""
    pages = np.random.default_rng(count).integers(1, 256, (count, SIZE), dtype=np.uint8)
    return np.tile(pages, (copies, 1))
