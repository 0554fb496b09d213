"""The compile gate: variants of the kernels, ceilings of resources, and the table of what they use.

``python -m tests.kernels.gate`` remakes the table ``resources.json`` (needs the wheels
``nvidia-cuda-nvrtc`` and ``nvidia-cuda-nvdisasm``, of the same version).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from gpudedup import kernels
from gpudedup.kernels import KERNELS, defines, layouts, source
from gpudedup.schema import MAX_PAGE_SIZE, MIN_PAGE_SIZE

from . import cubin, nvrtc, sass

ARCHITECTURES = (75, 80, 90, 100, 120)
"""Turing, Ampere, Hopper, Blackwell of servers and of desktops."""

PAGE_SIZES = tuple(
    1 << bit for bit in range(MIN_PAGE_SIZE.bit_length() - 1, MAX_PAGE_SIZE.bit_length())
)

REGISTERS_OF_MULTIPROCESSOR = 64 << 10
SHARED_OF_BLOCK = 48 << 10

BLOCKS = {"digest": 2}
"""Blocks that a multiprocessor must hold; other kernels: 4, all that sm_75 has threads for."""

# No -Werror, which NVRTC 13.0 does not know: the log is held to be free of warnings.
OPTIONS = (
    "-std=c++17",
    "--ptxas-options=-v",
    "--ptxas-options=--warn-on-spills",
    "--ptxas-options=--warn-on-local-memory-usage",
)

PAGES_OF_TURN = 4
"""Pages that a warp digests at a time in layouts quad and octet."""

WARP = 32
WARP_LOAD = 16 * WARP

PAGE = 4096
"""Bytes of the pages for which ``Row.issued`` counts instructions."""

TABLE = Path(__file__).with_name("resources.json")

REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\d+)\w?'\n"
    r".*\n"
    r"\D*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?:.* (?P<shared>\d+) bytes smem)?"
)
"""The lines of ``ptxas -v`` on a kernel."""

INFORMATION = re.compile(r"ptxas info +:|ptxas +\. |    \d+ bytes stack frame|$")
"""Lines of a log that are no warnings."""

Key = tuple[str, int, str, int]
"""Kernel, page size, layout, architecture."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation.

    :param page_size: bytes; 0: compiled for all page sizes
    :param switches: names and values other than the defaults
    """

    file: str
    arch: int
    page_size: int = 0
    layout: str = ""
    switches: tuple[tuple[str, int], ...] = ()

    @property
    def macros(self) -> list[str]:
        """Return the options that define page size, layout and switches."""
        macros = defines(self.file, self.page_size, self.layout, dict(self.switches))
        return [f"-D{name}={value}" for name, value in macros.items()]

    def compile(self, compiler: nvrtc.Nvrtc) -> nvrtc.Program:
        """Compile the variant with the gate's options."""
        options = [f"-arch=sm_{self.arch}", *OPTIONS, *self.macros]
        return compiler.compile(source(self.file), self.file, options)


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel's row in the table.

    :param registers: registers per thread
    :param shared: bytes of static shared memory per block
    :param instructions: instructions in the code
    :param loads: loads of 16 bytes per lane in flight at once
    :param per_page: instructions that a warp issues per page, at least and at most
    :param issued: of other kernels than ``digest``, instructions that a warp issues at most: per
        page of 4 KiB if it moves pages, else per :data:`WARP` rows
    """

    kernel: str
    page_size: int
    layout: str
    arch: int
    registers: int
    shared: int
    instructions: int
    loads: int | None = None
    per_page: tuple[int, int] | None = None
    issued: int | None = None

    @property
    def key(self) -> Key:
        """Return the key of the row, unique in the table."""
        return self.kernel, self.page_size, self.layout, self.arch


def variants(
    page_sizes: Iterable[int] = PAGE_SIZES, archs: Iterable[int] = ARCHITECTURES
) -> list[Variant]:
    """Return all compilations: each file for each architecture, page size and layout it has."""
    sizes = list(page_sizes)
    forms = {(size, layout) for size in sizes for layout in layouts(size)}
    files = {kernel.file: kernel.by_page_size for kernel in KERNELS.values()}
    return [
        Variant(file, arch, size, layout)
        for file, by_page_size in files.items()
        for size, layout in (sorted(forms) if by_page_size else [(0, "")])
        for arch in archs
    ]


def switched(
    page_sizes: Iterable[int] = PAGE_SIZES, archs: Iterable[int] = ARCHITECTURES
) -> list[Variant]:
    """Return the compilations with one switch other than its default."""
    return [
        replace(variant, switches=tuple(each.items()))
        for variant in variants(page_sizes, archs)
        for each in kernels.variants(variant.file, variant.page_size, variant.layout)
    ]


def compile_all(
    compiler: nvrtc.Nvrtc, wanted: list[Variant] | None = None
) -> dict[Variant, nvrtc.Program]:
    """Compile every variant, or those ``wanted``."""
    wanted = variants() if wanted is None else wanted
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(wanted, pool.map(lambda variant: variant.compile(compiler), wanted), strict=True)
        )


def ceiling(kernel: str) -> int:
    """Return the registers per thread with which as many blocks fit as :data:`BLOCKS` demands."""
    threads = KERNELS[kernel].threads if kernel in KERNELS else 256
    return REGISTERS_OF_MULTIPROCESSOR // (threads * BLOCKS.get(kernel, 4))


def faults(program: nvrtc.Program) -> Iterator[str]:
    """Yield the reasons why the gate refuses a compilation, one line each."""
    yield from warnings(program.log)
    if program.cubin is None:
        yield "it does not compile"
        return
    for kernel, taken in cubin.kernels_of(program.cubin).items():
        if taken.registers > ceiling(kernel):
            yield f"{kernel}: {taken.registers} registers, more than {ceiling(kernel)}"
        if taken.stack:
            yield f"{kernel}: {taken.stack} bytes of local memory"
        if taken.shared > SHARED_OF_BLOCK:
            yield f"{kernel}: {taken.shared} bytes of shared memory, more than {SHARED_OF_BLOCK}"
    for report in REPORT.finditer(program.log):
        if spilled := int(report["stores"]) + int(report["loads"]):
            yield f"{report['kernel']}: {spilled} bytes of spills"


def warnings(log: str) -> list[str]:
    """Return the lines of a compiler's log that are not mere information."""
    return [line for line in log.splitlines() if not INFORMATION.match(line)]


