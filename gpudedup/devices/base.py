"""What the offloading engine asks of a device: memory, streams, copies, and kernels by name.

Two implement it: :mod:`gpudedup.devices.cuda` with CuPy, and the shim of the tests, which runs the
same kernels on the CPU. Addresses are plain integers. Work on a stream is done in order and later;
it must have ended (:meth:`Device.finish`) before the memory that it uses is let go.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpudedup.errors import DeviceError, ExitCode

Bytes = npt.NDArray[np.uint8]

Stream = Any
"""Where work is queued; each device has its own kind."""

Event = Any
"""A moment in a stream."""


class OutOfDeviceMemory(DeviceError):
    """What does not fit; nothing was allocated."""

    exit_code = ExitCode.ENGINE_UNUSABLE


class DeviceMemory(Protocol):
    """Memory of a device, let go with the last reference to this object."""

    @property
    def address(self) -> int:
        """Return where it begins: a multiple of 256."""

    @property
    def size(self) -> int:
        """Return the bytes asked for."""


class Device(Protocol):
    """One device. Every method may be called from any thread.

    Whatever fails raises :class:`gpudedup.errors.DeviceError`, with one line that says what.
    """

    @property
    def name(self) -> str:
        """Return model and number, e.g. ``NVIDIA H200 (0)``."""

    @property
    def multiprocessors(self) -> int:
        """Return how many there are: grids are sized by it."""

    def free_memory(self) -> int:
        """Return bytes that could be allocated now."""

    def allocate(self, size: int) -> DeviceMemory:
        """Return ``size`` bytes, undefined.

        :raises OutOfDeviceMemory: if they are not there
        """

    def pinned(self, size: int) -> Bytes:
        """Return (size,) uint8 of host memory that the copy engine reads and writes directly."""

    def stream(self) -> Stream:
        """Make a stream."""

    def upload(self, address: int, source: Bytes, stream: Stream) -> None:
        """Copy host bytes, C-contiguous, to the device."""

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Fill ``target``, C-contiguous, with what lies at ``address`` on the device."""

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy bytes within the device."""

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        """Set bytes on the device."""

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
        *,
        page_size: int = 0,
        layout: str = "",
    ) -> None:
        """Queue a kernel of :data:`gpudedup.kernels.KERNELS`, with its own number of threads.

        :param blocks: of the grid, at least 1
        :param arguments: typed as the kernel's parameters: pointers are uint64
        :param page_size: of kernels that are compiled for one
        :param layout: of :data:`gpudedup.kernels.LAYOUTS`; empty: the one that suits the page size
        """

    def record(self, stream: Stream) -> Event:
        """Return the moment when everything queued so far is done."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Let what is queued from now on start after ``event``."""

    def finish(self, event: Event) -> None:
        """Return when ``event`` has come."""

    def seconds(self, start: Event, end: Event) -> float:
        """Return the time between two moments that have come."""

    def synchronize(self) -> None:
        """Return when everything queued on the device, by anybody, is done."""

    def holds(self, address: int) -> bool:
        """Return whether the device can read ``address`` in its own memory."""
