"""Which engines are here, and which one to take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpudedup.errors import EngineUnusableError, UsageError

if TYPE_CHECKING:
    from gpudedup.engines.base import Engine

BACKENDS = ("auto", "cpu", "cuda")


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


def why_not_cuda() -> str:
    """Return why the CUDA engine cannot be used here."""
    return "not part of this version yet"
