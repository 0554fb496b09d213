"""Every variant of a kernel gives the results of the others, and is what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from gpudedup.engines.base import PageSource
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.kernels import (
    FEWEST_BLOCKS,
    KERNELS,
    SMALLEST_BLOCK_PAGE,
    SWITCHES,
    blocks,
    defines,
    layouts,
    source,
    variants,
)

from .checks import (
    PAGE_SIZES,
    Grouping,
    check_compare,
    check_digest,
    check_group,
    check_read,
    starting_at_the_end,
    stream,
)
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule
from .shim.device import ShimDevice
from .test_group import CASES

INSERTING = sorted(SWITCHES["group.cu"]["INSERTING"])
ALL_EQUAL = Grouping(stream(4, 600, 1), 250, 601)


def test_defaults_are_values_of_their_switches() -> None:
    for file, known in SWITCHES.items():
        assert file in {kernel.file for kernel in KERNELS.values()}
        for size in PAGE_SIZES:
            for layout in layouts(size):
                macros = defines(file, size, layout)
                for name, values in known.items():
                    assert macros[name] in values


@pytest.mark.parametrize("file", SWITCHES)
def test_every_switch_is_a_macro_of_its_source(file: str) -> None:
    for name, values in SWITCHES[file].items():
        assert f"static_assert({name} " in source(file), "a value that is missing would pass as 0"
        for value in values:
            assert defines(file, 4096, switches={name: value})[name] == value


def test_a_file_that_has_no_switches_takes_none() -> None:
    assert defines("copy.cu") == {}
    with pytest.raises(ValueError, match=r"^copy.cu has no variant LOADING=1$"):
        defines("copy.cu", switches={"LOADING": 1})
    with pytest.raises(ValueError, match=r"^group.cu has no variant INSERTING=3$"):
        defines("group.cu", switches={"INSERTING": 3})


def test_variants_are_the_other_values() -> None:
    octet = variants("digest.cu", 4096, "octet")
    assert octet == [{"LOADING": 0}, {"LOADING": 2}]
    assert variants("digest.cu", 64 << 10, "block") == [*octet, {"RESIDENT": 2}]
    assert variants("digest.cu", 128 << 10) == [*octet, {"RESIDENT": 3}]
    assert variants("group.cu") == [{"INSERTING": 0}, {"INSERTING": 2}]
    assert variants("copy.cu") == []


@pytest.mark.parametrize("file", SWITCHES)
def test_one_page_size_alone_takes_three_blocks(file: str) -> None:
    three = [size for size in PAGE_SIZES if defines(file, size).get("RESIDENT") == 3]
    assert three == ([SMALLEST_BLOCK_PAGE] if file == "digest.cu" else [])


@pytest.mark.parametrize(
    ("resident", "most"), [(1, 8), (2, 8), (3, 9), (4, 8), (5, 10), (8, 8), (16, 16)]
)
def test_grids_are_whole_waves(resident: int, most: int) -> None:
    assert most >= FEWEST_BLOCKS
    for pages, expected in ((0, 1), (1, 1), (256, 1), (257, 2), (1 << 30, 132 * most)):
        assert blocks("insert", pages, 132, resident=resident) == expected
    assert blocks("digest", 5, 132, "block", resident=resident) == 5
    assert blocks("digest", 65, 132, "octet", resident=resident) == 3


@needs_compiler
@pytest.mark.parametrize(("resident", "most"), [(3, 9), (4, 8), (16, 16)])
def test_the_engine_asks_how_many_are_resident(resident: int, most: int) -> None:
    device = ShimDevice(multiprocessors=1, resident_blocks=resident)
    pages = np.zeros((3000, 512), np.uint8)
    pages[:, 0], pages[:, 1] = np.arange(3000) % 250, 1
    OffloadEngine([device], chunk_bytes=pages.nbytes).partition(PageSource.of_array(pages))
    grids = dict(device.launches)
    assert grids["digest"] == most
    assert grids["insert"] == min(12, most)


@needs_compiler
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_warp_inserts_together(case: str, schedule: Schedule) -> None:
    """Beside ``test_group.py``, which has the default."""
    check_group(Kernels(schedule, switches={"INSERTING": 2}), CASES[case])


@needs_compiler
@pytest.mark.parametrize("inserting", INSERTING)
@pytest.mark.parametrize("seed", range(4))
def test_blocks_race_for_a_slot(seed: int, inserting: int) -> None:
    schedule = Schedule("random", seed, resident=4)
    kernels = Kernels(schedule, blocks=4, switches={"INSERTING": inserting})
    check_group(kernels, Grouping(stream(seed, 1000, 60), 1000, 1001, room=30))
    check_group(kernels, Grouping(starting_at_the_end(150), 60, 151))


def _broken_minimum(file: str, text: str) -> str:
    assert "atomicMin(table + slot, mine);" in text
    return text.replace("atomicMin(table + slot, mine);", "table[slot] = 0;")


@needs_compiler
@pytest.mark.parametrize("inserting", INSERTING)
def test_no_minimum_is_taken_where_a_lower_page_is(inserting: int) -> None:
    """Pages that come in order: each meets a lower one, so a minimum changes nothing."""
    kernels = Kernels(mutate=_broken_minimum, switches={"INSERTING": inserting})
    if inserting:
        check_group(kernels, ALL_EQUAL)
    else:
        with pytest.raises(AssertionError):
            check_group(kernels, ALL_EQUAL)


def _counted(file: str, text: str) -> str:
    """Count, in the last slot of the table, the threads that look for a slot."""
    begin = "    const u64 tag = high & ~NUMBER_MASK, mine"
    assert begin in text
    return text.replace(begin, f"    atomicAdd(table + slots, 1);\n{begin}")


@needs_compiler
@pytest.mark.parametrize(("inserting", "looked"), [(0, 200), (1, 200), (2, 7)])
def test_one_lane_of_a_warp_looks_for_all_with_its_digest(inserting: int, looked: int) -> None:
    kernels = Kernels(mutate=_counted, switches={"INSERTING": inserting})
    digests, slots = kernels.buffer(stream(4, 200, 1)), 300
    table = kernels.buffer(stream(0, 151, 1).reshape(-1))
    table.array[:slots], table.array[slots:] = ~table.array.dtype.type(0), 0
    classes = kernels.buffer(stream(0, 25, 1).reshape(-1).view("u1")[:200] & 0)
    found = kernels.unwritten(200, digests.array.dtype)
    kernels("insert", digests, 0, 200, classes, table, slots, found)
    assert table.array[slots] == looked


@needs_compiler
@pytest.mark.parametrize("loading", sorted(SWITCHES["read.cu"]["LOADING"]))
def test_every_way_to_load(loading: int) -> None:
    """On the CPU these differ in nothing; ``test_gpu.py`` runs them on a GPU."""
    kernels = Kernels(switches={"LOADING": loading})
    for size, layout in ((512, "octet"), (4096, "quad"), (64 << 10, "block")):
        check_digest(kernels, size, layout, count=5)
    check_compare(kernels, 1024)
    check_read(kernels, 5000)


@needs_compiler
@pytest.mark.parametrize("resident", sorted(SWITCHES["digest.cu"]["RESIDENT"]))
def test_every_number_of_resident_blocks(resident: int) -> None:
    check_digest(Kernels(switches={"RESIDENT": resident}), 64 << 10, "block", count=5)
