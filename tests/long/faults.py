"""What goes wrong in a manager on purpose: devices that fail, owners that hang, writebacks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpudedup.devices.base import Bytes, Stream
from gpudedup.devices.host import HostDevice
from gpudedup.errors import DeviceError, RevokedError
from gpudedup.mm.exclusive import Exclusive
from gpudedup.mm.mapping import Mapping

CALLBACKS = "gpudedup-on-revoke"
"""Name of the threads in which owners are told."""


class WritebackError(Exception):
    """Raised by a writeback on purpose."""


class FailingDevice(HostDevice):
    """A device that is lost after :attr:`left` copies, fills and launches; None: never."""

    def __init__(self, number: int, memory: int | None = None) -> None:
        super().__init__(number, memory)
        self.left: int | None = None
        self.failed = False

    @contextmanager
    def failing_after(self, left: int) -> Iterator[None]:
        """In the block, be lost after so many copies, fills and launches."""
        self.left = left
        try:
            yield
        finally:
            self.left = None

    def _count(self) -> None:
        if self.left == 0:
            self.failed = True
        if self.failed:
            raise DeviceError(f"{self.name}: lost")
        if self.left is not None:
            self.left -= 1

    def upload(self, address: int, source: Bytes, stream: Stream) -> None:
        self._count()
        super().upload(address, source, stream)

    def download(self, target: Any, address: int, stream: Stream) -> None:
        self._count()
        super().download(target, address, stream)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self._count()
        super().copy(target, source, size, stream)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        self._count()
        super().fill(address, byte, size, stream)

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
        **more: Any,
    ) -> None:
        self._count()
        super().launch(kernel, blocks, arguments, stream, **more)


class Owner:
    """Who has exclusive access to pages: says nothing, raises, hangs, or writes when it is told.

    :ivar told: pages that it was told of, in the order of the calls
    :ivar wrote: pages that it wrote while it was told, with their bytes; shared with all owners
    """

    def __init__(
        self,
        manner: str,
        wrote: dict[tuple[Mapping, int], bytes],
        parting: bytes,
        end: threading.Event,
    ) -> None:
        self.manner, self.wrote, self._parting, self._end = manner, wrote, parting, end
        self.told: list[int] = []
        self.released: set[int] = set()
        self.handle: Exclusive | None = None

    def on_revoke(self, mapping: Mapping, index: Any) -> None:
        self.told += index.tolist()
        if self.manner == "raises":
            raise ValueError("an owner's own error")
        if self.manner == "hangs":
            self._end.wait()
        if self.manner == "writes" and self.handle is not None:
            page = int(index[0])
            try:
                self.handle.write([page], self._parting)
            except RevokedError:
                return
            self.wrote[mapping, page] = self._parting


def join_callbacks() -> None:
    """Wait for all owners that are being told; none hangs."""
    for thread in threading.enumerate():
        if thread.name == CALLBACKS:
            thread.join(60)
            assert not thread.is_alive()


Writeback = Callable[[Any, Any], None]


def writeback_of(disk: dict[int, bytes], failing: list[BaseException]) -> Writeback:
    """Return a writeback to ``disk``; it raises what is in ``failing``, once, half done."""

    def write(index: Any, data: Any) -> None:
        for at, (i, row) in enumerate(zip(index.tolist(), data, strict=True)):
            if failing and 2 * at >= len(index) - 1:
                raise failing.pop()
            disk[i] = row.tobytes()

    return write
