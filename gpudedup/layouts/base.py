"""What a layout must be able to do, one page at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gpudedup.errors import InvariantError
from gpudedup.layouts.meter import Meter
from gpudedup.layouts.pools import FramePools
from gpudedup.layouts.tree import Tree
from gpudedup.schema import FILE_KINDS


@dataclass(eq=False, slots=True)
class Region:
    """A file or an anonymous region: a mapping of the study.

    :param number: from 1, in the order of their making
    :param name: path, ``[heap]``, ...
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param owner: process
    :param node: where its stores take frames
    :param pages: how many
    :param trees: its page cache, as its layout keeps it
    """

    number: int
    name: str
    kind: str
    owner: str
    node: int
    pages: int
    dropped: bool = False
    trees: list[Tree[Any]] = field(default_factory=list, repr=False)

    @property
    def is_file(self) -> bool:
        """Return whether its pages are a page cache."""
        return self.kind in FILE_KINDS


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A page that a merge may take: whose it is, and the frame that stands for it."""

    region: Region
    index: int
    frame: int


class Layout(ABC):
    """Finds pages, and those that share them, in structures of its own.

    :cvar name: of the layout
    """

    name: str

    def __init__(self, store: FramePools, meter: Meter) -> None:
        self.store = store
        self.meter = meter
        self.regions: dict[int, Region] = {}

    def open(self, region: Region) -> None:
        """Make the page cache of a new region."""
        self.regions[region.number] = region
        region.trees = [Tree(self.meter) for _ in range(self._trees())]

    def close(self, region: Region) -> None:
        """Let a region go that has no pages left.

        :raises InvariantError: if it has
        """
        for tree in region.trees:
            if len(tree):
                raise InvariantError(f"{region.name!r} is dropped with {len(tree)} entries left")
            tree.close()
        del self.regions[region.number]

    def _trees(self) -> int:
        return 1

    @abstractmethod
    def find(self, region: Region, index: int, node: int) -> int:
        """Return the frame that a reader on ``node`` is served from; ZERO: there is none."""

    @abstractmethod
    def home_frame(self, region: Region, index: int) -> int:
        """Return the frame that stands for a page among its replicas; ZERO: there is none."""

    @abstractmethod
    def own(self, region: Region, index: int, *, copy: bool = True) -> int:
        """Return a frame that only this page has, to be written; what others share, they keep.

        :param copy: a new frame gets the bytes of the old one
        """

    @abstractmethod
    def share(self, region: Region, other: Region) -> None:
        """Let a region without pages have those of another, in the same frames."""

    @abstractmethod
    def migrate(self, region: Region, indices: list[int], node: int) -> None:
        """Move the frames of pages to a node, for all that share them; replicas go."""

    @abstractmethod
    def replicate(self, region: Region, index: int, node: int) -> None:
        """Let readers on a node be served there."""

    @abstractmethod
    def collapse(self, region: Region, index: int) -> None:
        """Let the replicas of a page go."""

    @abstractmethod
    def survey(self) -> Iterator[Surveyed]:
        """Go through all pages, those of a frame after one another where that costs nothing."""

    @abstractmethod
    def sharers(self, frame: int) -> int:
        """Return how many pages share a frame, which stands for each of them."""

    @abstractmethod
    def is_merged(self, frame: int) -> bool:
        """Return whether a merge made the frame what it is; no frame but merged ones is joined."""

    @abstractmethod
    def mark_merged(self, page: Surveyed) -> None:
        """Make the frame of a page a merged one."""

    @abstractmethod
    def join(self, page: Surveyed, target: Surveyed) -> None:
        """Let a page go over to the merged frame of another, of equal bytes."""

    @abstractmethod
    def merged(self) -> tuple[int, int]:
        """Return how many merged frames there are, and pages that have one; uncounted."""

    @abstractmethod
    def check(self) -> tuple[list[int], int]:
        """Check all structures, uncounted.

        :return: every frame in use once, and the bytes of all but frames and regions' trees
        :raises InvariantError: naming what does not hold
        """

    @abstractmethod
    def _release(self, region: Region, index: int, entry: Any) -> None:
        """Let go of what an entry that was taken out of a region's tree led to."""

    def unmerge(self, region: Region, index: int) -> None:
        """Give a merged page a frame of its own again."""
        frame = self.home_frame(region, index)
        if frame and self.is_merged(frame):
            self.own(region, index)

    def discard(self, region: Region, index: int) -> None:
        """Make a page one that was never written."""
        for tree in region.trees:
            entry = tree.find(index)
            if entry is not None:
                tree.put(index, None)
                self._release(region, index, entry)

    def discard_from(self, region: Region, start: int) -> None:
        """Discard all pages of a region from ``start`` on, in one pass.

        A truncate that looks again until nothing is left would spin on a page that it cannot let
        go of, which is what Wilcox warned of. This one raises.

        :raises InvariantError: if something is left
        """
        for tree in region.trees:
            for index, entry in tree.scan(start):
                tree.put(index, None)
                self._release(region, index, entry)
            for index, _ in tree.entries(start):
                raise InvariantError(f"page {index} of {region.name!r} outlived a truncate")


def require(holds: bool, what: str) -> None:
    """Raise InvariantError, saying what does not hold, if it does not."""
    if not holds:
        raise InvariantError(what)
