"""Why there is no device to be used, told in one line; with stand-ins for CuPy."""

from __future__ import annotations

import ast
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpudedup.engines import cuda
from gpudedup.engines.select import choose, engines
from gpudedup.errors import EngineUnusableError, ExitCode, UsageError


class CudaError(RuntimeError):
    """As CuPy raises it."""


class Nothing(Exception):
    """Stands for errors that are not raised here."""


def stand_in(**changes: Any) -> ModuleType:
    """Return a module ``cupy`` with one device.

    :param changes: what a call returns, or raises
    """

    def raising(what: str, value: Any) -> Any:
        def call(*_: object) -> Any:
            given = changes.get(what, value)
            if isinstance(given, Exception):
                raise given
            return given

        return call

    class Device:
        def __init__(self, number: int) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    class Pool:
        malloc = staticmethod(raising("allocate", SimpleNamespace(ptr=4096)))

    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(
        Device=Device,
        MemoryPool=Pool,
        PinnedMemoryPool=Pool,
        memory=SimpleNamespace(OutOfMemoryError=MemoryError),
        driver=SimpleNamespace(CUDADriverError=Nothing),
        compiler=SimpleNamespace(CompileException=Nothing),
        nvrtc=SimpleNamespace(getVersion=raising("nvrtc", (13, 0)), NVRTCError=Nothing),
        runtime=SimpleNamespace(
            CUDARuntimeError=CudaError,
            getDeviceCount=raising("count", 1),
            driverGetVersion=lambda: 12040,
            runtimeGetVersion=lambda: 13000,
            getDeviceProperties=lambda number: {"name": b"GPU", "multiProcessorCount": 4},
        ),
    )
    return cupy  # type: ignore[no-any-return]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a driver, and one CuPy package."""
    monkeypatch.setattr(cuda, "_has_driver", lambda: True)
    monkeypatch.setattr(cuda, "WHEELS", ())
    monkeypatch.setattr(cuda, "find_spec", lambda name: object())


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
    ],
)
def test_it_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    numbers: list[int] | None,
    reason: str,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", stand_in(**changes))
    with pytest.raises(EngineUnusableError) as raised:
        cuda.open_devices(numbers)
    assert str(raised.value) == reason
    assert raised.value.exit_code == ExitCode.ENGINE_UNUSABLE
    with pytest.raises(EngineUnusableError, match=r"^backend cuda: "):
        choose("cuda", devices=numbers)
    choice = choose("auto", 1, devices=numbers)
    assert (choice.engine.name, choice.passed_over) == ("cpu", f"cuda: {reason}")


@pytest.mark.usefixtures("driver")
def test_a_device_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", stand_in(count=3))
    choice = choose("auto", 2, devices=[2, 0])
    assert (choice.engine.name, choice.engine.device) == ("cuda", "GPU (2), GPU (0)")
    assert (choice.engine.threads, choice.passed_over) == (2, "")
    assert choose("cuda").engine.device == "GPU (0)"
    assert [info.usable for info in engines()] == [True, True]


def test_without_a_driver_cupy_is_not_even_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_has_driver", lambda: False)
    monkeypatch.setattr(cuda, "find_spec", None)
    with pytest.raises(EngineUnusableError, match=r"^there is no NVIDIA driver$"):
        cuda.open_devices()
    assert engines()[1].reason == "there is no NVIDIA driver"


@pytest.mark.usefixtures("driver")
def test_no_cupy_two_of_them_and_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(EngineUnusableError, match=r"^CuPy cannot be imported: "):
        cuda.open_devices()
    monkeypatch.setattr(cuda, "WHEELS", ("numpy", "no-such-package", "pyarrow"))
    with pytest.raises(EngineUnusableError, match="uninstall all but one: numpy, pyarrow"):
        cuda.open_devices()
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    with pytest.raises(EngineUnusableError, match=r"^CuPy is not installed: pip install "):
        cuda.open_devices()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"backend": "gpu"}, "backend 'gpu': not one of auto, cpu, cuda"),
        ({"backend": "cpu", "devices": [0]}, "backend cpu: it has no devices"),
        ({"backend": "cpu", "device_memory": 1}, "backend cpu: it has no devices"),
        ({"devices": [0, 0]}, "devices: name each once, and at least one"),
        ({"devices": []}, "devices: name each once, and at least one"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as raised:
        choose(**arguments)
    assert str(raised.value) == reason


@pytest.fixture(scope="module")
def cupy() -> Any:
    """Return the real CuPy; it can be imported without a GPU."""
    if find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module("cupy")


def test_all_that_is_used_of_cupy_is_there(cupy: Any) -> None:
    """Names are all that can be checked without a GPU, so they are."""
    bases = {
        "cupy": cupy,
        "self._cupy": cupy,
        "cuda": cupy.cuda,
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
            # What lies behind a class is an attribute of an object that needs a GPU.
            if not isinstance(at, type):
                at = getattr(at, part)
