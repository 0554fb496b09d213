"""Which engine is taken, why it is not the other one, and what is refused; without a GPU."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from gpudedup.devices import cuda
from gpudedup.devices.base import OutOfDeviceMemory
from gpudedup.devices.kept import close_devices
from gpudedup.engines.base import PageSource
from gpudedup.engines.cpu.engine import processor, usable_cores
from gpudedup.engines.select import BACKENDS, Choice, EngineInfo, choose, engines
from gpudedup.errors import DeviceError, ExitCode, UnsupportedHereError, UsageError

from ..devices.fake_cupy import Context, CudaError, let_there_be_a_driver, stand_in
from .common import population

BUSY = "cudaErrorDevicesUnavailable: busy or unavailable"


def let_there_be(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let CuPy be there, with as many devices as ``count`` says."""
    let_there_be_a_driver(monkeypatch)
    cupy: Any = stand_in(**changes)
    cupy.cuda.Device = type("Device", (Context,), {"__init__": lambda self, number: None})
    monkeypatch.setitem(sys.modules, "cupy", cupy)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    let_there_be(monkeypatch, count=3)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_has_driver", lambda: False)


def taken(choice: Choice) -> tuple[str, str, int, str]:
    engine = choice.engine
    return engine.name, engine.device, engine.threads, choice.passed_over


@pytest.mark.usefixtures("three")
def test_the_fastest_is_taken_and_the_first_device() -> None:
    for backend in ("auto", "cuda"):
        assert taken(choose(backend)) == ("cuda", "GPU (0)", usable_cores(), "")
    assert taken(choose("cpu", 3)) == ("cpu", processor(), 3, "")
    assert taken(choose()) == taken(choose("auto"))


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_devices_are_taken_in_the_order_asked_for(backend: str) -> None:
    for numbers, names in (([2, 0], "GPU (2), GPU (0)"), ((1,), "GPU (1)"), (range(1), "GPU (0)")):
        assert taken(choose(backend, 2, devices=numbers)) == ("cuda", names, 2, "")


@pytest.mark.usefixtures("three")
def test_a_bound_of_device_memory_is_kept() -> None:
    pages = PageSource.of_array(population(1, 400, 512))
    with pytest.raises(OutOfDeviceMemory, match="of which 9999 may be used"):
        choose("cuda", 1, device_memory=9999).engine.partition(pages)
    with pytest.raises(UsageError, match="device memory -1: must not be negative"):
        choose(device_memory=-1)


@pytest.mark.parametrize(
    ("changes", "devices", "reason"),
    [
        ({"count": 2}, [0, 2], "there is no device 2: devices are 0 to 1"),
        ({"allocate": CudaError(BUSY)}, None, f"GPU (0): {BUSY}"),
    ],
)
def test_what_cannot_be_used_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], devices: list[int] | None, reason: str
) -> None:
    let_there_be(monkeypatch, **changes)
    asked: dict[str, Any] = {"devices": devices, "device_memory": 1 << 20}
    assert taken(choose("auto", 5, **asked)) == ("cpu", processor(), 5, f"cuda: {reason}")
    with pytest.raises(UnsupportedHereError) as raised:
        choose("cuda", 5, **asked)
    assert str(raised.value) == f"backend cuda: {reason}"
    assert raised.value.exit_code == ExitCode.ENGINE_UNUSABLE
    assert raised.value.__suppress_context__
    assert raised.value.__cause__ is None


@pytest.mark.usefixtures("no_driver")
def test_who_asks_for_the_cpu_is_not_told_of_others() -> None:
    assert choose("cpu").passed_over == ""
    assert choose("auto").passed_over == "cuda: there is no NVIDIA driver"


@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_other_errors_are_not_taken_for_a_reason(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    def fail(numbers: Any) -> Any:
        raise DeviceError("lost")

    monkeypatch.setattr(cuda, "open_devices", fail)
    with pytest.raises(DeviceError, match=r"^lost$"):
        choose(backend)
    with pytest.raises(DeviceError, match=r"^lost$"):
        engines()


@pytest.mark.parametrize("there", ["three", "no_driver"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"backend": "gpu"}, "backend 'gpu': not one of auto, cpu, cuda"),
        ({"backend": ""}, "backend '': not one of auto, cpu, cuda"),
        ({"backend": "cpu", "devices": [0]}, "backend cpu: it has no devices"),
        ({"backend": "cpu", "devices": []}, "backend cpu: it has no devices"),
        ({"backend": "cpu", "device_memory": 0}, "backend cpu: it has no devices"),
        ({"backend": "cpu", "threads": 0}, "threads 0: must be at least 1"),
        ({"backend": "auto", "threads": 0}, "threads 0: must be at least 1"),
        ({"backend": "auto", "devices": [0, 1, 0]}, "devices: name each once, and at least one"),
        ({"backend": "cuda", "devices": [1, 1]}, "devices: name each once, and at least one"),
        ({"devices": ()}, "devices: name each once, and at least one"),
        ({"devices": [0, -1]}, "device -1: not a number that CUDA gives a device"),
        ({"devices": [1 << 31]}, "device 2147483648: not a number that CUDA gives a device"),
        ({"device_memory": -1}, "device memory -1: must not be negative"),
        ({"device_memory": 1.5}, "device memory of type float: not an integer"),
        ({"backend": "cuda", "threads": 0}, "threads 0: must be at least 1"),
        ({"threads": 4097}, "threads 4097: at most 4096"),
        ({"threads": 1.5}, "threads of type float: not an integer"),
    ],
)
def test_arguments_that_make_no_sense(
    request: pytest.FixtureRequest, there: str, arguments: dict[str, Any], reason: str
) -> None:
    """They are refused, whether there is a device or not."""
    request.getfixturevalue(there)
    with pytest.raises(UsageError) as raised:
        choose(**arguments)
    assert str(raised.value) == reason


def test_all_engines_are_told_with_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = EngineInfo("cpu", True, processor(), usable_cores())
    let_there_be(monkeypatch, count=3)
    assert engines() == [cpu, EngineInfo("cuda", True, "GPU (0)", usable_cores())]
    close_devices()
    let_there_be(monkeypatch, count=CudaError("cudaErrorNoDevice: none"))
    found = engines()
    assert found == [cpu, EngineInfo("cuda", False, "", 0, "cudaErrorNoDevice: none")]
    assert [info.name for info in found] == [name for name in BACKENDS if name != "auto"]
