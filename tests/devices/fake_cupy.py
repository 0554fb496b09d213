"""The part of CuPy that is used, over the kernels' shim: runs the lines that only a GPU would.

Calls take the parameters that CuPy's docstrings give, and end at once.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import time
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from gpudedup.devices import cuda
from gpudedup.kernels import KERNELS

from ..kernels.shim.compile import Library, build

TO_DEVICE, TO_HOST, WITHIN = 1, 2, 3

PROPERTIES = {"name": b"GPU", "multiProcessorCount": 4, "major": 8, "minor": 0}


class CudaError(RuntimeError):
    """Stand-in for CUDARuntimeError of CuPy."""


class DriverError(RuntimeError):
    """Stand-in for CUDADriverError of CuPy."""


class Nothing(Exception):
    """Stand-in for errors that are not raised here."""


class Memory:
    """Memory from a pool; its address is ``ptr``."""

    def __init__(self, size: int) -> None:
        # NumPy does not promise an array's alignment; a mapping begins on a page.
        self._bytes = mmap.mmap(-1, max(size, 1))
        self.ptr = np.frombuffer(self._bytes, np.uint8).ctypes.data


class Pool:
    """Device memory."""

    def malloc(self, size: int) -> Memory:
        """Return memory."""
        return Memory(size)

    def free_bytes(self) -> int:
        """Return the bytes that the pool keeps for reuse."""
        return 0

    def total_bytes(self) -> int:
        """Return the bytes that the pool has."""
        return 0

    def free_all_blocks(self) -> None:
        """Return what is free to the system."""

    def set_limit(self, *, size: int) -> None:
        """Set the most bytes that the pool may have."""
        self._limit = size

    def get_limit(self) -> int:
        """Return the most bytes that the pool may have."""
        return self._limit


class PinnedPool:
    """Host memory."""

    def malloc(self, size: int) -> Memory:
        """Return memory, at least as large."""
        return Memory(size + 512)


class Context:
    """A device or stream that is made current."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Device(Context):
    """One of the devices."""

    def __init__(self, number: int) -> None:
        assert number == 0


class Stream(Context):
    """A stream on which everything is done at once."""

    def __init__(self, *, non_blocking: bool) -> None:
        assert non_blocking
        self.ptr = 77

    def wait_event(self, event: Event) -> None:
        """Check that the event has been recorded."""
        assert event.at is not None


class Event:
    """A moment in a stream."""

    at: float | None = None

    def record(self, stream: Stream) -> None:
        """Record the moment."""
        assert stream.ptr == 77
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Check that the event has been recorded."""
        assert self.at is not None


def elapsed(start: Event, end: Event) -> float:
    """Return the milliseconds between two events."""
    assert start.at is not None
    assert end.at is not None
    return (end.at - start.at) * 1e3


class Nvrtc:
    """``cupy.cuda.nvrtc``: a program's binary is its text and options."""

    NVRTCError = Nothing

    def __init__(self) -> None:
        self._programs: dict[int, list[Any]] = {}
        self.compiled = 0

    def getVersion(self) -> tuple[int, int]:
        """Return major and minor version."""
        return 13, 0

    def getSupportedArchs(self) -> list[int]:
        """Return the architectures."""
        return [75, 80, 90]

    def createProgram(
        self, text: str, name: str, headers: tuple[str, ...], names: tuple[str, ...]
    ) -> int:
        """Return the handle of a program."""
        assert headers == names == ()
        self._programs[len(self._programs)] = [text, name]
        return len(self._programs) - 1

    def compileProgram(self, program: int, options: Sequence[str]) -> None:
        """Compile a program."""
        assert options[0] == "-std=c++17"
        self._programs[program].append(list(options))
        self.compiled += 1

    def getCUBIN(self, program: int) -> bytes:
        """Return the binary."""
        return json.dumps(self._programs[program]).encode()

    def destroyProgram(self, program: int) -> None:
        """Drop a program."""
        del self._programs[program]


