"""The memory of a shim device: allocations of this process, each of exactly the size requested, so
that the address sanitiser sees every byte beyond.
"""

from __future__ import annotations

import bisect
import ctypes
import weakref

from gpudedup.devices.base import OutOfDeviceMemory

from .compile import ShimError

ALIGNMENT = 256
POISON = 0xA5
"""Byte that fills memory not written yet."""
FREED = 0xDD
"""Byte that fills freed memory."""

_libc = ctypes.CDLL(None)
_libc.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_libc.free.argtypes = (ctypes.c_void_p,)


class ShimMemory:
    """Memory of a device; dropping the last reference frees it."""

    def __init__(self, heap: Heap, address: int, size: int) -> None:
        self._address = address
        self._size = size
        weakref.finalize(self, heap.release, address).atexit = False

    @property
    def address(self) -> int:
        """Return the address of the first byte, a multiple of :data:`ALIGNMENT`."""
        return self._address

    @property
    def size(self) -> int:
        """Return the bytes requested."""
        return self._size


class Heap:
    """Allocations, by address.

    Not locked. Only :meth:`release` may be called at any time and from any thread: the garbage
    collector calls it, so it only notes the address.

    :param limit: bytes in all
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[int, int] = {}
        self._starts: list[int] = []
        self._let_go: list[int] = []
        self._quarantine: list[int] = []
        # No allocation outlives its heap: each one's finalizer holds it.
        weakref.finalize(self, _free_all, self._sizes, self._quarantine).atexit = False

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
        """Note that the last reference to an allocation was dropped."""
        self._let_go.append(address)

    def sweep(self) -> None:
        """Move dropped allocations to the quarantine: no longer held, but not yet reused."""
        while self._let_go:
            address = self._let_go.pop()
            size = self._sizes.pop(address)
            self._starts.remove(address)
            ctypes.memset(address, FREED, size)
            self._quarantine.append(address)

    def empty_quarantine(self) -> None:
        """Free the allocations in quarantine; to be called when no work waits.

        Earlier, the host might reuse their addresses, and late work would reach the new memory.
        """
        self.sweep()
        while self._quarantine:
            _libc.free(self._quarantine.pop())

    def holds(self, address: int, size: int = 1) -> bool:
        """Return whether ``size`` bytes at ``address`` lie within one allocation."""
        self.sweep()
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return False
        start = self._starts[at]
        return address + size <= start + self._sizes[start]

    def check(self, what: str, address: int, size: int) -> None:
        """Raise ShimError unless :meth:`holds` is true."""
        if not self.holds(address, size):
            raise ShimError(f"{what}: {size} bytes at {address:#x} are not memory of the device")


def _free_all(sizes: dict[int, int], quarantine: list[int]) -> None:
    for address in (*sizes, *quarantine):
        _libc.free(address)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
