"""Merge images of any format, several at once, into one merged dump.

All pages are digested and compared byte by byte before anything is written. Then each frame's
source is read again and digested on its way to the file: a changed digest ends the merge.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.clock import Clock
from gpudedup.compiled.digests import digest_pages
from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import PageClass, Partition, Progress
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.reading import gather
from gpudedup.engines.select import choose
from gpudedup.errors import DamagedError, DeviceError, ImageError, UsageError
from gpudedup.images.base import Absent
from gpudedup.images.dumps.inputs import Input, inputs_of, merged_field, metadata_of, with_base
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.merged_seal import digests_of
from gpudedup.images.dumps.merged_writer import MergedWriter
from gpudedup.images.dumps.writer import ABSENT, absent_field, stamp
from gpudedup.images.importing import source_of
from gpudedup.images.losses import lines
from gpudedup.images.memory import MemoryImage
from gpudedup.images.numbering import NUMBERED_ANEW, Numbering, frame_base, numberings
from gpudedup.images.opening import images_of
from gpudedup.images.rows import PageColumns, regrouped
from gpudedup.merged.inputs import check_inputs
from gpudedup.merged.plan import Plan, plan
from gpudedup.merged.read_ahead import DEPTH, PIECE_BYTES, ahead
from gpudedup.mm.policy import MergePolicy
from gpudedup.scanning.population import Population
from gpudedup.schema import KINDS
from gpudedup.threads import ThreadPool

NO_LIMIT = (1 << 31) - 1

EVERYTHING = MergePolicy(kinds=KINDS, max_page_sharing=NO_LIMIT, use_zero_pages=True)
"""Any equal pages share a frame: the smallest file."""

BATCH_ROWS = 1 << 20
"""Rows per record batch."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Report on a merge.

    :param pages: rows of the merged dump
    :param page_size: bytes
    :param mappings: mappings of the merged dump
    :param frames: stored pages
    :param kept: frames that come from merged dumps among the inputs
    :param size: bytes of the file
    :param absent: pages that the inputs have or had and the merged dump lacks
    :param losses: one line for each stretch that could not be read
    :param notes: remarks for the user, one line each
    :param seconds: wall time per stage
    """

    pages: int
    page_size: int
    mappings: int
    frames: int
    kept: int
    size: int
    absent: Absent
    losses: list[str]
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)


def merge_images(
    inputs: Any,
    path: str | os.PathLike[str],
    *,
    policy: MergePolicy = EVERYTHING,
    backend: str = "auto",
    threads: int | None = None,
    format: str | None = None,
    page_size: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Write all pages of ``inputs`` to one merged dump, in which equal pages share a frame.

    Frames of merged dumps among the inputs keep their order and come first; only new frames are
    added, as if the originals were merged together. ``path`` may be one of these (with ``force``).

    :param inputs: as in :func:`gpudedup.scan`, but not in a device's memory
    :param policy: which pages may share a frame
    :param backend: engine that finds equal pages: ``auto``, ``cpu`` or ``cuda``
    :param threads: host threads; None: one for each usable core
    :param format: format of all paths: ``arrow``, ``elf`` or ``raw``; None: recognised by content
    :param page_size: bytes, for formats that do not record it; None: DEFAULT_PAGE_SIZE
    :param force: replace an existing file
    :param progress: called with pages done and pages in all
    :raises ImageError: if an input or every page is unreadable, pages change, or page sizes differ
    :raises DamagedError: if a merged dump among them does not match its digests
    :raises OutputError: if the file exists (without force) or cannot be written; nothing is left
    :raises UsageError: if an argument is out of range, or pages are in a device's memory
    :raises UnsupportedHereError: if the requested engine cannot be used here
    :raises DeviceError: if a device fails and ``backend`` is ``cuda``
    """
    clock = Clock()
    with MergedWriter(path, force=force) as file, ExitStack() as opened:
        population = Population.of(images_of(inputs, opened, format=format, page_size=page_size))
        if any(isinstance(image, MemoryImage) and image.on_device for image in population.images):
            raise UsageError("pages in a device's memory cannot be merged into a file")
        for image in population.images:
            if isinstance(image, MergedImage):
                image.sealed()
                check_inputs(image, inputs_of(image))
        numbered = numberings(population.images)
        clock.stage("open_s")
        steps = _Steps(progress, int(population.first_stored[-1]))
        found = _partition(population, backend, threads, steps.scanned)
        _check_frames(population, found)
        clock.stage("scan_s")
        decided = plan(population, found, policy)
        losses = _losses(population, decided)
        absent, record = _account(population, decided, numbered)
        clock.stage("plan_s")
        file.begin(
            population.page_size, population.mappings, len(decided.source),
            _metadata(population, absent, record, numbered, policy),
        )  # fmt: skip
        for pages, digests in _frames(population, found, decided):
            file.write_frames(pages, digests)
            steps.copied(len(pages), len(decided.source))
        clock.stage("frames_s")
        for columns in regrouped(_rows(population, decided, numbered), BATCH_ROWS):
            file.write_rows(columns)
        clock.stage("rows_s")
    size = file.size
    return Merged(
        pages=int(np.count_nonzero(decided.frame_of >= 0)),
        page_size=population.page_size,
        mappings=len(population.mappings),
        frames=len(decided.source),
        kept=_kept(population, decided),
        size=size,
        absent=absent,
        losses=losses,
        notes=_notes(population, decided, numbered),
        seconds=clock.seconds,
    )


