"""The interface of layouts, one page at a time."""

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

    :param number: number from 1, in the order of creation
    :param name: path, ``[heap]``, ...
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param owner: process
    :param node: NUMA node whose frames its stores take
    :param pages: length in pages
    :param trees: page cache, in the form of the layout
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
        """Return whether the pages are a page cache."""
        return self.kind in FILE_KINDS


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A page that a merge may take, and its :meth:`Layout.home_frame`."""

    region: Region
    index: int
    frame: int


class Layout(ABC):
    """One design of page caches and of sharing: structures that find pages and their sharers."""

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
        """Remove a region; raise InvariantError if it has pages left."""
        for tree in region.trees:
            if len(tree):
                raise InvariantError(f"{region.name!r} is dropped with {len(tree)} entries left")
            tree.close()
        del self.regions[region.number]

    def _trees(self) -> int:
        return 1

    @abstractmethod
    def find(self, region: Region, index: int, node: int) -> int:
        """Return the frame that serves a reader on ``node``; ZERO: the page has none."""

    @abstractmethod
    def home_frame(self, region: Region, index: int) -> int:
        """Return the frame that stands for a page and its replicas; ZERO: the page has none."""

    @abstractmethod
    def own(self, region: Region, index: int, *, copy: bool = True) -> int:
        """Break COW: return a frame of this page alone, with a shared frame's bytes if ``copy``."""

    @abstractmethod
    def share(self, region: Region, other: Region) -> None:
        """Make ``other``, which has no pages, share all frames of ``region``."""

    @abstractmethod
    def migrate(self, region: Region, indices: list[int], node: int) -> None:
        """Migrate the frames of pages to a node, for all sharers; collapse replicas."""

    @abstractmethod
    def replicate(self, region: Region, index: int, node: int) -> None:
        """Replicate a page on a node, for readers there."""

    @abstractmethod
    def collapse(self, region: Region, index: int) -> None:
        """Free the replicas of a page."""

    @abstractmethod
    def survey(self) -> Iterator[Surveyed]:
        """Yield all pages, those of one frame in a row where that costs nothing."""

    @abstractmethod
    def sharers(self, frame: int) -> int:
        """Return how many pages share a frame, their :meth:`home_frame`."""

    @abstractmethod
    def is_merged(self, frame: int) -> bool:
        """Return whether a merge made the frame; :meth:`join` takes only such frames."""

    @abstractmethod
    def mark_merged(self, page: Surveyed) -> None:
        """Mark the frame of a page as merged."""

    @abstractmethod
    def join(self, page: Surveyed, target: Surveyed) -> None:
        """Move a page to the merged frame of ``target``, which has equal bytes."""

    @abstractmethod
    def merged(self) -> tuple[int, int]:
        """Return the numbers of merged frames and of pages that share them, uncounted."""

    @abstractmethod
    def check(self) -> tuple[list[int], int]:
        """Check all structures, uncounted.

        :return: every frame in use once, and metadata bytes besides frames and regions' trees
        :raises InvariantError: naming what does not hold
        """

    @abstractmethod
    def _release(self, region: Region, index: int, entry: Any) -> None:
        """Drop the reference of an entry that was taken out of a region's tree."""

    def unmerge(self, region: Region, index: int) -> None:
        """Give a merged page a frame of its own again."""
        frame = self.home_frame(region, index)
        if frame and self.is_merged(frame):
            self.own(region, index)

    def discard(self, region: Region, index: int) -> None:
        """Drop a page, which reads as zero again."""
        for tree in region.trees:
            entry = tree.find(index)
            if entry is not None:
                tree.put(index, None)
                self._release(region, index, entry)

    def discard_from(self, region: Region, start: int) -> None:
        """Discard all pages of a region from ``start`` on, in one pass.

        :raises InvariantError: if a page is left; looking up again would spin, as Wilcox warned
        """
        for tree in region.trees:
            for index, entry in tree.scan(start):
                tree.put(index, None)
                self._release(region, index, entry)
            for index, _ in tree.entries(start):
                raise InvariantError(f"page {index} of {region.name!r} outlived a truncate")


def require(holds: bool, what: str) -> None:
    """Raise InvariantError with ``what`` unless ``holds``."""
    if not holds:
        raise InvariantError(what)
