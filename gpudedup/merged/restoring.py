"""Restore the inputs of a merged dump, byte for byte.

As a dump: rows, columns, mappings and metadata are those from before the merge, of all inputs
together or of one. As raw images, one for each owner of each input: a machine's memory lies at its
addresses; a process's mappings come one after another, for its addresses span more than a file can,
and a ``.maps`` file beside it lists their offsets. Absent pages are holes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import PageSource, Progress
from gpudedup.engines.reading import gather
from gpudedup.errors import OutputError, UsageError
from gpudedup.images.base import Absent
from gpudedup.images.dumps.inputs import Input, inputs_of, metadata_of
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.writer import ABSENT, DumpWriter, Written, absent_field
from gpudedup.images.rows import UNKNOWN_FRAME, PageColumns, regrouped
from gpudedup.merged.opened import MappedPages, MergedDump, open_merged_image
from gpudedup.merged.read_ahead import DEPTH, PIECE_BYTES, ahead
from gpudedup.output import reason, whole_file
from gpudedup.scanning.population import Population

_MAX_NAME = 200

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
    :raises ImageError: if ``path`` is not a merged dump, or damaged
    :raises OutputError: if the dump exists (without force) or cannot be written; nothing is left
    :raises UsageError: if there is no such input
    """
    with open_merged_image(path) as image:
        part = _part(image, input)
        mappings = list(image.mappings[part.first_mapping : part.stop_mapping])
        with DumpWriter(
            output, image.page_size, mappings, exact=part.metadata, force=force
        ) as dump:
            dump.absent.add(part.absent)
            _copy(image, part, dump, progress or (lambda done, total: None))
    return Written(part.stop - part.start, len(mappings), part.absent, [], list(part.notes))


def _part(image: MergedImage, which: str | int | None) -> _Part:
    known = metadata_of(image) or {}
    if which is None:
        return _Part(0, image.pages, 0, len(image.mappings), 0, known, image.absent)
    inputs = inputs_of(image)
    at = _number(inputs, which)
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
    if which.isdecimal():
        return _number(inputs, int(which))
    raise UsageError(f"input {which!r}: not one of {', '.join(one.name for one in inputs)}")


def _copy(
    image: MergedImage, part: _Part, dump: DumpWriter, progress: Callable[[int, int], None]
) -> None:
    """Copy rows in batches of :attr:`Image.batch_pages`, as dumps have them."""
    rows, done = part.stop - part.start, 0
    step = max(1, PIECE_BYTES // image.page_size)
    buffers = [zeros((min(step, rows), image.page_size), np.uint8) for _ in range(DEPTH + 1)]
    source = Population.of([image]).source()
    progress(done, rows)
    with ThreadPoolExecutor(1) as pool:
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
    """Read stored pages; raise ImageError with the offset at which the file could not be read."""
    read = gather(source, stored, pages)
    if read < len(stored):
        # Unlike gather, it raises an error with offset and reason.
        image.read_stored(stored[read:], pages[read:])


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
    :raises ImageError: if ``path`` is not a merged dump, or damaged
    :raises OutputError: if a file exists (without force) or cannot be written; complete files stay
    :raises UsageError: if there is no such input
    """
    with MergedDump(open_merged_image(path)) as dump:
        only = None if input is None else _number(dump.inputs, input)
        files = _files(dump, only)
        target = Path(folder)
        _make(target)
        if not force:
            for file in files:
                if (target / file.name).exists():
                    raise OutputError(target / file.name, "exists already (--force replaces it)")
        rows = dump.image.pages if only is None else dump.inputs[only].rows
        steps = _Steps(progress, rows)
        return [_write_raw(dump, file, target, force, steps) for file in files]


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


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, pages: int) -> None:
        self._done += pages
        if self._progress:
            self._progress(self._done, self._total)


def _make(folder: Path) -> None:
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(folder, reason(error)) from None
    if not folder.is_dir():
        raise OutputError(folder, "not a directory")


def _files(dump: MergedDump, only: int | None) -> list[_File]:
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
    stem = re.sub(r"[^\w.\[\]@+-]", "_", owner)[:_MAX_NAME].lstrip(".") or "owner"
    name, number = stem if one.format == "raw" else f"{stem}.raw", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.raw"
    taken |= {name, f"{name}.maps"}
    return _File(name, owner, mappings, places, least, by_address)


def _write_raw(
    dump: MergedDump, file: _File, folder: Path, force: bool, steps: _Steps
) -> RestoredImage:
    target = folder / file.name
    pages = 0
    try:
        with (
            whole_file(target, force=force) as temporary,
            temporary.open("r+b", buffering=0) as out,
        ):
            for mapping, place in zip(file.mappings, file.places, strict=True):
                for offset, data in _stretches(dump, mapping, place):
                    _write_at(out, offset, data)
                    pages += len(data)
                    steps.add(len(data))
            size = max(file.least, os.fstat(out.fileno()).st_size)
            os.ftruncate(out.fileno(), size)
        if not file.by_address:
            with whole_file(folder / f"{file.name}.maps", force=force) as temporary:
                temporary.write_text("".join(_maps(dump, file)), errors="surrogateescape")
    except OverflowError:
        raise OutputError(target, "an address lies beyond what a file can hold") from None
    except OSError as error:
        raise OutputError(target, reason(error)) from None
    return RestoredImage(target, file.owner, pages, size)


def _stretches(
    dump: MergedDump, mapping: MappedPages, place: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield stretches of consecutive pages, each after its byte offset in the file."""
    step = max(1, PIECE_BYTES // dump.page_size)
    index, stored = mapping.index, mapping.stored
    buffer = np.empty((min(step, len(index)), dump.page_size), np.uint8)
    source = Population.of([dump.image]).source()
    for at in range(0, len(index), step):
        part = index[at : at + step]
        pages = buffer[: len(part)]
        _read(dump.image, source, stored[at : at + step], pages)
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
