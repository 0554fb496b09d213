"""One line names the reason why no device is usable; with stand-ins for CuPy."""

from __future__ import annotations

import ast
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudedup.devices import cuda
from gpudedup.devices.base import OutOfDeviceMemory
from gpudedup.engines.base import DEVICE_MEMORY, PageSource
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.engines.select import choose
from gpudedup.errors import DeviceError, ExitCode, UnsupportedHereError
from gpudedup.kernels import KERNELS
from gpudedup.mm.memory.device_queue import DeviceQueue

from ..engines.common import population
from .fake_cupy import CudaError, DriverError, fake_cupy, let_there_be_a_driver, stand_in


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    let_there_be_a_driver(monkeypatch)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("changes", "numbers", "reason"),
    [
        (
            {"count": CudaError("cudaErrorInsufficientDriver: CUDA driver version is\ntoo low")},
            None,
            "the NVIDIA driver is too old: it is made for CUDA 12.4, CuPy needs 13.0",
        ),
        (
            {"count": CudaError("cudaErrorNoDevice: no CUDA-capable device is detected")},
            None,
            "cudaErrorNoDevice: no CUDA-capable device is detected",
        ),
        (
            {"nvrtc": OSError("libnvrtc.so.13: cannot open shared object file")},
            None,
            "NVRTC cannot be loaded (libnvrtc.so.13: cannot open shared object file): install the"
            " package nvidia-cuda-nvrtc of CuPy's CUDA version",
        ),
        ({"count": 2}, [0, 2], "there is no device 2: devices are 0 to 1"),
        ({"count": 2}, [-1], "there is no device -1: devices are 0 to 1"),
        (
            {"allocate": CudaError("cudaErrorDevicesUnavailable: busy or unavailable")},
            None,
            "GPU (0): cudaErrorDevicesUnavailable: busy or unavailable",
        ),
        ({"allocate": MemoryError("Out of memory")}, None, "GPU (0): Out of memory"),
        (
            {"compile": RuntimeError("Failed to find CUDA headers")},
            None,
            "GPU (0): kernel set_words: Failed to find CUDA headers",
        ),
        (
            {"load": OSError(28, "No space left on device")},
            None,
            "GPU (0): kernel set_words: [Errno 28] No space left on device",
        ),
        (
            {"load": DriverError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image")},
            None,
            "GPU (0): CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image",
        ),
    ],
)
def test_it_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    numbers: list[int] | None,
    reason: str,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", stand_in(**changes))
    with pytest.raises(UnsupportedHereError) as raised:
        cuda.open_devices(numbers)
    assert str(raised.value) == reason
    assert raised.value.exit_code == ExitCode.ENGINE_UNUSABLE


@pytest.mark.usefixtures("driver")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")
def test_the_engine_runs_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every line of the CUDA device with CuPy's parameters, but not a GPU's own behaviour."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    pages = population(1, 300, 4096)
    expected = CpuEngine(1).partition(PageSource.of_array(pages))
    (device,) = cuda.open_devices()
    engine = OffloadEngine([device], 2, chunk_bytes=64 << 10)
    memory = device.allocate(pages.nbytes + 8)
    stream = device.stream()
    for shift in (0, 8):
        device.upload(memory.address + shift, pages.reshape(-1), stream)
        device.finish(device.record(stream))
        there = PageSource(
            4096,
            np.array([0, 300], np.int64),
            np.array([DEVICE_MEMORY], np.int32),
            np.array([memory.address + shift], np.uint64),
        )
        for store in (PageSource.of_array(pages), there):
            found = engine.partition(store)
            assert np.array_equal(found.representative, expected.representative)
            assert np.array_equal(found.digests, expected.digests)
    assert not device.allocate(1).address % 256


