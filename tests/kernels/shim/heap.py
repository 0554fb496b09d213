"""The memory of a device that is none: pieces of this process's memory, each exactly as large as
asked for, so that the address sanitiser sees every byte beyond.
"""

from __future__ import annotations

import bisect
import ctypes
import weakref

from gpudedup.devices.base import OutOfDeviceMemory

from .compile import ShimError

ALIGNMENT = 256
POISON = 0xA5
"""What memory holds that was not written yet."""
FREED = 0xDD
"""What memory holds that was let go."""

_libc = ctypes.CDLL(None)
_libc.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_libc.free.argtypes = (ctypes.c_void_p,)


class ShimMemory:
    """Memory of a device, let go with the last reference."""

    def __init__(self, heap: Heap, address: int, size: int) -> None:
        self._address = address
        self._size = size
        weakref.finalize(self, heap.release, address).atexit = False

    @property
    def address(self) -> int:
        """Return where it begins: a multiple of 256."""
        return self._address

    @property
    def size(self) -> int:
        """Return the bytes asked for."""
        return self._size


class Heap:
    """What is allocated, by address.

    Not locked. Only :meth:`release` may be called at any time and from any thread (it is the
    garbage collector that calls it), so it does no more than note the address.

    :param limit: bytes in all
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[int, int] = {}
        self._starts: list[int] = []
        self._let_go: list[int] = []
        self._quarantine: list[int] = []

    @property
    def free(self) -> int:
        """Return bytes that could be allocated now."""
        self.sweep()
        return self._limit - sum(map(_rounded, self._sizes.values()))

    def allocate(self, size: int) -> ShimMemory:
        """Return ``size`` bytes of poison."""
        if size < 0:
            raise ValueError(f"{size} bytes")
        if _rounded(size) > self.free:
            raise OutOfDeviceMemory(f"{size} bytes asked for, {self.free} free")
        pointer = ctypes.c_void_p()
        if _libc.posix_memalign(ctypes.byref(pointer), ALIGNMENT, max(size, 1)) or not pointer:
            raise OutOfDeviceMemory(f"{size} bytes asked for, the host has no more")
        address = int(pointer.value or 0)
        ctypes.memset(address, POISON, size)
        self._sizes[address] = size
        bisect.insort(self._starts, address)
        return ShimMemory(self, address, size)

    def release(self, address: int) -> None:
        """Note that memory was let go."""
        self._let_go.append(address)

    def sweep(self) -> None:
        """Take back what was let go: it is no longer held, but stays out of use for now."""
        while self._let_go:
            address = self._let_go.pop()
            size = self._sizes.pop(address)
            self._starts.remove(address)
            ctypes.memset(address, FREED, size)
            self._quarantine.append(address)

    def empty_quarantine(self) -> None:
        """Give what was let go back to the host; to be called when no work waits.

        Before that it must not be allocated anew, or work on the old memory would find the new.
        """
        self.sweep()
        while self._quarantine:
            _libc.free(self._quarantine.pop())

    def holds(self, address: int, size: int = 1) -> bool:
        """Return whether these bytes lie within one allocation."""
        self.sweep()
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return False
        start = self._starts[at]
        return address + size <= start + self._sizes[start]

    def check(self, what: str, address: int, size: int) -> None:
        """Raise ShimError unless these bytes are held."""
        if not self.holds(address, size):
            raise ShimError(f"{what}: {size} bytes at {address:#x} are not memory of the device")


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
