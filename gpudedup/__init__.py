"""Page deduplication for memory images.

``scan`` finds equal pages in images or arrays; ``close_devices`` gives back the GPUs that it keeps
open; ``open_image`` opens an image to read its pages;
``merge_images`` keeps equal pages once, in a merged dump that ``open_merged`` and ``restore`` read;
``MemoryManager`` holds pages that share frames; ``replay`` runs a trace of events on a manager;
``benchmark`` measures how fast all that is on this machine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpudedup.devices.kept import close_devices as close_devices
    from gpudedup.errors import GpudedupError as GpudedupError
    from gpudedup.images.base import Image as Image
    from gpudedup.images.importing import import_images as import_images
    from gpudedup.images.opening import open_image as open_image
    from gpudedup.layouts.bookkeeping import Bookkeeping as Bookkeeping
    from gpudedup.layouts.compare import LayoutEvent as LayoutEvent
    from gpudedup.layouts.compare import TraceEvent as TraceEvent
    from gpudedup.layouts.compare import compare_layouts as compare_layouts
    from gpudedup.measuring.benchmark import Benchmark as Benchmark
    from gpudedup.measuring.benchmark import benchmark as benchmark
    from gpudedup.merged.merging import merge_images as merge_images
    from gpudedup.merged.opened import MergedDump as MergedDump
    from gpudedup.merged.opened import open_merged as open_merged
    from gpudedup.merged.restoring import restore as restore
    from gpudedup.merged.restoring import restore_raw as restore_raw
    from gpudedup.merged.verifying import verify as verify
    from gpudedup.mm.manager import MemoryManager as MemoryManager
    from gpudedup.mm.policy import MergePolicy as MergePolicy
    from gpudedup.mm.policy import MergeReport as MergeReport
    from gpudedup.processes.capture import capture as capture
    from gpudedup.scanning.result import Scan as Scan
    from gpudedup.scanning.scan import scan as scan
    from gpudedup.scanning.synthetic import Recipe as Recipe
    from gpudedup.scanning.synthetic import generate as generate
    from gpudedup.traces.generating import Mix as Mix
    from gpudedup.traces.generating import generate_trace as generate_trace
    from gpudedup.traces.recording import record_trace as record_trace
    from gpudedup.traces.replay import Replay as Replay
    from gpudedup.traces.replay import replay as replay

__version__ = "0.1.0"

_HOMES = {
    "Benchmark": "gpudedup.measuring.benchmark",
    "Bookkeeping": "gpudedup.layouts.bookkeeping",
    "GpudedupError": "gpudedup.errors",
    "Image": "gpudedup.images.base",
    "LayoutEvent": "gpudedup.layouts.compare",
    "MemoryManager": "gpudedup.mm.manager",
    "MergePolicy": "gpudedup.mm.policy",
    "MergeReport": "gpudedup.mm.policy",
    "MergedDump": "gpudedup.merged.opened",
    "Mix": "gpudedup.traces.generating",
    "Recipe": "gpudedup.scanning.synthetic",
    "Replay": "gpudedup.traces.replay",
    "Scan": "gpudedup.scanning.result",
    "TraceEvent": "gpudedup.layouts.compare",
    "benchmark": "gpudedup.measuring.benchmark",
    "close_devices": "gpudedup.devices.kept",
    "capture": "gpudedup.processes.capture",
    "compare_layouts": "gpudedup.layouts.compare",
    "generate": "gpudedup.scanning.synthetic",
    "generate_trace": "gpudedup.traces.generating",
    "import_images": "gpudedup.images.importing",
    "merge_images": "gpudedup.merged.merging",
    "open_image": "gpudedup.images.opening",
    "open_merged": "gpudedup.merged.opened",
    "record_trace": "gpudedup.traces.recording",
    "restore": "gpudedup.merged.restoring",
    "restore_raw": "gpudedup.merged.restoring",
    "replay": "gpudedup.traces.replay",
    "scan": "gpudedup.scanning.scan",
    "verify": "gpudedup.merged.verifying",
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
