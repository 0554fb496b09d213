"""Convert flat columns to Arrow record batches of the dump's schema."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns
from gpudedup.schema import MAPPING, dump_schema


def mapping_dictionary(mappings: Sequence[Mapping]) -> pa.StructArray:
    """Return the dictionary of the column ``mapping``."""
    return pa.StructArray.from_arrays(
        [pa.array([getattr(m, f.name) for m in mappings], f.type) for f in MAPPING],
        fields=list(MAPPING),
    )


def record_batch(
    columns: PageColumns, pages: npt.NDArray[np.uint8], dictionary: pa.StructArray
) -> pa.RecordBatch:
    """Return one batch of a dump; page bytes are shared, not copied.

    :param columns: n rows
    :param pages: (n, page_size) uint8, C-contiguous
    :param dictionary: result of :func:`mapping_dictionary`
    """
    n, page_size = pages.shape
    content = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(page_size), n, [None, pa.py_buffer(pages)]
    )
    return pa.RecordBatch.from_arrays(
        [*_metadata(columns, dictionary), content], schema=dump_schema(page_size)
    )


def merged_batch(
    columns: PageColumns, schema: pa.Schema, dictionary: pa.StructArray
) -> pa.RecordBatch:
    """Return one batch of a merged dump, without its frames.

    :param columns: n rows, with ``stored``
    :param schema: result of :func:`gpudedup.schema.merged_schema`
    :param dictionary: result of :func:`mapping_dictionary`
    """
    kind = schema.field("content").type
    index = np.dtype(kind.index_type.to_pandas_dtype())
    assert columns.stored is not None
    content = pa.DictionaryArray.from_arrays(
        pa.array(columns.stored.astype(index)), pa.array([], kind.value_type), safe=False
    )
    return pa.RecordBatch.from_arrays([*_metadata(columns, dictionary), content], schema=schema)


def _metadata(columns: PageColumns, dictionary: pa.StructArray) -> list[pa.Array]:
    """Return all columns but ``content``."""
    n, frame, node = len(columns), columns.frame, columns.node
    return [
        pa.DictionaryArray.from_arrays(pa.array(columns.mapping), dictionary, safe=False),
        pa.array(columns.index),
        pa.nulls(n, pa.uint64()) if frame is None else pa.array(frame, mask=frame == UNKNOWN_FRAME),
        pa.nulls(n, pa.int16()) if node is None else pa.array(node, mask=node == UNKNOWN_NODE),
        pa.array(np.zeros(n, np.uint32) if columns.flags is None else columns.flags),
    ]
