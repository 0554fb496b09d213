"""List and choose the engines of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpudedup.arguments import as_number
from gpudedup.errors import UnsupportedHereError, UsageError

if TYPE_CHECKING:
    from gpudedup.engines.base import Engine

BACKENDS = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine on this machine.

    :param name: as in ``--backend``
    :param usable: True where the engine can be chosen
    :param device: model of its processor or devices; empty if unusable
    :param threads: host threads by default; 0 if unusable
    :param reason: why the engine is unusable; empty if usable
    """

    name: str
    usable: bool
    device: str = ""
    threads: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why the preferred one is not used.

    :param passed_over: ``cuda: <reason>``; empty if the preferred engine is used
    """

    engine: Engine
    passed_over: str = ""


def choose(
    backend: str = "auto",
    threads: int | None = None,
    *,
    devices: Sequence[int] | None = None,
    device_memory: int | None = None,
) -> Choice:
    """Return the engine for ``backend``, one of :data:`BACKENDS`; ``auto`` prefers ``cuda``.

    :param threads: host threads; None: one per usable core
    :param devices: CUDA numbers of the devices to use; None: device 0
    :param device_memory: limit of bytes used per device; None: nine tenths of the free bytes
    :raises UnsupportedHereError: if the engine cannot be used on this machine
    :raises UsageError: if there is no such engine, or the devices do not suit it, or a number is
        out of range: also where there is no device
    """
    from gpudedup.engines.cpu.engine import CpuEngine, thread_count

    threads = thread_count(threads)
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}: not one of {', '.join(BACKENDS)}")
    if backend == "cpu":
        if devices is not None or device_memory is not None:
            raise UsageError("backend cpu: it has no devices")
        return Choice(CpuEngine(threads))
    _check_devices(devices, device_memory)
    try:
        return Choice(_cuda(threads, devices, device_memory))
    except UnsupportedHereError as error:
        if backend == "cuda":
            raise UnsupportedHereError(f"backend cuda: {error}") from None
        return Choice(CpuEngine(threads), f"cuda: {error}")


def _check_devices(devices: Sequence[int] | None, device_memory: int | None) -> None:
    if devices is not None and (not devices or len(set(devices)) < len(devices)):
        raise UsageError("devices: name each once, and at least one")
    for number in devices or ():
        if not 0 <= as_number(number, "device") < 1 << 31:
            raise UsageError(f"device {number}: not a number that CUDA gives a device")
    if device_memory is not None and as_number(device_memory, "device memory") < 0:
        raise UsageError(f"device memory {device_memory}: must not be negative")


def _cuda(threads: int | None, devices: Sequence[int] | None, device_memory: int | None) -> Engine:
    from gpudedup.devices.kept import kept_devices
    from gpudedup.engines.offload.engine import OffloadEngine

    return OffloadEngine(kept_devices(devices), threads, memory=device_memory)


def engines() -> list[EngineInfo]:
    """Return every engine, usable on this machine or not."""
    from gpudedup.engines.cpu.engine import processor, usable_cores

    found = [EngineInfo("cpu", True, processor(), usable_cores())]
    try:
        engine = _cuda(None, None, None)
    except UnsupportedHereError as error:
        found.append(EngineInfo("cuda", False, reason=str(error)))
    else:
        found.append(EngineInfo("cuda", True, engine.device, engine.threads))
    return found