def reported(log: str) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Return registers, stack and shared memory by kernel and architecture, from ptxas' log."""
    return {
        (found["kernel"], int(found["arch"])): (
            int(found["registers"]),
            int(found["stack"]),
            int(found["shared"] or 0),
        )
        for found in REPORT.finditer(log)
    }


def read(image: bytes) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Return the same as :func:`reported`, from a cubin itself."""
    arch = cubin.architecture(image)
    return {
        (name, arch): (kernel.registers, kernel.stack, kernel.shared)
        for name, kernel in cubin.kernels_of(image).items()
    }


@cache
def nvdisasm() -> Path | None:
    """Return the disassembler of the wheel, else of a toolkit; None: neither is installed."""
    installed = shutil.which("nvdisasm")
    return nvrtc.file_of("nvidia-cuda-nvdisasm", "nvdisasm") or (
        Path(installed) if installed else None
    )


def rows_of(variant: Variant, program: nvrtc.Program, disassembled: bool = True) -> list[Row]:
    """Return a variant's rows of the table.

    :param disassembled: fill in ``loads``, ``per_page``, ``issued``, which need the disassembler
    """
    if program.cubin is None:
        raise ValueError(f"{variant} does not compile: {program.log}")
    code = listings(program.cubin) if disassembled else {}
    rows = []
    for name, kernel in sorted(cubin.kernels_of(program.cubin).items()):
        listing = code.get(name)
        rows.append(
            Row(
                kernel=name,
                page_size=variant.page_size,
                layout=variant.layout,
                arch=variant.arch,
                registers=kernel.registers,
                shared=kernel.shared,
                instructions=kernel.instructions,
                loads=listing.loads_in_flight if listing else None,
                per_page=_per_page(variant, listing) if listing else None,
                issued=_issued(name, listing) if listing else None,
            )
        )
    return rows


def rows_of_all(programs: dict[Variant, nvrtc.Program], disassembled: bool = True) -> list[Row]:
    """Return the rows of several variants, in the order of the table."""
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(
            lambda variant: rows_of(variant, programs[variant], disassembled), programs
        )
        return sorted((row for part in parts for row in part), key=lambda row: row.key)


def without_code(row: Row) -> Row:
    """Return a row without ``loads``, ``per_page`` and ``issued``."""
    return replace(row, loads=None, per_page=None, issued=None)


def listings(image: bytes) -> dict[str, sass.Listing]:
    """Return the kernels of a cubin by name, disassembled."""
    tool = nvdisasm()
    if not tool:
        raise RuntimeError("nvdisasm is not installed")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        return sass.disassemble(tool, Path(file.name))


def _per_page(variant: Variant, listing: sass.Listing) -> tuple[int, int] | None:
    if variant.layout not in ("quad", "octet"):
        return None
    try:
        low, high = listing.per_turn(PAGES_OF_TURN * variant.page_size // WARP_LOAD)
    except sass.NotCounted:
        return None
    return low // PAGES_OF_TURN, -(-high // PAGES_OF_TURN)


def _issued(kernel: str, listing: sass.Listing) -> int | None:
    if kernel == "digest":
        return None
    pages = 2 if kernel == "compare" else 1
    try:
        return listing.at_most(pages * PAGE // WARP_LOAD)
    except sass.NotCounted:
        return None


def write_table(version: str, rows: list[Row]) -> None:
    """Write the table, one row per line, so that diffs can be read."""
    names = json.dumps([field.name for field in fields(Row)])
    lines = ",\n".join(f"    {json.dumps(list(asdict(row).values()))}" for row in rows)
    TABLE.write_text(
        f'{{\n  "nvrtc": "{version}",\n  "columns": {names},\n  "rows": [\n{lines}\n  ]\n}}\n'
    )


def read_table() -> tuple[str, list[Row]]:
    """Return the version of NVRTC that the table holds for, and its rows."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    for row in rows:
        row["per_page"] = row["per_page"] and tuple(row["per_page"])
    return table["nvrtc"], [Row(**row) for row in rows]


def main() -> None:
    """Remake the table."""
    compiler = nvrtc.load()
    if not compiler or not nvdisasm():
        sys.exit("wanted: nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm")
    programs = compile_all(compiler)
    for variant, program in programs.items():
        for fault in faults(program):
            sys.stderr.write(f"{variant}: {fault}\n")
    write_table(compiler.version, rows_of_all(programs))


if __name__ == "__main__":
    main()
