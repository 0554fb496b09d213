"""Page deduplication for memory images.

``scan`` says which pages of images or arrays are equal; ``open_image`` opens one to read its pages;
``MemoryManager`` holds pages and lets them share frames; ``replay`` runs a trace of accesses on it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpudedup.errors import GpudedupError as GpudedupError
    from gpudedup.images.base import Image as Image
    from gpudedup.images.importing import import_images as import_images
    from gpudedup.images.probe import open_image as open_image
    from gpudedup.images.process import capture as capture
    from gpudedup.images.synthetic import Recipe as Recipe
    from gpudedup.images.synthetic import generate as generate
    from gpudedup.mm.manager import MemoryManager as MemoryManager
    from gpudedup.mm.policy import MergePolicy as MergePolicy
    from gpudedup.mm.policy import MergeReport as MergeReport
    from gpudedup.scanning.exact import scan as scan
    from gpudedup.scanning.result import Scan as Scan
    from gpudedup.traces.mixes import Mix as Mix
    from gpudedup.traces.mixes import generate_trace as generate_trace
    from gpudedup.traces.recording import record_trace as record_trace
    from gpudedup.traces.replay import Replay as Replay
    from gpudedup.traces.replay import replay as replay

__version__ = "0.1.0"

_HOMES = {
    "GpudedupError": "gpudedup.errors",
    "Image": "gpudedup.images.base",
    "MemoryManager": "gpudedup.mm.manager",
    "MergePolicy": "gpudedup.mm.policy",
    "MergeReport": "gpudedup.mm.policy",
    "Mix": "gpudedup.traces.mixes",
    "Recipe": "gpudedup.images.synthetic",
    "Replay": "gpudedup.traces.replay",
    "Scan": "gpudedup.scanning.result",
    "capture": "gpudedup.images.process",
    "generate": "gpudedup.images.synthetic",
    "generate_trace": "gpudedup.traces.mixes",
    "import_images": "gpudedup.images.importing",
    "open_image": "gpudedup.images.probe",
    "record_trace": "gpudedup.traces.recording",
    "replay": "gpudedup.traces.replay",
    "scan": "gpudedup.scanning.exact",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gpudedup' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