class Module:
    """``cupy.cuda.function.Module``, whose binaries the shim compiles."""

    def load(self, binary: bytes) -> None:
        """Take a binary."""
        self._text, _, options = json.loads(binary)
        assert "-arch=sm_80" in options
        macros = [re.fullmatch(r"-D(\w+)=(\d+)", option) for option in options[2:]]
        self._macros = {m[1]: int(m[2]) for m in macros if m}
        assert len(self._macros) == len(macros)

    def get_function(self, name: str) -> Any:
        """Return a kernel."""
        library = build(KERNELS[name].file, self._macros, text=self._text)

        return Function(library, name)


class Function:
    """A kernel; its address is ``ptr``."""

    ptr = 88

    def __init__(self, library: Library, name: str) -> None:
        self._library, self._name = library, name

    def __call__(self, grid: tuple[int], block: tuple[int], args: Sequence[np.generic]) -> None:
        """Launch it."""
        (blocks,), (threads,) = grid, block
        self._library.launch(self._name, blocks, args, threads=threads)


def occupancy(function: int, threads: int, shared: int) -> int:
    """Return the blocks of a kernel that a multiprocessor runs at once."""
    assert (function, threads, shared) == (Function.ptr, 256, 0)
    return 3


def copy(target: int, source: int, size: int, kind: int, stream: int) -> None:
    """Copy bytes."""
    assert kind in (TO_DEVICE, TO_HOST, WITHIN)
    assert stream == 77
    ctypes.memmove(target, source, size)


def fill(target: int, value: int, size: int, stream: int) -> None:
    """Set bytes."""
    assert stream == 77
    ctypes.memset(target, value, size)


def fake_cupy() -> ModuleType:
    """Return a module ``cupy`` with one device."""
    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(
        Device=Device,
        Event=Event,
        MemoryPool=Pool,
        PinnedMemoryPool=PinnedPool,
        Stream=Stream,
        get_elapsed_time=elapsed,
        driver=SimpleNamespace(
            CUDADriverError=DriverError,
            occupancyMaxActiveBlocksPerMultiprocessor=occupancy,
        ),
        memory=SimpleNamespace(OutOfMemoryError=MemoryError),
        function=SimpleNamespace(Module=type("Module", (Module,), {})),
        nvrtc=Nvrtc(),
        runtime=SimpleNamespace(
            CUDARuntimeError=CudaError,
            memcpyDeviceToDevice=WITHIN,
            memcpyDeviceToHost=TO_HOST,
            memcpyHostToDevice=TO_DEVICE,
            deviceSynchronize=lambda: None,
            driverGetVersion=lambda: 12040,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda number: PROPERTIES,
            memGetInfo=lambda: (1 << 30, 1 << 30),
            memcpyAsync=copy,
            memsetAsync=fill,
            pointerGetAttributes=lambda address: SimpleNamespace(type=2, device=0),
            runtimeGetVersion=lambda: 13000,
        ),
    )
    return cupy  # type: ignore[no-any-return]


def stand_in(**changes: Any) -> ModuleType:
    """Return a module ``cupy`` with one device.

    :param changes: what a call returns, or raises
    """
    cupy: Any = fake_cupy()
    runtime, cuda = cupy.cuda.runtime, cupy.cuda
    cuda.MemoryPool = type("Pool", (cuda.MemoryPool,), {})
    places = {
        "allocate": (cuda.MemoryPool, "malloc"),
        "count": (runtime, "getDeviceCount"),
        "nvrtc": (cuda.nvrtc, "getVersion"),
        "compile": (cuda.nvrtc, "compileProgram"),
        "load": (cuda.function.Module, "load"),
    }
    for what, value in changes.items():

        def call(*_: object, value: Any = value) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        setattr(*places[what], call)
    return cupy  # type: ignore[no-any-return]


def let_there_be_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a driver, and one CuPy package."""
    monkeypatch.setattr(cuda, "_has_driver", lambda: True)
    monkeypatch.setattr(cuda, "WHEELS", ())
    monkeypatch.setattr(cuda, "find_spec", lambda name: object())
    # Not absolute, so no binary is kept.
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
