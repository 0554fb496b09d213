"""The queue of all work on a device, and the scratch memory that its arrays lie in.

All work of a manager on a device goes through one stream, in order. So an access in flight when a
page-table entry is invalidated ends before the invalidation does, and nothing else has to wait.

Arrays of kernels lie in scratch memory, allocated before any frame: frames cannot use it up. Each
byte of it has a *twin* in pinned memory of the host, through which it is copied: from pageable
memory a copy would first wait for the work queued before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Device, OutOfDeviceMemory
from gpudedup.errors import DeviceError
from gpudedup.kernels import blocks

SCRATCH_BYTES = 16 << 20
"""Device memory for the arrays of one operation; an eighth of the free memory if that is less."""

SCRATCH_ALIGNMENT = 256
MAX_SCRATCH_ARRAYS = 8
"""Arrays one operation may hold in scratch memory."""


class Scratch(NamedTuple):
    """An array in scratch memory.

    :param address: on the device
    :param twin: the array on the host, pinned, which :meth:`DeviceQueue.fetch` fills
    :param start: first byte within scratch memory
    """

    address: np.uint64
    twin: npt.NDArray[Any]
    start: int


class DeviceQueue:
    """A queue of work on one device, done in order.

    The lock is held from the first piece of an operation to :meth:`finish`. A thread that holds it
    never waits for the manager's lock.

    :param least: least bytes of scratch memory: one row of any operation must fit
    :param lost: the error that ended all work on the device; None: it works
    :raises OutOfDeviceMemory: if the device has no room for the scratch memory
    """

    def __init__(self, device: Device, least: int) -> None:
        self.device = device
        self.lock = RLock()
        self.lost: DeviceError | None = None
        self._stream = device.stream()
        size = max(min(SCRATCH_BYTES, device.free_memory() // 8), least)
        self._scratch = device.allocate(size + MAX_SCRATCH_ARRAYS * SCRATCH_ALIGNMENT)
        self._twin = device.pinned(self._scratch.size)
        self._buffer = self._twin.data
        self._size, self._used = size, 0
        self._held: list[object] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the lock for an operation; a device that fails is lost from then on.

        :raises DeviceError: if the device was lost already, or fails
        """
        with self.lock:
            if self.lost is not None:
                raise DeviceError(*self.lost.args)
            try:
                yield
            except OutOfDeviceMemory:
                self.reset()
                raise
            except DeviceError as error:
                self.lost = error
                raise
            except BaseException:
                self.reset()
                raise

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Scratch:
        """Return an array in scratch memory, undefined, valid until :meth:`finish`.

        Its twin holds what :meth:`fetch` brought until scratch memory is used again.
        """
        start = self._used
        # It raises TypeError if there is no such room: this is more than a piece.
        twin: npt.NDArray[Any] = np.ndarray(shape, dtype, self._buffer, start)
        self._used += twin.nbytes + -twin.nbytes % SCRATCH_ALIGNMENT
        return Scratch(np.uint64(self._scratch.address + start), twin, start)

    def send(self, *arrays: npt.NDArray[Any]) -> list[np.uint64]:
        """Queue one copy of arrays to scratch memory; return their addresses there.

        They are valid until :meth:`finish`; the arrays themselves may change at once.
        """
        places = [self.room(array.shape, array.dtype) for array in arrays]
        for place, array in zip(places, arrays, strict=True):
            place.twin[...] = array
        at, part = self._span(places)
        if len(part):
            self.device.upload(at, part, self._stream)
        return [place.address for place in places]

    def fetch(self, *places: Scratch) -> None:
        """Queue one copy of neighbouring arrays to their twins, filled when :meth:`finish` returns.

        :param places: one directly after the other, as :meth:`room` returned them
        """
        at, part = self._span(places)
        if len(part):
            self.device.download(part, at, self._stream)

    def _span(self, places: list[Scratch] | tuple[Scratch, ...]) -> tuple[int, npt.NDArray[Any]]:
        """Return the address of the first of some places, and the twin of all of them as bytes."""
        first, last = places[0], places[-1]
        return int(first.address), self._twin[first.start : last.start + last.twin.nbytes]

    def pieces(self, rows: int, size: int) -> list[slice]:
        """Split rows into pieces, each of which fits in scratch memory.

        :param size: scratch bytes per row, in up to MAX_SCRATCH_ARRAYS arrays
        """
        each = max(1, self._size // size)
        return [slice(start, start + each) for start in range(0, rows, each)]

    def make_room(self, size: int) -> None:
        """Wait for queued work if arrays of ``size`` bytes do not fit beside those in use.

        :param size: bytes of up to MAX_SCRATCH_ARRAYS arrays, at most those of a piece
        """
        if self._used and self._used + size + MAX_SCRATCH_ARRAYS * SCRATCH_ALIGNMENT > len(
            self._twin
        ):
            self.finish()

    def upload(self, address: int | np.uint64, array: npt.NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous array, unchanged until :meth:`finish`, to the device."""
        if array.nbytes:
            self._held.append(array)
            self.device.upload(int(address), array.reshape(-1).view(np.uint8), self._stream)

    def download(self, array: npt.NDArray[Any], address: int | np.uint64) -> None:
        """Queue a copy to a C-contiguous array, which is filled when :meth:`finish` returns."""
        if array.nbytes:
            self._held.append(array)
            self.device.download(array, int(address), self._stream)

    def fill(self, address: int, size: int) -> None:
        """Queue setting bytes to zero."""
        self.device.fill(address, 0, size, self._stream)

    def launch(self, kernel: str, rows: int, *arguments: np.generic) -> None:
        """Queue a kernel over a number of rows, at least 1."""
        resident = self.device.resident_blocks(kernel)
        grid = blocks(kernel, rows, self.device.multiprocessors, resident=resident)
        self.device.launch(kernel, grid, arguments, self._stream)

    def finish(self) -> None:
        """Wait until all queued work is done; free the scratch memory."""
        try:
            self.device.finish(self.device.record(self._stream))
        finally:
            self._held.clear()
            self._used = 0

    def reset(self) -> None:
        """After an error, wait for queued work, if that can still end; free the scratch memory."""
        with suppress(DeviceError):
            self.finish()
