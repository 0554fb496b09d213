"""Scans on devices: arrays in device memory, several devices, and the CPU when a device fails."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.devices import cuda
from gpudedup.errors import DeviceError, ImageError, UnsupportedHereError, UsageError
from gpudedup.images.memory import open_device_array

from ..engines.common import Pages, population
from ..kernels.shim.device import ShimDevice

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")


class DeviceArray:
    """Pages in a device's memory, with the interface that CuPy's arrays and others have."""

    def __init__(self, device: ShimDevice, pages: Pages) -> None:
        self._memory = device.allocate(max(pages.nbytes, 1))
        stream = device.stream()
        device.upload(self._memory.address, pages.reshape(-1), stream)
        device.finish(device.record(stream))
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": pages.shape,
            "typestr": pages.dtype.str,
            "data": (self._memory.address, False),
            "strides": None,
            "version": 3,
        }

    def __iter__(self) -> Any:
        raise AssertionError("an array is one input, not many")


class Capsule:
    """An array that offers DLPack only."""

    def __init__(self, device_type: int) -> None:
        self._device_type = device_type

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device_type, 0

    def __dlpack__(self, **_: object) -> object:
        raise BufferError("not on the host")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[ShimDevice]:
    """Replace the GPUs by two shims."""
    found = [ShimDevice(seed=1), ShimDevice(seed=2)]

    def open_devices(numbers: Sequence[int] | None = None) -> list[ShimDevice]:
        return [found[number] for number in numbers or [0]]

    monkeypatch.setattr(cuda, "open_devices", open_devices)
    return found


def assert_same(found: gd.Scan, pages: Any) -> None:
    expected = gd.scan(pages, backend="cpu")
    assert found.totals == expected.totals
    assert found.pages.drop_columns(["input"]) == expected.pages.drop_columns(["input"])


@pytest.mark.parametrize("numbers", [None, [1], [0, 1], [1, 0]])
def test_files_and_arrays(
    devices: list[ShimDevice], tmp_path: Path, numbers: list[int] | None
) -> None:
    pages = population(1, 500, 4096)
    path = tmp_path / "raw"
    path.write_bytes(pages[:300].tobytes())
    found = gd.scan([path, pages[300:]], devices=numbers)
    names = [devices[n].name for n in numbers or [0]]
    assert (found.engine.name, found.engine.device) == ("cuda", ", ".join(names))
    assert found.engine.passed_over == ""
    expected = gd.scan([path, pages[300:]], backend="cpu")
    assert found.totals == expected.totals
    assert found.pages == expected.pages
    assert found.contents == expected.contents


def test_pages_in_device_memory_are_scanned_in_place(devices: list[ShimDevice]) -> None:
    pages = population(2, 200, 4096)
    array = DeviceArray(devices[0], pages)
    assert_same(gd.scan(array), pages)
    found = gd.scan([array, pages[:50]], backend="cuda", devices=[1, 0])
    assert found.totals == gd.scan([pages, pages[:50]], backend="cpu").totals
    assert found.inputs()[0]["format"] == "memory"


def test_an_empty_array(devices: list[ShimDevice]) -> None:
    found = gd.scan(DeviceArray(devices[0], np.empty((0, 4096), np.uint8)))
    assert found.totals.pages == 0


def test_dlpack_of_a_device_is_left_to_cupy(
    devices: list[ShimDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = population(3, 60, 1024)
    array = DeviceArray(devices[0], pages)

    class CuPy:
        from_dlpack = staticmethod(lambda capsule: array)

    monkeypatch.setattr(cuda, "_import_cupy", CuPy)
    assert_same(gd.scan(Capsule(2)), pages)
    with pytest.raises(UsageError, match="array0: not an array in host memory"):
        gd.scan(Capsule(1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": (8, 2, 512)}, "uint8 of shape"),
        ({"typestr": "<u8"}, "uint64 of shape"),
        ({"strides": (1024, 1)}, "C-contiguous"),
        ({"shape": (16, 500)}, "page size 500"),
    ],
)
def test_arrays_that_are_no_pages(
    devices: list[ShimDevice], change: dict[str, Any], reason: str
) -> None:
    array = DeviceArray(devices[0], population(1, 16, 512))
    array.__cuda_array_interface__ |= change
    with pytest.raises(UsageError, match=reason):
        gd.scan(array)


def test_only_a_device_can_read_its_memory(
    devices: list[ShimDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = DeviceArray(devices[0], population(1, 16, 512))
    with pytest.raises(UsageError, match="backend cpu: an array lies in a device's memory"):
        gd.scan(array, backend="cpu")
    with pytest.raises(ImageError, match="it can be scanned, not read"):
        open_device_array(array).read_pages(0, np.empty((1, 512), np.uint8))
    lost = ShimDevice(fail_after=0)
    monkeypatch.setattr(cuda, "open_devices", lambda numbers: [lost])
    with pytest.raises(DeviceError, match="device lost"):
        gd.scan(array)

    def none(numbers: object) -> None:
        raise UnsupportedHereError("there is no NVIDIA driver")

    monkeypatch.setattr(cuda, "open_devices", none)
    with pytest.raises(UnsupportedHereError, match="backend cuda: there is no NVIDIA driver"):
        gd.scan(array)


@pytest.mark.parametrize("after", [0, 9, 30])
def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    pages = population(4, 300, 4096)
    monkeypatch.setattr(cuda, "open_devices", lambda numbers: [ShimDevice(fail_after=after)])
    found = gd.scan(pages)
    if after < 30:
        assert found.engine.name == "cpu"
        assert found.engine.passed_over == "cuda: device lost"
        with pytest.raises(DeviceError, match=r"^device lost$"):
            gd.scan(pages, backend="cuda")
    assert_same(found, pages)


def test_a_device_with_too_little_memory(devices: list[ShimDevice]) -> None:
    pages = population(5, 300, 4096)
    found = gd.scan(pages, device_memory=20_000)
    assert found.engine.name == "cpu"
    assert "300 pages need" in found.engine.passed_over
    assert_same(found, pages)
    with pytest.raises(DeviceError, match="of which 20000 may be used"):
        gd.scan(pages, backend="cuda", device_memory=20_000)


def test_timings_do_not_count_what_lies_side_by_side_twice(devices: list[ShimDevice]) -> None:
    timings = gd.scan(population(6, 100, 4096)).timings
    apart = {"staging_s", "transfer_s", "kernel_s"}
    stages = {name: s for name, s in timings.items() if name not in apart | {"total_s"}}
    assert apart < set(timings)
    assert sum(stages.values()) == pytest.approx(timings["total_s"])
