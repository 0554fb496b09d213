"""Restore the inputs of a merged dump, byte for byte.

As a dump: rows, columns, mappings and metadata are those from before the merge, of all inputs
together or of one. As raw images, one for each owner of each input: a machine's memory lies at its
addresses; a process's mappings come one after another, for its addresses span more than a file can,
and a ``.maps`` file beside it lists their offsets. Absent pages are holes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import PageSource, Progress
from gpudedup.engines.reading import gather
from gpudedup.errors import DamagedError, OutputError, UsageError
from gpudedup.images.base import Absent
from gpudedup.images.dumps.inputs import Input, inputs_of, metadata_of
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.writer import ABSENT, DumpWriter, Written, absent_field
from gpudedup.images.rows import UNKNOWN_FRAME, PageColumns, regrouped
from gpudedup.merged.inputs import check_inputs
from gpudedup.merged.opened import MappedPages, MergedDump, open_merged_image
from gpudedup.merged.read_ahead import DEPTH, PIECE_BYTES, ahead
from gpudedup.merged.together import Together, together
from gpudedup.output import check_room
from gpudedup.scanning.population import Population
from gpudedup.threads import ThreadPool

_MAX_NAME = 200
"""Bytes of an owner in a file's name at most: a name has 255, and something follows."""

_MAX_FILE = 2**63 - 1

_READERS = 2
"""Threads that read and digest while one writes. With one, a restore took half as long again."""

Pages = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RestoredImage:
    """A raw image that was restored.

    :param path: path of the file
    :param owner: process or machine of the memory
    :param pages: pages written; the rest are holes
    :param size: bytes, holes included
    """

    path: Path
    owner: str
    pages: int
    size: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows and mappings ``start .. stop - 1`` to restore, and their state before the merge."""

    start: int
    stop: int
    first_mapping: int
    stop_mapping: int
    frame_base: int
    metadata: dict[str, str]
    absent: Absent
    notes: tuple[str, ...] = ()


def restore(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    input: str | int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write the dump from which ``path``, a merged dump, was made.

    :param input: name of one input, or its number from 0; None: all inputs in one dump
    :param force: replace an existing file
    :param progress: called with pages done and pages in all
    :raises ImageError: if ``path`` is not a merged dump, or contradicts itself
    :raises DamagedError: if it does not match its digests; nothing is left
    :raises OutputError: if the dump exists (without force) or cannot be written; nothing is left
    :raises UsageError: if there is no such input
    """
    with open_merged_image(path) as image:
        image.sealed()
        part = _part(image, input)
        mappings = list(image.mappings[part.first_mapping : part.stop_mapping])
        with DumpWriter(
            output,
            image.page_size,
            mappings,
            exact=part.metadata,
            force=force,
            pages=part.stop - part.start,
        ) as dump:
            dump.absent.add(part.absent)
            try:
                _copy(image, part, dump, progress or (lambda done, total: None))
            except DamagedError as error:
                raise image.damage(error, part.start, part.stop) from None
    return Written(part.stop - part.start, len(mappings), part.absent, [], list(part.notes))


def _part(image: MergedImage, which: str | int | None) -> _Part:
    known = metadata_of(image) or {}
    if which is None:
        return _Part(0, image.pages, 0, len(image.mappings), 0, known, image.absent)
    inputs = inputs_of(image)
    at = _number(inputs, which)
    check_inputs(image, inputs, at)
    one = inputs[at]
    start = sum(before.rows for before in inputs[:at])
    first = sum(before.mappings for before in inputs[:at])
    metadata = one.metadata
    if metadata is None:
        metadata = {k: v for k, v in known.items() if k != "gpudedup.frame_base"}
        metadata |= {
            "gpudedup.source": f"import of {one.name}", ABSENT: absent_field(one.left_out())
        }  # fmt: skip
    notes = ("its frames were numbered anew when it was merged",) if one.frame_base is None else ()
    return _Part(
        start, start + one.rows, first, first + one.mappings, one.frame_base or 0, metadata,
        one.left_out(), notes,
    )  # fmt: skip


def _number(inputs: list[Input], which: str | int) -> int:
    """Return the number of an input; raise UsageError unless exactly one matches."""
    if isinstance(which, int):
        if not 0 <= which < len(inputs):
            raise UsageError(f"input {which}: there are {len(inputs)}, counted from 0")
        return which
    found = [at for at, one in enumerate(inputs) if one.name == which]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        places = ", ".join(map(str, found))
        raise UsageError(f"input {which!r}: there are several: {places}; say which by its number")
    # int() refuses thousands of digits.
    if which.isdecimal() and len(which) < 20:
        return _number(inputs, int(which))
    raise UsageError(f"input {which!r}: not one of {', '.join(one.name for one in inputs)}")


