"""Write a trace: an Arrow file that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from gpudedup.errors import OutputError
from gpudedup.output import reason, whole_file
from gpudedup.schema import OPERATIONS, Operation, trace_schema
from gpudedup.traces.events import NONE, Events

_SEEDED = np.zeros(len(OPERATIONS), np.bool_)
_SEEDED[
    [
        Operation.WRITE, Operation.FILE_WRITE, Operation.PIN_WRITE, Operation.DEVICE_WRITE,
        Operation.ATOMIC_ADD,
    ]
] = True  # fmt: skip
"""(operations,) bool, True for operations that write contents made of a seed."""

EVENT_BYTES = 1 + 4 + 8 + 4 + 2 + 2 + 8 + 8
"""Bytes of an event in a trace, but for which of its values are null."""


@contextmanager
def trace_file(
    path: str | os.PathLike[str], page_size: int, source: str, *, force: bool = False
) -> Iterator[Callable[[Events], None]]:
    """Give a function that appends events to a trace; its file appears when the block ends.

    :param page_size: bytes per page of the image that the trace is for
    :param source: how the trace was made, for its metadata
    :param force: replace an existing file
    :raises OutputError: if the file exists (without force) or cannot be written
    """
    schema = trace_schema(page_size, {"gpudedup.source": source})
    try:
        with (
            whole_file(path, force=force) as temporary,
            pa.OSFile(os.fspath(temporary), "wb") as sink,
            pa.ipc.new_file(sink, schema) as file,
        ):
            yield lambda events: file.write_batch(record_batch(events, schema))
    except (OSError, pa.ArrowException) as problem:
        raise OutputError(path, reason(problem)) from None


def record_batch(events: Events, schema: pa.Schema) -> pa.RecordBatch:
    """Return events as rows of a trace; the seed of operations that write nothing is null."""
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(events.operation), pa.array(OPERATIONS)),
        pa.array(events.mapping),
        pa.array(events.index),
        pa.array(events.count),
        pa.array(events.node, mask=events.node == NONE),
        pa.array(events.device, mask=events.device == NONE),
        pa.array(events.seed, mask=~_SEEDED[events.operation]),
        pa.array(events.time_ns, mask=~events.timed),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
