"""A dump as an image: metadata and page bytes are read from the file, nothing from a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from gpudedup.errors import ImageError
from gpudedup.images.base import Extent, Image
from gpudedup.images.dumps.columns import Layout
from gpudedup.images.dumps.flatbuffer import Table
from gpudedup.images.dumps.ipc import Block, record_batches
from gpudedup.images.dumps.mappings import read_mappings
from gpudedup.images.files import FileBytes
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.schema import KINDS


@dataclass(slots=True)
class ArrowImage(Image):
    """A dump; each record batch is one extent.

    :param data: the file; stays readable when the image is closed
    :param schema: schema of the file
    :param metadata: its metadata, decoded
    """

    data: FileBytes = field(kw_only=True)
    schema: pa.Schema = None
    metadata: dict[str, str] | None = None
    blocks: Sequence[Block] = ()
    layout: Layout = field(init=False)

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
        self.data.check_length()
        block = self.blocks[at]
        piece = self.layout.read(self.data, at, block, row)
        known = len(self.mappings)
        if not 0 <= piece.mapping.min() <= piece.mapping.max() < known:
            reason = f"record batch {at}: column mapping: not in the dictionary"
            raise ImageError(self.path, reason, block.offset)
        return piece

    def place_rows(self) -> None:
        """Check the record batches, and fill in blocks, mappings and extents.

        :raises ImageError: if the file contradicts itself
        """
        self.layout = Layout(self.schema)
        extents: list[Extent] = []
        blocks: list[Block] = []
        row = 0
        last: Table | None = None
        inside = 0
        for at, (block, header) in enumerate(record_batches(self.path, self.data)):
            check_block(self.path, at, block)
            blocks.append(block)
            if not block.rows:
                continue
            if header is not last or block.size != blocks[-2].size:
                place = self.layout.places(self.path, at, block, header)["content"]
                last, inside = header, place.values - block.offset
            extents.append(Extent(row, block.rows, block.offset + inside))
            row += block.rows
        # Batches may share bytes; without a limit a small file could mean endless work.
        if row * self.page_size > self.data.size:
            raise ImageError(self.path, f"{row} pages are more than the file holds")
        self.blocks, self.extents = blocks, extents
        if blocks:
            self.mappings = _mappings(self.path, blocks[0], read_mappings(self.data, self.schema))


def check_block(path: str, at: int, block: Block) -> None:
    """Raise ImageError if record batch ``at`` is compressed, or its number of rows is none."""
    if block.compressed:
        reason = f"record batch {at} is compressed; a dump is read in place"
        raise ImageError(path, reason, block.offset)
    if block.rows < 0:
        raise ImageError(path, f"record batch {at}: {block.rows} rows", block.offset)


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
