"""The seal of a merged dump: digests of its frames, and a hash of everything else.

Frames that go to another file are compared with the digests first: what was damaged must never
be given out as if it were whole, nor get a new digest. :mod:`gpudedup.images.dumps.merged_writer`
says how the seal lies in the file. A merged dump by others has none; nothing can be checked then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from gpudedup.errors import DamagedError, ImageError
from gpudedup.images.dumps.image import ArrowImage
from gpudedup.images.dumps.ipc import footer_start
from gpudedup.images.dumps.merged_writer import SEAL_MAGIC, SEAL_TAIL
from gpudedup.images.rows import PageColumns

CHUNK_BYTES = 8 << 20
"""Bytes hashed at a time, and page bytes read at a time to look for damage."""

_END_OF_STREAM_BYTES = 8
_HASH_BYTES = 32
_DIGEST_BYTES = 16
_GAP = 1024
"""Digests of a gap at most that are read along with their neighbours: faster than a second call."""

MOST_KEPT = 1 << 22
"""Digests of a file that are kept in memory at most, 64 MiB. Reading those of scattered frames one
by one took five times as long as digesting the frames."""

_NAMED = 3
"""Damaged frames, and pages that have them, named in a message; the rest are counted."""

Frames = npt.NDArray[np.int64]
Pages = npt.NDArray[np.uint8]
Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Seal:
    """Byte offsets in the file of frames and seal.

    :param kept: all digests, as :func:`digests_of` returns them; None: more than :data:`MOST_KEPT`
    """

    first_frame: int
    end_of_frames: int
    digests: int
    hash: int
    kept: Digests | None = None


def seal_of(image: ArrowImage) -> Seal | None:
    """Return where the seal of a merged dump lies; None: it was written by others.

    :raises DamagedError: if there was one, and it is damaged
    """
    end = footer_start(image.path, image.data)
    tail = image.data.read(max(0, end - 16), 16)
    frames = int.from_bytes(tail[:8], "little")
    if tail[8:] != SEAL_MAGIC:
        # Others write the footer right behind the end of the stream.
        stream = max((block.offset + block.size for block in image.blocks), default=0)
        room = _END_OF_STREAM_BYTES + image.stored * _DIGEST_BYTES + SEAL_TAIL
        if end - stream == room:
            raise DamagedError(image.path, "the seal is damaged", end - len(SEAL_MAGIC))
        return None
    digests = end - SEAL_TAIL - frames * _DIGEST_BYTES
    first = image.extents[0].offset if image.extents else 0
    stop = first + image.stored * image.page_size
    if frames != image.stored or len(image.extents) > 1 or digests < stop:
        reason = f"the seal is of {frames} frames, there are {image.stored}"
        raise DamagedError(image.path, reason, end)
    seal = Seal(first, stop, digests, end - SEAL_TAIL)
    if frames > MOST_KEPT:
        return seal
    return replace(seal, kept=_kept(image, seal, np.arange(frames)))


def check_rest(image: ArrowImage, seal: Seal) -> None:
    """Raise DamagedError unless page table, metadata and digests match the hash in the seal."""
    found = hashlib.sha256()
    for start, stop in (
        (0, seal.first_frame),
        (seal.end_of_frames, seal.hash),
        (seal.hash + _HASH_BYTES, image.data.size),
    ):
        for at in range(start, stop, CHUNK_BYTES):
            found.update(image.data.read(at, min(CHUNK_BYTES, stop - at)))
    if found.digest() != image.data.read(seal.hash, _HASH_BYTES):
        reason = "page table, metadata or digests are damaged: their SHA-256 differs"
        raise DamagedError(image.path, reason, seal.end_of_frames)


def digests_of(image: ArrowImage, seal: Seal, frames: Frames) -> Digests:
    """Return the kept digests of frames, (n, 2) uint64, low and high half.

    :param frames: (n,) int64, in any order, repeated or not
    :raises ImageError: if they cannot be read
    """
    if seal.kept is not None:
        return seal.kept[frames]
    if (np.diff(frames) == 1).all():
        return _kept(image, seal, frames)
    wanted, place = np.unique(frames, return_inverse=True)
    parts = np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1)
    return np.concatenate([_kept(image, seal, part) for part in parts])[place]


def _kept(image: ArrowImage, seal: Seal, ascending: Frames) -> Digests:
    if not len(ascending):
        return np.empty((0, 2), np.uint64)
    first, stop = int(ascending[0]), int(ascending[-1]) + 1
    raw = image.data.read(seal.digests + first * _DIGEST_BYTES, (stop - first) * _DIGEST_BYTES)
    kept = np.frombuffer(raw, ">u8").reshape(-1, 2)[:, ::-1]
    return (kept if len(kept) == len(ascending) else kept[ascending - first]).astype(np.uint64)


def differing(image: ArrowImage, seal: Seal, frames: Frames, pages: Pages) -> npt.NDArray[np.bool_]:
    """Return which frames do not match their digest, (n,) bool; ``pages`` is what was read."""
    # Compiling takes time that other formats need not spend.
    from gpudedup.compiled.digests import digest_pages

    differ: npt.NDArray[np.bool_]
    differ = (digest_pages(pages) != digests_of(image, seal, frames)).any(axis=1)
    return differ


def check_frames(image: ArrowImage, seal: Seal, frames: Frames, pages: Pages) -> None:
    """Raise DamagedError, with its ``frames``, if some do not match their digest."""
    differ = differing(image, seal, frames, pages)
    if differ.any():
        raise DamagedError(image.path, "damaged", frames=np.unique(frames[differ]).tolist())


def damaged_frames(
    image: ArrowImage, seal: Seal, frames: Frames, pages: Pages
) -> Iterator[tuple[int, str]]:
    """Yield the damaged ones of ``frames``, each with the reason.

    :param frames: (n,) int64, ascending
    :param pages: (n, page_size) uint8, a buffer
    """
    readable = np.ones(len(pages), np.bool_)
    try:
        image.read_stored(frames, pages)
    except ImageError:
        for at, frame in enumerate(frames):
            try:
                image.read_stored(np.array([frame]), pages[at : at + 1])
            except ImageError as error:
                readable[at] = False
                yield int(frame), f"cannot be read: {error.reason}"
    for frame in frames[differing(image, seal, frames, pages) & readable].tolist():
        yield frame, "does not match its digest"


def damage_among(
    image: ArrowImage, seal: Seal, known: Sequence[int], rows: Sequence[PageColumns]
) -> DamagedError:
    """Return the error that names all damaged frames of ``rows``, and the pages that have them.

    :param known: damaged frames that were found already
    :param rows: rows with ``stored``, in pieces
    """
    used = np.zeros(image.stored, np.bool_)
    for piece in rows:
        assert piece.stored is not None
        used[piece.stored] = True
    frames = np.flatnonzero(used)
    step = max(1, CHUNK_BYTES // image.page_size)
    buffer = np.empty((min(step, len(frames)), image.page_size), np.uint8)
    parts = [frames[at : at + step] for at in range(0, len(frames), step)]
    found = chain.from_iterable(
        damaged_frames(image, seal, part, buffer[: len(part)]) for part in parts
    )
    damaged = sorted({*known, *(frame for frame, _ in found)})
    return DamagedError(
        image.path,
        f"{_said(damaged)}; {_pages_of(image, damaged, rows)}; nothing was written",
        image.offset_of_stored(damaged[0]),
        frames=damaged,
    )


def _said(damaged: Sequence[int]) -> str:
    if len(damaged) == 1:
        return f"frame {damaged[0]} does not match its digest"
    return f"{len(damaged)} frames do not match their digests: {_some(damaged, len(damaged))}"


def _pages_of(image: ArrowImage, damaged: Sequence[int], rows: Sequence[PageColumns]) -> str:
    """Return how many pages have damaged frames, and which the first are."""
    is_damaged = np.zeros(image.stored, np.bool_)
    is_damaged[list(damaged)] = True
    count = 0
    first: list[str] = []
    for piece in rows:
        hit = np.flatnonzero(is_damaged[piece.stored])
        count += len(hit)
        for at in hit[: _NAMED - len(first)].tolist():
            mapping = image.mappings[int(piece.mapping[at])]
            first.append(f"{piece.index[at]} of {mapping.owner!r} {mapping.name!r}")
    if count == 1:
        return f"1 page has it: {first[0]}"
    return f"{count} pages have {'it' if len(damaged) == 1 else 'them'}: {_some(first, count)}"


def _some(named: Sequence[object], count: int) -> str:
    """Return the first few, and how many more there are."""
    words = list(map(str, islice(named, _NAMED)))
    more = count - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")
