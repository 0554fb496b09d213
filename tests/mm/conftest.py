"""Devices of every kind, for tests whose body is the same for all."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from gpudedup.devices.base import Device
from gpudedup.devices.cuda import open_devices
from gpudedup.devices.host import HostDevice
from gpudedup.errors import UnsupportedHereError
from gpudedup.mm import grants
from gpudedup.mm.memory import memory

from ..kernels.shim.device import ShimDevice

SMALL_CHUNK = 64 << 10
"""Bytes of a chunk: pools grow often, and little devices hold one."""

Devices = Callable[[int], list[Device]]
"""Makes so many devices."""


def _cuda(count: int) -> list[Device]:
    try:
        return list(open_devices([0] * count))
    except UnsupportedHereError as error:
        pytest.skip(str(error))


KINDS: dict[str, Devices] = {
    "cpu": lambda count: [HostDevice(number) for number in range(count)],
    "shim": lambda count: [ShimDevice(seed=seed) for seed in range(count)],
    "cuda": _cuda,
}


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "shim",
            marks=pytest.mark.skipif(
                shutil.which("g++") is None, reason="g++ compiles the kernels"
            ),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def engine(request: pytest.FixtureRequest) -> Devices:
    """Return what makes one kind of device after the other."""
    return KINDS[request.param]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pools grow by little."""
    monkeypatch.setattr(memory, "CHUNK_BYTES", SMALL_CHUNK)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for owners that are told, however slow the machine is."""
    monkeypatch.setattr(grants, "PATIENCE_S", 60.0)
