"""What KSM's counters read at rest, computed from contents and frames alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

COUNTERS = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
)


def closed_form(
    pages: Iterable[tuple[Hashable, Hashable, bool]], cap: int, use_zero_pages: bool = False
) -> dict[str, int]:
    """Return the counters for pages, one per mapping: (content with its key, frame, is zero).

    KSM counts mappings: a content in one frame only is not merged; one of its mappings counts as
    unshared, the rest as volatile.
    """
    frames: dict[Hashable, list[Hashable]] = defaultdict(list)
    counters = dict.fromkeys(COUNTERS, 0)
    for content, frame, is_zero in pages:
        if is_zero and use_zero_pages:
            counters["ksm_zero_pages"] += 1
        else:
            frames[content].append(frame)
    for of_content in frames.values():
        n = len(of_content)
        if len(set(of_content)) == 1:
            counters["pages_unshared"] += 1
            counters["pages_volatile"] += n - 1
        else:
            nodes, left = n // cap + (n % cap >= 2), int(n % cap == 1)
            counters["pages_shared"] += nodes
            counters["pages_sharing"] += n - left - nodes
            counters["pages_unshared"] += left
            counters["stable_node_chains"] += nodes >= 2
            counters["stable_node_dups"] += nodes if nodes >= 2 else 0
    return counters
