"""Layout `inode`: one tree per node; shared pages belong to a hidden mapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gpudedup.errors import InvariantError
from gpudedup.layouts.base import Layout, Region, Surveyed, require
from gpudedup.layouts.meter import HIDDEN_BYTES, TREE_BYTES, Meter
from gpudedup.layouts.pools import ZERO, FramePools
from gpudedup.layouts.tree import Tree

_Trees = list[Tree[int]]


@dataclass(eq=False, slots=True)
class _Hidden:
    """The record of a page of the hidden mapping; its frames are in the hidden trees."""

    references: int
    merged: bool = False


class InodeLayout(Layout):
    """Wilcox's NUMA at the inode, with his reflinked files for what is shared.

    - (inode, node) leads to a tree of ordinary pages, each on that node. A replica is such a page,
      equal in rank: that of the inode's home node, or of the lowest node, stands for all.
    - A load probes the reader's tree, then the home tree, then those of the other nodes. A store
      and a punch probe every tree: one look-up per node. A store puts a new page into the home
      tree; of several pages it keeps one.
    - Pages that inodes share, by fork, reflink or merge, belong to one hidden inode, with a tree
      per node too. The sharers' home trees hold a page's index there, a tagged number: a load needs
      at least two look-ups. Writing the last sharer takes the page back from the hidden inode.
    - Since sharers hold the index and not the frame, migration and replication of a shared page
      change the hidden trees only, for all sharers: none need be found.
    - Migration leaves a page in the tree of the target node only; a replica there becomes the page.
    """

    name = "inode"

    def __init__(self, store: FramePools, meter: Meter) -> None:
        super().__init__(store, meter)
        self._hidden: dict[int, _Hidden] = {}
        self._indices_free: list[int] = []
        # The field `index` of the frame record, which every page of an inode has.
        self._index_of: dict[int, int] = {}
        self._trees_hidden: _Trees = [Tree(meter) for _ in range(store.nodes)]
        meter.hold(-TREE_BYTES * store.nodes)

    def _trees(self) -> int:
        return self.store.nodes

    def _order(self, *first: int) -> Iterable[int]:
        return dict.fromkeys((*first, *range(self.store.nodes)))

    def _nearest(self, trees: _Trees, index: int, order: Iterable[int]) -> int | None:
        for node in order:
            entry = trees[node].find(index)
            if entry is not None:
                return entry
        return None

    def _all(self, trees: _Trees, index: int, home: int = 0) -> list[tuple[int, int]]:
        """Probe every tree; return node and entry of those found, that of ``home`` first."""
        entries = ((node, trees[node].find(index)) for node in self._order(home))
        return [(node, entry) for node, entry in entries if entry is not None]

    def _hidden_frame(self, hidden: int, node: int = 0) -> int:
        """Return the frame of a hidden page that serves ``node``; raise InvariantError if none."""
        frame = self._nearest(self._trees_hidden, hidden, self._order(node))
        if frame is None:
            raise InvariantError(f"hidden page {hidden} is in no tree")
        return frame

    def find(self, region: Region, index: int, node: int) -> int:
        """Probe the reader's tree first; behind a reference, the hidden inode's likewise."""
        entry = self._nearest(region.trees, index, self._order(node, region.node))
        if entry is None:
            return ZERO
        return entry if entry > 0 else self._hidden_frame(-entry, node)

    def home_frame(self, region: Region, index: int) -> int:
        """Probe the home tree first."""
        entry = self._nearest(region.trees, index, self._order(region.node))
        if entry is None:
            return ZERO
        return entry if entry > 0 else self._hidden_frame(-entry)

    def _keep_first(self, trees: _Trees, index: int, found: list[tuple[int, int]]) -> int:
        """Free a page in all trees but the first found; return the frame that is kept."""
        for node, frame in found[1:]:
            trees[node].put(index, None)
            self._free(frame)
        return found[0][1]

    def _free(self, frame: int) -> None:
        self._index_of.pop(frame, None)
        self.store.give_back(frame)

    def own(self, region: Region, index: int, *, copy: bool = True) -> int:
        """Probe every tree. Keep one page, or take back a hidden one without other references."""
        found = self._all(region.trees, index, region.node)
        if not found:
            new = self.store.take_zeroed(region.node)
        elif found[0][1] > 0:
            return self._keep_first(region.trees, index, found)
        else:
            hidden = -found[0][1]
            if self._hidden[hidden].references == 1:
                return self._take_back(region, index, hidden)
            if copy:
                new = self.store.take_copy(self._hidden_frame(hidden, region.node), region.node)
            else:
                new = self.store.take(region.node)
            self._hidden[hidden].references -= 1
        region.trees[region.node].put(index, new)
        return new

    def _take_back(self, region: Region, index: int, hidden: int) -> int:
        found = self._all(self._trees_hidden, hidden, region.node)
        frame = self._keep_first(self._trees_hidden, hidden, found)
        self._trees_hidden[found[0][0]].put(hidden, None)
        self._forget(hidden)
        del self._index_of[frame]
        region.trees[region.node].put(index, None)
        region.trees[found[0][0]].put(index, frame)
        return frame

    def _forget(self, hidden: int) -> None:
        del self._hidden[hidden]
        self._indices_free.append(hidden)
        self.meter.hold(-HIDDEN_BYTES)

    def _hide(self, region: Region, index: int, found: list[tuple[int, int]]) -> int:
        """Move a page, found in these trees, to the hidden inode; return its index there."""
        if found[0][1] < 0:
            return -found[0][1]
        hidden = self._indices_free.pop() if self._indices_free else len(self._hidden) + 1
        self._hidden[hidden] = _Hidden(1)
        self.meter.hold(HIDDEN_BYTES)
        for node, frame in found:
            if node != region.node:
                region.trees[node].put(index, None)
            self._trees_hidden[node].put(hidden, frame)
            self._index_of[frame] = hidden
        region.trees[region.node].put(index, -hidden)
        return hidden

    def _release(self, region: Region, index: int, entry: int) -> None:
        if entry > 0:
            self._free(entry)
            return
        self._hidden[-entry].references -= 1
        if not self._hidden[-entry].references:
            for node, frame in self._all(self._trees_hidden, -entry):
                self._trees_hidden[node].put(-entry, None)
                self._free(frame)
            self._forget(-entry)

    def _pages(self, region: Region) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Scan all trees; yield each index once, with its nodes and entries."""
        elsewhere: dict[int, list[tuple[int, int]]] = {}
        for node in self._order(region.node):
            if node != region.node:
                for index, entry in region.trees[node].scan():
                    elsewhere.setdefault(index, []).append((node, entry))
        for index, entry in region.trees[region.node].scan():
            yield index, [(region.node, entry), *elsewhere.pop(index, [])]
        yield from elsewhere.items()

    def share(self, region: Region, other: Region) -> None:
        """Hide every page, and make both regions refer to it."""
        for index, found in self._pages(region):
            hidden = self._hide(region, index, found)
            self._hidden[hidden].references += 1
            other.trees[other.node].put(index, -hidden)

    def migrate(self, region: Region, indices: list[int], node: int) -> None:
        """Leave each page in the tree of ``node`` only; a shared page, in the hidden tree."""
        for index in indices:
            found = self._all(region.trees, index, region.node)
            if found and found[0][1] > 0:
                self._leave_on(region.trees, index, found, node)
            elif found:
                hidden = -found[0][1]
                found = self._all(self._trees_hidden, hidden)
                self._index_of[self._leave_on(self._trees_hidden, hidden, found, node)] = hidden

    def _leave_on(self, trees: _Trees, index: int, found: list[tuple[int, int]], node: int) -> int:
        kept = dict(found).get(node)
        if kept is None:
            kept = self.store.take_copy(found[0][1], node)
            trees[node].put(index, kept)
        for other, frame in found:
            if other != node:
                trees[other].put(index, None)
                self._free(frame)
        return kept

    def replicate(self, region: Region, index: int, node: int) -> None:
        """Put a copy into the tree of ``node``; of a shared page, into the hidden tree."""
        trees = region.trees
        entry = self._nearest(trees, index, self._order(node, region.node))
        if entry is not None and entry < 0:
            trees, index = self._trees_hidden, -entry
            entry = self._hidden_frame(index, node)
        if entry is not None and self.store.node_of(entry) != node:
            new = self.store.take_copy(entry, node)
            trees[node].put(index, new)
            if trees is self._trees_hidden:
                self._index_of[new] = index

    def collapse(self, region: Region, index: int) -> None:
        """Free the page in all trees but one; a shared page, in the hidden trees."""
        trees = region.trees
        found = self._all(trees, index, region.node)
        if found and found[0][1] < 0:
            trees, index = self._trees_hidden, -found[0][1]
            found = self._all(trees, index)
        if found:
            self._keep_first(trees, index, found)

    def survey(self) -> Iterator[Surveyed]:
        """Scan the trees of all regions, and look up the frames behind references."""
        for region in self.regions.values():
            for index, found in self._pages(region):
                entry = found[0][1]
                frame = entry if entry > 0 else self._hidden_frame(-entry)
                yield Surveyed(region, index, frame)

    def sharers(self, frame: int) -> int:
        """Read the count of the hidden page that the frame belongs to."""
        hidden = self._index_of.get(frame)
        return 1 if hidden is None else self._hidden[hidden].references

    def is_merged(self, frame: int) -> bool:
        """Read the flag of the hidden page that the frame belongs to."""
        hidden = self._index_of.get(frame)
        return hidden is not None and self._hidden[hidden].merged

    def mark_merged(self, page: Surveyed) -> None:
        """Hide the page, and set its flag."""
        found = self._all(page.region.trees, page.index, page.region.node)
        self._hidden[self._hide(page.region, page.index, found)].merged = True

    def join(self, page: Surveyed, target: Surveyed) -> None:
        """Replace the page's entries by a reference to the target's hidden page."""
        hidden = self._index_of[target.frame]
        found = self._all(page.region.trees, page.index, page.region.node)
        for node, _ in found:
            page.region.trees[node].put(page.index, None)
        page.region.trees[page.region.node].put(page.index, -hidden)
        self._hidden[hidden].references += 1
        for _, entry in found:
            self._release(page.region, page.index, entry)

    def merged(self) -> tuple[int, int]:
        """Scan the hidden pages."""
        found = [page.references for page in self._hidden.values() if page.merged]
        return len(found), sum(found)

    def check(self) -> tuple[list[int], int]:
        """Compare trees with one another, and references with the hidden pages."""
        frames: list[int] = []
        references: dict[int, int] = {}
        for region in self.regions.values():
            for index, pages in self._entries(region.trees).items():
                if len(pages) == 1 and pages[0][1] < 0:
                    where = f"page {index} of {region.name!r}"
                    require(pages[0][0] == region.node, f"{where}: a reference, not at home")
                    references[-pages[0][1]] = references.get(-pages[0][1], 0) + 1
                else:
                    frames += self._ordinary(pages)
        require(
            references == {index: page.references for index, page in self._hidden.items()},
            "hidden pages count other references than there are",
        )
        of_hidden = self._entries(self._trees_hidden)
        require(of_hidden.keys() == references.keys(), "hidden pages without references, or frames")
        owners: dict[int, int] = {}
        for hidden, pages in of_hidden.items():
            owners |= dict.fromkeys(self._ordinary(pages), hidden)
        require(owners == self._index_of, "frames know another hidden page than theirs")
        leaves = sum(tree.bytes - TREE_BYTES for tree in self._trees_hidden)
        return [*frames, *owners], leaves + HIDDEN_BYTES * len(self._hidden)

    def _entries(self, trees: _Trees) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        for node, tree in enumerate(trees):
            for index, entry in tree.entries():
                found.setdefault(index, []).append((node, entry))
        return found

    def _ordinary(self, pages: list[tuple[int, int]]) -> list[int]:
        """Check the pages of one index; return their frames."""
        first = self.store.bytes(pages[0][1])
        for node, frame in pages:
            require(frame > 0, "a reference beside pages")
            require(self.store.node_of(frame) == node, f"frame {frame} is in a wrong node's tree")
            require(np.array_equal(self.store.bytes(frame), first), f"frame {frame} is no copy")
        return [frame for _, frame in pages]
