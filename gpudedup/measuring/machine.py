"""What a figure depends on, and how much memory may be used."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpudedup.engines.cpu.engine import processor, usable_cores


def machine() -> dict[str, Any]:
    """Return processor, usable cores, memory and kernel; no host name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": processor(),
        "cores": usable_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
    }


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can be allocated now; None where the kernel does not say.

    :param root: where ``proc`` and ``sys`` lie
    """
    limits = []
    with suppress(OSError):
        found = re.search(r"MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text())
        limits += [int(found[1]) << 10] if found else []
    group = root / "sys/fs/cgroup"
    # Of a container with cgroup v2; the root group of a host has no limit. "max" is no number.
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        limits.append(max(0, limit - int((group / "memory.current").read_text())))
    return min(limits, default=None)
