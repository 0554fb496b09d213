"""The protocol of a device: memory, streams, copies, and kernels by name.

Implemented by :mod:`gpudedup.devices.cuda`, :mod:`gpudedup.devices.host` and the shim of the tests,
which runs the CUDA kernels on the CPU. Addresses are plain integers. Work on a stream is done in
order, asynchronously, and must end (:meth:`Device.finish`) before the memory it uses is freed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpudedup.errors import DeviceError, ExitCode

Bytes = npt.NDArray[np.uint8]

Stream = Any
"""Queue of work; each implementation has its own type."""

Event = Any
"""Point in a stream, reached when the work queued before it is done."""


class OutOfDeviceMemory(DeviceError):
    """An allocation does not fit; nothing was allocated."""

    exit_code = ExitCode.ENGINE_UNUSABLE


class DeviceMemory(Protocol):
    """Memory of a device; dropping the last reference frees it."""

    @property
    def address(self) -> int:
        """Return the first address, a multiple of 256."""

    @property
    def size(self) -> int:
        """Return the bytes requested."""


class Device(Protocol):
    """One device. Any thread may call any method; a failure raises a one-line DeviceError."""

    @property
    def name(self) -> str:
        """Return model and number, e.g. ``NVIDIA H200 (0)``."""

    @property
    def multiprocessors(self) -> int:
        """Return the number of multiprocessors, by which grids are sized."""

    def free_memory(self) -> int:
        """Return the bytes that could be allocated now."""

    def allocate(self, size: int) -> DeviceMemory:
        """Allocate ``size`` bytes, uninitialised.

        :raises OutOfDeviceMemory: if they do not fit
        """

    def pinned(self, size: int) -> Bytes:
        """Allocate (size,) uint8 of pinned host memory, which the copy engine accesses directly."""

    def stream(self) -> Stream:
        """Make a stream."""

    def upload(self, address: int, source: Bytes, stream: Stream) -> None:
        """Copy host bytes, C-contiguous, to the device."""

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Fill ``target``, C-contiguous, from ``address`` on the device."""

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
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Queue a kernel of :data:`gpudedup.kernels.KERNELS`, with its number of threads per block.

        :param blocks: blocks in the grid, at least 1
        :param arguments: typed as the kernel's parameters: pointers are uint64
        :param page_size: bytes, for kernels compiled for one page size
        :param layout: one of :data:`gpudedup.kernels.LAYOUTS`; empty: the best for the page size
        :param switches: values of :data:`gpudedup.kernels.SWITCHES` other than the defaults
        """

    def resident_blocks(
        self,
        kernel: str,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> int:
        """Return the blocks of a kernel that a multiprocessor runs at once, at least 1.

        Parameters are as for :meth:`launch`.
        """

    def record(self, stream: Stream) -> Event:
        """Return an event that is reached when all work queued so far is done."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Make work queued from now on wait for ``event``."""

    def finish(self, event: Event) -> None:
        """Block until ``event`` is reached."""

    def seconds(self, start: Event, end: Event) -> float:
        """Return the seconds between two reached events."""

    def synchronize(self) -> None:
        """Block until all work on the device is done, that of other libraries included."""

    def trim(self) -> None:
        """Return freed memory to the system, as far as it is worth while."""

    def holds(self, address: int) -> bool:
        """Return whether ``address`` lies in memory of this device."""
