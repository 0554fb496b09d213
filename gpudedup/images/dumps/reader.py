"""Dumps: the Arrow IPC files of :mod:`gpudedup.schema`, by whomever they were written.

Metadata columns are read through a memory map. Page bytes are not: only the place of each batch's
``content`` buffer in the file is taken from the map, and the file is read there. pyarrow aligns
buffers to 8 bytes, and refuses others.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence
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
from gpudedup.images.dumps.ipc import Block, blocks
from gpudedup.images.files import open_regular
from gpudedup.schema import DUMP_VERSION, KINDS, check_page_size, dump_schema

REFUSALS = (pa.ArrowException, OSError, ValueError, LookupError)
"""What pyarrow raises on files that are damaged."""

_SCHEMA = 8
"""Where in an Arrow file its schema begins."""


@dataclass(slots=True)
class ArrowImage(Image):
    """A dump; each record batch is one extent.

    :param metadata: the file's schema metadata, decoded
    """

    mapped: Any = None
    reader: Any = None
    blocks: Sequence[Block] = ()
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
        for at in range(len(self.blocks)):
            piece = self.piece(at, row)
            if len(piece):
                yield piece
                row += len(piece)

    def piece(self, at: int, row: int) -> PageColumns:
        """Return the columns of a record batch whose first row is ``row``."""
        self.check_length()
        block = self.blocks[at]
        try:
            piece = self.read_batch(at, row)
        except REFUSALS as error:
            raise damaged(self.path, at, block, error) from None
        known = len(self.mappings)
        if len(piece) and not 0 <= piece.mapping.min() <= piece.mapping.max() < known:
            reason = f"record batch {at}: column mapping: not in the dictionary"
            raise ImageError(self.path, reason, block.offset)
        return piece

    def place_rows(self) -> None:
        """Check how the file is made up, and fill in mappings and extents.

        :raises ImageError: if the file contradicts itself
        """
        _place_rows(self)

    def read_batch(self, at: int, row: int) -> PageColumns:
        """Return the same, unchecked, or raise what pyarrow raises."""
        return columns_of(row, self.reader.get_batch(at))

    def check_length(self) -> None:
        """Raise if the file became shorter: touching the map beyond its end kills the process."""
        if self.mapped.size() < len(self.mapped):
            raise ImageError(
                self.path, "the file became shorter while it was read", self.mapped.size()
            )


def columns_of(row: int, batch: pa.RecordBatch) -> PageColumns:
    """Return all columns but the bytes.

    :param batch: its mappings may also be plain indices into the dictionary
    """
    mapping = batch.column("mapping")
    is_encoded = pa.types.is_dictionary(mapping.type)
    return PageColumns(
        row=row,
        mapping=(mapping.indices if is_encoded else mapping).to_numpy(),
        index=batch.column("index").to_numpy(),
        frame=_filled(batch.column("frame"), UNKNOWN_FRAME),
        node=_filled(batch.column("node"), UNKNOWN_NODE),
        flags=batch.column("flags").to_numpy(),
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
    """Open a dump, or a merged dump as a :class:`gpudedup.images.dumps.merged.MergedImage`.

    :raises ImageError: if it is cut, compressed, not a dump, or its columns contradict it
    """
    fd, size = open_regular(path)
    try:
        # The map outlives the call: Arrow's buffers hold it.
        mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        try:
            batches = blocks(path, memoryview(mapped))
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
            page_size, metadata = _check_schema(path, reader.schema)
        except REFUSALS as error:
            raise ImageError(path, f"not a readable Arrow file: {_shown(error)}", _SCHEMA) from None
        kind: type[ArrowImage] = ArrowImage
        if pa.types.is_dictionary(reader.schema.field("content").type):
            from gpudedup.images.dumps.merged import MergedImage as kind
        image = kind(
            path=path,
            fd=fd,
            page_size=page_size,
            source=metadata.get("gpudedup.source", ""),
            absent=_absent(path, metadata.get("gpudedup.absent")),
            mapped=mapped,
            reader=reader,
            blocks=batches,
            metadata=metadata,
        )
        image.place_rows()
    except BaseException:
        os.close(fd)
        raise
    return image


def _shown(value: object) -> str:
    """Return the text of what came from a file, fit for one line of a terminal."""
    line = " ".join(str(value).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def damaged(path: str, at: int, block: Block, error: Exception) -> ImageError:
    """Return what to say of a record batch that pyarrow cannot read."""
    return ImageError(path, f"record batch {at} is damaged: {_shown(error)}", block.offset)


def _place_rows(image: ArrowImage) -> None:
    """Check every record batch, and fill in mappings and extents."""
    data = pa.py_buffer(image.mapped)
    extents: list[Extent] = []
    row = 0
    for at, block in enumerate(image.blocks):
        if block.compressed:
            reason = f"record batch {at} is compressed; a dump is read in place"
            raise ImageError(image.path, reason, block.offset)
        try:
            batch = image.reader.get_batch(at)
            batch.validate()
            if not image.mappings:
                dictionary = batch.column("mapping").dictionary
                dictionary.validate(full=True)
                image.mappings = _mappings(image.path, block, dictionary)
        except REFUSALS as error:
            raise damaged(image.path, at, block, error) from None
        for field in dump_schema(image.page_size):
            if not field.nullable and batch.column(field.name).null_count:
                reason = f"record batch {at}: column {field.name} has nulls"
                raise ImageError(image.path, reason, block.offset)
        if batch.num_rows:
            start = _content_offset(batch.column("content"), data)
            if start is None:
                raise damaged(image.path, at, block, ValueError("no pages in the file"))
            extents.append(Extent(row, batch.num_rows, start))
            row += batch.num_rows
    # Batches may share bytes; many that do would mean endless work from a small file.
    if row * image.page_size > data.size:
        raise ImageError(image.path, f"{row} pages are more than the file holds")
    image.extents = extents


def _content_offset(content: pa.Array, data: pa.Buffer) -> int | None:
    """Return where in the file a batch's pages begin; None: not all of them lie within it."""
    width = content.type.byte_width
    start: int = content.buffers()[1].address - data.address + content.offset * width
    return start if 0 <= start <= data.size - len(content) * width else None