@pytest.mark.usefixtures("driver")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")
def test_switches_are_compiled_in_and_grids_are_of_resident_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cupy: Any = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    (device,) = cuda.open_devices()
    nvrtc = cupy.cuda.nvrtc
    before = nvrtc.compiled
    for switches in (None, {}, {"INSERTING": 2}, {"INSERTING": 2}):
        device.launch("insert", 1, KERNELS["insert"].nothing(), device.stream(), switches=switches)
        assert device.resident_blocks("insert", switches=switches) == 3
    # A page size that a kernel is not compiled for makes no further function.
    assert device.resident_blocks("insert", page_size=4096, layout="quad") == 3
    assert nvrtc.compiled == before + 2
    with pytest.raises(DeviceError, match=r"kernel insert: group.cu has no variant INSERTING=7$"):
        device.launch(
            "insert", 1, KERNELS["insert"].nothing(), device.stream(), switches={"INSERTING": 7}
        )
    grids: list[int] = []
    monkeypatch.setattr(device, "launch", lambda kernel, blocks, *_, **__: grids.append(blocks))
    DeviceQueue(device, 1).launch("set_words", 1 << 30)
    # Three waves of 3 blocks, on 4 multiprocessors.
    assert grids == [9 * 4]


@pytest.mark.usefixtures("driver")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")
def test_a_launch_that_lacks_memory_does_not_lose_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cupy: Any = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    (device,) = cuda.open_devices()
    nothing, stream = KERNELS["copy_pages"].nothing(), device.stream()
    for error in (
        DriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        CudaError("cudaErrorMemoryAllocation: out of memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(cupy.cuda.function.Module, "load", _raising(error))
            with pytest.raises(OutOfDeviceMemory, match="out of memory"):
                device.launch("copy_pages", 1, nothing, stream)
    device.launch("copy_pages", 1, nothing, stream)


def _raising(error: Exception) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call


@pytest.mark.usefixtures("driver")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")
def test_memory_is_left_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    (device,) = cuda.open_devices()
    assert device.free_memory() == (1 << 30) - cuda.RESERVED_BYTES


@pytest.mark.usefixtures("driver")
def test_auto_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = stand_in(compile=RuntimeError("Failed to find CUDA headers"))
    monkeypatch.setitem(sys.modules, "cupy", broken)
    choice = choose("auto")
    assert choice.engine.name == "cpu"
    assert choice.passed_over.endswith("kernel set_words: Failed to find CUDA headers")
    with pytest.raises(UnsupportedHereError, match=r"^backend cuda: .*: Failed to find") as raised:
        choose("cuda")
    assert raised.value.exit_code == 4


def test_without_a_driver_cupy_is_not_even_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_has_driver", lambda: False)
    monkeypatch.setattr(cuda, "find_spec", None)
    with pytest.raises(UnsupportedHereError, match=r"^there is no NVIDIA driver$"):
        cuda.open_devices()


@pytest.mark.usefixtures("driver")
def test_no_cupy_two_of_them_and_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UnsupportedHereError, match=r"^CuPy cannot be imported: "):
        cuda.open_devices()
    monkeypatch.setattr(cuda, "WHEELS", ("numpy", "no-such-package", "pyarrow"))
    with pytest.raises(UnsupportedHereError, match="uninstall all but one: numpy, pyarrow"):
        cuda.open_devices()
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedHereError, match=r"^CuPy is not installed: pip install "):
        cuda.open_devices()


@pytest.fixture(scope="module")
def cupy() -> Any:
    """Return the real CuPy; it can be imported without a GPU."""
    if find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module("cupy")


def test_all_that_is_used_of_cupy_is_there(cupy: Any) -> None:
    """Only names can be checked without a GPU."""
    bases = {
        "cupy": cupy,
        "self._cupy": cupy,
        "cuda": cupy.cuda,
        "driver": cupy.cuda.driver,
        "runtime": cupy.cuda.runtime,
        "self._runtime": cupy.cuda.runtime,
    }
    used = set()
    for node in ast.walk(ast.parse(Path(cuda.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            base, _, name = ast.unparse(node).rpartition(".")
            while base and base not in bases:
                base, _, first = base.rpartition(".")
                name = f"{first}.{name}"
            if base:
                used.add((base, name))
    assert len(used) > 20
    for base, name in used:
        at = bases[base]
        for part in name.split("."):
            # Attributes of a class's instances would need a GPU.
            if not isinstance(at, type):
                at = getattr(at, part)
