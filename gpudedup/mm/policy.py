"""The policy of a merge, and its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from gpudedup.arguments import as_number
from gpudedup.errors import UsageError
from gpudedup.mm.counters import Counters
from gpudedup.schema import KINDS


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """Pages that may share a frame. Names and defaults are KSM's, where KSM has them.

    :param kinds: kinds of mappings that take part, of :data:`gpudedup.schema.KINDS`. By default
        KSM's: anonymous memory, and that of guests, which is anonymous on their host. With
        ``file`` too, file pages merge with one another and with anonymous ones.
    :param within_domain: a merge lets no pages of different security domains share a frame: nobody
        joins a frame that several domains share already
    :param max_page_sharing: aliases of a merged frame, at least 2; more equal pages get more
        frames. Forks may exceed it.
    :param merge_across_nodes: pages whose frames lie on different nodes share a frame
    :param use_zero_pages: pages of zeros need no frame
    :raises UsageError: if an argument is out of range
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
        as_number(self.max_page_sharing, "max_page_sharing")
        if not 2 <= self.max_page_sharing < 1 << 31:
            raise UsageError(f"max_page_sharing {self.max_page_sharing}: must be at least 2")


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    :param pages: pages surveyed, with those skipped because they are pinned or on a device
    :param frames: frames digested, each once
    :param merged: pages that moved to the frame of an equal page
    :param zeroed: pages whose frame was dropped because they are zero
    :param frames_freed: frames freed
    :param written: pages skipped because they were written or moved since the survey
    :param pinned: pages skipped because their frame is pinned
    :param on_device: pages skipped because their frame lies on a device
    :param unequal: pages skipped because only their digest equals that of others
    :param written_back: dirty pages of files written back first
    :param counters: the manager's counters after the merge
    :param seconds: wall time per stage; only ``compare_s``, ``apply_s`` and parts of ``survey_s``,
        ``plan_s`` and ``mark_s`` hold the lock
    :param unwritten: pages skipped because their file could not be written back
    :param errors: of each such file the name, and why
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
    unwritten: int = 0
    errors: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        return {**asdict(self), "counters": self.counters.as_dict()}
