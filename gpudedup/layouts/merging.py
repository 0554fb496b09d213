"""Merge pages of equal bytes by the manager's rules, the same under all layouts."""

from __future__ import annotations

import numpy as np

from gpudedup.layouts.base import Layout, Surveyed


def merge(layout: Layout, cap: int) -> int:
    """Merge contents of two frames or more, up to ``cap`` pages a frame; return pages moved."""
    return sum(_merge_group(layout, group, cap) for group in _groups(layout))


def _groups(layout: Layout) -> list[list[Surveyed]]:
    """Return the pages of each content that lies in two frames or more; bytes decide."""
    pages_of: dict[int, list[Surveyed]] = {}
    for page in layout.survey():
        pages_of.setdefault(page.frame, []).append(page)
    contents: dict[int, list[list[int]]] = {}
    for frame in pages_of:
        data = layout.store.bytes(frame)
        alike = contents.setdefault(hash(data.tobytes()), [])
        for frames in alike:
            if np.array_equal(layout.store.bytes(frames[0]), data):
                frames.append(frame)
                break
        else:
            alike.append([frame])
    return [
        [page for frame in frames for page in pages_of[frame]]
        for alike in contents.values()
        for frames in alike
        if len(frames) > 1
    ]


def _merge_group(layout: Layout, group: list[Surveyed], cap: int) -> int:
    """Fill merged frames that have room first; then the first page's frame takes pages until full.

    A target that no page joined, full from the start or the last one, is marked if pages share it.
    """
    merged = [page for page in group if layout.is_merged(page.frame)]
    known, moved, at = bool(merged), 0, 0
    target: Surveyed | None = None
    for page in group:
        if layout.is_merged(page.frame) or (target is not None and page.frame == target.frame):
            continue
        if target is None or layout.sharers(target.frame) >= cap:
            if target is not None and not layout.is_merged(target.frame):
                layout.mark_merged(target)
                known = True
            while at < len(merged) and layout.sharers(merged[at].frame) >= cap:
                at += 1
            if at == len(merged):
                target = page
                continue
            target = merged[at]
        if not layout.is_merged(target.frame):
            layout.mark_merged(target)
            known = True
        layout.join(page, target)
        moved += 1
    left = target is not None and not layout.is_merged(target.frame)
    if target is not None and left and known and layout.sharers(target.frame) >= 2:
        layout.mark_merged(target)
    return moved
