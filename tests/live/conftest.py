"""Fixtures of the tests that run on the live kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ..processes.children import Child, child
from .ksm import (
    COUNTERS,
    KSM,
    SETTINGS,
    Populations,
    frames_visible,
    read_ksm,
    somebody_merges,
    write_ksm,
)
from .watched import WRITER


@pytest.fixture
def ksm() -> Iterator[None]:
    """Stop KSM with nothing merged; restore its settings afterwards."""
    if not os.access(KSM / "run", os.W_OK):
        pytest.skip("needs root and a kernel with KSM")
    missing = [name for name in (*COUNTERS, *SETTINGS) if not (KSM / name).exists()]
    if missing:
        pytest.skip(f"this kernel's KSM has no {', '.join(missing)}")
    if not frames_visible():
        pytest.skip("frame numbers need CAP_SYS_ADMIN")
    if any(read_ksm(name) for name in COUNTERS):
        pytest.skip("KSM has merged pages of others")
    if other := somebody_merges():
        pytest.skip(f"{other} has mergeable memory")
    run = (KSM / "run").read_text().strip()
    before = {name: (KSM / name).read_text().strip() for name in SETTINGS}
    advisor = before["advisor_mode"]
    before["advisor_mode"] = advisor[advisor.index("[") + 1 : advisor.index("]")]
    try:
        write_ksm("run", 2)
        yield
    finally:
        write_ksm("run", 2)
        write_ksm("advisor_mode", "none")
        for name, value in before.items():
            write_ksm(name, value)
        write_ksm("run", run)


@pytest.fixture
def populations() -> Iterator[Populations]:
    with ExitStack() as stack:
        yield Populations(stack)


@pytest.fixture
def writer() -> Iterator[Child]:
    """Give a process that writes to its memory when it is asked to."""
    if os.geteuid():
        pytest.skip("needs root")
    with child(WRITER) as running:
        yield running
