"""Which engines are here, and which one to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpudedup.errors import EngineUnusableError, UsageError

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


def choose(backend: str = "auto", threads: int | None = None) -> Engine:
    """Return the engine for ``backend``, one of :data:`BACKENDS`; ``auto`` takes the fastest here.

    :param threads: workers of the CPU engine; None: one for each usable core
    :raises EngineUnusableError: if it cannot be used on this machine
    :raises UsageError: if there is no such engine
    """
    if backend in ("auto", "cpu"):
        from gpudedup.engines.cpu import CpuEngine

        return CpuEngine(threads)
    if backend == "cuda":
        raise EngineUnusableError("backend cuda: " + why_not_cuda())
    raise UsageError(f"backend {backend!r}: not one of {', '.join(BACKENDS)}")


def engines() -> list[EngineInfo]:
    """Return every engine, usable here or not."""
    from gpudedup.engines.cpu import processor, usable_cores

    return [
        EngineInfo("cpu", True, processor(), usable_cores()),
        EngineInfo("cuda", False, reason=why_not_cuda()),
    ]


def why_not_cuda() -> str:
    """Return why the CUDA engine cannot be used here."""
    return "not part of this version yet"
