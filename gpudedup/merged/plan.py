"""Which rows of a merged dump share a frame.

Rows with one known physical frame and equal bytes share already: they are a *unit*, which is never
split. Units of equal bytes share a frame as far as the policy lets them; the others keep one of
their own. A unit with rows of a kind that takes no part takes none. A unit of several domains
shares only with those of the same domains: otherwise a page of one would meet pages of a third.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.jit import compiled
from gpudedup.engines.base import PageClass, Partition
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.rows import UNKNOWN_NODE
from gpudedup.mm.policy import MergePolicy
from gpudedup.scanning.population import Population

LEFT_OUT, OWN = -2, -1
"""In the place of a group: the row cannot be read; its unit shares with no other."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who shares what.

    :param frame_of: (n,) int64, frame in the store of each row; -1: the row could not be read
    :param source: (frames,) int64, ascending within old stores and within the rest: the stored page
        of the population that each frame is copied from. Frames that stores have come first, in
        their order.
    :param changed: rows that have the physical frame of an earlier one, but other bytes: the page
        was written while it was captured
    """

    frame_of: Rows
    source: Rows
    changed: int


@compiled
def _share(  # type: ignore[no-untyped-def]
    unit, group, weight, most, unbounded, priority, open_frame, filled, frame_of, source
):  # fmt: skip
    """Give every row a frame, in the order of rows; return how many frames.

    :param unit: (n,) int64, lowest row of the row's unit
    :param group: (n,) int64, of each unit's lowest row: who may share; or OWN or LEFT_OUT
    :param weight: (n,) uint32, rows of the unit
    :param most: rows of a frame that several units share
    :param unbounded: the group to which ``most`` does not apply; OWN: none
    :param priority: (n,) int64, where to copy the row's bytes from: the lowest of a frame counts
    :param open_frame: (groups,) int64, all -1: scratch
    :param filled: (n,) int64, scratch
    :param frame_of: (n,) int64, written
    :param source: (n,) int64, written: ``priority`` of each frame
    """
    frames = 0
    for row in range(len(unit)):
        head = unit[row]
        if head < row:
            f = frame_of[head]
        elif group[row] == LEFT_OUT:
            f = np.int64(-1)
        else:
            g, f = group[row], np.int64(-1)
            if g >= 0:
                f = open_frame[g]
            if f < 0 or (g != unbounded and filled[f] + weight[row] > most):
                f = np.int64(frames)
                frames += 1
                filled[f], source[f] = 0, priority[row]
                if g >= 0:
                    open_frame[g] = f
            filled[f] += weight[row]
        frame_of[row] = f
        if f >= 0:
            source[f] = min(source[f], priority[row])
    return frames


def plan(population: Population, found: Partition, policy: MergePolicy) -> Plan:
    """Decide who shares what.

    :param found: the partition of the population's stored pages, all of them read
    """
    n, stored = population.pages, population.stored_of()
    is_old = np.array([isinstance(image, MergedImage) for image in population.images])
    rows = np.arange(n)
    if stored is None:
        stored = rows
    content = found.representative[stored]
    unit, changed = _units(population, content, found.classes[content] == PageClass.UNREADABLE)
    group, unbounded = _groups(population, found, policy, content, unit)
    total = int(population.first_stored[-1])
    priority = stored
    if is_old.any():
        old_row = np.repeat(is_old, np.diff(population.first_row))
        priority = np.where(old_row, stored, stored + total)
    frame_of, source = np.empty(n, np.int64), np.empty(n, np.int64)
    groups = int(group.max(initial=-1)) + 1
    frames = _share(
        unit, group, np.bincount(unit, minlength=n).astype(np.uint32), policy.max_page_sharing,
        unbounded, priority, np.full(groups, -1, np.int64), np.empty(n, np.int64), frame_of, source,
    )  # fmt: skip
    source = source[:frames]
    if is_old.any():
        order = np.argsort(source, kind="stable")
        rank = np.empty(frames + 1, np.int64)
        rank[order], rank[-1] = np.arange(frames), -1
        frame_of, source = rank[frame_of], source[order] % max(1, total)
    return Plan(frame_of, source.copy(), changed)


def _units(
    population: Population, content: Rows, unread: npt.NDArray[np.bool_]
) -> tuple[Rows, int]:
    """Return the lowest row of each row's unit, and how many rows changed meanwhile."""
    rows = np.arange(population.pages)
    alias_of = population.alias_of()
    if alias_of is None:
        return rows, 0
    same = content[alias_of] == content
    changed = int(np.count_nonzero(~same & ~unread & ~unread[alias_of]))
    return np.where(same, alias_of, rows), changed


def _groups(
    population: Population, found: Partition, policy: MergePolicy, content: Rows, unit: Rows
) -> tuple[Rows, int]:
    """Return the group of each unit's lowest row, and which group has no bound (OWN: none)."""
    mappings = population.mappings
    codes = population.mapping_codes()
    group, unbounded = content.copy(), OWN
    count = len(found.classes)
    key = np.zeros(len(content), np.int64)
    if policy.within_domain:
        words: dict[str, int] = {}
        domain = [words.setdefault(mapping.domain, len(words)) for mapping in mappings]
        key = _of_units(np.array(domain, np.int64)[codes], unit)
    if not policy.merge_across_nodes:
        node = _nodes(population)
        key = key * (int(node.max(initial=0)) + 1) + node[unit]
    if key.any():
        _, key = np.unique(key, return_inverse=True)
        _, group = np.unique(content * (int(key.max()) + 1) + key, return_inverse=True)
        count = len(group)
    if policy.use_zero_pages:
        unbounded = count
        group[found.classes[content] == PageClass.ZERO] = unbounded
    takes_part = np.array([mapping.kind in policy.kinds for mapping in mappings], np.bool_)
    group[unit[~takes_part[codes]]] = OWN
    group[found.classes[content] == PageClass.UNREADABLE] = LEFT_OUT
    return group, unbounded


def _of_units(code: Rows, unit: Rows) -> Rows:
    """Return for each unit's lowest row its code, or one that stands for the set of its rows'."""
    mixed = np.unique(unit[code != code[unit]])
    if not len(mixed):
        return code
    rows = np.flatnonzero(np.isin(unit, mixed))
    kinds = int(code.max()) + 1
    which, word = np.divmod(np.unique(unit[rows] * kinds + code[rows]), kinds)
    begin = np.searchsorted(which, mixed).tolist()
    sets: dict[bytes, int] = {}
    result = code.copy()
    for row, start, stop in zip(mixed.tolist(), begin, [*begin[1:], len(word)], strict=True):
        result[row] = sets.setdefault(word[start:stop].tobytes(), kinds + len(sets))
    return result


def _nodes(population: Population) -> Rows:
    """Return the node of each row, counted from 1; 0: unknown."""
    node = np.zeros(population.pages, np.int64)
    for at, image in enumerate(population.images):
        for piece in image.rows:
            if piece.node is not None:
                row = int(population.first_row[at]) + piece.row
                node[row : row + len(piece)] = piece.node - UNKNOWN_NODE
    return node