def _copy(
    image: MergedImage, part: _Part, dump: DumpWriter, progress: Callable[[int, int], None]
) -> None:
    """Copy rows in batches of :attr:`Image.batch_pages`, as dumps have them."""
    rows, done = part.stop - part.start, 0
    step = max(1, PIECE_BYTES // image.page_size)
    buffers = [zeros((min(step, rows), image.page_size), np.uint8) for _ in range(DEPTH)]
    source = Population.of([image]).source()
    progress(done, rows)
    with ThreadPool(_READERS) as pool:
        for columns in regrouped(image.columns_between(part.start, part.stop), image.batch_pages):
            stored = columns.stored
            assert stored is not None

            def read(number: int, stored: npt.NDArray[np.int64] = stored) -> Pages:
                wanted = stored[number * step : (number + 1) * step]
                pages = buffers[number % len(buffers)][: len(wanted)]
                _read(image, source, wanted, pages)
                return pages

            count = -(-len(columns) // step)
            with closing(ahead(pool, read, count)) as pieces:
                dump.write_pieces(_as_before(columns, part), pieces)
            done += len(columns)
            progress(done, rows)


def _read(
    image: MergedImage, source: PageSource, stored: npt.NDArray[np.int64], pages: Pages
) -> None:
    """Read stored pages and compare them with their digests.

    :raises ImageError: naming the offset at which the file could not be read
    :raises DamagedError: if some do not match
    """
    read = gather(source, stored, pages)
    if read < len(stored):
        # Unlike gather, it raises an error with offset and reason.
        image.read_stored(stored[read:], pages[read:])
    image.check(stored, pages)


def _as_before(columns: PageColumns, part: _Part) -> PageColumns:
    frame = columns.frame
    if frame is not None and part.frame_base:
        known = frame != UNKNOWN_FRAME
        frame = np.where(known, frame - np.uint64(part.frame_base), UNKNOWN_FRAME)
    mapping = columns.mapping - np.int32(part.first_mapping)
    return replace(columns, row=columns.row - part.start, mapping=mapping, frame=frame, stored=None)


def restore_raw(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    input: str | int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[RestoredImage]:
    """Write the memory of each owner to a raw image in ``folder``, created if need be.

    :param input: as in :func:`restore`
    :param force: replace existing files
    :param progress: called with pages done and pages in all
    :raises ImageError: if ``path`` is not a merged dump, or contradicts itself
    :raises DamagedError: if it does not match its digests; nothing is left
    :raises OutputError: if a file exists (without force) or cannot be written; nothing is left
    :raises UsageError: if there is no such input
    """
    with MergedDump(open_merged_image(path)) as dump:
        image = dump.image
        image.sealed()
        only = None if input is None else _number(dump.inputs, input)
        check_inputs(image, dump.inputs)
        files = _files(dump, only, Path(folder))
        names = [name for file in files for name in file.names]
        start = sum(one.rows for one in dump.inputs[:only]) if only else 0
        stop = image.pages if only is None else start + dump.inputs[only].rows
        steps = _Steps(progress, stop - start)
        try:
            with (
                together(Path(folder), names, force=force) as out,
                ThreadPool(_READERS) as pool,
            ):
                pages = sum(len(mapping.index) for file in files for mapping in file.mappings)
                check_room(folder, pages * image.page_size, folder=folder)
                return [_write_raw(dump, file, out, pool, steps) for file in files]
        except DamagedError as error:
            raise image.damage(error, start, stop) from None


@dataclass(frozen=True, slots=True)
class _File:
    """A raw image to write.

    :param places: byte offset in the file of index 0 of each mapping
    :param least: bytes of the file at least
    :param by_address: True if offsets are addresses, so that no ``.maps`` is needed
    """

    name: str
    owner: str
    mappings: list[MappedPages]
    places: list[int]
    least: int
    by_address: bool

    @property
    def end(self) -> int:
        """Return the bytes of the file."""
        places = zip(self.mappings, self.places, strict=True)
        return max([self.least, *(place + mapping.nbytes for mapping, place in places)])

    @property
    def names(self) -> list[str]:
        """Return the names of all files that are written for it."""
        return [self.name] if self.by_address else [self.name, f"{self.name}.maps"]


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, pages: int) -> None:
        self._done += pages
        if self._progress:
            self._progress(self._done, self._total)


def _files(dump: MergedDump, only: int | None, folder: Path) -> list[_File]:
    """Return a file for each owner of each input, or of input ``only``."""
    files: list[_File] = []
    taken: set[str] = set()
    first = 0
    for at, one in enumerate(dump.inputs):
        if only not in (None, at):
            first += one.mappings
            continue
        owners: dict[str, list[MappedPages]] = {}
        for number in range(first, first + one.mappings):
            mapping = dump[number]
            owners.setdefault(mapping.info.owner, []).append(mapping)
        first += one.mappings
        for owner, mappings in owners.items():
            files.append(_file(dump, one, owner, mappings, taken))
            if files[-1].end > _MAX_FILE:
                reason = "an address lies beyond what a file can hold"
                raise OutputError(folder / files[-1].name, reason)
    return files


def _file(
    dump: MergedDump, one: Input, owner: str, mappings: list[MappedPages], taken: set[str]
) -> _File:
    by_address = all(mapping.info.kind == "guest" for mapping in mappings)
    least, places = 0, []
    if by_address:
        places = [mapping.info.start for mapping in mappings]
        if one.format == "raw":
            least = (one.rows + one.absent["holes"]) * dump.page_size
    else:
        for mapping in mappings:
            places.append(least)
            least += mapping.nbytes
    stem = _cut(re.sub(r"[^\w.\[\]@+-]", "_", owner)).lstrip(".") or "owner"
    name, number = stem if one.format == "raw" else f"{stem}.raw", 1
    while name in taken or (not by_address and f"{name}.maps" in taken):
        number += 1
        name = f"{stem}-{number}.raw"
    taken |= {name, f"{name}.maps"}
    return _File(name, owner, mappings, places, least, by_address)


def _cut(name: str) -> str:
    """Return the longest beginning of ``name`` within :data:`_MAX_NAME` bytes."""
    return name.encode(errors="surrogateescape")[:_MAX_NAME].decode(errors="ignore")


def _write_raw(
    dump: MergedDump, file: _File, files: Together, pool: Executor, steps: _Steps
) -> RestoredImage:
    pages = 0
    with files.create(file.name) as out:
        for mapping, place in zip(file.mappings, file.places, strict=True):
            with closing(_stretches(dump, mapping, place, pool)) as stretches:
                for offset, data in stretches:
                    _write_at(out, offset, data)
                    pages += len(data)
                    steps.add(len(data))
        size = max(file.least, os.fstat(out.fileno()).st_size)
        os.ftruncate(out.fileno(), size)
    if not file.by_address:
        with files.create(f"{file.name}.maps") as out:
            text = "".join(_maps(dump, file)).encode(errors="surrogateescape")
            _write_at(out, 0, np.frombuffer(text, np.uint8))
    return RestoredImage(files.folder / file.name, file.owner, pages, size)


def _stretches(
    dump: MergedDump, mapping: MappedPages, place: int, pool: Executor
) -> Generator[tuple[int, Pages], None, None]:
    """Yield stretches of consecutive pages, each after its byte offset in the file."""
    step = max(1, PIECE_BYTES // dump.page_size)
    index, stored = mapping.index, mapping.stored
    most = min(step, len(index))
    buffers = [np.empty((most, dump.page_size), np.uint8) for _ in range(DEPTH)]
    source = Population.of([dump.image]).source()

    def read(number: int) -> tuple[npt.NDArray[np.uint64], Pages]:
        part = slice(number * step, (number + 1) * step)
        pages = buffers[number % len(buffers)][: len(index[part])]
        _read(dump.image, source, stored[part], pages)
        return index[part], pages

    with closing(ahead(pool, read, -(-len(index) // step))) as pieces:
        for part, pages in pieces:
            begin = np.flatnonzero(np.diff(part, prepend=part[:1]) > 1).tolist()
            for start, stop in zip([0, *begin], [*begin, len(part)], strict=True):
                yield place + int(part[start]) * dump.page_size, pages[start:stop]


def _write_at(out: IO[bytes], offset: int, pages: npt.NDArray[np.uint8]) -> None:
    view = pages.reshape(-1).data
    while view:
        written = os.pwrite(out.fileno(), view, offset)
        view, offset = view[written:], offset + written


def _maps(dump: MergedDump, file: _File) -> Iterator[str]:
    """Yield the lines of a ``.maps`` file."""
    yield "# offset address pages kind name; offsets in the raw image beside this file\n"
    for mapping, place in zip(file.mappings, file.places, strict=True):
        if len(mapping):
            info = mapping.info
            name = info.name.replace("\n", "\\n")
            yield f"{place:#x} {info.start:#x} {len(mapping)} {info.kind} {name}".rstrip() + "\n"
