"""NVIDIA devices, through CuPy: the only module that imports it."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Bytes, DeviceMemory, Event, OutOfDeviceMemory, Stream
from gpudedup.devices.cubins import Cubins
from gpudedup.errors import DeviceError, UnsupportedHereError
from gpudedup.kernels import KERNELS

WHEELS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
"""Distributions that install the package ``cupy``; only one may be installed."""

_OUT_OF_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation")

_DEVICE_MEMORY_TYPES = (2, 3)
"""cudaMemoryTypeDevice and cudaMemoryTypeManaged."""

RESERVED_BYTES = 256 << 20
"""Device memory left to the driver, which loads a kernel at its first launch, and to others; half
of the free memory if that is less."""

KEPT_BYTES = 1 << 30
"""Most device memory that stays allocated between scans."""


def open_devices(numbers: Sequence[int] | None = None, *, pooled: bool = True) -> list[CudaDevice]:
    """Open devices, and run a kernel on each to check that it works.

    :param numbers: CUDA's numbers of the devices; None: device 0
    :param pooled: as for :class:`CudaDevice`
    :raises UnsupportedHereError: if a device cannot be used, with the reason in one line
    """
    if not _has_driver():
        # First, because it is quick, and because CuPy is of no use without a driver.
        raise UnsupportedHereError("there is no NVIDIA driver")
    cupy = _import_cupy()
    count = _device_count(cupy)
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        raise UnsupportedHereError(
            f"NVRTC cannot be loaded ({_line(error)}): install the package nvidia-cuda-nvrtc of"
            " CuPy's CUDA version"
        ) from None
    chosen = [0] if numbers is None else list(numbers)
    for number in chosen:
        if not 0 <= number < count:
            raise UnsupportedHereError(f"there is no device {number}: devices are 0 to {count - 1}")
    devices = []
    for number in chosen:
        try:
            device = CudaDevice(cupy, number, pooled=pooled)
            device.allocate(1)
            stream = device.stream()
            device.launch("set_words", 1, KERNELS["set_words"].nothing(), stream)
            device.finish(device.record(stream))
        except DeviceError as error:
            raise UnsupportedHereError(_line(error)) from None
        devices.append(device)
    return devices


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _import_cupy() -> Any:
    """Import CuPy; UnsupportedHereError if it is missing, installed more than once or broken."""
    if find_spec("cupy") is None:
        raise UnsupportedHereError("CuPy is not installed: pip install 'gpudedup[cuda13]' (or 12)")
    wheels = []
    for name in WHEELS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        wheels.append(name)
    if len(wheels) > 1:
        raise UnsupportedHereError(
            f"several CuPy packages are installed, uninstall all but one: {', '.join(wheels)}"
        )
    try:
        with warnings.catch_warnings():
            # CuPy warns of faults that this module reports in one line.
            warnings.simplefilter("ignore")
            import cupy
    except Exception as error:
        raise UnsupportedHereError(f"CuPy cannot be imported: {_line(error)}") from None
    return cupy


def _device_count(cupy: Any) -> int:
    """Return the number of devices; UnsupportedHereError if it is 0 or the driver too old."""
    runtime = cupy.cuda.runtime
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        has, needs = _dotted(runtime.driverGetVersion()), _dotted(runtime.runtimeGetVersion())
        if "InsufficientDriver" in str(error):
            raise UnsupportedHereError(
                f"the NVIDIA driver is too old: it is made for CUDA {has}, CuPy needs {needs}"
            ) from None
        raise UnsupportedHereError(_line(error)) from None


def _dotted(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _line(error: BaseException) -> str:
    """Return the message of an error, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def cuda_array(array: Any) -> Any:
    """Return ``array``, or a CuPy view of it, with ``__cuda_array_interface__``.

    :param array: has ``__cuda_array_interface__``, or DLPack of a CUDA device
    :raises UnsupportedHereError: if CuPy is needed and cannot be imported
    """
    if hasattr(array, "__cuda_array_interface__"):
        return array
    return _import_cupy().from_dlpack(array)


