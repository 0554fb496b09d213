"""End the command with one line when a mapped file cannot be read any more.

With a read lease the pages of a file are read through a memory map, their metadata never. If the
file is cut off meanwhile, the kernel takes the lease back (45 s after Ctrl-Z), or the disk fails,
touching the map raises SIGBUS. A handler of :mod:`signal` would never run: it waits for the
instruction that faults again and again. So libc is given a C function, which ctypes makes of a
Python one: the fault is in the midst of a copy or comparison, never in the interpreter's or an
allocator's own work, so Python may run there once its thread has the GIL. The process ends at once;
outputs have no name before they are complete, so none is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpudedup.errors import ExitCode
from gpudedup.report.units import printable

_SA_SIGINFO = 4
_ADDRESS = 16
"""Byte offset of ``si_addr`` in ``siginfo_t``, on 64-bit Linux."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@contextmanager
def bus_errors_named() -> Iterator[None]:
    """In the block, SIGBUS names the file whose map was touched and ends the process with code 1.

    For the command line only: it ends all threads, and no ``finally`` runs.
    """
    is_told = False

    def tell(number: int, info: int, context: int) -> None:
        nonlocal is_told
        if is_told:
            # Another thread's fault; the first to come ends the process.
            time.sleep(1)
            return
        is_told = True
        try:
            what = _mapped_file(ctypes.c_size_t.from_address(info + _ADDRESS).value)
            line = f"gpudedup: {what}: cannot be read any more: cut off meanwhile, or a bad disk\n"
            os.write(2, line.encode(errors="replace"))
        finally:
            os._exit(ExitCode.FAILED)

    handler = _Handler(tell)
    libc = ctypes.CDLL(None)
    ours, before = _Action(flags=_SA_SIGINFO), _Action()
    ours.handler = ctypes.cast(handler, ctypes.c_void_p)
    libc.sigaction(signal.SIGBUS, ctypes.byref(ours), ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)


def _mapped_file(address: int) -> str:
    """Return the name of the file that is mapped at ``address``."""
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        area, _, _, _, _, *name = line.split(maxsplit=5)
        start, stop = (int(part, 16) for part in area.split(b"-"))
        if start <= address < stop and name:
            return printable(os.fsdecode(name[0].removesuffix(b" (deleted)")))
    return f"memory at {address:#x}"
