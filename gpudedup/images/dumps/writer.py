"""Write a dump: one Arrow IPC file, uncompressed, page bytes at multiples of :data:`ALIGNMENT`.

pyarrow aligns buffers to 8 bytes. A batch's message may carry custom metadata, which lie before its
body: padding there moves the page bytes to the wanted offset and adds no column.

Absent pages are known only at the end, but schema metadata come first. So their counts have a field
of fixed width, which is filled in when the file is closed.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO, RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import OutputError
from gpudedup.images.base import Absent
from gpudedup.images.dumps.batches import mapping_dictionary, record_batch
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.output import check_room, reason, whole_file
from gpudedup.schema import DUMP_VERSION, check_page_size, dump_schema

Pages = npt.NDArray[np.uint8]

ALIGNMENT = 4096
_ABSENT_WIDTH = 192


ROW_BYTES = 4 + 8 + 8 + 2 + 4
"""Bytes of a row beside its page: mapping, index, frame, node, flags."""

ABSENT = "gpudedup.absent"


def absent_field(absent: Absent) -> str:
    """Return the value of :data:`ABSENT`, of constant length."""
    return json.dumps(absent.as_dict()).ljust(_ABSENT_WIDTH)


def stamp(page_size: int, source: str, absent: Absent) -> dict[str, str]:
    """Return the schema metadata of a dump made now; ``source``: its origin in a few words."""
    return {
        "gpudedup.table": "dump",
        "gpudedup.version": str(DUMP_VERSION),
        "gpudedup.page_size": str(page_size),
        "gpudedup.source": source,
        "gpudedup.host": platform.node(),
        "gpudedup.time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ABSENT: absent_field(absent),
    }


@dataclass(frozen=True, slots=True)
class Written:
    """Report on a dump that was captured, imported or restored.

    :param pages: rows
    :param mappings: mappings, those without any row included
    :param absent: pages that the sources have or had and the dump lacks
    :param losses: one line for each mapping, process or stretch that could not be read
    :param notes: remarks for the user, one line each
    """

    pages: int
    mappings: int
    absent: Absent
    losses: list[str]
    notes: list[str]


class _Sink(RawIOBase):
    """The file; can replace the pages of a batch by others while it is written."""

    def __init__(self, file: FileIO) -> None:
        super().__init__()
        self._file = file
        self._instead: tuple[int, int, Iterable[Pages]] | None = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    @contextmanager
    def instead_of(self, memory: Pages, pieces: Iterable[Pages]) -> Iterator[None]:
        """Write ``pieces`` in place of ``memory``, which is never read."""
        self._instead = memory.ctypes.data, memory.nbytes, pieces
        yield
        assert self._instead is None, "the pages were not written"

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        if self._instead and size == self._instead[1]:
            address, left, pieces = self._instead
            if np.frombuffer(view, np.uint8).ctypes.data == address:
                self._instead = None
                for piece in pieces:
                    self._put(piece.reshape(-1).data)
                    left -= piece.nbytes
                assert not left, "not as many pages as rows"
                return size
        self._put(view)
        return size

    def _put(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view) :]


class DumpWriter:
    """Context manager that writes one dump; the file appears only if the block succeeds.

    Count absent pages in :attr:`absent` before the end of the block.

    :param mappings: all mappings of the dump, in the order in which rows refer to them
    :param source: origin of the pages, in a few words
    :param metadata: further schema metadata
    :param exact: schema metadata of an earlier dump instead of the above; its ABSENT is rewritten
    :param pages: rows that will be written, as far as known: room for them is asked for first
    :raises OutputError: if the file exists (without force), has no room, or cannot be written
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        page_size: int,
        mappings: Sequence[Mapping],
        *,
        source: str = "",
        metadata: dict[str, str] | None = None,
        exact: dict[str, str] | None = None,
        force: bool = False,
        pages: int = 0,
    ) -> None:
        self.path = os.fspath(path)
        self.page_size = check_page_size(page_size)
        self.absent = Absent()
        self._force = force
        self._pages = pages
        self._dictionary = mapping_dictionary(mappings)
        self._empty = absent_field(self.absent)
        if exact is None:
            exact = {**stamp(page_size, source, self.absent), **(metadata or {})}
        elif ABSENT in exact:
            exact = {**exact, ABSENT: self._empty}
        self._schema = dump_schema(page_size, exact)
        self._tells_absent = ABSENT in exact
        self._stack = ExitStack()
        self._sink: _Sink
        self._writer: Any = None
        self._written = False

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self._opened())
        except (OSError, pa.ArrowException) as problem:
            raise OutputError(self.path, reason(problem)) from None
        return self

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with whole_file(self.path, force=self._force) as temporary:
            check_room(self.path, self._pages * (self.page_size + ROW_BYTES))
            # Not "wb": on closing, ext4 flushes a file that was truncated.
            with temporary.open("r+b", buffering=0) as file:
                self._sink = _Sink(file)
                with pa.ipc.new_file(self._sink, self._schema) as self._writer:
                    yield
            if self._tells_absent:
                self._fill_in_absent(temporary)

    def write(self, columns: PageColumns, pages: npt.NDArray[np.uint8]) -> None:
        """Append rows as one record batch.

        :param columns: n rows
        :param pages: (n, page_size) uint8, C-contiguous
        :raises OutputError: if the disk is full, or another error of the file system
        """
        batch = record_batch(columns, pages, self._dictionary).replace_schema_metadata(
            self._schema.metadata
        )
        try:
            self._writer.write_batch(batch, custom_metadata={"pad": self._padding(batch, pages)})
        except (OSError, pa.ArrowException) as problem:
            raise OutputError(self.path, reason(problem)) from None
        self._written = True

    def write_pieces(self, columns: PageColumns, pieces: Iterable[Pages]) -> None:
        """Append rows as one record batch whose pages come one piece after another.

        :param columns: n rows
        :param pieces: (k, page_size) uint8, C-contiguous, n pages in all; consumed one at a time
        :raises OutputError: if the disk is full, or another error of the file system
        """
        # Never touched, so it takes no memory: pyarrow only passes the address on.
        size = len(columns) * self.page_size
        memory = np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(-1, self.page_size)
        with self._sink.instead_of(memory, pieces):
            self.write(columns, memory)

    def _padding(self, batch: pa.RecordBatch, pages: npt.NDArray[np.uint8]) -> str:
        """Return the string that, as metadata of ``batch``, aligns its page bytes."""
        shortest = "-" * 8
        mock = pa.MockOutputStream()
        with pa.ipc.new_file(mock, self._schema) as trial:
            before = mock.size()
            if self._written:
                trial.write_batch(batch.slice(0, 0))
                before = mock.size()
            trial.write_batch(batch, custom_metadata={"pad": shortest})
            length = mock.size() - before
        start: int = self._sink.tell() + length - pages.nbytes
        return shortest + "-" * (-start % ALIGNMENT)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stack.__exit__(kind, error, traceback)
        except (OSError, pa.ArrowException) as problem:
            # The block's own error comes first: closing may fail because of it.
            if error is None:
                raise OutputError(self.path, reason(problem)) from None

    def _fill_in_absent(self, path: Path) -> None:
        """Overwrite the empty counts, in the schema and in its copy in the footer."""
        empty, full = self._empty.encode(), absent_field(self.absent).encode()
        with path.open("r+b") as file:
            # Magic and padding, a message's marker and length; at the end the footer's length.
            file.seek(12)
            schema = int.from_bytes(file.read(4), "little")
            end = file.seek(-10, os.SEEK_END)
            footer = int.from_bytes(file.read(4), "little")
            for start, length in ((16, schema), (end - footer, footer)):
                file.seek(start)
                at = file.read(length).index(empty)
                file.seek(start + at)
                file.write(full)
