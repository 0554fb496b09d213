"""Versions of gpudedup and of what it runs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import gpudedup

PACKAGES = ("numpy", "pyarrow", "numba", "cupy-cuda12x", "cupy-cuda13x")


def versions() -> dict[str, str]:
    """Return the versions of gpudedup, Python, the kernel and the packages installed."""
    found = {
        "gpudedup": gpudedup.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
