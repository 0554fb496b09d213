"""Which pages a merge may take, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from gpudedup.errors import UsageError
from gpudedup.mm.counters import Counters
from gpudedup.schema import KINDS


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """Which pages may share a frame. The names and defaults are KSM's where it has them.

    :param kinds: of mappings that take part, of :data:`gpudedup.schema.KINDS`. By default what KSM
        may take: anonymous memory, and that of guests, which is anonymous on their host. With
        ``file`` too, file pages merge with one another and with anonymous ones.
    :param within_domain: pages of different security domains never share a frame
    :param max_page_sharing: aliases of a merged frame, at least 2; more equal pages get more
        frames. A frame that forks share may have more of its own.
    :param merge_across_nodes: pages of different nodes share a frame
    :param use_zero_pages: pages of zeros need no frame
    :raises UsageError: if one of them lies outside its range
    """

    kinds: tuple[str, ...] = ("anon", "guest")
    within_domain: bool = False
    max_page_sharing: int = 256
    merge_across_nodes: bool = True
    use_zero_pages: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - set(KINDS)
        if unknown:
            raise UsageError(f"kind {min(unknown)!r}: not one of {', '.join(KINDS)}")
        if not 2 <= self.max_page_sharing < 1 << 31:
            raise UsageError(f"max_page_sharing {self.max_page_sharing}: must be at least 2")


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    :param pages: that were looked at
    :param frames: different ones among them, each digested once
    :param merged: pages that moved to the frame of an equal one
    :param zeroed: pages that need no frame any more, for they are zero
    :param frames_freed: that nobody needs any more
    :param written: pages left alone, because they were written or moved since they were looked at
    :param pinned: pages left alone, because somebody had pinned their frame
    :param on_device: pages left alone, because their frame lies on a device
    :param unequal: pages left alone, because only their digest was that of others
    :param written_back: dirty pages of files written back first
    :param counters: the manager's, when it was done
    :param seconds: wall time per stage; only ``compare_s``, ``apply_s`` and parts of ``survey_s``
        and ``mark_s`` hold the lock
    """

    pages: int
    frames: int
    merged: int
    zeroed: int
    frames_freed: int
    written: int
    pinned: int
    on_device: int
    unequal: int
    written_back: int
    counters: Counters
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        return {**asdict(self), "counters": self.counters.as_dict()}
