"""The table of kernels in docs/figures.md is what docs/kernels.py computes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from gpudedup.kernels import KERNELS

SCRIPT = Path(__file__).parents[2] / "docs" / "kernels.py"
REWRITE = "rewrite it: python docs/kernels.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("docs_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_todays(script: Any) -> None:
    page = script.PAGE.read_text()
    assert page == script.replaced(page), REWRITE


def test_every_kernel_is_in_it(script: Any) -> None:
    assert {name for name, _, _ in script.SHOWN} == set(KERNELS), "its bytes are missing in BYTES"


@pytest.mark.parametrize(
    ("registers", "blocks"),
    [(32, 8), (33, 6), (40, 6), (48, 5), (56, 4), (64, 4), (72, 3), (80, 3), (81, 2), (108, 2)],
)
def test_registers_bound_the_blocks(script: Any, registers: int, blocks: int) -> None:
    """As CUDA's occupancy calculator gives for sm_90 and blocks of 256 threads."""
    assert script.resident_blocks(registers, 256) == blocks


def test_the_numbers_of_a_line(script: Any) -> None:
    row = {
        "kernel": "digest", "page_size": 4096, "layout": "octet", "registers": 100, "loads": 8,
        "per_page": [150, 160], "issued": None,
    }  # fmt: skip
    line = script.line(row)
    assert line.in_flight == 2 * 256 * 8 * 16
    assert line.moved == 4096 + 16 + 1
    assert line.memory_ns == pytest.approx(4113 / 4800)
    assert line.issue_ns == pytest.approx(160 / (132 * 4 * 1.98))
    rows = script.line(row | {"kernel": "insert", "page_size": 0, "loads": 0, "issued": 64})
    assert (rows.issued, rows.in_flight) == (2, 2 * 256 * 32)
