"""Launch kernels on arrays that lie between guards."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.devices.base import Device
from gpudedup.kernels import KERNELS, SWITCHES, defines, source

from .shim.compile import COMPILER, NO_COMPILER, Library, Schedule, build, signatures

GUARD = 256
GUARDED = 0x5A
UNWRITTEN = 0xA5

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

_libc = ctypes.CDLL(None)
_libc.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_libc.free.argtypes = (ctypes.c_void_p,)


class Buffer:
    """An array aligned to 16 and to no more, with guards on both sides.

    Under the address sanitiser there are no guards: it checks every byte beyond the array.

    :param values: initial values
    """

    def __init__(self, values: npt.NDArray[Any], *, guarded: bool = True) -> None:
        self._guard = GUARD if guarded else 0
        before = self._guard + 16 if guarded else 0
        size = before + values.nbytes + self._guard
        self._block = ctypes.c_void_p()
        assert not _libc.posix_memalign(ctypes.byref(self._block), GUARD, max(size, 1))
        whole = np.ctypeslib.as_array(
            (ctypes.c_uint8 * size).from_address(self._block.value or 0), (size,)
        )
        whole[:] = GUARDED
        self._guards = (whole[:before], whole[before + values.nbytes :])
        self.array = whole[before : before + values.nbytes].view(values.dtype).reshape(values.shape)
        self.array[...] = values

    def __del__(self) -> None:
        _libc.free(self._block)

    @property
    def address(self) -> int:
        """Return where the array begins."""
        return int(self.array.ctypes.data)

    def check(self) -> None:
        """Fail if something wrote beside the array."""
        for protection in self._guards:
            assert (protection == GUARDED).all(), "written beside a buffer"


class Kernels:
    """All kernels, compiled for the shim, with one way to launch them.

    :param schedule: order in which threads run
    :param blocks: blocks of every grid
    :param mutate: returns the text of a source to compile, given its name and text
    :param switches: of the kernels whose source has them, as for ``Device.launch``
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        blocks: int = 2,
        *,
        sanitize: bool = False,
        mutate: Callable[[str, str], str] | None = None,
        switches: Mapping[str, int] | None = None,
    ) -> None:
        self.schedule = schedule or Schedule()
        self.blocks = blocks
        self.sanitize = sanitize
        self._mutate = mutate
        self._switches = switches or {}

    def switches(self, kernel: str) -> dict[str, int]:
        """Return the switches of the source that has a kernel."""
        known = SWITCHES.get(KERNELS[kernel].file, {})
        return {name: value for name, value in self._switches.items() if name in known}

    def library(self, kernel: str, page_size: int, layout: str) -> Library:
        """Return the library that has a kernel."""
        known = KERNELS[kernel]
        macros = defines(known.file, page_size, layout, self.switches(kernel))
        text = self._mutate(known.file, source(known.file)) if self._mutate else None
        return build(known.file, macros, sanitize=self.sanitize, text=text)

    def buffer(self, values: npt.NDArray[Any]) -> Buffer:
        """Return device memory that holds ``values``."""
        return Buffer(values, guarded=not self.sanitize)

    def unwritten(self, shape: int | tuple[int, ...], dtype: Any) -> Buffer:
        """Return device memory of which each byte is :data:`UNWRITTEN`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.buffer(np.full(size, UNWRITTEN, np.uint8).view(dtype).reshape(shape))

    def __call__(
        self, kernel: str, *arguments: Buffer | int, page_size: int = 0, layout: str = ""
    ) -> None:
        """Launch a kernel; fail if it wrote beside a buffer."""
        library = self.library(kernel, page_size, layout)
        dtypes = library.signatures[kernel].dtypes
        values = tuple(
            dtype.type(argument.address if isinstance(argument, Buffer) else argument)
            for dtype, argument in zip(dtypes, arguments, strict=True)
        )
        threads = KERNELS[kernel].threads
        library.launch(kernel, self.blocks, values, threads=threads, schedule=self.schedule)
        for argument in arguments:
            if isinstance(argument, Buffer):
                argument.check()


class OnDevice(Buffer):
    """An array in a device's memory, between guards, and the host's copy of the array.

    :param guarded: False under compute-sanitizer, which checks every byte beyond the array
    """

    def __init__(self, device: Device, values: npt.NDArray[Any], *, guarded: bool = True) -> None:
        super().__init__(values)
        self._device, self._stream = device, device.stream()
        self._before = GUARD if guarded else 0
        self._memory = device.allocate(max(1, values.nbytes + 2 * self._before))
        image = np.full(self._memory.size, GUARDED, np.uint8)
        image[self._before :][: values.nbytes] = values.reshape(-1).view(np.uint8)
        device.upload(self._memory.address, image[: values.nbytes + 2 * self._before], self._stream)
        device.synchronize()

    @property
    def address(self) -> int:
        """Return where the array begins on the device."""
        return self._memory.address + self._before

    def check(self) -> None:
        """Download the array; fail if something wrote beside it."""
        image = np.empty(self._memory.size, np.uint8)
        self._device.download(image, self._memory.address, self._stream)
        self._device.synchronize()
        end = self._before + self.array.nbytes
        inside = image[self._before : end]
        self.array[...] = inside.view(self.array.dtype).reshape(self.array.shape)
        if self._before:
            assert (image[: self._before] == GUARDED).all(), "written before a buffer"
            assert (image[end:] == GUARDED).all(), "written behind a buffer"


class DeviceKernels(Kernels):
    """All kernels, launched on a device; the other parameters are as for :class:`Kernels`."""

    def __init__(
        self,
        device: Device,
        blocks: int = 2,
        *,
        sanitize: bool = False,
        switches: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(blocks=blocks, sanitize=sanitize, switches=switches)
        self._device = device

    def buffer(self, values: npt.NDArray[Any]) -> Buffer:
        """Return device memory that holds ``values``."""
        return OnDevice(self._device, np.ascontiguousarray(values), guarded=not self.sanitize)

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
        self._device.launch(
            kernel, self.blocks, values, stream,
            page_size=size, layout=layout, switches=self.switches(kernel),
        )  # fmt: skip
        self._device.synchronize()
        for argument in arguments:
            if isinstance(argument, Buffer):
                argument.check()
