"""Write a merged dump: one Arrow IPC file whose dictionary ``content`` is one batch of frames.

pyarrow writes a dictionary only from memory, as a whole. So pyarrow makes the messages with one
frame in place of all, the numbers in them are replaced, and frames are written as they come. Parts
(deltas) would need no trick, but pyarrow joins them in memory and Polars refuses them.

The file in order: schema; dictionary ``mapping``; dictionary ``content``, its message padded so
that frames begin at a multiple of :data:`ALIGNMENT`; record batches; end of stream; *seal*; footer.
Stream readers stop at the end of stream, file readers follow the footer; none sees the seal:

    digests   16 bytes for each frame: XXH3-128, big-endian as the reference prints it
    sha256    32 bytes: of the file without the frames and without these 32 bytes
    frames    8 bytes, little-endian
    magic     8 bytes: :data:`SEAL_MAGIC`
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from io import FileIO
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import OutputError
from gpudedup.images.dumps.batches import mapping_dictionary, merged_batch
from gpudedup.images.dumps.ipc import MAGIC, Place, with_places, with_values
from gpudedup.images.dumps.writer import ALIGNMENT
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.output import check_room, reason, whole_file
from gpudedup.schema import check_page_size, merged_schema

SEAL_MAGIC = b"GDSEAL01"
SEAL_TAIL = 32 + 8 + len(SEAL_MAGIC)
"""Bytes of the seal after the digests."""

_DIGEST_BYTES = 16

_MARKER = b"\xff\xff\xff\xff"
_END_OF_STREAM = _MARKER + bytes(4)

Digests = npt.NDArray[np.uint64]


def _no_rows() -> PageColumns:
    return PageColumns(
        0, np.empty(0, np.int32), np.empty(0, np.uint64), stored=np.empty(0, np.int64)
    )


class MergedWriter:
    """Context manager that writes one merged dump; the file appears only if the block succeeds.

    Call :meth:`begin`, then write all frames, then all rows.

    :raises OutputError: if the file exists (without force) or cannot be written
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = os.fspath(path)
        self.page_size = self.frames = 0
        self._force = force
        self._dictionary: pa.StructArray
        self._schema: pa.Schema
        self._stack = ExitStack()
        self._file: FileIO
        self._at = 0
        self._hash = hashlib.sha256()
        self._digests: list[bytes] = []
        self._first_frame = 0
        self._dictionaries: list[Place] = []
        self._batches: list[Place] = []

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            temporary = opened.enter_context(whole_file(self.path, force=self._force))
            try:
                self._file = opened.enter_context(temporary.open("r+b", buffering=0))
            except OSError as problem:
                raise OutputError(self.path, reason(problem)) from None
            self._stack = opened.pop_all()
        return self

    @property
    def size(self) -> int:
        """Return the bytes written so far."""
        return self._at

    def begin(
        self, page_size: int, mappings: Sequence[Mapping], frames: int, metadata: dict[str, str]
    ) -> None:
        """Ask for room for the frames, and write everything up to the first.

        :param mappings: all mappings of the dump, in the order in which rows refer to them
        :param frames: number of frames that will be written
        :param metadata: schema metadata
        :raises OutputError: if the disk has no room, or another error of the file system
        """
        self.page_size = check_page_size(page_size)
        self.frames = frames
        check_room(self.path, frames * (page_size + _DIGEST_BYTES))
        self._dictionary = mapping_dictionary(mappings)
        self._schema = merged_schema(page_size, frames, metadata)
        self._put(MAGIC + bytes(2))
        schema, mapping, content = self._messages()
        self._put(schema)
        self._dictionaries.append(Place(self._at, len(mapping[0]), len(mapping[1])))
        self._put(mapping[0] + mapping[1])
        size = self.frames * self.page_size
        message = with_values(content, self.frames, size)
        head = len(message) + -(self._at + 8 + len(message)) % ALIGNMENT
        self._dictionaries.append(Place(self._at, 8 + head, size))
        self._put(_MARKER + head.to_bytes(4, "little") + message.ljust(head, b"\0"))
        self._first_frame = self._at

    def write_frames(self, pages: npt.NDArray[np.uint8], digests: Digests) -> None:
        """Append frames.

        :param pages: (n, page_size) uint8, C-contiguous
        :param digests: (n, 2) uint64, low and high half of XXH3-128
        :raises OutputError: if the disk is full, or another error of the file system
        """
        self._put(pages.reshape(-1).data, sealed=False)
        self._digests.append(np.ascontiguousarray(digests[:, ::-1]).astype(">u8").tobytes())

    def write_rows(self, columns: PageColumns) -> None:
        """Append rows, which have ``stored``, as one record batch.

        :raises OutputError: if the disk is full, or another error of the file system
        """
        self._check_frames()
        data = merged_batch(columns, self._schema, self._dictionary).serialize()
        head = 8 + int.from_bytes(data[4:8].to_pybytes(), "little")
        self._batches.append(Place(self._at, head, data.size - head))
        self._put(memoryview(data))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._end()

    def _messages(self) -> tuple[bytes, tuple[bytes, bytes], bytes]:
        """Return schema, dictionary of mappings (message, body), and message of one frame."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema) as stream:
            stream.write_batch(self._without_rows())
        schema, mapping, content, _ = pa.ipc.MessageReader.open_stream(sink.getvalue())
        head = mapping.metadata.to_pybytes()
        return (
            schema.serialize().to_pybytes(),
            (_MARKER + len(head).to_bytes(4, "little") + head, mapping.body.to_pybytes()),
            content.metadata.to_pybytes(),
        )

    def _without_rows(self) -> pa.RecordBatch:
        """Return a batch without rows and with one frame in its dictionary."""
        kind = self._schema.field("content").type
        empty = merged_batch(_no_rows(), self._schema, self._dictionary)
        frame = pa.array([bytes(self.page_size)], kind.value_type)
        content = pa.DictionaryArray.from_arrays(empty.column("content").indices, frame)
        return pa.RecordBatch.from_arrays([*empty.columns[:-1], content], schema=self._schema)

    def _end(self) -> None:
        """Write everything after the rows."""
        if not self._batches:
            # pyarrow gives the dictionary of mappings only with a record batch.
            self.write_rows(_no_rows())
        self._check_frames()
        footer = with_places(self._footer(), self._dictionaries, self._batches)
        after = self.frames.to_bytes(8, "little") + SEAL_MAGIC
        after += footer + len(footer).to_bytes(4, "little") + MAGIC
        self._put(_END_OF_STREAM)
        for digests in self._digests:
            self._put(digests)
        self._hash.update(after)
        self._put(self._hash.digest(), sealed=False)
        self._put(after, sealed=False)

    def _footer(self) -> bytes:
        """Return a footer with the right number of blocks, but not yet their places."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self._schema) as file:
            empty = self._without_rows()
            for _ in self._batches:
                file.write_batch(empty)
        data: bytes = sink.getvalue().to_pybytes()
        end = len(data) - len(MAGIC) - 4
        return data[end - int.from_bytes(data[end : end + 4], "little") : end]

    def _check_frames(self) -> None:
        done, rest = divmod(self._at - self._first_frame, self.page_size)
        if not self._batches:
            assert (done, rest) == (self.frames, 0), "all frames come before the rows"

    def _put(self, data: bytes | memoryview, *, sealed: bool = True) -> None:
        """Append ``data`` to the file and, if ``sealed``, to the hash."""
        view = memoryview(data).cast("B")
        if sealed:
            self._hash.update(view)
        try:
            while view:
                written = self._file.write(view)
                self._at += written
                view = view[written:]
        except OSError as problem:
            raise OutputError(self.path, reason(problem)) from None
