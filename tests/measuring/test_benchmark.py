"""The whole benchmark, small: on the CPU, and on the shim in a GPU's place."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

import gpudedup
from gpudedup.errors import DeviceError, UnsupportedHereError, UsageError, WrongResultError
from gpudedup.measuring import benchmark as module
from gpudedup.measuring import device as on_device
from gpudedup.measuring import host
from gpudedup.measuring.populations import expected

from ..kernels.shim.device import ShimDevice

SIZE = 1 << 20
SMALL: dict[str, Any] = {"size": SIZE, "rounds": 2, "threads": 2}

CPU = {
    "scan of random": ["read", "read ahead", "copy, read and written", "digest", "exact scan"],
    "scan of mix": ["read", "read ahead", "copy, read and written", "digest", "exact scan"],
    "stores that break COW": ["page copy", "break, 64 bytes stored", "break, page stored"],
    "operations that copy nothing": ["load of 8 bytes", "store of 8 bytes", "pin and unpin"],
    "merging of mix": ["scan", "merge", "apply"],
}
GPU = {
    "the device's memory": ["read", "copy, read and written"],
    "the bus, pinned": ["upload", "download"],
    "digest": ["read", "digest 4096 octet"],
    "grouping": ["group", "digest of 256 pages"],
    "scan of resident pages, random": ["read", "scan, kernels", "scan", "CPU engine"],
    "streamed, random": [
        "upload", "streamed scan", "streamed scan, zeros sent", "CPU engine",
    ],
    "scan of resident pages, mix": ["read", "scan, kernels", "scan", "CPU engine"],
    "streamed, mix": ["upload", "streamed scan", "streamed scan, zeros sent", "CPU engine"],
    "compare": ["read", "compare"],
}  # fmt: skip

needs_shim = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")


def names(done: gpudedup.Benchmark) -> dict[str, list[str]]:
    """Return the lines of each section."""
    return {each.what: [line.name for line in each.lines] for each in done.sections}


def no_gpu() -> None:
    """Stand for a machine without a GPU."""
    raise UnsupportedHereError("there is no NVIDIA driver")


def test_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open", no_gpu)
    steps: list[tuple[int, int]] = []
    done = gpudedup.benchmark(**SMALL, progress=lambda *at: steps.append(at))
    assert names(done) == CPU
    assert steps == [(at, 5) for at in range(1, 6)]
    assert [(each.what, each.reason) for each in done.not_measured] == [
        ("GPU", "there is no NVIDIA driver")
    ]
    assert done.gpu == ""
    for each in done.sections:
        assert {len(line.seconds) for line in each.lines} == {2}
        for line in each.lines:
            compared = line.name not in each.against and line.name != "apply"
            assert set(line.ratios) == (set(each.against) if compared else set())
    assert {line.amount for each in done.sections[:2] for line in each.lines} == {SIZE}


def test_what_is_not_asked_for_is_named() -> None:
    done = gpudedup.benchmark(**SMALL, gpu=False)
    assert [each.reason for each in done.not_measured] == ["not asked for"]
    json.dumps(done.as_dict(), allow_nan=False)


@needs_shim
def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ShimDevice()
    monkeypatch.setattr(module, "_open", lambda: device)
    steps: list[tuple[int, int]] = []
    done = gpudedup.benchmark(**SMALL, cpu=False, progress=lambda *at: steps.append(at))
    assert names(done) == GPU
    assert steps == [(at, 9) for at in range(1, 10)]
    assert done.gpu == device.name
    assert [each.what for each in done.not_measured] == ["CPU and memory manager alone"]
    by_name = {line.name: line for each in done.sections for line in each.lines}
    assert (by_name["group"].unit, by_name["group"].amount) == ("digests", 4096)
    assert by_name["digest of 256 pages"].amount == 256
    assert set(by_name["scan, kernels"].ratios) == {"read", "CPU engine"}
    json.dumps(done.as_dict(), allow_nan=False)


@needs_shim
def test_a_gpu_that_is_smaller_gets_fewer_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ShimDevice(memory=16 << 20)
    monkeypatch.setattr(module, "_open", lambda: device)
    monkeypatch.setattr(module, "DEVICE_MEMORY_PER_BYTE", 16)
    done = gpudedup.benchmark(size=4 << 20, rounds=1, cpu=False)
    assert done.sections[0].lines[0].amount == SIZE


@needs_shim
def test_a_gpu_that_fails_is_named_where_none_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("device lost")

    monkeypatch.setattr(module, "_open", ShimDevice)
    monkeypatch.setattr(on_device, "grouping", fail)
    monkeypatch.setattr(module, "_cpu", lambda options: iter(()))
    monkeypatch.setattr(module, "_manager", lambda options: iter(()))
    done = gpudedup.benchmark(**SMALL)
    assert list(names(done)) == list(GPU)[:3]
    assert [(each.what, each.reason) for each in done.not_measured] == [
        ("GPU, 6 of 9 tables", "device lost")
    ]
    with pytest.raises(DeviceError, match="device lost"):
        gpudedup.benchmark(**SMALL, gpu=True)


@needs_shim
def test_a_wrong_result_of_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(ids: Any) -> Any:
        rows = expected(ids)
        rows[5] += 1
        return rows

    monkeypatch.setattr(module, "_open", ShimDevice)
    monkeypatch.setattr(on_device, "expected", other)
    with pytest.raises(WrongResultError) as caught:
        gpudedup.benchmark(**SMALL, cpu=False)
    assert str(caught.value).startswith("resident scan of random on shim (")
    assert str(caught.value).endswith("): wrong in 1 of 256 rows, the first 5")


def test_a_wrong_result_of_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "expected", lambda ids: expected(ids) - 1)
    with pytest.raises(WrongResultError, match="scan of random on the CPU: wrong in 256 of 256"):
        gpudedup.benchmark(**SMALL, gpu=False)


def test_a_gpu_that_was_asked_for_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open", no_gpu)
    with pytest.raises(UnsupportedHereError) as caught:
        gpudedup.benchmark(gpu=True)
    assert str(caught.value) == "no GPU to measure: there is no NVIDIA driver"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"size": 4096}, "size 4096: must be a multiple of 4096, at least 1048576"),
        ({"size": SIZE + 1}, "size 1048577: must be a multiple of 4096, at least 1048576"),
        ({"size": 1 << 62}, "size 4611686018427387904: takes 9223372036854775808 bytes, "),
        ({"size": 2.5}, "size of type float: not an integer"),
        ({"rounds": 0}, "rounds 0: not from 1 to 10000"),
        ({"rounds": 10_001}, "rounds 10001: not from 1 to 10000"),
        ({"threads": 0}, "threads 0: must be at least 1"),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        gpudedup.benchmark(**given)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("free", "quick", "size"),
    [
        (None, False, 2 << 30),
        (None, True, 512 << 20),
        (64 << 30, False, 2 << 30),
        ((1 << 30) + 5000, True, 256 << 20),
        (4096, False, None),
    ],
)
def test_the_usual_size_fits_into_memory(
    monkeypatch: pytest.MonkeyPatch, free: int | None, quick: bool, size: int | None
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: free)
    if size is None:
        with pytest.raises(UsageError, match="size 1048576: takes 2097152 bytes, 4096 are free"):
            module._options(quick, None, None, None)
        return
    options = module._options(quick, None, None, 3)
    assert (options.size, options.rounds, options.threads) == (size, 3 if quick else 7, 3)
