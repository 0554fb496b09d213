"""Which devices a manager gets."""

from __future__ import annotations

from typing import Any

import pytest

from gpudedup.devices import cuda
from gpudedup.devices.host import HostDevice
from gpudedup.devices.select import choose_devices
from gpudedup.errors import UnsupportedHereError, UsageError


def no_gpu(_: object) -> list[Any]:
    """Stand for ``open_devices`` where there is no GPU."""
    raise UnsupportedHereError("there is no NVIDIA driver")


def test_devices_given_are_taken_as_they_are() -> None:
    given = [HostDevice(3), HostDevice(5)]
    assert choose_devices(given, None) == choose_devices(given, 2) == given
    with pytest.raises(UsageError, match="2 devices given, not 3"):
        choose_devices(given, 3)
    with pytest.raises(UsageError, match="9 devices given"):
        choose_devices([HostDevice(n) for n in range(9)], None)


@pytest.mark.parametrize("count", [-1, 9])
def test_there_are_up_to_eight(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} devices: not from 0 to 8"):
        choose_devices("cpu", count)


def test_an_engine_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="device engine 'gpu': not auto, cuda or cpu"):
        choose_devices("gpu", 1)


def test_host_memory_takes_the_place_of_gpus_unless_these_are_insisted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "open_devices", no_gpu)
    for engine in ("auto", "cpu"):
        assert [d.name for d in choose_devices(engine, 2)] == ["cpu (0)", "cpu (1)"]
    with pytest.raises(UnsupportedHereError, match="no NVIDIA driver"):
        choose_devices("cuda", 1)
    assert choose_devices("cuda", None) == choose_devices("cuda", 0) == []


def test_gpus_are_taken_if_as_many_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "open_devices", lambda numbers: [HostDevice(n) for n in numbers])
    assert [d.name for d in choose_devices("cuda", 2)] == ["cpu (0)", "cpu (1)"]
