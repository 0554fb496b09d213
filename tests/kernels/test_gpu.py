"""The kernels on a GPU, by the checks that they pass under the shim.

Run on a shim device too, which tests the way through ``Device`` without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpudedup.devices.base import Device
from gpudedup.devices.cuda import open_devices
from gpudedup.errors import UnsupportedHereError
from gpudedup.kernels import SWITCHES, layouts

from .checks import (
    PAGE_SIZES,
    Grouping,
    check_compare,
    check_copy,
    check_digest,
    check_group,
    check_read,
    check_settle,
    settling,
    starting_at_the_end,
    stream,
    words_at_the_end,
)
from .common import DeviceKernels, needs_compiler
from .shim.device import ShimDevice
from .table_checks import check_page_table


def _cuda() -> Device:
    try:
        return open_devices()[0]
    except UnsupportedHereError as error:
        pytest.skip(str(error))


DEVICES: dict[str, Callable[[], Device]] = {"shim": ShimDevice, "cuda": _cuda}


@pytest.fixture(
    params=[
        pytest.param("shim", marks=needs_compiler),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
    scope="module",
)
def device(request: pytest.FixtureRequest) -> Device:
    """Return each kind of device in turn."""
    return DEVICES[request.param]()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_digest(device: Device, page_size: int) -> None:
    for layout in layouts(page_size):
        for count in (1, 7, 33 if page_size < 1 << 20 else 3):
            check_digest(DeviceKernels(device), page_size, layout, count=count, seed=count)


@pytest.mark.parametrize("blocks", [1, 5, 64])
def test_group(device: Device, blocks: int) -> None:
    kernels = DeviceKernels(device, blocks)
    check_group(kernels, Grouping(stream(1, 400, 100), 150, 401, room=20))
    check_group(kernels, Grouping(stream(2, 300, 100), 300, 512))


@pytest.mark.parametrize("inserting", sorted(SWITCHES["group.cu"]["INSERTING"]))
def test_every_way_to_insert(device: Device, inserting: int) -> None:
    kernels = DeviceKernels(device, 16, switches={"INSERTING": inserting})
    check_group(kernels, Grouping(stream(1, 400, 100), 150, 401, room=20))
    check_group(kernels, Grouping(stream(4, 5000, 1), 5000, 5001))
    check_group(kernels, Grouping(starting_at_the_end(280), 100, 281))


@pytest.mark.parametrize("loading", sorted(SWITCHES["read.cu"]["LOADING"]))
def test_every_way_to_load(device: Device, loading: int) -> None:
    kernels = DeviceKernels(device, switches={"LOADING": loading})
    for size in (512, 4096, 64 << 10):
        for layout in layouts(size):
            check_digest(kernels, size, layout, count=5)
    check_compare(kernels, 4096)
    check_read(kernels, 5000)


@pytest.mark.parametrize("resident", sorted(SWITCHES["digest.cu"]["RESIDENT"]))
def test_every_number_of_resident_blocks(device: Device, resident: int) -> None:
    kernels = DeviceKernels(device, switches={"RESIDENT": resident})
    for size in (64 << 10, 128 << 10):
        check_digest(kernels, size, "block", count=7)


@pytest.mark.parametrize("blocks", [1, 5, 64])
def test_settle(device: Device, blocks: int) -> None:
    kernels = DeviceKernels(device, blocks)
    check_settle(kernels, settling(1, 400, 30, 150, 401, offset=1 << 33))
    check_settle(kernels, settling(2, 300, 9, 300, 512))
    check_settle(kernels, words_at_the_end(140))


@pytest.mark.parametrize("page_size", [512, 4096, 128 << 10])
def test_compare_copy_read(device: Device, page_size: int) -> None:
    kernels = DeviceKernels(device)
    check_compare(kernels, page_size)
    for gather, scatter in ((False, False), (True, False), (False, True), (True, True)):
        check_copy(kernels, page_size, gather=gather, scatter=scatter)
    check_read(kernels, 5000)


@pytest.mark.parametrize("page_size", [512, 4096, 128 << 10])
@pytest.mark.parametrize("physical", [False, True], ids=["mapped", "physical"])
def test_page_table(device: Device, page_size: int, physical: bool) -> None:
    check_page_table(DeviceKernels(device), page_size, physical=physical)
