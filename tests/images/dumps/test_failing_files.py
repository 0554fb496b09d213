"""Dumps cut off, or on a disk that fails, while they are open: an ImageError, never SIGBUS."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpudedup.errors import ImageError
from gpudedup.images.base import Image
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.opening import open_image

from .arrow_files import PAGE, batch, ours, plain
from .test_merged import ours as merged

KINDS = ("ours", "others", "merged")


def write(folder: Path, kind: str) -> Path:
    """Write a dump of several batches; metadata and pages of each lie in memory pages of their own.

    ``others``: pages come between the metadata columns.
    """
    path = folder / kind
    if kind == "ours":
        ours(path, (30, 40, 50))
    elif kind == "others":
        order = ["index", "content", "flags", "mapping", "frame", "node"]
        tables = [pa.Table.from_batches([batch(first, 40)]) for first in (0, 40, 80)]
        plain(path, [table.select(order).to_batches()[0] for table in tables])
    else:
        merged(path, frames=40, counts=(300, 500, 700))
    return path


def read(image: Image) -> Iterator[object]:
    """Read all that an image has, step by step; yield what was read."""
    for piece in image.columns():
        known = (piece.frame, piece.node, piece.flags, piece.stored)
        arrays = [piece.mapping, piece.index, *(values for values in known if values is not None)]
        yield [values.tolist() for values in arrays]
    yield list(image.mappings)
    yield [piece.index.tolist() for piece in image.rows]
    if isinstance(image, MergedImage):
        yield image.sealed() is not None
    for first in range(0, image.pages, 64):
        pages = np.empty((min(64, image.pages - first), PAGE), np.uint8)
        image.read_pages(first, pages)
        yield pages.tobytes()


def all_of(path: Path) -> list[object]:
    with open_image(path) as image:
        return list(read(image))


CHILD = """
import os, sys
from pathlib import Path
import numpy as np
from gpudedup.errors import ImageError
from gpudedup.images.opening import open_image
from tests.images.dumps.test_failing_files import read

path = Path(sys.argv[1])
whole = path.read_bytes()
steps = len(list(read(open_image(path))))
ended = {"refused": 0, "read": 0}
for size in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
    for before in range(0, steps):
        path.write_bytes(whole)
        image = open_image(path)
        reading = read(image)
        try:
            for at in range(steps):
                if at == before:
                    held = list(image.rows)
                    os.truncate(path, size)
                next(reading)
            ended["read"] += 1
        except ImageError as error:
            assert str(error).startswith(f"{path}: "), error
            ended["refused"] += 1
        for piece in held:
            piece.index.sum(), piece.mapping.sum(), piece.flags.sum()
        image.close()
print(ended["refused"] > steps, sum(ended.values()) > steps)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_after_it_was_opened(tmp_path: Path, kind: str) -> None:
    """At 40 places, before every step of the reading; rows that were read stay readable."""
    path = write(tmp_path, kind)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr


@pytest.fixture
def preads(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[int, int, int], bytes]]:
    """Give a list whose last function is called in place of ``os.pread``."""
    calls = [os.pread]
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: calls[-1](fd, size, offset))
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails(
    tmp_path: Path, kind: str, preads: list[Callable[[int, int, int], bytes]]
) -> None:
    """At every read of metadata."""
    path = write(tmp_path, kind)
    genuine, left = preads[0], 0

    def fail(fd: int, size: int, offset: int) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(fd, size, offset)

    preads.append(fail)
    whole = all_of(path)
    assert left < -20
    for at in range(1, -left + 1):
        left = at
        with pytest.raises(ImageError) as caught:
            all_of(path)
        assert caught.value.path == str(path)
        assert caught.value.reason == "Input/output error"
        assert caught.value.offset is not None
    left = 0
    assert all_of(path) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_while_it_is_opened(
    tmp_path: Path, kind: str, preads: list[Callable[[int, int, int], bytes]]
) -> None:
    """Before every read of metadata: nothing is read twice that was checked the first time only."""
    path = write(tmp_path, kind)
    whole, genuine, left = path.read_bytes(), preads[0], 0

    def cut(fd: int, size: int, offset: int) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            os.truncate(path, 0)
        return genuine(fd, size, offset)

    preads.append(cut)
    all_of(path)
    assert left < -20
    for at in range(1, -left + 1):
        path.write_bytes(whole)
        left = at
        with pytest.raises(ImageError, match=r"cut off|became shorter|empty file"):
            all_of(path)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_that_end_early_go_on(
    tmp_path: Path, kind: str, preads: list[Callable[[int, int, int], bytes]]
) -> None:
    """A network file system may give less than asked for."""
    path = write(tmp_path, kind)
    whole, genuine = all_of(path), preads[0]
    preads.append(lambda fd, size, offset: genuine(fd, min(size, 7), offset))
    assert all_of(path) == whole
