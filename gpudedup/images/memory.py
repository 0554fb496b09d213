"""Images in memory: NumPy arrays, arrays with DLPack, and arrays in a device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import Extent, Image
from gpudedup.images.rows import COLUMN_ROWS, Mapping, PageColumns, of_one_mapping
from gpudedup.schema import check_page_size


@dataclass(slots=True)
class MemoryImage(Image):
    """Pages of an array, not copied. ``fd`` is -1 and an extent's offset is an address.

    :param array: (n, page_size) uint8, C-contiguous; or the owner of such an array on a device
    :param on_device: True if the address is a device's
    """

    array: Any = None
    on_device: bool = False

    @property
    def format(self) -> str:
        """Return ``memory``."""
        return "memory"

    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows."""
        for first in range(0, self.pages, COLUMN_ROWS):
            index = np.arange(first, min(first + COLUMN_ROWS, self.pages), dtype=np.uint64)
            yield PageColumns(first, of_one_mapping(0, len(index)), index)

    def read_pages(self, row: int, out: npt.NDArray[np.uint8]) -> None:
        """Implement :meth:`Image.read_pages`; raise ImageError for pages on a device."""
        if self.on_device:
            raise ImageError(self.path, "in a device's memory: it can be scanned, not read")
        out[:] = self.array[row : row + len(out)]

    def read_stored(self, stored: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Implement :meth:`Image.read_stored`; raise ImageError for pages on a device."""
        if self.on_device:
            raise ImageError(self.path, "in a device's memory: it can be scanned, not read")
        np.take(self.array, stored, axis=0, out=out, mode="clip")


def open_array(array: Any, name: str = "array") -> MemoryImage:
    """Make an image of ``array``, (n, page_size) uint8, C-contiguous, or anything with DLPack.

    :raises UsageError: if it has another shape, page size or type, or is not in host memory
    """
    try:
        pages: Any = array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{name}: not an array in host memory: {error}") from None
    if pages.dtype != np.uint8 or pages.ndim != 2 or not pages.flags.c_contiguous:
        raise _not_pages(name, pages.dtype, pages.shape)
    return _image(name, pages.ctypes.data, pages.shape, pages, on_device=False)


def open_device_array(array: Any, name: str = "array") -> MemoryImage:
    """Make an image of pages in a device's memory.

    :param array: (n, page_size) uint8, C-contiguous, with ``__cuda_array_interface__``
    :raises UsageError: if it has another shape, page size or type
    """
    interface = array.__cuda_array_interface__
    shape, kind = interface["shape"], np.dtype(interface["typestr"])
    strides = interface.get("strides")
    contiguous = strides is None or strides == (shape[-1], 1)
    if kind != np.uint8 or len(shape) != 2 or not contiguous:
        raise _not_pages(name, kind, shape)
    return _image(name, interface["data"][0], shape, array, on_device=True)


def _not_pages(name: str, kind: object, shape: object) -> UsageError:
    return UsageError(
        f"{name}: {kind} of shape {shape}; pages are (n, page_size) uint8, C-contiguous"
    )


def _image(
    name: str, address: int, shape: tuple[int, int], owner: Any, *, on_device: bool
) -> MemoryImage:
    return MemoryImage(
        path=name,
        fd=-1,
        page_size=check_page_size(shape[1]),
        mappings=(Mapping(name, "", "anon", "", 0),),
        extents=[Extent(0, shape[0], address)] if shape[0] else [],
        source="memory",
        array=owner,
        on_device=on_device,
    )
