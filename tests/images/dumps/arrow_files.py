"""Dumps as other programs write them: with plain pyarrow, any schema and any options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.images.dumps.batches import mapping_dictionary, record_batch
from gpudedup.images.dumps.image import ArrowImage
from gpudedup.images.dumps.reader import open_arrow
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns

PAGE = 512

MAPPINGS = (
    Mapping("redis[1]", "uid:0", "anon", "[heap]", 0x1000, "rd wr"),
    Mapping("redis[2]", "uid:7", "file", "/bin/redis", 0x7000),
)


def rows(first: int, n: int) -> PageColumns:
    """Return rows with nulls in every nullable column."""
    number = np.arange(first, first + n, dtype=np.uint64)
    return PageColumns(
        row=first,
        mapping=(number % 2).astype(np.int32),
        index=number * 3,
        frame=np.where(number % 3, number, UNKNOWN_FRAME),
        node=np.where(number % 2, np.int16(1), UNKNOWN_NODE),
        flags=(number << 4).astype(np.uint32),
    )


def contents(first: int, n: int, page_size: int = PAGE) -> npt.NDArray[np.uint8]:
    """Return pages that are all different, (n, page_size) uint8."""
    return np.random.default_rng(first).integers(0, 256, (n, page_size), dtype=np.uint8)


def batch(first: int, n: int, page_size: int = PAGE) -> pa.RecordBatch:
    """Return a record batch of :func:`rows` and :func:`contents`."""
    pages = contents(first, n, page_size)
    return record_batch(rows(first, n), pages, mapping_dictionary(MAPPINGS))


def ours(path: Path, counts: Sequence[int], page_size: int = PAGE) -> pa.Table:
    """Write a dump whose batches have ``counts`` rows; return the table that it must read as."""
    batches, first = [], 0
    with DumpWriter(path, page_size, MAPPINGS, source="test") as dump:
        for n in counts:
            dump.write(rows(first, n), contents(first, n, page_size))
            batches.append(batch(first, n, page_size))
            first += n
    return pa.Table.from_batches(batches)


def plain(
    path: Path,
    batches: Sequence[pa.RecordBatch],
    *,
    metadata: dict[str | bytes, str | bytes] | None = None,
    **options: Any,
) -> Path:
    """Write batches with pyarrow alone.

    :param options: parameters of :class:`pyarrow.ipc.IpcWriteOptions`
    """
    schema = batches[0].schema.with_metadata(metadata)
    how = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=how) as writer:
        for one in batches:
            writer.write_batch(one.replace_schema_metadata(metadata))
    return path


def with_column(one: pa.RecordBatch, name: str, values: pa.Array, *, nullable: bool = True) -> Any:
    """Return a batch with one column replaced."""
    at = one.schema.get_field_index(name)
    fields, columns = list(one.schema), list(one.columns)
    fields[at] = pa.field(name, values.type, nullable=nullable)
    columns[at] = values
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


@contextmanager
def opened(path: Path) -> Iterator[ArrowImage]:
    with open_arrow(str(path)) as image:
        yield image


def table(image: ArrowImage) -> pa.Table:
    """Return all rows as a table."""
    return pa.Table.from_batches(image.batches())
