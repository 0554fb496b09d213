"""Open images of any format. The format is recognised by content, never by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from gpudedup.devices.cuda import cuda_array
from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import Image
from gpudedup.images.files import FileBytes, open_regular
from gpudedup.images.memory import open_array, open_device_array

DEFAULT_PAGE_SIZE = 4096

CUDA_DLPACK = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""

ARROW = b"ARROW1\0\0"
ARROW_END = b"ARROW1"
ELF = b"\x7fELF"

UNSUPPORTED = {
    b"\xff\xff\xff\xff": "an Arrow stream; a dump is an Arrow *file*",
    b"FEA1": "a Feather version 1 file; a dump is an Arrow IPC file",
    b"PAR1": "a Parquet file; a dump is an Arrow IPC file",
    b"EMiL": "a LiME image: not supported yet",
    b"AVML": "an AVML image: not supported yet",
    b"KDUMP   ": "a kdump-compressed file: not supported yet",
    b"DISKDUMP": "a diskdump file: not supported yet",
    b"makedumpfile\0": "a flattened kdump (makedumpfile -R rearranges it): not supported yet",
    b"QEVM": "a QEMU migration stream: not supported yet",
    b"LibvirtQemudSave": "a libvirt save file: not supported yet",
    b"PAGEDU64": "a Windows crash dump: not supported yet",
    b"PAGEDUMP": "a Windows crash dump: not supported yet",
    b"\x1f\x8b": "compressed with gzip: decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it first",
    b"\xfd7zXZ\0": "compressed with xz: decompress it first",
}
"""Beginnings of files that would be misread as raw images."""

_AS_RAW = " (--format raw scans its bytes as they lie)"

FORMATS = ("arrow", "elf", "raw")


def open_image(
    path: str | os.PathLike[str], *, format: str | None = None, page_size: int | None = None
) -> Image:
    """Open an image; the caller closes it. A file of no known format is a raw image.

    :param format: one of :data:`FORMATS`; None: recognised by content
    :param page_size: bytes; None: the dump's, or :data:`DEFAULT_PAGE_SIZE` for other formats
    :raises ImageError: if the file cannot be read as an image
    :raises UsageError: if the format is unknown, or the page size is impossible or not the dump's
    """
    from gpudedup.schema import check_page_size

    name = os.fspath(path)
    chosen = format or _recognise(name)
    if chosen not in FORMATS:
        raise UsageError(f"format {chosen!r}: not one of {', '.join(FORMATS)}")
    size = check_page_size(DEFAULT_PAGE_SIZE if page_size is None else page_size)
    if chosen == "arrow":
        from gpudedup.images.dumps.reader import open_arrow

        image: Image = open_arrow(name)
        if page_size not in (None, image.page_size):
            image.close()
            raise UsageError(f"{name}: page size is {image.page_size}, not {page_size}")
        return image
    if chosen == "elf":
        from gpudedup.images.elf import open_elf

        return open_elf(name, size)
    from gpudedup.images.raw import open_raw

    return open_raw(name, size)


def _recognise(path: str) -> str:
    fd, size = open_regular(path)
    try:
        data = FileBytes(path, fd, size)
        head, tail = data.read(0, min(16, size)), bytes(data[-len(ARROW_END) :])
    finally:
        os.close(fd)
    if head.startswith(ARROW):
        return "arrow"
    if head.startswith(ELF):
        return "elf"
    for magic, what in UNSUPPORTED.items():
        if head.startswith(magic):
            if "not supported" in what:
                what += _AS_RAW
            raise ImageError(path, what, 0)
    if tail == ARROW_END:
        reason = "damaged: an Arrow file by its end, but not by its beginning"
        raise ImageError(path, reason + _AS_RAW, 0)
    return "raw"


def image_of(
    item: Any,
    opened: ExitStack,
    *,
    name: str = "array",
    format: str | None = None,
    page_size: int | None = None,
) -> Image:
    """Return an opened image as it is; open one at a path; make one of an array of pages.

    :param item: :class:`gpudedup.images.base.Image`; path; or (n, page_size) uint8, C-contiguous,
        as NumPy array, DLPack or ``__cuda_array_interface__``
    :param opened: closes an image that is opened here
    :param name: name of an array, for messages
    :param format, page_size: for a path, as in :func:`open_image`
    :raises ImageError: if a path cannot be read as an image
    :raises UsageError: if an array has another shape or type, or an argument is out of range
    """
    if isinstance(item, Image):
        return item
    if isinstance(item, str | os.PathLike):
        return opened.enter_context(open_image(item, format=format, page_size=page_size))
    if _is_on_device(item):
        return open_device_array(cuda_array(item), name)
    return open_array(item, name)


def images_of(
    inputs: Any, opened: ExitStack, *, format: str | None = None, page_size: int | None = None
) -> list[Image]:
    """Return the images of one item or several, each by :func:`image_of`."""
    return [
        image_of(item, opened, name=f"array{at}", format=format, page_size=page_size)
        for at, item in enumerate(_as_list(inputs))
    ]


def _as_list(inputs: Any) -> list[Any]:
    if isinstance(inputs, str | os.PathLike | Image) or not isinstance(inputs, Iterable):
        return [inputs]
    is_array = hasattr(inputs, "__dlpack__") or hasattr(inputs, "__cuda_array_interface__")
    return [inputs] if is_array else list(inputs)


def _is_on_device(array: Any) -> bool:
    if hasattr(array, "__cuda_array_interface__"):
        return True
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in CUDA_DLPACK
