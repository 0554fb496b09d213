"""A stand-in for a device: the kernels run on the CPU, and queued work runs late."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Bytes, DeviceMemory
from gpudedup.errors import DeviceError
from gpudedup.kernels import KERNELS, LAYOUTS, defines

from .compile import Library, Schedule, ShimError, build
from .heap import POISON, Heap
from .queues import Queues, ShimEvent, ShimStream, Work

PAGE = 4096
_numbers = count()


class ShimDevice:
    """Implements :class:`gpudedup.devices.base.Device`.

    Whatever a real device would leave undefined, or would not notice, is a :class:`ShimError`,
    which is no :class:`DeviceError`: code that handles a failing device does not hide it.

    :param memory: bytes of device memory
    :param multiprocessors: number of multiprocessors, by which grids are sized
    :param resident_blocks: blocks of any kernel that a multiprocessor runs at once, as grids see it
    :param schedule: order in which the threads of a kernel run
    :param seed: seed of the random choice of the stream that runs next
    :param sanitize: compile kernels with the address sanitiser
    :param fail_after: copies, fills and launches after which the device is lost
    """

    def __init__(
        self,
        *,
        memory: int = 1 << 30,
        multiprocessors: int = 2,
        resident_blocks: int = 4,
        schedule: Schedule | None = None,
        seed: int = 0,
        sanitize: bool = False,
        fail_after: int | None = None,
    ) -> None:
        self._number = next(_numbers)
        self._multiprocessors = multiprocessors
        self._resident_blocks = resident_blocks
        self._schedule = schedule or Schedule()
        self._sanitize = sanitize
        self._left = fail_after
        self._failure: Exception | None = None
        self._lock = threading.RLock()
        self._heap = Heap(memory)
        self._queues = Queues(seed)
        self.launches: list[tuple[str, int]] = []
        """Kernels that ran, with the blocks of their grids."""

    @property
    def name(self) -> str:
        """Return ``shim (0)`` and so on."""
        return f"shim ({self._number})"

    @property
    def multiprocessors(self) -> int:
        """Return the number of multiprocessors."""
        return self._multiprocessors

    def free_memory(self) -> int:
        """Return bytes that could be allocated now."""
        with self._lock:
            self._check_alive()
            return self._heap.free

    def allocate(self, size: int) -> DeviceMemory:
        """Return ``size`` bytes, each :data:`POISON`."""
        with self._lock:
            self._check_alive()
            if self._queues.empty:
                self._heap.empty_quarantine()
            return self._heap.allocate(size)

    def pinned(self, size: int) -> Bytes:
        """Return (size,) uint8 at the start of a page."""
        whole = np.full(size + PAGE, POISON, np.uint8)
        start = -whole.ctypes.data % PAGE
        return whole[start : start + size]

    def stream(self) -> ShimStream:
        """Make a stream."""
        with self._lock:
            self._check_alive()
            return self._queues.stream()

    def upload(self, address: int, source: Bytes, stream: ShimStream) -> None:
        """Queue a copy; ``source`` is read when it runs."""
        if not source.flags.c_contiguous:
            raise TypeError("upload from an array that is not contiguous")

        def run() -> None:
            self._heap.check("upload", address, source.nbytes)
            ctypes.memmove(address, source.ctypes.data, source.nbytes)

        self._queue(stream, run)

    def download(self, target: npt.NDArray[Any], address: int, stream: ShimStream) -> None:
        """Queue a copy; ``target`` is written when it runs."""
        if not target.flags.c_contiguous or not target.flags.writeable:
            raise TypeError("download into an array that is not contiguous and writeable")

        def run() -> None:
            self._heap.check("download", address, target.nbytes)
            ctypes.memmove(target.ctypes.data, address, target.nbytes)

        self._queue(stream, run)

    def copy(self, target: int, source: int, size: int, stream: ShimStream) -> None:
        """Queue a copy within the device."""

        def run() -> None:
            self._heap.check("copy to", target, size)
            self._heap.check("copy from", source, size)
            if abs(target - source) < size:
                raise ShimError("copy between ranges that overlap")
            ctypes.memmove(target, source, size)

        self._queue(stream, run)

    def fill(self, address: int, byte: int, size: int, stream: ShimStream) -> None:
        """Queue setting of bytes."""
        if not 0 <= byte <= 0xFF:
            raise ValueError(f"fill with {byte}, which is no byte")

        def run() -> None:
            self._heap.check("fill", address, size)
            ctypes.memset(address, byte, size)

        self._queue(stream, run)

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: ShimStream,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Queue a kernel.

        :raises TypeError: if the arguments are not typed as its parameters
        :raises ValueError: if there is no such kernel, layout, switch or grid
        """
        if kernel not in KERNELS:
            raise ValueError(f"no kernel {kernel!r}")
        known = KERNELS[kernel]
        if (known.by_page_size and page_size <= 0) or layout not in ("", *LAYOUTS):
            raise ValueError(f"{kernel} is not compiled for page size {page_size} {layout}")
        if not 1 <= blocks < 1 << 31:
            raise ValueError(f"{kernel} in {blocks} blocks")
        macros = defines(known.file, page_size, layout, switches)
        library = build(known.file, macros, sanitize=self._sanitize)
        library.check(kernel, arguments)

        def run() -> None:
            self._check_pointers(library, kernel, arguments)
            self.launches.append((kernel, blocks))
            library.launch(
                kernel, blocks, arguments, threads=known.threads, schedule=self._schedule
            )

        self._queue(stream, run)

    def resident_blocks(
        self,
        kernel: str,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> int:
        """Return the number of blocks that the device was made with."""
        return self._resident_blocks

    def record(self, stream: ShimStream) -> ShimEvent:
        """Return the moment when everything queued so far is done."""
        with self._lock:
            self._check_alive()
            event = ShimEvent()
            self._queues.add(stream, Work(records=event))
            return event

    def wait(self, stream: ShimStream, event: ShimEvent) -> None:
        """Let what is queued from now on start after ``event``."""
        with self._lock:
            self._check_alive()
            self._queues.add(stream, Work(awaits=event))

    def finish(self, event: ShimEvent) -> None:
        """Run work until ``event`` has come."""
        with self._lock:
            self._run_until(lambda: event.came is not None)

    def seconds(self, start: ShimEvent, end: ShimEvent) -> float:
        """Return the time between two moments that have come, by the host's clock."""
        if start.came is None or end.came is None:
            raise ShimError("seconds between moments that have not come")
        return end.came - start.came

    def synchronize(self) -> None:
        """Run all work."""
        with self._lock:
            self._run_until(lambda: self._queues.empty)
            self._heap.empty_quarantine()

    def trim(self) -> None:
        """Do nothing: freed memory counts as free."""

    def holds(self, address: int) -> bool:
        """Return whether ``address`` lies in an allocation."""
        with self._lock:
            return self._heap.holds(address)

    def _queue(self, stream: ShimStream, run: Callable[[], None]) -> None:
        def counted() -> None:
            if self._left is not None:
                if not self._left:
                    raise DeviceError("device lost")
                self._left -= 1
            run()

        with self._lock:
            self._check_alive()
            self._queues.add(stream, Work(run=counted))

    def _run_until(self, done: Callable[[], bool]) -> None:
        self._check_alive()
        try:
            self._queues.run_until(done)
        except (DeviceError, ShimError) as error:
            # As on a real device: after a failure nothing works any more.
            self._failure = error
            self._queues.drop()
            raise

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _check_pointers(
        self, library: Library, kernel: str, arguments: tuple[np.generic, ...]
    ) -> None:
        pointers = library.signatures[kernel].pointers
        for at, (argument, pointer) in enumerate(zip(arguments, pointers, strict=True)):
            # An array of no elements may begin where its neighbour ends.
            if pointer and int(argument) and not self._heap.holds(int(argument), 0):
                raise ShimError(f"{kernel}: argument {at} is not memory of the device")
