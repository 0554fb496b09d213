"""Read traces: an Arrow file or table, as pieces of flat arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.arrow_input import REFUSALS, filled, first_null, shown
from gpudedup.errors import ImageError, TraceError, UsageError
from gpudedup.images.dumps.ipc import Block, bounded_blocks
from gpudedup.images.files import FileBytes, open_regular
from gpudedup.schema import OPERATIONS, TRACE_VERSION, check_page_size, trace_schema

PIECE = 1 << 16
"""Events per piece, at most."""

NONE = -1
"""Null in ``Events.node`` and ``Events.device``; the row of events that have none."""

_CODES = {word: code for code, word in enumerate(OPERATIONS)}


@dataclass(frozen=True, slots=True)
class Events:
    """Consecutive events of a trace, as flat arrays of one length n.

    :param row: number of the first event
    :param operation: (n,) int8, codes of :class:`gpudedup.schema.Operation`
    :param mapping, index, count: (n,) int32, uint64, uint32
    :param node, device: (n,) int16, :data:`NONE` where null
    :param seed, time_ns: (n,) uint64, 0 where null
    :param timed: (n,) bool, True where the event has a time
    """

    row: int
    operation: npt.NDArray[np.int8]
    mapping: npt.NDArray[np.int32]
    index: npt.NDArray[np.uint64]
    count: npt.NDArray[np.uint32]
    node: npt.NDArray[np.int16]
    device: npt.NDArray[np.int16]
    seed: npt.NDArray[np.uint64]
    time_ns: npt.NDArray[np.uint64]
    timed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.operation)

    @classmethod
    def empty(cls, row: int, count: int) -> Events:
        """Return ``count`` events to fill in: all 0, without nodes, devices and times."""
        return cls(
            row=row,
            operation=np.zeros(count, np.int8),
            mapping=np.zeros(count, np.int32),
            index=np.zeros(count, np.uint64),
            count=np.zeros(count, np.uint32),
            node=np.full(count, NONE, np.int16),
            device=np.full(count, NONE, np.int16),
            seed=np.zeros(count, np.uint64),
            time_ns=np.zeros(count, np.uint64),
            timed=np.zeros(count, np.bool_),
        )

    def slice(self, start: int, stop: int) -> Events:
        """Return events ``start .. stop - 1`` of these, as views."""
        parts = [getattr(self, name)[start:stop] for name in _ARRAYS]
        return Events(self.row + start, *parts)


_ARRAYS = tuple(f.name for f in fields(Events)[1:])


class Trace:
    """A trace, read anew by every call of :meth:`pieces`.

    :param path: file, or another name for messages
    :param schema: schema of the table
    :param table: table in memory; None: read the file
    :raises TraceError: if the schema is not that of a trace
    """

    def __init__(self, path: str, schema: pa.Schema, table: pa.Table | None = None) -> None:
        self.path = path
        self._table = table
        self.page_size = _check_schema(path, schema)
        metadata = schema.metadata or {}
        self.source = metadata.get(b"gpudedup.source", b"").decode(errors="replace")

    def pieces(self) -> Iterator[Events]:
        """Yield all events, at most :data:`PIECE` at a time.

        :raises TraceError: naming the row, if damaged, of unknown operation or lacking a value
        """
        row = 0
        for batch in self._batches():
            columns = _columns(self.path, row, batch)
            for start in range(0, len(columns), PIECE):
                yield columns.slice(start, min(start + PIECE, len(columns)))
            row += len(columns)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self._table is not None:
            yield from self._table.to_batches()
            return
        row = 0
        with _opened(self.path) as (reader, blocks):
            for at, block in enumerate(blocks):
                if not block.rows:
                    continue
                try:
                    batch = reader.get_batch(at)
                    batch.validate(full=True)
                except REFUSALS as error:
                    reason = f"record batch {at} is damaged: {shown(error)}"
                    raise TraceError(self.path, reason, row) from None
                yield batch
                row += batch.num_rows


def as_trace(trace: str | os.PathLike[str] | pa.Table | Trace) -> Trace:
    """Return a trace from a path or a table of :func:`gpudedup.schema.trace_schema`.

    :raises TraceError: if it is not a trace, or cannot be read
    """
    if isinstance(trace, Trace):
        return trace
    if isinstance(trace, pa.Table):
        return Trace("trace", trace.schema, trace)
    path = os.fspath(trace)
    with _opened(path) as (reader, _):
        return Trace(path, reader.schema)


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Sequence[Block]]]:
    """Open a trace: pyarrow's reader, and the record batches that the footer lists."""
    try:
        fd, size = open_regular(path)
    except ImageError as error:
        raise TraceError(path, error.reason) from None
    with ExitStack() as opened:
        opened.callback(os.close, fd)
        try:
            # No file of Python: Arrow's threads would need Python to let go of it, and abort the
            # process if that is ending by then.
            file = opened.enter_context(pa.OSFile(f"/proc/self/fd/{fd}"))
            reader = pa.ipc.open_file(file)
        except REFUSALS as error:
            reason = f"not a readable Arrow file: {shown(error)}"
            raise TraceError(path, reason) from None
        try:
            blocks = bounded_blocks(path, FileBytes(path, fd, size))
        except ImageError as error:
            raise TraceError(path, error.reason) from None
        yield reader, blocks


