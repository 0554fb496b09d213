"""A disk that is easily full, and a look whether frame numbers can be seen."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpudedup.images import pagemap

from .children import PAGE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty directory with room for 256 KiB."""
    place = tmp_path / "small disk"
    place.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None:
        pytest.skip("needs mount")
    command = [mount, "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(place)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"may not mount: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([unmount, str(place)], check=True)


@pytest.fixture
def frames_seen() -> None:
    """Skip where the kernel shows no frame numbers."""
    page = mmap.mmap(-1, PAGE)
    page[0] = 1
    own = pagemap.Pagemap(os.getpid(), PAGE)
    hidden = pagemap.hides_frames(
        own.entries(ctypes.addressof(ctypes.c_char.from_buffer(page)) // PAGE, 1)
    )
    own.close()
    if hidden:
        pytest.skip("frame numbers need CAP_SYS_ADMIN")
