"""The result of a scan as Arrow tables: its pages and its shared contents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.engines.base import PageClass, Partition
from gpudedup.images.dumps.batches import mapping_dictionary
from gpudedup.scanning.counts import is_sharing, shared_rows
from gpudedup.scanning.population import Key, Population
from gpudedup.schema import CONTENTS, PAGES

BATCH_ROWS = 1 << 18
"""Rows per batch of the page table."""

_CLASSES = pa.array([c.name.lower() for c in PageClass], pa.string())


def digest_bytes(digests: npt.NDArray[np.uint64], mask: npt.NDArray[np.bool_] | None) -> pa.Array:
    """Return digests as fixed_size_binary[16], big-endian as the reference prints them.

    :param digests: (n, 2) uint64, low and high half
    :param mask: (n,) bool, digests that become null; None: none
    """
    swapped = np.ascontiguousarray(digests[:, ::-1]).byteswap()
    validity = None
    if mask is not None and mask.any():
        validity = pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(digests), [validity, pa.py_buffer(swapped)]
    )


def page_batches(population: Population, partition: Partition) -> Iterator[pa.RecordBatch]:
    """Yield the page table in batches."""
    dictionaries = [_words(population, key) for key in ("owner", "kind", "name")]
    inputs = pa.array([image.path for image in population.images], pa.string())
    for at, image in enumerate(population.images):
        for columns in image.rows:
            for start in range(0, len(columns), BATCH_ROWS):
                piece = columns.slice(start, start + BATCH_ROWS)
                first = int(population.first_row[at]) + piece.row
                rows = slice(first, first + len(piece))
                mapping = piece.mapping + population.first_mapping[at]
                representative = partition.representative[rows]
                classes = partition.classes[rows]
                unread = partition.classes[representative] == PageClass.UNREADABLE
                yield pa.RecordBatch.from_arrays(
                    [
                        pa.array(np.arange(first, first + len(piece), dtype=np.uint64)),
                        _encoded(np.full(len(piece), at, np.int32), inputs),
                        *(_encoded(codes[mapping], words) for words, codes in dictionaries),
                        pa.array(piece.index),
                        _encoded(classes.astype(np.int32), _CLASSES),
                        pa.array(representative.astype(np.uint64)),
                        digest_bytes(partition.digests[representative], unread),
                    ],
                    schema=PAGES,
                )  # fmt: skip


def _words(population: Population, key: Key) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    words, codes = population.words(key)
    return pa.array(words, pa.string()), codes


def _encoded(codes: npt.NDArray[np.int32], words: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), words)


def contents_table(
    population: Population,
    partition: Partition,
    mapping: npt.NDArray[np.int32],
    limit: int | None,
) -> pa.Table:
    """Return the ``limit`` shared contents with the most frames; None: all of them.

    :param mapping: (n,) int32, index of each row's mapping in ``population.mappings``
    """
    sharing = is_sharing(partition)
    content = shared_rows(partition, sharing)
    # Frames of each content: its sharing frames, and the first.
    frames = np.bincount(partition.representative[sharing], minlength=len(partition.classes))[
        content
    ]
    order = np.lexsort((content, -frames))[:limit]
    content, frames = content[order], frames[order] + 1

    rank = np.full(len(partition.classes), -1, np.int32)
    rank[content] = np.arange(len(content), dtype=np.int32)
    rank = rank[partition.representative]
    rows = np.flatnonzero(rank >= 0)
    rank = rank[rows]
    image = np.searchsorted(population.first_row, content, side="right") - 1
    return pa.Table.from_arrays(
        [
            pa.array(content.astype(np.uint64)),
            digest_bytes(partition.digests[content], None),
            pa.array(frames.astype(np.uint64)),
            pa.array(np.bincount(rank, minlength=len(content)).astype(np.uint64)),
            pa.array([i.path for i in population.images], pa.string()).take(pa.array(image)),
            mapping_dictionary(population.mappings).take(pa.array(mapping[content])),
            pa.array(population.indices(content)),
            _holders(population, "kind", rank, mapping[rows], len(content)),
            _holders(population, "owner", rank, mapping[rows], len(content)),
        ],
        schema=CONTENTS,
    )


def _holders(
    population: Population,
    key: Key,
    rank: npt.NDArray[np.int32],
    mapping: npt.NDArray[np.int32],
    contents: int,
) -> pa.ListArray:
    """Return each content's words, sorted; ``rank`` and ``mapping``: (m,), those of each page."""
    words, codes = population.words(key)
    order = np.argsort(np.array(words)) if words else np.empty(0, np.int64)
    place = np.empty(len(words), np.int64)
    place[order] = np.arange(len(words))
    pair = np.unique(rank.astype(np.int64) * len(words) + place[codes[mapping]])
    which, word = np.divmod(pair, len(words)) if words else (pair, pair)
    offsets = np.searchsorted(which, np.arange(contents + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(words, pa.string()).take(pa.array(order[word]))
    )
