"""A dump as an image: metadata are read from a memory map, page bytes from the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.arrow_input import REFUSALS, filled, shown
from gpudedup.errors import ImageError
from gpudedup.images.base import Extent, Image
from gpudedup.images.dumps.ipc import Block, check_dictionaries
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns
from gpudedup.schema import KINDS, dump_schema


@dataclass(slots=True)
class ArrowImage(Image):
    """A dump; each record batch is one extent. ``metadata``: the schema metadata, decoded."""

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

        :raises ImageError: if a mapping is not in the dictionary, or the file became shorter
        """
        row = 0
        for at, block in enumerate(self.blocks):
            if block.rows:
                yield self.piece(at, row)
                row += block.rows

    def piece(self, at: int, row: int) -> PageColumns:
        """Return the columns of record batch ``at``, whose first row is ``row``."""
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
        """Check the record batches, and fill in mappings and extents.

        :raises ImageError: if the file contradicts itself
        """
        data = pa.py_buffer(self.mapped)
        extents: list[Extent] = []
        row = 0
        for at, block in enumerate(self.blocks):
            if block.compressed:
                reason = f"record batch {at} is compressed; a dump is read in place"
                raise ImageError(self.path, reason, block.offset)
        # Before pyarrow sees them: it would unpack them.
        check_dictionaries(self.path, memoryview(self.mapped))
        needed = [field.name for field in dump_schema(self.page_size) if not field.nullable]
        for at, block in enumerate(self.blocks):
            if at and not block.rows:
                continue
            try:
                batch = self.reader.get_batch(at)
                batch.validate()
                if not self.mappings:
                    dictionary = batch.column("mapping").dictionary
                    dictionary.validate(full=True)
                    self.mappings = _mappings(self.path, block, dictionary)
            except REFUSALS as error:
                raise damaged(self.path, at, block, error) from None
            for name in needed:
                if batch.column(name).null_count:
                    reason = f"record batch {at}: column {name} has nulls"
                    raise ImageError(self.path, reason, block.offset)
            if batch.num_rows:
                start = _content_offset(batch.column("content"), data)
                if start is None:
                    raise damaged(self.path, at, block, ValueError("no pages in the file"))
                extents.append(Extent(row, batch.num_rows, start))
                row += batch.num_rows
        # Batches may share bytes; without a limit a small file could mean endless work.
        if row * self.page_size > data.size:
            raise ImageError(self.path, f"{row} pages are more than the file holds")
        self.extents = extents

    def read_batch(self, at: int, row: int) -> PageColumns:
        """Return what :meth:`piece` returns, unchecked; pyarrow's errors pass through."""
        return columns_of(row, self.reader.get_batch(at))

    def _check(self) -> None:
        self.check_length()

    def check_length(self) -> None:
        """Raise if the file became shorter: reading the map beyond its end kills the process."""
        if self.mapped.size() < len(self.mapped):
            raise ImageError(
                self.path, "the file became shorter while it was read", self.mapped.size()
            )


def columns_of(row: int, batch: pa.RecordBatch) -> PageColumns:
    """Return all columns but ``content``; ``mapping`` may also be plain dictionary indices."""
    mapping = batch.column("mapping")
    is_encoded = pa.types.is_dictionary(mapping.type)
    return PageColumns(
        row=row,
        mapping=(mapping.indices if is_encoded else mapping).to_numpy(),
        index=batch.column("index").to_numpy(),
        frame=_known(batch.column("frame"), UNKNOWN_FRAME),
        node=_known(batch.column("node"), UNKNOWN_NODE),
        flags=batch.column("flags").to_numpy(),
    )


def _known(column: pa.Array, unknown: np.generic) -> npt.NDArray[Any] | None:
    """Return a column with ``unknown`` for nulls, or None if all are null."""
    return None if column.null_count == len(column) else filled(column, unknown.item())


def damaged(path: str, at: int, block: Block, error: Exception) -> ImageError:
    """Return the error of a record batch that pyarrow cannot read."""
    return ImageError(path, f"record batch {at} is damaged: {shown(error)}", block.offset)


def _content_offset(content: pa.Array, data: pa.Buffer) -> int | None:
    """Return the file offset of a batch's pages; None if they do not lie within the file."""
    width = content.type.byte_width
    start: int = content.buffers()[1].address - data.address + content.offset * width
    return start if 0 <= start <= data.size - len(content) * width else None


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
