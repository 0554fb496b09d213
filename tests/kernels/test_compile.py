"""The compile gate: every kernel, page size, layout and architecture, without a GPU.

No warning, no spill, no local memory, no more registers than leave room for the blocks meant to be
on a multiprocessor; and the table lists each kernel's resources, so that a change is seen.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpudedup.kernels import KERNELS, SWITCHES

from . import cubin, gate, nvcc, nvrtc

Programs = dict[gate.Variant, nvrtc.Program]
Table = dict[gate.Key, gate.Row]

REMAKE = "remake it: python -m tests.kernels.gate"

DISASSEMBLED = (4096,)
"""Page sizes whose code is disassembled again: the disassembler is slow."""

ONE_OF_EACH = (4096, 65536)
"""Page sizes that together have all layouts."""

HEADER = 'extern "C" __global__ void '

UNUSED = f"{HEADER} planted(int* to) {{ int unused; to[0] = 1; }}"

SPILLS = f"""{HEADER} __launch_bounds__(1024, 2) planted(const double* from, double* to, int n) {{
    double held[48];
#pragma unroll
    for (int i = 0; i < 48; i++) held[i] = from[i * n + threadIdx.x];
    for (int turn = 0; turn < n; turn++)
#pragma unroll
        for (int i = 0; i < 48; i++) held[i] = held[i] * held[(7 * i + 1) % 48] + turn;
#pragma unroll
    for (int i = 0; i < 48; i++) to[i * n + threadIdx.x] = held[i];
}}"""

STACK = f"""{HEADER} planted(const int* from, int* to, int n) {{
    int held[64];
    for (int i = 0; i < 64; i++) held[i] = from[i * n];
    for (int i = 0; i < n; i++) held[from[i] & 63] += held[from[i + 1] & 63];
    for (int i = 0; i < 64; i++) to[i] = held[i];
}}"""

GREEDY = f"""{HEADER} planted(const double* from, double* to, int n) {{
    double held[48];
#pragma unroll
    for (int i = 0; i < 48; i++) held[i] = from[i * n + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 48; i++) to[i * n + threadIdx.x] = held[i] * held[(7 * i + 1) % 48];
}}"""

SHARED = f"""{HEADER} planted(int* to) {{
    __shared__ int held[12 * 1024 + 1];
    held[threadIdx.x] = to[threadIdx.x];
    __syncthreads();
    to[threadIdx.x] = held[to[0]];
}}"""

PLANTED = [
    pytest.param(UNUSED, r"(warning|error).*declared but never referenced", id="warning"),
    pytest.param(SPILLS, r"\d+ bytes of spills|error.*Registers are spilled", id="spills"),
    pytest.param(STACK, r"256 bytes of local memory|error.*size of stack frame: 256", id="stack"),
    pytest.param(GREEDY, r"\d+ registers, more than 64", id="registers"),
    pytest.param(SHARED, r"49156 bytes of shared memory|too much shared data", id="shared"),
]


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Nvrtc:
    found = nvrtc.load()
    if found is None:
        pytest.skip(f"the wheel {nvrtc.WHEEL} is not installed")
    return found


@pytest.fixture(scope="module")
def programs(compiler: nvrtc.Nvrtc) -> Programs:
    return gate.compile_all(compiler)


@pytest.fixture(scope="module")
def table(compiler: nvrtc.Nvrtc) -> Table:
    """Return the rows that this version of NVRTC must reproduce."""
    version, rows = gate.read_table()
    if version != compiler.version:
        pytest.skip(f"the table is of NVRTC {version}, this is {compiler.version}")
    return {row.key: row for row in rows}


@pytest.fixture(scope="module")
def toolkit() -> str:
    found = nvcc.find()
    if found is None:
        pytest.skip("nvcc is not installed")
    return found


def test_every_kernel_passes(programs: Programs) -> None:
    found = [
        f"{variant}: {fault}"
        for variant, program in programs.items()
        for fault in gate.faults(program)
    ]
    assert not found, "\n".join(found)


def test_every_switch_passes(compiler: nvrtc.Nvrtc) -> None:
    """The variants that only ``bench/gpu.py`` and its tests run."""
    programs = gate.compile_all(compiler, gate.switched(ONE_OF_EACH))
    assert {name for variant in programs for name, _ in variant.switches} == {
        name for known in SWITCHES.values() for name in known
    }
    found = [
        f"{variant}: {fault}"
        for variant, program in programs.items()
        for fault in gate.faults(program)
    ]
    assert not found, "\n".join(found)


LOADS = {0: {"LDG.E.128.CONSTANT"}, 1: {"LDG.E.EF.128"}, 2: {"LDG.E.NA.128.CONSTANT"}}
"""Loads of page data that sm_90 has for each value of LOADING."""


@pytest.mark.parametrize("loading", LOADS)
@pytest.mark.parametrize(
    ("file", "page_size", "layout"),
    [
        ("digest.cu", 4096, "octet"),
        ("digest.cu", 4096, "quad"),
        ("digest.cu", 65536, "block"),
        ("compare.cu", 0, ""),
    ],
)
def test_pages_are_loaded_as_the_switch_says(
    compiler: nvrtc.Nvrtc, file: str, page_size: int, layout: str, loading: int
) -> None:
    if not gate.nvdisasm():
        pytest.skip("nvdisasm is not installed")
    variant = gate.Variant(file, 90, page_size, layout, (("LOADING", loading),))
    program = variant.compile(compiler)
    assert program.cubin
    (listing,) = gate.listings(program.cubin).values()
    found = Counter(
        instruction.opcode
        for block in listing.blocks
        for instruction in block.instructions
        if instruction.loads
    )
    if file == "compare.cu":
        # The anchor may be wanted again; without a cast the compiler does not know it is global.
        assert found.pop("LDG.E.128") == (8 if loading == 0 else 4)
    assert set(found) == (set() if (file, loading) == ("compare.cu", 0) else LOADS[loading])


def test_every_kernel_is_there(programs: Programs) -> None:
    """Every kernel of :data:`KERNELS` by its name, and no other."""
    for variant, program in programs.items():
        assert program.cubin
        expected = {name for name, kernel in KERNELS.items() if kernel.file == variant.file}
        assert set(cubin.kernels_of(program.cubin)) == expected, variant


def test_the_cubin_and_ptxas_agree(programs: Programs) -> None:
    for variant, program in programs.items():
        assert program.cubin
        assert gate.read(program.cubin) == gate.reported(program.log), variant


def test_the_table_is_whole() -> None:
    _, table = gate.read_table()
    expected = {
        (name, variant.page_size, variant.layout, variant.arch)
        for variant in gate.variants()
        for name, kernel in KERNELS.items()
        if kernel.file == variant.file
    }
    assert {row.key for row in table} == expected, REMAKE
    assert len(table) == len(expected)


def test_the_table_is_right(table: Table, programs: Programs) -> None:
    expected = {key: gate.without_code(row) for key, row in table.items()}
    _assert_same(gate.rows_of_all(programs, disassembled=False), expected)


def test_the_code_is_that_of_the_table(table: Table, programs: Programs) -> None:
    if not gate.nvdisasm():
        pytest.skip("nvdisasm is not installed")
    read = {v: program for v, program in programs.items() if v.page_size in (0, *DISASSEMBLED)}
    _assert_same(gate.rows_of_all(read), table)


def test_loads_are_in_flight_together() -> None:
    """A lane's loads of 16 bytes must be in flight together, or memory idles.

    Pages of 512 bytes have only 4 loads for each lane.
    """
    least = {"compare": 8, "read_words": 8, "digest": 8}
    least |= dict.fromkeys(("copy_pages", "load_pages", "store_pages"), 4)
    for row in gate.read_table()[1]:
        if row.kernel in least:
            assert row.loads is not None
            assert row.loads >= (4 if row.page_size == 512 else least[row.kernel]), row


@pytest.mark.parametrize("arch", [gate.ARCHITECTURES[0], 90, gate.ARCHITECTURES[-1]])
@pytest.mark.parametrize(("text", "fault"), PLANTED)
def test_a_planted_fault_is_found(compiler: nvrtc.Nvrtc, arch: int, text: str, fault: str) -> None:
    program = compiler.compile(text, "planted.cu", [f"-arch=sm_{arch}", *gate.OPTIONS])
    assert re.search(fault, "\n".join(gate.faults(program)))


def test_what_is_no_cubin_is_told(programs: Programs) -> None:
    program = programs[gate.Variant("compare.cu", 90)]
    assert program.cubin
    with pytest.raises(ValueError, match="not a cubin"):
        cubin.kernels_of(b"\x7fELF" + b"\0" * 60)
    for size in (0, 5, 63, len(program.cubin) // 2):
        with pytest.raises(ValueError, match="cubin"):
            cubin.kernels_of(program.cubin[:size])


def test_nvcc_takes_every_kernel(toolkit: str) -> None:
    archs = nvcc.architectures(toolkit)
    wanted = gate.variants(ONE_OF_EACH, archs=[0])
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda v: nvcc.compile_variant(toolkit, v, archs), wanted)
    for variant, programs in zip(wanted, results, strict=True):
        found = [fault for program in programs for fault in gate.faults(program)]
        assert not found, "\n".join([str(variant), *found])
        read: dict[tuple[str, int], tuple[int, int, int]] = {}
        for program in programs:
            assert program.cubin
            read |= gate.read(program.cubin)
        assert {arch for _, arch in read} == set(archs)
        assert read == gate.reported(programs[0].log), variant


@pytest.mark.parametrize(("text", "fault"), PLANTED)
def test_nvcc_finds_a_planted_fault(toolkit: str, text: str, fault: str) -> None:
    (program,) = nvcc.compile_text(toolkit, text, [], [90])
    assert re.search(fault, "\n".join(gate.faults(program)))


def _assert_same(rows: list[gate.Row], table: Table) -> None:
    changed = [f"{row}, not {table.get(row.key)}" for row in rows if row != table.get(row.key)]
    assert not changed, "\n".join([REMAKE, *changed])
