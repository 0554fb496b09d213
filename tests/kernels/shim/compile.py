"""Make kernel sources functions of this process: g++, a cache of shared objects, ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from gpudedup import kernels

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
NO_COMPILER = "needs g++, which compiles the kernels for the CPU"
CHECKS = "alignment,null,bounds,shift"
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-Wall", "-Wextra", "-Werror", f"-fsanitize={CHECKS}"),
    # nvcc's pragmas; parameters that only document a kernel's arrays; C's precedence.
    *("-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-parentheses"),
)
ORDERS = ("forward", "backward", "random", "ahead", "behind")
"""Names of ``Order`` in ``grid.h``, in its order."""


class CompileError(RuntimeError):
    """A source that g++ refuses."""


class ShimError(AssertionError):
    """A kernel or its caller broke a rule of the device: a bug, never a failing device."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order in which threads run.

    :param order: one of :data:`ORDERS`
    :param seed: seed of ``random``; for ``ahead`` and ``behind`` the number of the warp
    :param resident: blocks that take turns; only ``random`` uses more than one
    """

    order: str = "forward"
    seed: int = 0
    resident: int = 1


SCHEDULES = (
    Schedule("forward"),
    Schedule("backward"),
    Schedule("ahead", 7),
    Schedule("behind", 0),
    Schedule("random", 1),
    Schedule("random", 2, resident=3),
)
"""Orders that differ enough to show results that depend on the order."""


class Launch(ctypes.Structure):
    """``Launch`` of ``grid.h``."""

    _fields_ = (
        ("blocks", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("resident", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("stacks", ctypes.c_void_p),
        ("error", ctypes.c_char * 512),
    )


@dataclass(frozen=True, slots=True)
class Signature:
    """A kernel's head in the source.

    :param dtypes: dtype of each parameter; pointers are uint64
    :param pointers: True for each parameter that is a pointer
    :param bounds: arguments of ``__launch_bounds__``, as text
    """

    dtypes: tuple[np.dtype[np.generic], ...]
    pointers: tuple[bool, ...]
    bounds: str


HEAD = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+__launch_bounds__\(([^)]*)\)\s+(\w+)\s*\(([^)]*)\)'
)
SCALARS = {
    "u8": np.uint8, "u32": np.uint32, "u64": np.uint64, "unsigned": np.uint32,
    "unsigned int": np.uint32, "unsigned long long": np.uint64, "int": np.int32,
}  # fmt: skip


def signatures(text: str) -> dict[str, Signature]:
    """Read the heads of all kernels in a source."""
    found = {}
    for bounds, name, parameters in HEAD.findall(re.sub(r"//.*", "", text)):
        types = [
            re.sub(r"\b(const|volatile|__restrict__)\b|\w+\s*$", " ", parameter).strip()
            for parameter in parameters.split(",")
            if parameter.strip()
        ]
        found[name] = Signature(
            tuple(np.dtype(np.uint64 if "*" in kind else SCALARS[kind]) for kind in types),
            tuple("*" in kind for kind in types),
            bounds.strip(),
        )
    return found


class Stacks:
    """Stacks for the threads of launches, reused by all libraries: each stack takes two mappings,
    and the kernel limits the mappings of a process.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[int]] = {}

    @contextmanager
    def lent(self, library: ctypes.CDLL, count: int) -> Iterator[int]:
        """Lend ``count`` stacks; yield their address."""
        free = self._free.setdefault(count, [])
        try:
            stacks = free.pop()
        except IndexError:
            make = library.shim_new_stacks
            make.argtypes, make.restype = (ctypes.c_size_t,), ctypes.c_void_p
            made = make(count)
            if not made:
                raise MemoryError(f"no memory for {count} stacks") from None
            stacks = int(made)
        try:
            yield stacks
        finally:
            free.append(stacks)


_STACKS = {False: Stacks(), True: Stacks()}
"""Stacks without and with the sanitiser, which needs larger ones."""


