"""A fixture for tests that need frame numbers."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from gpudedup.processes import pagemap

from .children import PAGE


@pytest.fixture
def frames_seen() -> None:
    """Skip where the kernel hides frame numbers."""
    page = mmap.mmap(-1, PAGE)
    page[0] = 1
    own = pagemap.Pagemap(os.getpid(), PAGE)
    hidden = pagemap.hides_frames(
        own.entries(ctypes.addressof(ctypes.c_char.from_buffer(page)) // PAGE, 1)
    )
    own.close()
    if hidden:
        pytest.skip("frame numbers need CAP_SYS_ADMIN")
