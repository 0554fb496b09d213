"""Inputs of a merged dump: metadata by which each can be restored.

Rows of an input are consecutive, as are its mappings; inputs keep their order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gpudedup.errors import ImageError
from gpudedup.images.base import Absent, Image
from gpudedup.images.dumps.image import ArrowImage
from gpudedup.images.files import file_name
from gpudedup.schema import MERGED_VERSION

MERGED = "gpudedup.merged"
"""Key of the schema metadata; the other keys are those of the dump that a restore writes."""


@dataclass(frozen=True, slots=True)
class Input:
    """An image that went into a merged dump.

    :param name: file name without folder
    :param format: as in ``scan --json``
    :param rows: rows in the merged dump
    :param mappings: mappings in the merged dump
    :param frame_base: number added to its frame numbers; None: they were numbered anew
    :param absent: pages that it has or had and the merged dump lacks, as in :class:`Absent`
    :param metadata: schema metadata of a dump; None: the input was no dump
    """

    name: str
    format: str
    rows: int
    mappings: int
    frame_base: int | None
    absent: dict[str, int]
    metadata: dict[str, str] | None

    def left_out(self) -> Absent:
        """Return :attr:`absent` as :class:`Absent`."""
        return Absent(**self.absent)


def metadata_of(image: Image) -> dict[str, str] | None:
    """Return the schema metadata that a dump had before merging; None: not a dump."""
    if not isinstance(image, ArrowImage):
        return None
    return {k: v for k, v in (image.metadata or {}).items() if k != MERGED}


def inputs_of(image: Image) -> list[Input]:
    """Return the inputs of a merged dump; any other image is its own only input.

    :raises ImageError: if the metadata of a merged dump contradict it
    """
    text = (image.metadata or {}).get(MERGED) if isinstance(image, ArrowImage) else None
    if text is None:
        return [
            Input(
                file_name(image.path), image.format, image.pages, len(image.mappings), 0,
                image.absent.as_dict(), metadata_of(image),
            )
        ]  # fmt: skip
    try:
        record = json.loads(text)
        version = record["version"]
        if type(version) is not int:
            raise TypeError
        if version != MERGED_VERSION:
            reason = f"merged dump of version {version}; this gpudedup reads {MERGED_VERSION}"
            raise ImageError(image.path, reason)
        found = [_input(entry) for entry in record["inputs"]]
        if sum(one.rows for one in found) != image.pages:
            raise ValueError
        if sum(one.mappings for one in found) != len(image.mappings):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ImageError(image.path, f"metadata {MERGED}: not what a merge writes") from None
    return found


def _input(entry: dict[str, Any]) -> Input:
    one = Input(**{field.name: entry[field.name] for field in fields(Input)})
    absent = one.left_out().as_dict()
    counts = [one.rows, one.mappings, *absent.values()]
    counts += [] if one.frame_base is None else [one.frame_base]
    words = [one.name, one.format]
    if one.metadata is not None:
        words += [*one.metadata.keys(), *one.metadata.values()]
    if not all(type(count) is int and 0 <= count < 1 << 64 for count in counts):
        raise ValueError
    if not all(type(word) is str for word in words):
        raise ValueError
    for word in words:
        # A half of a surrogate pair can be written to no file.
        word.encode()
    return replace(one, absent=absent)


def with_base(one: Input, base: int | None) -> Input:
    """Return the input with frame numbers raised by ``base`` more; None: numbered anew."""
    known = None if base is None or one.frame_base is None else base + one.frame_base
    return replace(one, frame_base=known)


def merged_field(inputs: Sequence[Input], policy: dict[str, Any]) -> dict[str, str]:
    """Return the metadata that :func:`inputs_of` reads; ``policy`` is for human readers only."""
    record = {
        "version": MERGED_VERSION,
        "policy": policy,
        "inputs": [asdict(one) for one in inputs],
    }
    return {MERGED: json.dumps(record)}
