"""Read the resources of kernels from a cubin: registers, stack, shared memory, instructions.

A cubin is a 64-bit ELF file. The code of a kernel ``k`` is section ``.text.k``, its static shared
memory the size of ``.nv.shared.k``; its attributes are entries of ``.nv.info``, which name the
kernel by the number of its symbol.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

EM_CUDA = 190
SHT_NOBITS = 8
STB_GLOBAL = 1
STT_FUNC = 2

# Of .nv.info: the format of an entry with a value of ``size`` bytes, and the attributes read here.
EIFMT_SVAL = 0x04
EIATTR_FRAME_SIZE = 0x11
EIATTR_MIN_STACK_SIZE = 0x12
EIATTR_REGCOUNT = 0x2F

INSTRUCTION = 16
"""Bytes of an instruction, since Volta."""

RESERVED_SHARED = 1024
"""Bytes at the start of ``.nv.shared.*`` that belong to the system, from sm_90 on."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Resources of a kernel.

    :param registers: registers per thread
    :param stack: bytes of local memory per thread: arrays and spills
    :param shared: bytes of static shared memory per block
    :param instructions: instructions in the code, padding to 128 bytes included
    """

    registers: int
    stack: int
    shared: int
    instructions: int


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    offset: int
    size: int


def kernels_of(cubin: bytes) -> dict[str, Kernel]:
    """Return the kernels of a cubin by name.

    :raises ValueError: if ``cubin`` is no cubin, or is truncated
    """
    try:
        return _kernels_of(cubin)
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError(f"not a whole cubin: {error}") from error


def _kernels_of(cubin: bytes) -> dict[str, Kernel]:
    if cubin[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", cubin, 18)[0] != EM_CUDA:
        raise ValueError("not a cubin: its magic or machine is another")
    sections = _sections(cubin)
    reserved = RESERVED_SHARED if architecture(cubin) >= 90 else 0
    attributes = {
        (attribute, symbol): value
        for section in sections.values()
        if section.name == ".nv.info"
        for attribute, symbol, value in _attributes(_content(cubin, section))
    }
    found = {}
    for number, name in _functions(cubin, sections):
        shared = sections.get(f".nv.shared.{name}")
        least = attributes.get((EIATTR_MIN_STACK_SIZE, number), 0)
        found[name] = Kernel(
            registers=attributes[EIATTR_REGCOUNT, number],
            stack=max(least, attributes[EIATTR_FRAME_SIZE, number]),
            shared=shared.size - reserved if shared else 0,
            instructions=sections[f".text.{name}"].size // INSTRUCTION,
        )
    return found


def architecture(cubin: bytes) -> int:
    """Return the architecture of a cubin, e.g. 90 for ``sm_90``."""
    flags: int = struct.unpack_from("<I", cubin, 48)[0]
    return flags >> 8 & 0xFF


def _sections(cubin: bytes) -> dict[str, _Section]:
    (table,) = struct.unpack_from("<Q", cubin, 40)
    entry_size, count, of_names = struct.unpack_from("<3H", cubin, 58)
    rows = [
        struct.unpack_from("<II16xQQ", cubin, table + entry_size * index) for index in range(count)
    ]
    names = rows[of_names][2]
    return {
        (name := _string(cubin, names + at)): _Section(name, kind, offset, size)
        for at, kind, offset, size in rows
    }


def _content(cubin: bytes, section: _Section) -> bytes:
    content = cubin[section.offset : section.offset + section.size]
    if section.kind != SHT_NOBITS and len(content) < section.size:
        raise ValueError(f"not a whole cubin: {section.name} is cut")
    return content


def _functions(cubin: bytes, sections: dict[str, _Section]) -> Iterator[tuple[int, str]]:
    """Yield number and name of the kernels' symbols: functions that kernels call are local."""
    names = sections[".strtab"].offset
    symbols = _content(cubin, sections[".symtab"])
    for number, (at, info) in enumerate(struct.iter_unpack("<IB19x", symbols)):
        if info == STB_GLOBAL << 4 | STT_FUNC:
            yield number, _string(cubin, names + at)


def _attributes(info: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield attribute, symbol and value of the entries on registers and stack."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != EIFMT_SVAL:
            continue  # the value is in place of the size
        if attribute in (EIATTR_REGCOUNT, EIATTR_FRAME_SIZE, EIATTR_MIN_STACK_SIZE):
            yield attribute, *struct.unpack_from("<II", info, at)
        at += size


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