def _check_schema(path: str, schema: pa.Schema) -> int | None:
    """Check that a schema is that of a trace; return the page size in its metadata, if any."""
    for field in trace_schema(4096):
        found = schema.get_all_field_indices(field.name)
        if len(found) != 1:
            what = "no column" if not found else "several columns"
            raise TraceError(path, f"not a trace: {what} {field.name}")
        kind = schema.field(found[0]).type
        if field.name == "operation":
            words = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(words) or pa.types.is_large_string(words)):
                raise TraceError(path, f"column operation: {shown(kind)}, not strings")
        elif not kind.equals(field.type):
            raise TraceError(path, f"column {field.name}: {shown(kind)}, not {field.type}")
    metadata = {k: v.decode(errors="replace") for k, v in (schema.metadata or {}).items()}
    version = metadata.get(b"gpudedup.version", str(TRACE_VERSION))
    if version != str(TRACE_VERSION):
        reason = f"trace version {version!r}; this gpudedup reads {TRACE_VERSION}"
        raise TraceError(path, reason)
    stated = metadata.get(b"gpudedup.page_size")
    if stated is None:
        return None
    try:
        return check_page_size(int(stated))
    except (ValueError, UsageError):
        raise TraceError(path, f"metadata says pages of {stated!r} bytes") from None


def _columns(path: str, row: int, batch: pa.RecordBatch) -> Events:
    for field in trace_schema(4096):
        column = batch.column(field.name)
        if not field.nullable and column.null_count:
            raise TraceError(path, f"column {field.name} has nulls", row + first_null(column))
    time_ns = batch.column("time_ns")
    timed = np.ones(len(time_ns), np.bool_)
    if time_ns.null_count:
        timed = time_ns.is_valid().to_numpy(zero_copy_only=False)
    return Events(
        row,
        _operations(path, row, batch.column("operation")),
        batch.column("mapping").to_numpy(),
        batch.column("index").to_numpy(),
        batch.column("count").to_numpy(),
        filled(batch.column("node"), NONE),
        filled(batch.column("device"), NONE),
        filled(batch.column("seed"), 0),
        filled(time_ns, 0),
        timed,
    )


def _operations(path: str, row: int, column: pa.Array) -> npt.NDArray[np.int8]:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    places = column.indices.to_numpy()
    dictionary = column.dictionary
    if len(dictionary) > len(places):
        # Every batch has the whole dictionary, however many words that is.
        used, places = np.unique(places, return_inverse=True)
        dictionary = dictionary.take(pa.array(used))
    words = dictionary.to_pylist()
    code_of = np.array([_CODES.get(word, -1) for word in words], np.int8)
    codes: npt.NDArray[np.int8] = code_of[places] if len(places) else np.zeros(0, np.int8)
    if len(codes) and codes.min() < 0:
        first = int(np.flatnonzero(codes < 0)[0])
        word = shown(words[places[first]])[:40]
        raise TraceError(
            path, f"operation {word!r}: not one of {', '.join(OPERATIONS)}", row + first
        )
    return codes


def cuts(*columns: npt.NDArray[np.integer]) -> list[int]:
    """Return the borders of runs: 0, each row that differs from the one before it, n."""
    differs = np.zeros(max(len(columns[0]) - 1, 0), np.bool_)
    for column in columns:
        differs |= column[1:] != column[:-1]
    return [0, *(np.flatnonzero(differs) + 1).tolist(), len(columns[0])]


def chunks(events: Events, most: int) -> Iterator[Events]:
    """Split events into ones of a single page; yield at most ``most`` at a time, without rows.

    Columns for compiled passes are copied: numba would compile again for Arrow's read-only arrays.
    """
    single = len(events) > 0 and int(events.count.min()) == int(events.count.max()) == 1
    ends = np.zeros(0) if single else np.cumsum(events.count, dtype=np.int64)
    pages = len(events) if single else int(ends[-1]) if len(ends) else 0
    for start in range(0, pages, most):
        stop = min(start + most, pages)
        event: Any = slice(start, stop)
        inside = np.uint64(0)
        if not single:
            at = np.arange(start, stop)
            event = np.searchsorted(ends, at, side="right")
            inside = (at - ends[event] + events.count[event]).astype(np.uint64)
        yield Events(
            NONE,
            events.operation[event],
            events.mapping[event].copy(),
            events.index[event] + inside,
            np.ones(stop - start, np.uint32),
            events.node[event].copy(),
            events.device[event],
            events.seed[event].copy(),
            events.time_ns[event],
            events.timed[event],
        )
