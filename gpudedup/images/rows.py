"""Rows of an image: mapping, index, frame, node and flags of each page, without its bytes.

A *row* is one page of one mapping. Rows are numbered from 0 in the order of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN_FRAME = np.uint64(2**64 - 1)
"""Null in ``PageColumns.frame``: the row has a frame of its own."""

UNKNOWN_NODE = np.int16(-1)
"""Null in ``PageColumns.node``."""

COLUMN_ROWS = 1 << 20
"""Rows at most in a piece of columns that are computed, not read."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping: one entry of the dump's dictionary ``mapping``.

    :param owner: process or machine, e.g. ``redis-server[812]``
    :param domain: security domain, e.g. ``uid:1000``; empty if the source has none
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param name: path, ``[heap]``, ...; empty for an unnamed anonymous mapping
    :param start: address of index 0 in bytes
    :param flags: the source's own words, e.g. VmFlags ``rd wr mr mw me ac``
    """

    owner: str
    domain: str
    kind: str
    name: str
    start: int
    flags: str = ""


@dataclass(frozen=True, slots=True)
class PageColumns:
    """Metadata of consecutive rows, as flat arrays of one length n.

    :param row: number of the first row
    :param mapping: (n,) int32, index into :attr:`Image.mappings`
    :param index: (n,) uint64, page offset within the mapping
    :param frame: (n,) uint64, physical frame or :data:`UNKNOWN_FRAME`; None: all unknown
    :param node: (n,) int16, NUMA node or :data:`UNKNOWN_NODE`; None: all unknown
    :param flags: (n,) uint32, bits of :class:`gpudedup.schema.PageFlag`; None: all 0
    :param stored: (n,) int64, number of the stored page with the bytes; None: the row's number
    """

    row: int
    mapping: npt.NDArray[np.int32]
    index: npt.NDArray[np.uint64]
    frame: npt.NDArray[np.uint64] | None = None
    node: npt.NDArray[np.int16] | None = None
    flags: npt.NDArray[np.uint32] | None = None
    stored: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.mapping)

    def slice(self, start: int, stop: int) -> PageColumns:
        """Return rows ``start .. stop - 1`` as views; ``stop`` may lie beyond the end."""
        return _selected(self, slice(start, stop), self.row + start)

    def where(self, mask: npt.NDArray[np.bool_], row: int) -> PageColumns:
        """Return the rows for which ``mask``, (n,) bool, is true, numbered from ``row`` on."""
        return _selected(self, mask, row)

    @staticmethod
    def join(pieces: Sequence[PageColumns]) -> PageColumns:
        """Join consecutive pieces, at least one."""
        if len(pieces) == 1:
            return pieces[0]
        return PageColumns(
            row=pieces[0].row,
            mapping=np.concatenate([p.mapping for p in pieces]),
            index=np.concatenate([p.index for p in pieces]),
            frame=_join([(len(p), p.frame) for p in pieces], UNKNOWN_FRAME),
            node=_join([(len(p), p.node) for p in pieces], UNKNOWN_NODE),
            flags=_join([(len(p), p.flags) for p in pieces], np.uint32(0)),
            stored=_join([(len(p), p.stored) for p in pieces], np.int64(-1)),
        )


def _selected(columns: PageColumns, which: slice | npt.NDArray[np.bool_], row: int) -> PageColumns:
    return PageColumns(
        row=row,
        mapping=columns.mapping[which],
        index=columns.index[which],
        frame=None if columns.frame is None else columns.frame[which],
        node=None if columns.node is None else columns.node[which],
        flags=None if columns.flags is None else columns.flags[which],
        stored=None if columns.stored is None else columns.stored[which],
    )


def _join(
    parts: Sequence[tuple[int, npt.NDArray[Any] | None]], unknown: np.generic
) -> npt.NDArray[Any] | None:
    """Concatenate arrays, each with its length, None filled with ``unknown``; None if all are."""
    if all(values is None for _, values in parts):
        return None
    return np.concatenate([np.full(n, unknown) if v is None else v for n, v in parts])


def of_one_mapping(mapping: int, rows: int) -> npt.NDArray[np.int32]:
    """Return a column ``mapping`` of one number, (rows,) int32, with a stride of 0 bytes."""
    return np.broadcast_to(np.int32(mapping), rows)


def regrouped(pieces: Iterable[PageColumns], rows: int) -> Iterator[PageColumns]:
    """Cut and join consecutive pieces to ``rows`` rows each; the last may have fewer."""
    waiting: list[PageColumns] = []
    free = rows
    for piece in pieces:
        at = 0
        while at < len(piece):
            waiting.append(piece.slice(at, at + free))
            at += len(waiting[-1])
            free -= len(waiting[-1])
            if not free:
                yield PageColumns.join(waiting)
                waiting, free = [], rows
    if waiting:
        yield PageColumns.join(waiting)


class Rows:
    """The metadata of all rows of an image, read once and kept.

    :param pieces: consecutive columns, from row 0 on
    """

    def __init__(self, pieces: Iterable[PageColumns]) -> None:
        self._pieces = tuple(pieces)

    def __iter__(self) -> Iterator[PageColumns]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return self._pieces[-1].row + len(self._pieces[-1]) if self._pieces else 0

    def frames(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield the known frames of each piece, in row order."""
        for piece in self:
            if piece.frame is not None:
                yield piece.frame[piece.frame != UNKNOWN_FRAME]

    def frame_of(self) -> npt.NDArray[np.uint64] | None:
        """Return the frame of each row, (n,) uint64; None: unknown or ascending, so all differ."""
        if self._ascend():
            return None
        frame = np.full(len(self), UNKNOWN_FRAME)
        for piece in self:
            if piece.frame is not None:
                frame[piece.row : piece.row + len(piece)] = piece.frame
        return frame

    def _ascend(self) -> bool:
        last = -1
        for piece in self:
            frame = piece.frame
            if frame is None or not len(frame):
                continue
            if int(frame[0]) <= last or not (frame[1:] > frame[:-1]).all():
                return False
            last = int(frame[-1])
        return True

    def nodes(self) -> int:
        """Return the number of NUMA nodes: one more than the highest of the rows, at least 1."""
        known = (int(p.node.max()) for p in self if p.node is not None and len(p))
        return max(0, max(known, default=0)) + 1

    def sizes(self, mappings: int) -> npt.NDArray[np.int64]:
        """Return the pages of each mapping up to its last row, (mappings,) int64."""
        sizes = np.zeros(mappings, np.int64)
        for piece in self:
            np.maximum.at(sizes, piece.mapping, piece.index.astype(np.int64) + 1)
        return sizes
