"""NVRTC by ctypes, from the wheel ``nvidia-cuda-nvrtc``: it needs neither a driver nor CuPy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Program:
    """The result of a compilation.

    :param cubin: an ELF file; None: the compilation failed
    :param log: messages of the compiler and of ptxas
    """

    cubin: bytes | None
    log: str


def file_of(wheel: str, name: str) -> Path | None:
    """Return a wheel's file whose name begins with ``name``; None: not installed."""
    try:
        found = distribution(wheel).files or []
    except PackageNotFoundError:
        return None
    return next((Path(str(at.locate())) for at in found if at.name.startswith(name)), None)


class Nvrtc:
    """The library. Several threads may compile at once: ctypes releases the GIL.

    :param path: path of ``libnvrtc.so.*``
    :param version: version of the wheel; NVRTC itself reports only major and minor
    """

    def __init__(self, path: Path, version: str) -> None:
        self.version = version
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, text: str, name: str, options: Sequence[str]) -> Program:
        """Compile to a cubin.

        :param name: name of the text in messages
        :raises RuntimeError: if NVRTC fails for another reason than the text
        """
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program), text.encode(), name.encode(), 0, None, None,
        )  # fmt: skip
        try:
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            code = self._library.nvrtcCompileProgram(program, len(options), array)
            log = self._bytes("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
            message = log.rstrip(b"\0").decode()
            if code not in (0, COMPILATION_FAILED):
                raise RuntimeError(f"NVRTC: {self._error(code)}: {message}")
            cubin = None if code else self._bytes("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
            return Program(cubin, message)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _bytes(self, size_of: str, get: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(size_of, program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(get, program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        if code := getattr(self._library, function)(*arguments):
            raise RuntimeError(f"{function}: {self._error(code)}")

    def _error(self, code: int) -> str:
        return str(self._library.nvrtcGetErrorString(code).decode())


COMPILATION_FAILED = 6
"""NVRTC_ERROR_COMPILATION."""


@cache
def load() -> Nvrtc | None:
    """Return NVRTC; None: the wheel is not installed."""
    path = file_of(WHEEL, "libnvrtc.so")
    if not path:
        return None
    # NVRTC opens its builtins by name, and version 13.0 does not search its own folder.
    if builtins := file_of(WHEEL, "libnvrtc-builtins.so"):
        ctypes.CDLL(str(builtins))
    return Nvrtc(path, distribution(WHEEL).version)


WHEEL = "nvidia-cuda-nvrtc"
