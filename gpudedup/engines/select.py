"""Which engines are here, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpudedup.errors import UnsupportedHereError, UsageError

if TYPE_CHECKING:
    from gpudedup.engines.base import Engine

BACKENDS = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine can use on this machine.

    :param name: as in ``--backend``
    :param usable: whether it can be chosen here
    :param device: what it would run on; empty if it cannot
    :param threads: host threads that it would use by default; 0 if it cannot
    :param reason: why it cannot be used; empty if it can
    """

    name: str
    usable: bool
    device: str = ""
    threads: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it is not the one that would have been faster.

    :param passed_over: ``cuda: ...``; empty if there was no choice to make
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
    """Return the engine for ``backend``, one of :data:`BACKENDS`; ``auto`` takes the fastest here.

    :param threads: of the host; None: one for each usable core
    :param devices: numbers of the devices to use; None: the first
    :param device_memory: most bytes to use of each device; None: nine tenths of what is free
    :raises UnsupportedHereError: if it cannot be used on this machine
    :raises UsageError: if there is no such engine, or it has no devices
    """
    from gpudedup.engines.cpu.engine import CpuEngine

    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}: not one of {', '.join(BACKENDS)}")
    if backend == "cpu":
        if devices is not None or device_memory is not None:
            raise UsageError("backend cpu: it has no devices")
        return Choice(CpuEngine(threads))
    try:
        return Choice(_cuda(threads, devices, device_memory))
    except UnsupportedHereError as error:
        if backend == "cuda":
            raise UnsupportedHereError(f"backend cuda: {error}") from None
        return Choice(CpuEngine(threads), f"cuda: {error}")


def _cuda(threads: int | None, devices: Sequence[int] | None, device_memory: int | None) -> Engine:
    from gpudedup.devices.cuda import open_devices
    from gpudedup.engines.offload.engine import OffloadEngine

    if devices is not None and (not devices or len(set(devices)) < len(devices)):
        raise UsageError("devices: name each once, and at least one")
    return OffloadEngine(open_devices(devices), threads, memory=device_memory)


def engines() -> list[EngineInfo]:
    """Return every engine, usable here or not."""
    from gpudedup.engines.cpu.engine import processor, usable_cores

    found = [EngineInfo("cpu", True, processor(), usable_cores())]
    try:
        engine = _cuda(None, None, None)
    except UnsupportedHereError as error:
        found.append(EngineInfo("cuda", False, reason=str(error)))
    else:
        found.append(EngineInfo("cuda", True, engine.device, engine.threads))
    return found
