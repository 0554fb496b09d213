"""From flat columns to Arrow record batches of the dump's schema."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.images.base import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns
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
    :param dictionary: from :func:`mapping_dictionary`
    """
    n, page_size = pages.shape
    schema = dump_schema(page_size)
    frame, node = columns.frame, columns.node
    return pa.RecordBatch.from_arrays(
        [
            pa.DictionaryArray.from_arrays(pa.array(columns.mapping), dictionary, safe=False),
            pa.array(columns.index),
            pa.nulls(n, pa.uint64())
            if frame is None
            else pa.array(frame, mask=frame == UNKNOWN_FRAME),
            pa.nulls(n, pa.int16()) if node is None else pa.array(node, mask=node == UNKNOWN_NODE),
            pa.array(np.zeros(n, np.uint32) if columns.flags is None else columns.flags),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(page_size), n, [None, pa.py_buffer(pages)]
            ),
        ],
        schema=schema,
    )