class _Memory:
    """Implements :class:`gpudedup.devices.base.DeviceMemory`."""

    def __init__(self, pointer: Any, size: int) -> None:
        self._pointer, self.size = pointer, size
        self.address = int(pointer.ptr)


class _Function(NamedTuple):
    """A kernel that is loaded, and the blocks of it that a multiprocessor runs at once."""

    run: Any
    resident_blocks: int


_Key = tuple[str, int, str, frozenset[tuple[str, int]]]
"""Kernel, page size, layout, switches."""


class _Pinned:
    """Pinned memory as an array's base. It holds the pool, which owns the memory in some CuPys."""

    def __init__(self, pointer: Any, pool: Any, size: int) -> None:
        self._pointer, self._pool = pointer, pool
        self.__array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (pointer.ptr, False), "version": 3,
        }  # fmt: skip


class CudaDevice:
    """Implements :class:`gpudedup.devices.base.Device` on CUDA's device ``number``.

    :param pooled: take memory from a pool; if not, each allocation is the driver's own, so that
        compute-sanitizer sees every byte beyond
    """

    def __init__(self, cupy: Any, number: int, *, pooled: bool = True) -> None:
        self._cupy, self._runtime, self._number = cupy, cupy.cuda.runtime, number
        self._pooled = pooled
        self._functions: dict[_Key, _Function] = {}
        self._cubins: Cubins | None = None
        self._compiling = threading.Lock()
        self.name = f"device {number}"
        with self._current():
            properties = self._runtime.getDeviceProperties(number)
            self.name = f"{properties['name'].decode()} ({number})"
            self.multiprocessors = int(properties["multiProcessorCount"])
            self.capability = 10 * int(properties["major"]) + int(properties["minor"])
            # Own pools, so that dropping this object returns their memory to the system.
            self._pool = cupy.cuda.MemoryPool()
            self._set_limit()
            self._pinned_pool = cupy.cuda.PinnedMemoryPool()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make it the current device of this thread; convert CuPy's errors to DeviceError."""
        cuda = self._cupy.cuda
        try:
            with cuda.Device(self._number):
                yield
        except cuda.memory.OutOfMemoryError as error:
            raise OutOfDeviceMemory(f"{self.name}: {_line(error)}") from None
        except (self._runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            # A launch needs memory, too: the driver loads kernels late.
            full = any(word in str(error) for word in _OUT_OF_MEMORY)
            kind = OutOfDeviceMemory if full else DeviceError
            raise kind(f"{self.name}: {_line(error)}") from None

    def free_memory(self) -> int:
        """Return the bytes that could be allocated now."""
        with self._current():
            free, _ = self._runtime.memGetInfo()
            more = min(int(free), int(self._pool.get_limit() - self._pool.total_bytes()))
            return max(0, more) + int(self._pool.free_bytes())

    def allocate(self, size: int) -> DeviceMemory:
        """Allocate ``size`` bytes, uninitialised."""
        with self._current():
            if not self._pooled:
                return _Memory(self._cupy.cuda.memory.Memory(size), size)
            return _Memory(self._pool.malloc(size), size)

    def pinned(self, size: int) -> Bytes:
        """Allocate (size,) uint8 of pinned host memory, which the copy engine accesses directly."""
        with self._current():
            return np.asarray(_Pinned(self._pinned_pool.malloc(size), self._pinned_pool, size))

    def trim(self) -> None:
        """Return freed device memory to the system, but for a little that the next scan takes."""
        with self._current():
            if self._pool.total_bytes() > KEPT_BYTES:
                self._pool.free_all_blocks()
            self._set_limit()

    def _set_limit(self) -> None:
        """Let the pool grow by what is free now, but for a reserve."""
        free = int(self._runtime.memGetInfo()[0])
        more = free - min(RESERVED_BYTES, free // 2)
        self._pool.set_limit(size=int(self._pool.total_bytes()) + more)

    def stream(self) -> Stream:
        """Make a stream that does not synchronise with the default stream."""
        with self._current():
            return self._cupy.cuda.Stream(non_blocking=True)

    def upload(self, address: int, source: Bytes, stream: Stream) -> None:
        """Copy host bytes to the device."""
        self._copy(
            address, source.ctypes.data, source.nbytes, self._runtime.memcpyHostToDevice, stream
        )

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Fill ``target`` from ``address``."""
        self._copy(
            target.ctypes.data, address, target.nbytes, self._runtime.memcpyDeviceToHost, stream
        )

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy bytes within the device."""
        self._copy(target, source, size, self._runtime.memcpyDeviceToDevice, stream)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: Stream) -> None:
        with self._current():
            self._runtime.memcpyAsync(target, source, size, kind, stream.ptr)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        """Set bytes on the device."""
        with self._current():
            self._runtime.memsetAsync(address, byte, size, stream.ptr)

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
        """Queue a kernel; its first launch compiles it, or loads it from the cache on disk."""
        with self._current():
            function = self._function(kernel, page_size, layout, switches)
            with stream:
                function.run((blocks,), (KERNELS[kernel].threads,), arguments)

    def resident_blocks(
        self,
        kernel: str,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> int:
        """Return the blocks of a kernel that a multiprocessor runs at once, at least 1."""
        with self._current():
            return self._function(kernel, page_size, layout, switches).resident_blocks

    def resources(
        self,
        kernel: str,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> tuple[int, int]:
        """Return registers and bytes of local memory, spills included, per thread of a kernel."""
        driver = self._cupy.cuda.driver
        with self._current():
            pointer = self._function(kernel, page_size, layout, switches).run.ptr
            registers = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_NUM_REGS, pointer)
            local = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, pointer)
            return int(registers), int(local)

    def _function(
        self, kernel: str, page_size: int, layout: str, switches: Mapping[str, int] | None
    ) -> _Function:
        if not KERNELS[kernel].by_page_size:
            page_size, layout = 0, ""
        key = (kernel, page_size, layout, frozenset((switches or {}).items()))
        with self._compiling:
            if key not in self._functions:
                run = self._load(kernel, page_size, layout, switches)
                count = self._cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
                blocks = int(count(run.ptr, KERNELS[kernel].threads, 0))
                self._functions[key] = _Function(run, max(1, blocks))
            return self._functions[key]

    def _load(
        self, kernel: str, page_size: int, layout: str, switches: Mapping[str, int] | None
    ) -> Any:
        """Compile a kernel and load it; whatever goes wrong with either is a DeviceError."""
        cuda = self._cupy.cuda
        try:
            if self._cubins is None:
                self._cubins = Cubins(cuda.nvrtc, self.capability)
            module = cuda.function.Module()
            module.load(self._cubins.get(kernel, page_size, layout, switches))
            return module.get_function(kernel)
        except (self._runtime.CUDARuntimeError, cuda.driver.CUDADriverError):
            raise
        except Exception as error:
            raise DeviceError(f"{self.name}: kernel {kernel}: {_line(error)}") from None

    def record(self, stream: Stream) -> Event:
        """Return an event that is reached when all work queued so far is done."""
        with self._current():
            event = self._cupy.cuda.Event()
            event.record(stream)
            return event

    def wait(self, stream: Stream, event: Event) -> None:
        """Make work queued from now on wait for ``event``."""
        with self._current():
            stream.wait_event(event)

    def finish(self, event: Event) -> None:
        """Block until ``event`` is reached."""
        with self._current():
            event.synchronize()

    def seconds(self, start: Event, end: Event) -> float:
        """Return the seconds between two reached events."""
        with self._current():
            return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1e3

    def synchronize(self) -> None:
        """Block until all work on the device is done, that of other libraries included."""
        with self._current():
            self._runtime.deviceSynchronize()

    def holds(self, address: int) -> bool:
        """Return whether ``address`` lies in device or managed memory of this device."""
        with self._current():
            attributes = self._runtime.pointerGetAttributes(address)
            return attributes.type in _DEVICE_MEMORY_TYPES and attributes.device == self._number