def _check_schema(path: str, schema: pa.Schema) -> tuple[int, dict[str, str]]:
    """Return the page size and the metadata, if this is the schema of a dump."""
    fields: dict[str, pa.Field] = {}
    for field in schema:
        if field.name in fields:
            raise ImageError(
                path, f"not a dump: several columns named {_shown(field.name)}", _SCHEMA
            )
        fields[field.name] = field
    if "content" not in fields:
        names = _shown(", ".join(fields))
        raise ImageError(path, f"not a dump: an Arrow file with columns {names}", _SCHEMA)
    kind = fields["content"].type
    is_merged = pa.types.is_dictionary(kind)
    if is_merged:
        kind = kind.value_type
    if not pa.types.is_fixed_size_binary(kind):
        raise ImageError(path, f"column content: {_shown(kind)}, not fixed_size_binary", _SCHEMA)
    try:
        page_size = check_page_size(kind.byte_width)
    except UsageError as error:
        raise ImageError(path, f"column content: {error}", _SCHEMA) from None
    for field in dump_schema(page_size):
        if field.name not in fields:
            raise ImageError(path, f"not a dump: no column {field.name}", _SCHEMA)
        if is_merged and field.name == "content":
            continue
        found = fields[field.name].type
        if not _nullable(found).equals(_nullable(field.type)):
            reason = f"column {field.name}: {_shown(found)}, not {field.type}"
            raise ImageError(path, reason, _SCHEMA)
    return page_size, _check_metadata(path, schema.metadata or {}, page_size)


def _nullable(kind: pa.DataType) -> pa.DataType:
    """Return a type whose struct fields may all be null: whether they are is seen in the values."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _nullable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, f.type) for f in kind])
    return kind


def _check_metadata(path: str, raw: dict[bytes, bytes], page_size: int) -> dict[str, str]:
    try:
        metadata = {k.decode(): v.decode() for k, v in raw.items()}
    except UnicodeDecodeError:
        raise ImageError(path, "schema metadata is not UTF-8", _SCHEMA) from None
    version = metadata.get("gpudedup.version", str(DUMP_VERSION))
    if version != str(DUMP_VERSION):
        reason = f"dump version {version!r}; this gpudedup reads {DUMP_VERSION}"
        raise ImageError(path, reason, _SCHEMA)
    stated = metadata.get("gpudedup.page_size", str(page_size))
    if stated != str(page_size):
        reason = f"metadata says pages of {stated!r} bytes, content has {page_size}"
        raise ImageError(path, reason, _SCHEMA)
    return metadata


def _absent(path: str, text: str | None) -> Absent:
    try:
        counts = json.loads(text or "{}")
        if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts.values()):
            raise ValueError
        return Absent(**counts)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ImageError(path, "metadata gpudedup.absent: not counts of pages", _SCHEMA) from None


def _mappings(path: str, block: Block, dictionary: pa.StructArray) -> tuple[Mapping, ...]:
    mappings = []
    for at, fields in enumerate(dictionary.to_pylist()):
        if fields is None or None in fields.values():
            raise ImageError(path, f"mapping {at} has nulls", block.offset)
        if fields["kind"] not in KINDS:
            reason = f"mapping {at}: kind {fields['kind']!r}, not one of {', '.join(KINDS)}"
            raise ImageError(path, reason, block.offset)
        mappings.append(Mapping(**fields))
    return tuple(mappings)
