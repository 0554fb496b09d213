"""Signals as a terminal leaves them; a disk that is easily full."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from gpudedup.devices.kept import close_devices

# No test is about time, and machines are shared.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> None:
    """Undo what ``nohup`` and shells' background jobs hand on: children inherit ignored signals."""
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_devices_kept() -> Iterator[None]:
    """Close the devices that a test's scans keep, which may be stand-ins."""
    yield
    close_devices()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount an empty directory that has room for small outputs only."""
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
