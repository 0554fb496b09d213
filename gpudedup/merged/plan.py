"""Plan which rows of a merged dump share a frame.

Rows with one known physical frame and equal bytes share already: they are a *unit*, which is never
split. Units of equal bytes share a frame as far as the policy allows. A unit with a row of a kind
that the policy excludes shares with no other. A unit of several domains shares only with units of
exactly these domains: otherwise pages of a third domain would share its frame.
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
"""In place of a group: LEFT_OUT: the row cannot be read; OWN: its unit shares with no other."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Frames of the merged dump.

    :param frame_of: (n,) int64, frame of each row; -1: the row could not be read
    :param source: (frames,) int64, stored page of the population that each frame is copied from:
        first those in merged dumps, then the rest, both ascending
    :param changed: rows of an earlier row's physical frame but other bytes: written in the capture
    """

    frame_of: Rows
    source: Rows
    changed: int


@compiled
def _share(  # type: ignore[no-untyped-def]
    unit, group, weight, most, unbounded, priority, open_frame, filled, frame_of, source
):  # fmt: skip
    """Assign a frame to every row, in row order; return the number of frames.

    :param unit: (n,) int64, lowest row of the row's unit
    :param group: (n,) int64, group within which the unit of each lowest row shares; OWN; LEFT_OUT
    :param weight: (n,) uint32, rows of the unit
    :param most: rows at most of a frame that several units share
    :param unbounded: group to which ``most`` does not apply; OWN: none
    :param priority: (n,) int64, source of the row's bytes; a frame takes the lowest of its rows
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
    """Return the plan of a merge; ``found``: partition of the stored pages, without aliases."""
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
    """Return the lowest row of each row's unit, and how many rows changed in the capture."""
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
    """Return the group of each unit's lowest row, and the group without a bound (OWN: none)."""
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
    """Return for each unit's lowest row its code or, if rows differ, one for their set of codes."""
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
    """Return 1 + the node of each row; 0: unknown."""
    node = np.zeros(population.pages, np.int64)
    for at, image in enumerate(population.images):
        for piece in image.rows:
            if piece.node is not None:
                row = int(population.first_row[at]) + piece.row
                node[row : row + len(piece)] = piece.node - UNKNOWN_NODE
    return node
