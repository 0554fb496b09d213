"""The kernels on a GPU, by the very checks that they pass under the shim.

On a shim device too: that shows that the way to a device is right before one is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.engines.cuda import open_devices
from gpudedup.engines.device import Device
from gpudedup.errors import EngineUnusableError
from gpudedup.kernels import KERNELS, layouts, source

from .checks import (
    PAGE_SIZES,
    Grouping,
    check_compare,
    check_copy,
    check_digest,
    check_group,
    check_read,
    stream,
)
from .common import GUARD, GUARDED, Buffer, Kernels, needs_compiler
from .shim.compile import signatures
from .shim.device import ShimDevice


class OnDevice(Buffer):
    """An array in a device's memory, between guards, and what the host knows of it."""

    def __init__(self, device: Device, values: npt.NDArray[Any]) -> None:
        super().__init__(values)
        self._device, self._stream = device, device.stream()
        self._memory = device.allocate(values.nbytes + 2 * GUARD)
        image = np.full(self._memory.size, GUARDED, np.uint8)
        image[GUARD : GUARD + values.nbytes] = values.reshape(-1).view(np.uint8)
        device.upload(self._memory.address, image, self._stream)
        device.synchronize()

    @property
    def address(self) -> int:
        """Return where the array begins on the device."""
        return self._memory.address + GUARD

    def check(self) -> None:
        """Fetch the array; fail if something wrote beside it."""
        image = np.empty(self._memory.size, np.uint8)
        self._device.download(image, self._memory.address, self._stream)
        self._device.synchronize()
        inside = image[GUARD : GUARD + self.array.nbytes]
        self.array[...] = inside.view(self.array.dtype).reshape(self.array.shape)
        assert (image[:GUARD] == GUARDED).all(), "written before a buffer"
        assert (image[GUARD + self.array.nbytes :] == GUARDED).all(), "written behind a buffer"


class DeviceKernels(Kernels):
    """All kernels, launched on a device."""

    def __init__(self, device: Device, blocks: int = 2) -> None:
        super().__init__(blocks=blocks)
        self._device = device

    def buffer(self, values: npt.NDArray[Any]) -> Buffer:
        """Return device memory that holds ``values``."""
        return OnDevice(self._device, np.ascontiguousarray(values))

    def __call__(
        self, kernel: str, *arguments: Buffer | int, page_size: int = 0, layout: str = ""
    ) -> None:
        """Launch a kernel and wait for it; fail if it wrote beside a buffer."""
        by_page_size = KERNELS[kernel].by_page_size
        dtypes = signatures(source(KERNELS[kernel].file))[kernel].dtypes
        values = tuple(
            dtype.type(a.address if isinstance(a, Buffer) else a)
            for dtype, a in zip(dtypes, arguments, strict=True)
        )
        stream = self._device.stream()
        size = page_size if by_page_size else 0
        self._device.launch(kernel, self.blocks, values, stream, page_size=size, layout=layout)
        self._device.synchronize()
        for argument in arguments:
            if isinstance(argument, Buffer):
                argument.check()


def _cuda() -> Device:
    try:
        return open_devices()[0]
    except EngineUnusableError as error:
        pytest.skip(str(error))


DEVICES: dict[str, Callable[[], Device]] = {"shim": ShimDevice, "cuda": _cuda}


@pytest.fixture(
    params=[
        pytest.param("shim", marks=needs_compiler),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
    scope="module",
)
def device(request: pytest.FixtureRequest) -> Device:
    """Return one kind of device after the other."""
    return DEVICES[request.param]()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_digest(device: Device, page_size: int) -> None:
    for layout in layouts(page_size):
        for count in (1, 7, 33 if page_size < 1 << 20 else 3):
            check_digest(DeviceKernels(device), page_size, layout, count=count, seed=count)


@pytest.mark.parametrize("blocks", [1, 5, 64])
def test_group(device: Device, blocks: int) -> None:
    kernels = DeviceKernels(device, blocks)
    check_group(kernels, Grouping(stream(1, 400, 100), 150, 401, room=20))
    check_group(kernels, Grouping(stream(2, 300, 100), 300, 512))


@pytest.mark.parametrize("page_size", [512, 4096, 128 << 10])
def test_compare_copy_read(device: Device, page_size: int) -> None:
    kernels = DeviceKernels(device)
    check_compare(kernels, page_size)
    for gather, scatter in ((False, False), (True, False), (False, True), (True, True)):
        check_copy(kernels, page_size, gather=gather, scatter=scatter)
    check_read(kernels, 5000)
