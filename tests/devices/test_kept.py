"""Devices that stay open: opened once, by one thread, not after a failure, not in a child."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.devices import cuda
from gpudedup.devices.host import HostDevice
from gpudedup.devices.kept import discard, kept_devices
from gpudedup.errors import DeviceError, UnsupportedHereError

from ..kernels.common import needs_compiler
from ..kernels.shim.device import ShimDevice

Opened = list[list[int]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Replace the GPUs by the host; return the numbers of each call that opens devices."""
    calls: Opened = []

    def open_devices(numbers: Sequence[int]) -> list[HostDevice]:
        calls.append(list(numbers))
        return [HostDevice(number) for number in numbers]

    monkeypatch.setattr(cuda, "open_devices", open_devices)
    return calls


def test_each_is_opened_once(opened: Opened) -> None:
    (first,) = kept_devices()
    assert kept_devices([0]) == [first]
    third, again = kept_devices([2, 0])
    assert again is first
    assert [third.name, first.name] == ["cpu (2)", "cpu (0)"]
    assert kept_devices([0, 2]) == [first, third]
    assert opened == [[0], [2]]


def test_they_are_given_back(opened: Opened) -> None:
    (first,) = kept_devices()
    gd.close_devices()
    gd.close_devices()
    assert kept_devices() != [first]
    assert opened == [[0], [0]]


def test_one_of_them_is_discarded(opened: Opened) -> None:
    first, second = kept_devices([0, 1])
    discard([first, HostDevice()])
    assert kept_devices([1, 0])[0] is second
    assert opened == [[0, 1], [0]]


def test_what_cannot_be_opened_is_asked_for_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(numbers: Any) -> None:
        opened.append(list(numbers))
        raise UnsupportedHereError("no")

    monkeypatch.setattr(cuda, "open_devices", none)
    for _ in range(2):
        with pytest.raises(UnsupportedHereError):
            kept_devices()
    assert opened == [[0], [0]]


def test_threads_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread comes while the first opens the device."""
    begun, asked = threading.Event(), threading.Event()
    calls = []

    def open_devices(numbers: Sequence[int]) -> list[HostDevice]:
        calls.append(numbers)
        begun.set()
        assert asked.wait(60)
        return [HostDevice()]

    monkeypatch.setattr(cuda, "open_devices", open_devices)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept_devices)
        assert begun.wait(60)
        second = pool.submit(kept_devices)
        asked.set()
        assert first.result() == second.result()
    assert len(calls) == 1


def test_a_child_opens_its_own(opened: Opened) -> None:
    """Even if another thread of the parent holds the lock."""
    (first,) = kept_devices()
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(kept_devices() == [first] or opened != [[0], [0]])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert kept_devices() == [first]


@needs_compiler
def test_a_device_that_failed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [ShimDevice(fail_after=45), ShimDevice()]
    waiting = list(devices)
    monkeypatch.setattr(cuda, "open_devices", lambda numbers: [waiting.pop(0)])
    pages = np.random.default_rng(1).integers(0, 256, (40, 512), dtype=np.uint8)
    gd.scan(pages[:1], backend="cuda")
    assert len(waiting) == 1
    with pytest.raises(DeviceError, match="device lost"):
        gd.scan(pages, backend="cuda")
    for _ in range(3):
        assert gd.scan(pages, backend="cuda").engine.device == devices[1].name
    with pytest.raises(DeviceError, match="of which 20 may be used"):
        gd.scan(pages, backend="cuda", device_memory=20)
    assert kept_devices() == [devices[1]]


@needs_compiler
def test_code_is_loaded_once_for_a_page_size(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ShimDevice()
    monkeypatch.setattr(cuda, "open_devices", lambda numbers: [device])
    digests = []
    for page_size in (512, 512, 1024, 512):
        before = len(device.launches)
        pages = np.random.default_rng(1).integers(0, 256, (4, page_size), dtype=np.uint8)
        gd.scan(pages, backend="cuda")
        digests.append([name for name, _ in device.launches[before:]].count("digest"))
    assert digests == [2, 1, 2, 1]