class Library:
    """The kernels of one source, compiled for the CPU."""

    def __init__(self, path: Path, text: str, stacks: Stacks) -> None:
        self.signatures = signatures(text)
        self._library = ctypes.CDLL(str(path))
        # The shim keeps a launch in static variables of the library.
        self._lock = threading.Lock()
        self._stacks = stacks

    def check(self, kernel: str, arguments: Sequence[np.generic]) -> None:
        """Raise TypeError unless the arguments are typed as the kernel's parameters."""
        wanted = self.signatures[kernel].dtypes
        given = tuple(argument.dtype for argument in arguments)
        if wanted != given:
            texts = [", ".join(map(str, dtypes)) for dtypes in (wanted, given)]
            raise TypeError(f"{kernel} takes ({texts[0]}), not ({texts[1]})")

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: Sequence[np.generic],
        *,
        threads: int = 256,
        schedule: Schedule | None = None,
    ) -> None:
        """Run a grid to its end.

        :raises ShimError: if the kernel breaks a rule of the device
        """
        self.check(kernel, arguments)
        chosen = schedule or Schedule()
        values = [np.array(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        order = ORDERS.index(chosen.order)
        resident = min(chosen.resident, blocks)
        function = self._library[f"launch_{kernel}"]
        function.restype = None
        with self._lock, self._stacks.lent(self._library, resident * threads) as stacks:
            asked = Launch(blocks, threads, order, resident, chosen.seed, stacks)
            function(ctypes.byref(asked), pointers)
        if asked.error:
            raise ShimError(f"{kernel}: {asked.error.decode(errors='replace')}")


_building = threading.Lock()


def build(
    file: str,
    defines: Mapping[str, int] | None = None,
    *,
    sanitize: bool = False,
    text: str | None = None,
) -> Library:
    """Compile a source, or take it from the cache.

    :param file: name of a source of :mod:`gpudedup.kernels`
    :param defines: macros of the source
    :param sanitize: with the address sanitiser, whose library must be loaded already
    :param text: text to compile instead of the file's
    :raises CompileError: if it does not compile
    """
    macros = tuple(sorted((defines or {}).items()))
    # Serialised: two threads that miss the cache at once would get two libraries, each with a lock
    # of its own, over the same static variables.
    with _building:
        return _build(file, macros, sanitize, kernels.source(file) if text is None else text)


@cache
def _build(file: str, macros: tuple[tuple[str, int], ...], sanitize: bool, text: str) -> Library:
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in macros)]
    if sanitize:
        flags += ["-fsanitize=address", "-fsanitize-sections=shim_shared", "-g1", "-O1"]
    exports = "".join(f"\nSHIM_EXPORT({kernel})" for kernel in signatures(text))
    whole = f'#include "cuda_shim.h"\n#line 1 "{file}"\n{text}\n{exports}\n'
    key = hashlib.sha256(repr((flags, whole, _surroundings())).encode()).hexdigest()[:32]
    path = cache_folder() / f"{Path(file).stem}-{key}.so"
    if not path.exists():
        _compile(whole, flags, path)
    return Library(path, text, _STACKS[sanitize])


def _compile(text: str, flags: Sequence[str], path: Path) -> None:
    if COMPILER is None:
        raise CompileError(NO_COMPILER)
    # Where this process runs under a sanitiser, the compiler need not.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made, linked = Path(folder, "made.o"), Path(folder, "made.so")
        # In two steps: checks.h has the checks' handlers, so the compiler's library stays out.
        steps = (
            ["-x", "c++", "-", "-c", "-I", str(HERE), *flags, "-o", str(made)],
            ["-shared", "-o", str(linked), str(made)],
        )
        for step in steps:
            done = subprocess.run(
                [COMPILER, *step], input=text, text=True, capture_output=True, env=environment
            )
            if done.returncode:
                raise CompileError(f"{path.stem} does not compile:\n{done.stderr.strip()}")
        linked.replace(path)


@cache
def _surroundings() -> tuple[bytes, ...]:
    """Return the compiler's version and the shim's headers, on which a shared object depends."""
    version = subprocess.run([COMPILER or "g++", "--version"], capture_output=True).stdout
    return (version, *(header.read_bytes() for header in sorted(HERE.glob("*.h"))))


@cache
def cache_folder() -> Path:
    """Return a folder that only this user can write to, since its libraries are run."""
    folder = Path(tempfile.gettempdir(), f"gpudedup-shim-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if folder.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise CompileError(f"{folder}: somebody else could write there")
    return folder
