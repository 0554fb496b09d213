"""Dumps: the Arrow IPC files of :mod:`gpudedup.schema`, by whomever they were written.

Metadata columns are read through a memory map. Page bytes are not: only the place of each batch's
``content`` buffer in the file is taken from the map, at any alignment, and the file is read there.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import (
    UNKNOWN_FRAME,
    UNKNOWN_NODE,
    Absent,
    Extent,
    Image,
    Mapping,
    PageColumns,
)
from gpudedup.images.files import open_regular
from gpudedup.schema import DUMP_VERSION, KINDS, check_page_size, dump_schema


@dataclass(slots=True)
class ArrowImage(Image):
    """A dump; each record batch is one extent.

    :param metadata: the file's schema metadata, decoded
    """

    mapped: mmap.mmap | None = None
    reader: Any = None
    record_batches: int = 0
    metadata: dict[str, str] | None = None

    @property
    def format(self) -> str:
        """Return ``arrow``."""
        return "arrow"

    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows, one record batch at a time.

        :raises ImageError: if a row names a mapping that is not in the dictionary, or the file
            became shorter
        """
        row = 0
        for at in range(self.record_batches):
            self._check_length()
            batch = self.reader.get_batch(at)
            if not batch.num_rows:
                continue
            mapping = batch.column("mapping").indices.to_numpy()
            if mapping.min() < 0 or mapping.max() >= len(self.mappings):
                raise ImageError(
                    self.path, f"record batch {at}: column mapping: not in the dictionary"
                )
            yield PageColumns(
                row=row,
                mapping=mapping,
                index=batch.column("index").to_numpy(),
                frame=_filled(batch.column("frame"), UNKNOWN_FRAME),
                node=_filled(batch.column("node"), UNKNOWN_NODE),
                flags=batch.column("flags").to_numpy(),
            )
            row += batch.num_rows

    def _check_length(self) -> None:
        """Raise if the file became shorter: touching the map beyond its end kills the process."""
        assert self.mapped is not None
        if self.mapped.size() < len(self.mapped):
            raise ImageError(
                self.path, "the file became shorter while it was read", self.mapped.size()
            )


def _filled(column: pa.Array, unknown: np.generic) -> npt.NDArray[Any] | None:
    """Return a column without nulls, or None if it has nothing else."""
    if column.null_count == len(column):
        return None
    if column.null_count:
        column = column.fill_null(unknown.item())
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def open_arrow(path: str) -> ArrowImage:
    """Open a dump.

    :raises ImageError: if it is cut, compressed, not a dump, or its columns contradict it
    """
    fd, size = open_regular(path)
    try:
        # The map outlives the call: Arrow's buffers hold it.
        mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        try:
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
            return _open(path, fd, mapped, reader)
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise ImageError(path, f"not a readable Arrow file: {_one_line(error)}") from None
    except BaseException:
        os.close(fd)
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _open(path: str, fd: int, mapped: mmap.mmap, reader: Any) -> ArrowImage:
    data = pa.py_buffer(mapped)
    page_size, metadata = _check_schema(path, reader.schema)
    image = ArrowImage(
        path=path,
        fd=fd,
        page_size=page_size,
        mapped=mapped,
        reader=reader,
        record_batches=reader.num_record_batches,
        metadata=metadata,
        source=metadata.get("gpudedup.source", ""),
        absent=_absent(path, metadata.get("gpudedup.absent")),
    )
    extents: list[Extent] = []
    row = 0
    for at in range(reader.num_record_batches):
        batch = reader.get_batch(at)
        batch.validate()
        for field in dump_schema(page_size):
            if not field.nullable and batch.column(field.name).null_count:
                raise ImageError(path, f"record batch {at}: column {field.name} has nulls")
        if not image.mappings:
            image.mappings = _mappings(path, batch.column("mapping").dictionary)
        if batch.num_rows:
            extents.append(_extent(path, at, row, batch.column("content"), data))
            row += batch.num_rows
    image.extents = extents
    return image


def _check_schema(path: str, schema: pa.Schema) -> tuple[int, dict[str, str]]:
    """Return the page size and the metadata, if this is the schema of a dump."""
    if "content" not in schema.names:
        raise ImageError(path, f"not a dump: an Arrow file with columns {', '.join(schema.names)}")
    kind = schema.field("content").type
    if pa.types.is_dictionary(kind):
        raise ImageError(path, "a merged dump (dictionary-encoded content): not supported yet")
    if not pa.types.is_fixed_size_binary(kind):
        raise ImageError(path, f"column content: {kind}, not fixed_size_binary")
    try:
        page_size = check_page_size(kind.byte_width)
    except UsageError as error:
        raise ImageError(path, f"column content: {error}") from None
    for field in dump_schema(page_size):
        found = [f for f in schema if f.name == field.name]
        if len(found) != 1:
            raise ImageError(path, f"not a dump: {len(found)} columns named {field.name}")
        if not found[0].type.equals(field.type):
            raise ImageError(path, f"column {field.name}: {found[0].type}, not {field.type}")
    try:
        metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    except UnicodeDecodeError:
        raise ImageError(path, "schema metadata is not UTF-8") from None
    version = metadata.get("gpudedup.version", str(DUMP_VERSION))
    if version != str(DUMP_VERSION):
        raise ImageError(path, f"dump version {version!r}; this gpudedup reads {DUMP_VERSION}")
    stated = metadata.get("gpudedup.page_size", str(page_size))
    if stated != str(page_size):
        raise ImageError(path, f"metadata says pages of {stated} bytes, content has {page_size}")
    return page_size, metadata


def _absent(path: str, text: str | None) -> Absent:
    try:
        counts = {name: int(count) for name, count in json.loads(text or "{}").items()}
        if min(counts.values(), default=0) < 0:
            raise ValueError
        return Absent(**counts)
    except (ValueError, TypeError, AttributeError):
        raise ImageError(path, "metadata gpudedup.absent: not counts of pages") from None


def _mappings(path: str, dictionary: pa.StructArray) -> tuple[Mapping, ...]:
    dictionary.validate(full=True)
    mappings = []
    for at, fields in enumerate(dictionary.to_pylist()):
        if fields is None or None in fields.values():
            raise ImageError(path, f"mapping {at}: has nulls")
        if fields["kind"] not in KINDS:
            raise ImageError(path, f"mapping {at}: kind {fields['kind']!r}, not {', '.join(KINDS)}")
        mappings.append(Mapping(**fields))
    return tuple(mappings)


def _extent(path: str, at: int, row: int, content: pa.Array, data: pa.Buffer) -> Extent:
    """Return where a batch's pages lie in the file."""
    width = content.type.byte_width
    buffer = content.buffers()[1]
    start = buffer.address - data.address + content.offset * width
    if not 0 <= start <= data.size:
        raise ImageError(path, f"record batch {at}: compressed; a dump is read in place")
    if start + len(content) * width > data.size:
        raise ImageError(path, f"record batch {at}: pages beyond the end of the file", start)
    return Extent(row, len(content), start)
