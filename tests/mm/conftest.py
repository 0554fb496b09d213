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
"""Bytes of frames per chunk: so few that pools grow often, and small devices hold one chunk."""

Devices = Callable[[int], list[Device]]
"""Factory of devices; takes their number."""


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
    """Return the factory of each kind of device in turn."""
    return KINDS[request.param]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pools take small chunks."""
    monkeypatch.setattr(memory, "CHUNK_BYTES", SMALL_CHUNK)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for ``on_revoke`` callbacks, however slow the machine is."""
    monkeypatch.setattr(grants, "PATIENCE_S", 60.0)