class _Steps:
    """Progress over two stages: scan and copy, half each."""

    def __init__(self, progress: Progress | None, pages: int) -> None:
        self._progress = progress
        self._pages = pages
        self._copied = 0

    @property
    def scanned(self) -> Progress | None:
        """Return the callback for the scan."""
        return self._scanned if self._progress else None

    def _scanned(self, done: int, total: int) -> None:
        assert self._progress
        self._progress(done, 2 * self._pages)

    def copied(self, frames: int, total: int) -> None:
        """Count ``frames`` more of ``total`` as copied."""
        self._copied += frames
        if self._progress:
            self._progress(self._pages + self._pages * self._copied // total, 2 * self._pages)


def _partition(
    population: Population, backend: str, threads: int | None, progress: Progress | None
) -> Partition:
    """Compare all stored pages, also those of one physical frame: captures may see them change."""
    engine = choose(backend, threads).engine
    stored_pages = population.source()
    try:
        return engine.partition(stored_pages, progress=progress)
    except DeviceError:
        if backend != "auto":
            raise
        return CpuEngine(threads).partition(stored_pages, progress=progress)


def _check_frames(population: Population, found: Partition) -> None:
    """Raise DamagedError if a frame of a merged dump does not match the digest kept there."""
    for image, first in zip(population.images, population.first_stored.tolist(), strict=False):
        seal = image.sealed() if isinstance(image, MergedImage) else None
        if seal is None:
            continue
        assert isinstance(image, MergedImage)
        damaged: list[int] = []
        for at in range(0, image.stored, BATCH_ROWS):
            frames = np.arange(at, min(image.stored, at + BATCH_ROWS))
            differ = (found.digests[first + frames] != digests_of(image, seal, frames)).any(axis=1)
            differ &= found.classes[first + frames] != PageClass.UNREADABLE
            damaged += frames[differ].tolist()
        if damaged:
            raise image.damage(DamagedError(image.path, "damaged", frames=damaged))


def _losses(population: Population, decided: Plan) -> list[str]:
    lost = decided.frame_of < 0
    losses, more = population.losses(np.flatnonzero(lost))
    if losses and lost.all():
        raise losses[0].error()
    return lines(losses, more)


def _account(
    population: Population, decided: Plan, numbered: Sequence[Numbering]
) -> tuple[Absent, list[Input]]:
    """Return the absent pages of all inputs, and the inputs for the metadata."""
    absent = Absent()
    record: list[Input] = []
    for at, (image, numbering) in enumerate(zip(population.images, numbered, strict=True)):
        base = numbering.base if numbering.order is None else None
        lost = decided.frame_of[population.first_row[at] : population.first_row[at + 1]] < 0
        absent.add(image.absent)
        absent.unreadable += int(np.count_nonzero(lost))
        start = 0
        for one in inputs_of(image):
            missing = int(np.count_nonzero(lost[start : start + one.rows]))
            left_out = one.left_out()
            left_out.unreadable += missing
            start += one.rows
            kept = replace(one, rows=one.rows - missing, absent=left_out.as_dict())
            record.append(with_base(kept, base))
    return absent, record


def _metadata(
    population: Population,
    absent: Absent,
    record: Sequence[Input],
    numbered: Sequence[Numbering],
    policy: MergePolicy,
) -> dict[str, str]:
    """Return the schema metadata: those of a dump that is the only input, or new ones."""
    images = population.images
    known = metadata_of(images[0]) if len(images) == 1 else None
    if known is None:
        source = "merge" + source_of(images).removeprefix("import")
        known = {**stamp(population.page_size, source, absent), **frame_base(numbered)}
    elif absent.unreadable != images[0].absent.unreadable:
        known = {**known, ABSENT: absent_field(absent)}
    return {**known, **merged_field(record, asdict(policy))}


def _frames(
    population: Population, found: Partition, decided: Plan
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]]:
    """Yield the frames of the dump in order, with their digests; read ahead meanwhile."""
    stored_pages, total = population.source(), len(decided.source)
    step = max(1, PIECE_BYTES // population.page_size)
    buffers = [zeros((min(step, total), population.page_size), np.uint8) for _ in range(DEPTH)]

    def copy(number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
        source = decided.source[number * step : (number + 1) * step]
        pages = buffers[number % len(buffers)][: len(source)]
        read = gather(stored_pages, source, pages)
        if read < len(source):
            raise _failed(population, int(source[read]), "cannot be read any more")
        digests = digest_pages(pages)
        changed = np.flatnonzero((digests != found.digests[source]).any(axis=1))
        if len(changed):
            raise _failed(population, int(source[changed[0]]), "changed while it was read")
        return pages, digests

    with ThreadPool(1) as pool:
        yield from ahead(pool, copy, -(-total // step))


def _failed(population: Population, stored: int, what: str) -> ImageError:
    """Return an error that names a stored page of the population."""
    at = int(np.searchsorted(population.first_stored, stored, side="right")) - 1
    image = population.images[at]
    offset = image.offset_of_stored(stored - int(population.first_stored[at]))
    return ImageError(image.path, f"the page {what}", offset)


def _rows(
    population: Population, decided: Plan, numbered: Sequence[Numbering]
) -> Iterable[PageColumns]:
    """Yield the readable rows of all images."""
    written = 0
    for at, (image, numbering) in enumerate(zip(population.images, numbered, strict=True)):
        for piece in image.rows:
            first = int(population.first_row[at]) + piece.row
            frame_of = decided.frame_of[first : first + len(piece)]
            kept = replace(piece, stored=frame_of).where(frame_of >= 0, written)
            mapping = kept.mapping + population.first_mapping[at]
            yield replace(kept, mapping=mapping, frame=numbering(kept.frame))
            written += len(kept)


def _kept(population: Population, decided: Plan) -> int:
    which = np.searchsorted(population.first_stored, decided.source, side="right") - 1
    is_old = np.array([isinstance(image, MergedImage) for image in population.images])
    return int(np.count_nonzero(is_old[which]))


def _notes(population: Population, decided: Plan, numbered: Sequence[Numbering]) -> list[str]:
    notes = [line for image in population.images for line in image.notes]
    if any(numbering.order is not None for numbering in numbered):
        notes.append(NUMBERED_ANEW)
    if decided.changed:
        notes.append(
            f"{decided.changed} pages differ from an earlier one of the same physical frame:"
            " they were written while they were captured"
        )
    return notes
