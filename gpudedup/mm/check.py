"""Check every invariant of the bookkeeping from scratch.

Counts are taken from pages and frames alone, then compared with those that the passes keep. A check
takes time and memory in proportion to all pages and frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpudedup.errors import InvariantError
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.memory.mirror import Mirror
from gpudedup.mm.passes.check import RULES, check_entries, check_frames, check_pages
from gpudedup.mm.state.arrays import LEAF_PAGES, Count, Frame

_RECOUNTED = (
    Count.PAGES, Count.FRAMES, Count.MERGED_FRAMES, Count.MERGED_PAGES, Count.ZERO_PAGES,
    Count.UNSHARED_PAGES, Count.DIRTY_PAGES, Count.CHAINS, Count.CHAIN_FRAMES, Count.REPLICAS,
    Count.MIRRORED_PAGES, Count.EXCLUSIVE_FRAMES, Count.HIDDEN_PAGES,
)  # fmt: skip


def check(
    memory: Memory,
    mappings: dict[int, Mapping],
    devices: Sequence[Mirror],
    *,
    contents: bool,
) -> None:
    """Check a manager; see :meth:`gpudedup.mm.manager.MemoryManager.check`."""
    s = memory.state
    if s.counts[Count.GONE]:
        raise InvariantError("entries of devices were not invalidated")
    if s.counts[Count.COPIES]:
        raise InvariantError(f"{s.counts[Count.COPIES]} frames were not copied")
    seen = np.zeros(len(s.protection), np.uint32)
    counted = np.zeros(len(Count), np.int64)
    populated = np.zeros(len(s.populated), np.int64)
    rule, page = check_pages(s, seen, counted, populated)
    if rule:
        raise InvariantError(f"page {page}: {RULES[rule]}")
    per_content = np.zeros(len(s.chain), np.uint32)
    holders = np.zeros(1, np.int64)
    rule, frame = check_frames(s, seen, np.zeros_like(seen), per_content, counted, holders)
    if rule:
        raise InvariantError(f"frame {frame}: {RULES[rule]}")
    for which in _RECOUNTED:
        if counted[which] != s.counts[which]:
            raise InvariantError(f"{which.name}: {s.counts[which]} kept, {counted[which]} counted")
    if holders[0] != s.counts[Count.PINS]:
        raise InvariantError(f"PINS: {s.counts[Count.PINS]} kept, {holders[0]} counted")
    used = per_content > 0
    if (per_content[used] != s.chain[used]).any():
        raise InvariantError(RULES[9])
    _check_mappings(memory, mappings, populated)
    for device in devices:
        if not device.lost:
            _check_device(memory, mappings, device)
    if contents:
        _check_contents(memory, [device.node for device in devices if device.lost])


def _check_mappings(
    memory: Memory,
    mappings: dict[int, Mapping],
    populated: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> None:
    s = memory.state
    listed = 0
    for number, mapping in mappings.items():
        if populated[number] != s.populated[number]:
            raise InvariantError(f"mapping {mapping.name!r}: pages are not as many as its count")
        places = mapping.places()
        leaves = mapping.directory[places]
        listed += len(leaves)
        if (s.leaf_mapping[leaves] != number).any() or (s.leaf_place[leaves] != places).any():
            raise InvariantError(f"mapping {mapping.name!r}: {RULES[15]}")
        if len(places) and places[-1] * LEAF_PAGES >= mapping.pages:
            raise InvariantError(f"mapping {mapping.name!r}: leaves beyond its end")
    if listed != np.count_nonzero(s.leaf_mapping):
        raise InvariantError("a leaf belongs to a mapping that is not there")


def _check_device(memory: Memory, mappings: dict[int, Mapping], device: Mirror) -> None:
    """Check a device's page tables, read back from the device, against the state."""
    for mapping in mappings.values():
        index, entries = device.table.present(mapping)
        outside = index >= mapping.pages
        if outside.any():
            raise InvariantError(f"mapping {mapping.name!r}: an entry of {device.name} beyond it")
        pages, _ = memory.locate(mapping, index)
        wrong = check_entries(
            memory.state, pages, device.number, np.uint64(device.table.zero_page), entries
        )
        if wrong >= 0:
            raise InvariantError(
                f"mapping {mapping.name!r}: {device.name} has a stale entry for page {index[wrong]}"
            )


def _check_contents(memory: Memory, lost: Sequence[int]) -> None:
    """Check that replicas equal their originals, except in ``lost`` pools, and frame 0 is zero."""
    s = memory.state
    replicas = np.flatnonzero(s.protection & Frame.REPLICA.value).astype(np.uint32)
    originals = s.first[replicas]
    same = s.protection[originals] & Frame.REPLICATED.value != 0
    for frames in (replicas, originals):
        same &= ~np.isin(memory.node_of(frames), lost)
    for frames in np.array_split(
        np.stack([replicas[same], originals[same]]), 1 + len(replicas) // 4096, axis=1
    ):
        pages = np.empty((2, frames.shape[1], memory.page_size), np.uint8)
        memory.read(np.ascontiguousarray(frames[0]), pages[0])
        memory.read(np.ascontiguousarray(frames[1]), pages[1])
        if not np.array_equal(pages[0], pages[1]):
            raise InvariantError("a replica differs from its original")
    zero = np.empty((1, memory.page_size), np.uint8)
    memory.read(np.zeros(1, np.uint32), zero)
    if zero.any():
        raise InvariantError("the page of zeros is not zero")
