"""Verify every byte of a merged dump against its seal."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.digests import digest_pages
from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import Progress
from gpudedup.engines.cpu.engine import usable_cores
from gpudedup.errors import ImageError, UsageError
from gpudedup.images.dumps.ipc import footer_start
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.merged_writer import SEAL_MAGIC, SEAL_TAIL
from gpudedup.merged.opened import open_merged_image

CHUNK_BYTES = 8 << 20
"""Page bytes that a thread digests at a time, and bytes hashed at a time."""

MAX_LINES = 20
"""Damaged frames listed at most; further ones are only counted."""

_HASH_BYTES = 32
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of :func:`verify`.

    :param pages: rows
    :param frames: stored pages
    :param page_size: bytes
    :param mappings: mappings of the dump
    :param damage: one line for each damaged place, with its offset; empty: the file is intact
    :param damaged_frames: frames that do not match their digest or cannot be read
    """

    pages: int
    frames: int
    page_size: int
    mappings: int
    damage: list[str]
    damaged_frames: int


@dataclass(frozen=True, slots=True)
class _Seal:
    """Byte offsets in the file of frames and seal."""

    first_frame: int
    end_of_frames: int
    digests: int
    hash: int


def verify(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> Verified:
    """Check the structure of a merged dump, every frame, and all its other bytes.

    :param threads: host threads; None: one for each usable core
    :param progress: called now and then with frames done and frames in all
    :raises ImageError: if it is not a merged dump, contradicts itself, or has no seal
    :raises UsageError: if threads is below 1
    """
    count = usable_cores() if threads is None else threads
    if count < 1:
        raise UsageError(f"threads {count}: must be at least 1")
    with open_merged_image(path) as image:
        seal = _seal(image)
        damage = []
        if _hash(image, seal) != _read(image, seal.hash, _HASH_BYTES):
            reason = "page table, metadata or digests are damaged: their SHA-256 differs"
            damage.append(str(ImageError(image.path, reason, seal.end_of_frames)))
        for _ in image.columns():
            pass
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


def _seal(image: MergedImage) -> _Seal:
    """Return the offsets of the seal, which ends at the footer."""
    end = footer_start(image.path, memoryview(image.mapped))
    tail = _read(image, max(0, end - 16), 16)
    frames = int.from_bytes(tail[:8], "little")
    if tail[8:] != SEAL_MAGIC:
        raise ImageError(image.path, "no seal: not written by gpudedup, or damaged", end)
    digests = end - SEAL_TAIL - frames * _DIGEST_BYTES
    first = image.extents[0].offset if image.extents else 0
    stop = first + image.stored * image.page_size
    if frames != image.stored or len(image.extents) > 1 or digests < stop:
        raise ImageError(
            image.path, f"the seal is of {frames} frames, there are {image.stored}", end
        )
    return _Seal(first, stop, digests, end - SEAL_TAIL)


def _read(image: MergedImage, offset: int, size: int) -> bytes:
    data = os.pread(image.fd, size, offset)
    if len(data) < size:
        raise ImageError(image.path, "the file became shorter while it was read", offset)
    return data


def _hash(image: MergedImage, seal: _Seal) -> bytes:
    """Return the SHA-256 of all bytes but the frames and the hash in the seal."""
    found = hashlib.sha256()
    for start, stop in (
        (0, seal.first_frame),
        (seal.end_of_frames, seal.hash),
        (seal.hash + _HASH_BYTES, len(image.mapped)),
    ):
        for at in range(start, stop, CHUNK_BYTES):
            found.update(_read(image, at, min(CHUNK_BYTES, stop - at)))
    return found.digest()


def _damaged_frames(
    image: MergedImage, seal: _Seal, threads: int, progress: Progress | None
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
            damaged = list(_check(image, seal, start, buffer[:count]))
            with lock:
                found.extend(damaged)
                done += count

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            while wait(workers, timeout=0.1 if progress else None).not_done:
                if progress:
                    progress(done, image.stored)
        finally:
            stop.set()
    for worker in workers:
        worker.result()
    return sorted(found)


def _check(
    image: MergedImage, seal: _Seal, start: int, pages: npt.NDArray[np.uint8]
) -> Iterator[tuple[int, str]]:
    """Yield the damaged frames of ``start .. start + len(pages) - 1``; ``pages`` is the buffer."""
    stored = np.arange(start, start + len(pages))
    raw = _read(image, seal.digests + start * _DIGEST_BYTES, len(pages) * _DIGEST_BYTES)
    expected = np.frombuffer(raw, ">u8").reshape(-1, 2)[:, ::-1]
    readable = np.ones(len(pages), np.bool_)
    try:
        image.read_stored(stored, pages)
    except ImageError:
        for at, frame in enumerate(stored):
            try:
                image.read_stored(np.array([frame]), pages[at : at + 1])
            except ImageError as error:
                readable[at] = False
                yield int(frame), f"cannot be read: {error.reason}"
    differ = readable & (digest_pages(pages) != expected).any(axis=1)
    for frame in stored[differ].tolist():
        yield frame, "does not match its digest"
