"""Compile the kernels with NVRTC, through CuPy's bindings, and keep the binaries on disk.

Not with CuPy's ``RawModule``: it asks for the headers of a CUDA toolkit, which no kernel includes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpudedup.compiled.folders import private_folder
from gpudedup.errors import DeviceError
from gpudedup.kernels import KERNELS, defines, source

OPTIONS = ("-std=c++17",)

_DIGEST_BYTES = 32


class Cubins:
    """Binaries of the kernels for one architecture.

    Each is compiled once, and kept in ``$XDG_CACHE_HOME/gpudedup`` (``~/.cache/gpudedup``) if
    nobody else may write there. A binary that is damaged there is compiled anew.

    :param nvrtc: CuPy's module ``cupy.cuda.nvrtc``
    :param capability: compute capability of the device, e.g. 90 for 9.0
    :raises DeviceError: if NVRTC compiles for no such device
    """

    def __init__(self, nvrtc: Any, capability: int) -> None:
        self._nvrtc = nvrtc
        able = [int(each) for each in nvrtc.getSupportedArchs()]
        known = [each for each in able if each <= capability]
        if not known:
            raise DeviceError(
                f"compute capability {capability / 10}: NVRTC compiles from {min(able) / 10} on"
            )
        # Code for a device that is newer than NVRTC is compiled on by the driver.
        self._binary = capability in known
        self._architecture = f"{'sm' if self._binary else 'compute'}_{max(known)}"
        self._folder = _folder()

    def get(
        self,
        kernel: str,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> bytes:
        """Return the binary that holds a kernel; its arguments are as for ``Device.launch``.

        :raises DeviceError: if it does not compile, with the compiler's first error
        """
        known = KERNELS[kernel]
        macros = defines(known.file, page_size, layout, switches)
        options = (
            *OPTIONS,
            f"-arch={self._architecture}",
            *(f"-D{name}={value}" for name, value in macros.items()),
        )
        text = source(known.file)
        key = hashlib.sha256(repr((text, options, self._nvrtc.getVersion())).encode()).hexdigest()
        binary = self._load(key)
        if binary is None:
            binary = self._compile(known.file, text, options)
            self._save(key, binary)
        return binary

    def _compile(self, file: str, text: str, options: tuple[str, ...]) -> bytes:
        nvrtc = self._nvrtc
        program = nvrtc.createProgram(text, file, (), ())
        try:
            nvrtc.compileProgram(program, options)
            found = nvrtc.getCUBIN(program) if self._binary else nvrtc.getPTX(program)
        except nvrtc.NVRTCError as error:
            lines = str(nvrtc.getProgramLog(program)).splitlines()
            reason = next((line for line in lines if "error" in line), str(error))
            raise DeviceError(f"{file} does not compile: {reason}") from None
        finally:
            nvrtc.destroyProgram(program)
        return found if isinstance(found, bytes) else str(found).encode()

    def _load(self, key: str) -> bytes | None:
        if self._folder is None:
            return None
        try:
            held = (self._folder / f"{key}.cubin").read_bytes()
        except OSError:
            return None
        digest, binary = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
        return binary if hashlib.sha256(binary).digest() == digest else None

    def _save(self, key: str, binary: bytes) -> None:
        """Keep a binary, unless the disk fails: the next process compiles it anew then."""
        if self._folder is None:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as unfinished:
                made = Path(unfinished) / key
                made.write_bytes(hashlib.sha256(binary).digest() + binary)
                made.replace(self._folder / f"{key}.cubin")


def _folder() -> Path | None:
    """Return the folder of the binaries; None: others may write there."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError:
        # There is no home directory.
        return None
    found = private_folder(str(Path(cache) / "gpudedup"))
    return None if found is None else Path(found)
