"""Verify every byte of a merged dump against its seal."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np

from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import Progress
from gpudedup.engines.cpu.engine import thread_count
from gpudedup.errors import ImageError
from gpudedup.images.dumps.inputs import inputs_of
from gpudedup.images.dumps.ipc import footer_start
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.merged_seal import (
    CHUNK_BYTES,
    Seal,
    check_rest,
    damaged_frames,
    seal_of,
)
from gpudedup.merged.inputs import check_inputs
from gpudedup.merged.opened import open_merged_image
from gpudedup.threads import ThreadPool

MAX_LINES = 20
"""Damaged frames listed at most; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of :func:`verify`.

    :param pages: rows
    :param frames: stored pages
    :param page_size: bytes
    :param mappings: mappings of the dump
    :param damage: one line for each place that is damaged or cannot be read, with its offset, and
        for what contradicts itself; empty: the file is intact
    :param damaged_frames: frames that do not match their digest or cannot be read
    """

    pages: int
    frames: int
    page_size: int
    mappings: int
    damage: list[str]
    damaged_frames: int


def verify(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> Verified:
    """Check the structure of a merged dump, every frame, and all its other bytes.

    :param threads: host threads; None: one for each usable core
    :param progress: called now and then with frames done and frames in all
    :raises ImageError: if it cannot be opened, is not a merged dump, or has no seal
    :raises DamagedError: if the seal is damaged, so that nothing can be compared
    :raises UsageError: as :func:`gpudedup.engines.cpu.engine.thread_count`
    """
    count = thread_count(threads)
    with open_merged_image(path) as image:
        seal = _seal(image)
        damage = []
        for check in (lambda: check_rest(image, seal), lambda: _check_rows(image)):
            try:
                check()
            except ImageError as error:
                damage.append(str(error))
        frames = _damaged_frames(image, seal, count, progress)
        damage += [
            str(ImageError(image.path, f"frame {frame} {why}", image.offset_of_stored(frame)))
            for frame, why in frames[:MAX_LINES]
        ]
        if len(frames) > MAX_LINES:
            damage.append(f"{image.path}: and {len(frames) - MAX_LINES} more such frames")
        return Verified(
            image.pages, image.stored, image.page_size, len(image.mappings), damage, len(frames)
        )


def _check_rows(image: MergedImage) -> None:
    """Raise ImageError if a row contradicts the dictionaries, or the metadata of its input."""
    for _ in image.columns():
        pass
    check_inputs(image, inputs_of(image))


def _seal(image: MergedImage) -> Seal:
    seal = seal_of(image)
    if seal is None:
        end = footer_start(image.path, image.data)
        raise ImageError(image.path, "no seal: not written by gpudedup, or damaged", end)
    return seal


def _damaged_frames(
    image: MergedImage, seal: Seal, threads: int, progress: Progress | None
) -> list[tuple[int, str]]:
    """Return the damaged frames, ascending, each with the reason."""
    step = max(1, CHUNK_BYTES // image.page_size)
    starts = iter(range(0, image.stored, step))
    lock, stop = threading.Lock(), threading.Event()
    found: list[tuple[int, str]] = []
    done = 0

    def work() -> None:
        nonlocal done
        buffer = zeros((min(step, image.stored), image.page_size), np.uint8)
        while not stop.is_set():
            with lock:
                start = next(starts, None)
            if start is None:
                return
            count = min(step, image.stored - start)
            frames = np.arange(start, start + count)
            damaged = list(damaged_frames(image, seal, frames, buffer[:count]))
            with lock:
                found.extend(damaged)
                done += count

    with ThreadPool(threads) as pool:
        workers: list[Future[None]] = []
        try:
            for _ in range(threads):
                # One by one: those before one that cannot be started are waited for.
                workers.append(pool.submit(work))  # noqa: PERF401
            while wait(workers, timeout=0.1 if progress else None).not_done:
                if progress:
                    progress(done, image.stored)
        finally:
            stop.set()
    for worker in workers:
        worker.result()
    return sorted(found)
