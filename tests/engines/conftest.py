"""Every engine, for tests whose body all engines share."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from gpudedup.devices.cuda import open_devices
from gpudedup.engines.base import Engine
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload.engine import CHUNK_BYTES, OffloadEngine
from gpudedup.errors import UnsupportedHereError

from ..kernels.shim.device import ShimDevice

SMALL = 64 << 10
"""Bytes per chunk: even small populations take several chunks."""


def _shims(count: int = 1, *, drop_zeros: bool = True) -> OffloadEngine:
    if shutil.which("g++") is None:
        pytest.skip("g++ compiles the kernels for the CPU; it is not installed")
    devices = [ShimDevice(seed=seed) for seed in range(count)]
    return OffloadEngine(
        devices, 2, chunk_bytes=SMALL, piece_bytes=SMALL // 4, drop_zeros=drop_zeros
    )


def _cuda(chunk_bytes: int = CHUNK_BYTES) -> OffloadEngine:
    try:
        return OffloadEngine(open_devices(), chunk_bytes=chunk_bytes)
    except UnsupportedHereError as error:
        pytest.skip(str(error))


ENGINES: dict[str, Callable[[], Engine]] = {
    "cpu": lambda: CpuEngine(1),
    "cpu-threads": lambda: CpuEngine(3),
    "shim": _shims,
    "shim-zeros-sent": lambda: _shims(drop_zeros=False),
    "shim-3-devices": lambda: _shims(3),
    "cuda": _cuda,
    "cuda-small-chunks": lambda: _cuda(chunk_bytes=SMALL),
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.gpu] if name.startswith("cuda") else [])
        for name in ENGINES
    ],
    scope="session",
)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Return each engine in turn."""
    return ENGINES[request.param]()
