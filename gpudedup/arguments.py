"""Arguments of calls on pages: their limits, and their conversion to arrays of one shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.errors import UsageError

MAX_NODES = 64
MAX_DEVICES = 8
"""Devices of one manager: bits of ``State.mirrors``."""

MAX_PAGES = 1 << 36
"""Pages of one mapping: of 4 KiB, as many as 48-bit addresses reach."""

Index = npt.NDArray[np.int64]
Data = npt.NDArray[np.uint8]


def as_number(value: Any, what: str) -> int:
    """Return one integer, Python's or NumPy's.

    :param what: name of the argument, for the error
    :raises UsageError: if it is no integer, such as a float or a bool, or has over 64 bits
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise UsageError(f"{what} of type {type(value).__name__}: not an integer")
    number = int(value)
    if not -1 << 63 <= number < 1 << 64:
        raise UsageError(f"{what}: an integer of {number.bit_length()} bits, at most 64 count")
    return number


def _as_array(value: Any, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{what}: no array: {error}") from None


def as_index(index: Any) -> Index:
    """Return one index or many as (n,) int64, C-contiguous.

    :raises UsageError: if it is not integers, or has more than one dimension
    """
    array = _as_array(index, "index")
    if array.dtype.kind not in "iu" and array.size:
        raise UsageError(f"index of type {array.dtype}: not integers")
    if array.ndim > 1:
        raise UsageError(f"index of shape {array.shape}: not one number or a row of them")
    if array.dtype == np.uint64 and array.size and array.max() >= 1 << 63:
        raise UsageError(f"index {array.max()}: no mapping has so many pages")
    return np.ascontiguousarray(array.reshape(-1), np.int64)


def check_part(offset: Any, size: Any, page_size: int) -> tuple[int, int]:
    """Return offset and size of a part of a page, in bytes.

    :param size: None: up to the end of the page
    :raises UsageError: unless both are integers, and the part lies within the page
    """
    offset = as_number(offset, "offset")
    size = page_size - offset if size is None else as_number(size, "size")
    if offset < 0 or size < 0 or offset + size > page_size:
        raise UsageError(f"{size} bytes at {offset} of pages of {page_size}")
    return offset, size


def as_data(data: Any, rows: int, page_size: int, offset: Any) -> npt.NDArray[np.uint8]:
    """Return the data for ``rows`` pages as (rows, k) uint8, C-contiguous.

    :param data: bytes or uint8, (rows, k), or (k,) for all pages
    :param offset: first byte within the page; None: whole pages
    :raises UsageError: if the shape does not fit, or the offset is no integer
    """
    if isinstance(data, memoryview):
        data = data.tobytes()
    if isinstance(data, bytes | bytearray):
        data = np.frombuffer(data, np.uint8)
    array = _as_array(data, "data")
    if offset is not None:
        offset = as_number(offset, "offset")
    if array.dtype != np.uint8:
        raise UsageError(f"data of type {array.dtype}: pages are uint8")
    if array.ndim == 1:
        array = np.broadcast_to(array, (rows, len(array)))
    if array.ndim != 2 or len(array) != rows:
        raise UsageError(f"data of shape {array.shape} for {rows} pages")
    end = array.shape[1] + (offset or 0)
    if (offset is None and end != page_size) or (offset or 0) < 0 or end > page_size:
        raise UsageError(f"{array.shape[1]} bytes at {offset or 0} of pages of {page_size}")
    return np.ascontiguousarray(array)


def as_words(
    index: Index, word: Any, value: Any, page_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return words and values of an atomic addition, (n,) each.

    :raises UsageError: if a word lies outside the page, or one of the two is not integers, or not
        one or (n,)
    """
    given = {"word": _as_array(word, "word"), "value": _as_array(value, "value")}
    for what, array in given.items():
        if array.dtype.kind not in "iu" and array.size:
            raise UsageError(f"{what} of type {array.dtype}: not integers")
        if array.shape not in ((), (1,), index.shape):
            raise UsageError(f"{what} of shape {array.shape} for {len(index)} pages")
    words = np.broadcast_to(given["word"], index.shape)
    outside = words[(words < 0) | (words >= page_size // 8)]
    if len(outside):
        raise UsageError(f"word {outside[0]}: not one of {page_size // 8}")
    values = np.broadcast_to(given["value"].astype(np.uint64), index.shape)
    return words.astype(np.int64), values


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return distinct integers, ascending. Most arguments are: ``np.unique`` would hash them."""
    if (values[1:] > values[:-1]).all():
        return values
    ordered = np.sort(values)
    found: npt.NDArray[Any] = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return found


def last_of_equal(keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the position of each distinct key's last occurrence, in order of keys."""
    if (keys[1:] > keys[:-1]).all():
        return np.arange(len(keys))
    place: npt.NDArray[np.int64] = np.argsort(keys, kind="stable")
    ordered = keys[place]
    last: npt.NDArray[np.int64] = place[np.append(ordered[1:] != ordered[:-1], True)]
    return last
