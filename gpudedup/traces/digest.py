"""Digest what all mappings hold: equal for equal contents, however frames are shared.

A mapping's digest is the BLAKE2b of its length and of index and XXH3-128 of each page; a page of
zeros counts as absent. The BLAKE2b of these digests is that of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from gpudedup.compiled.digests import digest_pages
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

BATCH_BYTES = 16 << 20
"""Bytes of pages read at a time."""

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Digest:
    """Digests of what a manager's mappings hold.

    :param whole: digest of all mappings, hexadecimal
    :param mappings: digest of each mapping; None: it was dropped
    """

    whole: str
    mappings: tuple[bytes | None, ...]

    def differs_at(self, other: Digest) -> int | None:
        """Return the place of the first mapping whose digests differ; None: all are equal."""
        pairs = zip(self.mappings, other.mappings, strict=True)
        return next((at for at, (mine, its) in enumerate(pairs) if mine != its), None)


def digest_of(manager: MemoryManager, mappings: Sequence[Mapping]) -> Digest:
    """Digest mappings of a manager, dropped ones too; as any load, this ends exclusive access."""
    aliases = manager.aliases()
    number = aliases.column("mapping").to_numpy()
    order = np.argsort(number, kind="stable")
    index = aliases.column("index").to_numpy()[order].astype(np.int64)
    number = number[order]
    found: list[bytes | None] = []
    whole = blake2b(digest_size=DIGEST_BYTES)
    for mapping in mappings:
        own = None
        if not mapping.dropped:
            first, last = np.searchsorted(number, [mapping.number, mapping.number + 1])
            own = _digest(manager, mapping, np.sort(index[first:last]))
        found.append(own)
        whole.update(b"-" if own is None else b"+" + own)
    return Digest(whole.hexdigest(), tuple(found))


def _digest(manager: MemoryManager, mapping: Mapping, index: np.ndarray) -> bytes:
    state = blake2b(mapping.pages.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    step = max(1, BATCH_BYTES // manager.page_size)
    for start in range(0, len(index), step):
        part = index[start : start + step]
        pages = manager.read(mapping, part)
        there = pages.view(np.uint64).any(axis=1)
        row = np.empty((int(np.count_nonzero(there)), 3), "<u8")
        row[:, 0], row[:, 1:] = part[there], digest_pages(pages)[there]
        state.update(row.tobytes())
    return state.digest()
