"""Pagemap entries that count as written, and reasons why a process cannot be watched."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pytest

from gpudedup.errors import ImageError, UnsupportedHereError, UsageError
from gpudedup.processes import write_watch as written
from gpudedup.processes.write_watch import soft_dirty, watch

from .children import ANSWERING, child

DIRTY, FILE, SWAP, PRESENT = 1 << 55, 1 << 61, 1 << 62, 1 << 63


def test_private_pages_that_are_there_and_dirty() -> None:
    entries = [0, DIRTY, PRESENT, PRESENT | DIRTY, SWAP | DIRTY, PRESENT | DIRTY | FILE, 0]
    entries += [PRESENT | DIRTY] * 3
    assert soft_dirty(np.array(entries, np.uint64)).tolist() == [[3, 2], [7, 3]]
    assert soft_dirty(np.zeros(4, np.uint64)).shape == (0, 2)


def test_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "keeps_soft_dirty", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UnsupportedHereError) as caught:
        watch(1)
    assert str(caught.value) == (
        "pid 1: its writes cannot be watched: write-protect: calls are injected on x86_64 only, not"
        " riscv64; soft-dirty: this kernel does not keep these bits"
    )
    assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match="method 'none': not one of auto, "):
        watch(1, "none")


def test_soft_dirty_bits_have_one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "keeps_soft_dirty", lambda: True)
    with child(ANSWERING) as one:
        first = written.SoftDirty(one.pid)
        with pytest.raises(UnsupportedHereError, match="another recorder clears the bits"):
            written.SoftDirty(one.pid)
        first.close()
        written.SoftDirty(one.pid).close()


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.ENOMEM, ImageError, "pid 7: the pages it wrote cannot be listed: Cannot allocate"),
        (errno.ESRCH, ProcessLookupError, "No such process"),
    ],
)
def test_writes_that_the_kernel_does_not_list(
    monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], message: str
) -> None:
    """Not an answer without them."""

    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    one = object.__new__(written.WriteProtect)
    one._name, one._ranges = "pid 7", [(1, 9)]
    one._regions = np.zeros((4, 3), np.uint64)
    one._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    one._uffd = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr("fcntl.ioctl", fail)
    with pytest.raises(error, match=message):
        one.written()
    one.close()
