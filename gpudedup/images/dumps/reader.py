"""Open dumps: Arrow IPC files of :mod:`gpudedup.schema`, from any writer.

Nothing is mapped: a file that is cut off under its reader, or a disk that fails, is an ImageError.
"""

from __future__ import annotations

import json
import os

import pyarrow as pa

from gpudedup.arrow_input import REFUSALS, shown
from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import Absent
from gpudedup.images.dumps.image import ArrowImage
from gpudedup.images.dumps.ipc import schema_file
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.files import FileBytes, open_regular
from gpudedup.schema import DUMP_VERSION, check_page_size, dump_schema

_SCHEMA = 8
"""Byte offset of the schema in an Arrow file."""


def open_arrow(path: str) -> ArrowImage:
    """Open a dump, or a merged dump as a :class:`gpudedup.images.dumps.merged.MergedImage`.

    :raises ImageError: if it is cut off, compressed, not a dump, or contradicts itself
    """
    fd, size = open_regular(path)
    try:
        data = FileBytes.kept(path, fd, size)
        try:
            schema = pa.ipc.open_file(schema_file(path, data)).schema
            page_size, metadata = _check_schema(path, schema)
        except REFUSALS as error:
            raise ImageError(path, f"not a readable Arrow file: {shown(error)}", _SCHEMA) from None
        merged = pa.types.is_dictionary(schema.field("content").type)
        image = (MergedImage if merged else ArrowImage)(
            path=path,
            fd=fd,
            page_size=page_size,
            source=metadata.get("gpudedup.source", ""),
            absent=_absent(path, metadata.get("gpudedup.absent")),
            data=data,
            schema=schema,
            metadata=metadata,
        )
        image.place_rows()
    except BaseException:
        os.close(fd)
        raise
    return image


def _check_schema(path: str, schema: pa.Schema) -> tuple[int, dict[str, str]]:
    """Return the page size and the metadata; raise ImageError if it is no dump's schema."""
    fields: dict[str, pa.Field] = {}
    for field in schema:
        if field.name in fields:
            raise ImageError(
                path, f"not a dump: several columns named {shown(field.name)}", _SCHEMA
            )
        fields[field.name] = field
    if "content" not in fields:
        names = shown(", ".join(fields))
        raise ImageError(path, f"not a dump: an Arrow file with columns {names}", _SCHEMA)
    kind = fields["content"].type
    is_merged = pa.types.is_dictionary(kind)
    if is_merged:
        kind = kind.value_type
    if not pa.types.is_fixed_size_binary(kind):
        raise ImageError(path, f"column content: {shown(kind)}, not fixed_size_binary", _SCHEMA)
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
            reason = f"column {field.name}: {shown(found)}, not {field.type}"
            raise ImageError(path, reason, _SCHEMA)
    return page_size, _check_metadata(path, schema.metadata or {}, page_size)


def _nullable(kind: pa.DataType) -> pa.DataType:
    """Return a type whose struct fields are all nullable: nulls are checked in the values."""
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
