"""Names and numbers of the kernels are the same in Python and in the sources."""

from __future__ import annotations

import re

import pytest

from gpudedup import kernels
from gpudedup.compiled import xxh3
from gpudedup.engines.base import PageClass
from gpudedup.kernels import KERNELS, LAYOUTS, defines, source

from .shim.compile import signatures

FILES = sorted({kernel.file for kernel in KERNELS.values()})


def constants(text: str) -> dict[str, int]:
    """Read the integer constants of a source."""
    found = re.findall(r"^constexpr (?:u8|u32|u64) (\w+) = (\w+);", text, flags=re.MULTILINE)
    return {name: int(value.rstrip("ul"), 0) for name, value in found if value[0].isdigit()}


@pytest.mark.parametrize("file", FILES)
def test_every_kernel_is_known(file: str) -> None:
    text = source(file)
    found = signatures(text)
    assert set(found) == {name for name, kernel in KERNELS.items() if kernel.file == file}
    assert text.count("__global__") == len(found), "a kernel that is not extern C, or has no bounds"


@pytest.mark.parametrize("name", KERNELS)
def test_launch_bounds_are_the_threads(name: str) -> None:
    text = source(KERNELS[name].file)
    threads = signatures(text)[name].bounds.split(",")[0]
    assert constants(text).get(threads, threads) == KERNELS[name].threads


@pytest.mark.parametrize("name", KERNELS)
def test_parameters_are_those_of_the_source(name: str) -> None:
    assert KERNELS[name].dtypes == signatures(source(KERNELS[name].file))[name].dtypes


def test_classes_are_the_engines() -> None:
    found = constants(source("common.cuh"))
    for shared in (PageClass.CONTENT, PageClass.ZERO, PageClass.FILLED):
        assert found[shared.name] == shared
    # FOLLOWER and LEFT do not leave the engine: they must differ from every PageClass.
    assert not {found["FOLLOWER"], found["LEFT"]} & set(PageClass)


def test_entries_are_the_same_on_both_sides() -> None:
    found = constants(source("page_table.cu"))
    for name in ("PRESENT", "WRITE", "ATOMIC", "FLAGS", "LEAF_PAGES", "BRANCH_LEAVES"):
        assert found[name] == getattr(kernels, name)


def test_the_secret_is_the_engines() -> None:
    table = re.search(r"SECRET\[24\] = \{(.*?)\}", source("xxh3.cuh"), flags=re.DOTALL)
    assert table
    words = [int(word, 16) for word in re.findall(r"0x\w+", table[1])]
    assert b"".join(word.to_bytes(8, "little") for word in words) == xxh3.SECRET


@pytest.mark.parametrize("file", FILES)
def test_sources_are_self_contained(file: str) -> None:
    text = source(file)
    assert text.isascii()
    assert "#include" not in text


def test_layouts_are_numbered_in_order() -> None:
    for number, layout in enumerate(LAYOUTS):
        macros = defines("digest.cu", 1 << 16, layout)
        assert (macros["PAGE_SIZE"], macros["LAYOUT"]) == (1 << 16, number)
