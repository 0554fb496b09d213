"""Arrays as images, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from gpudedup.errors import UsageError
from gpudedup.images import memory
from gpudedup.images.memory import open_array
from gpudedup.images.rows import Mapping
from gpudedup.scanning.scan import scan

from .common import all_pages, joined


class Foreign:
    """An array of another library, with DLPack as its only interface."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Elsewhere(Foreign):
    """An array in the memory of a device."""

    def __dlpack__(self, **how: Any) -> Any:
        raise BufferError("no copy to host memory")


def pages(n: int, page_size: int = 512) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, page_size), dtype=np.uint8)


@pytest.mark.parametrize("page_size", [512, 4096, 2 << 20])
@pytest.mark.parametrize("wrap", [lambda array: array, Foreign])
def test_rows_are_those_of_the_array(wrap: Any, page_size: int) -> None:
    array = pages(3, page_size)
    with open_array(wrap(array), "mine") as image:
        assert (image.format, image.path, image.page_size) == ("memory", "mine", page_size)
        assert image.mappings == (Mapping("mine", "", "anon", "", 0),)
        assert (all_pages(image) == array).all()
        columns = joined(image)
        assert (columns.mapping.tolist(), columns.index.tolist()) == ([0, 0, 0], [0, 1, 2])
        assert columns.frame is None
        (batch,) = image.batches()
        assert batch.column("content").to_pylist() == [page.tobytes() for page in array]


@pytest.mark.parametrize("wrap", [lambda array: array, Foreign])
def test_no_copy_is_made(wrap: Any) -> None:
    array = pages(3)
    with open_array(wrap(array)) as image:
        (extent,) = image.extents
        assert extent.offset == array.ctypes.data
        array[1] = 7
        out = np.empty((1, 512), np.uint8)
        image.read_pages(1, out)
        assert (out == 7).all()


@pytest.mark.parametrize("wrap", [lambda array: array, Foreign])
def test_read_only_arrays(wrap: Any) -> None:
    array = pages(3)
    array[2] = array[0]
    array.flags.writeable = False
    assert scan(wrap(array), backend="cpu").totals.sharing_frames == 1


def test_part_of_an_array(tmp_path: Any) -> None:
    array = pages(10)
    with open_array(array[3:6]) as image:
        assert (all_pages(image) == array[3:6]).all()
    mapped = np.memmap(tmp_path / "pages", np.uint8, "w+", shape=(4, 512))
    mapped[:] = pages(4)
    with open_array(mapped) as image:
        assert (all_pages(image) == pages(4)).all()


def test_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_array(np.empty((0, 4096), np.uint8)) as image:
        assert (image.pages, image.page_size, list(image.batches())) == (0, 4096, [])
    monkeypatch.setattr(memory, "COLUMN_ROWS", 2)
    with open_array(pages(5)) as image:
        assert [(c.row, c.index.tolist()) for c in image.columns()] == [
            (0, [0, 1]),
            (2, [2, 3]),
            (4, [4]),
        ]


WRONG: dict[str, tuple[Any, str]] = {
    "type": (np.zeros((2, 512), np.int8), "int8 of shape"),
    "words": (np.zeros((2, 512), np.uint64), "uint64 of shape"),
    "one dimension": (np.zeros(512, np.uint8), r"shape \(512,\)"),
    "three": (np.zeros((2, 2, 512), np.uint8), r"shape \(2, 2, 512\)"),
    "columns": (np.zeros((512, 512), np.uint8, order="F"), "C-contiguous"),
    "every other page": (np.zeros((4, 512), np.uint8)[::2], "C-contiguous"),
    "backwards": (np.zeros((4, 512), np.uint8)[::-1], "C-contiguous"),
    "parts of pages": (np.zeros((4, 1024), np.uint8)[:, :512], "C-contiguous"),
    "page size": (np.zeros((2, 1000), np.uint8), "page size 1000"),
    "no page": (np.zeros((2, 0), np.uint8), "page size 0"),
    "no array": (object(), "not an array in host memory"),
    "a device": (Elsewhere(np.zeros((2, 512), np.uint8)), "no copy to host memory"),
    "a column": (pa.array([1, 2], pa.uint8()), r"shape \(2,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_array_of_pages(case: str) -> None:
    array, reason = WRONG[case]
    with pytest.raises(UsageError, match=reason):
        open_array(array, "mine")
