"""Layout `frame`: an entry leads to the frame, and the frame lists all its aliases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpudedup.errors import InvariantError
from gpudedup.layouts.base import Layout, Region, Surveyed, require
from gpudedup.layouts.meter import ALIAS_BYTES, Meter
from gpudedup.layouts.pools import ZERO, FramePools


@dataclass(eq=False, slots=True)
class _Alias:
    """A page's alias of a protected frame, linked into the frame's list."""

    region: Region
    index: int
    before: _Alias | None = None
    after: _Alias | None = None


@dataclass(eq=False, slots=True)
class _Page:
    """The record of a frame that is no replica.

    ``region`` and ``index`` name the only page of an unprotected frame, which has no list; a kernel
    keeps either in the one pointer ``mapping``.
    """

    region: Region
    index: int
    aliases: int = 1
    first: _Alias | None = None
    last: _Alias | None = None
    merged: bool = False


class FrameLayout(Layout):
    """Glisse, 2020: a protected frame gives up ``mapping`` for the list of its aliases.

    - An entry is the number of the frame, shared or not: a load needs one look-up.
    - A frame of one page is unprotected and has no alias record; its first sharer makes two. A walk
      from the oldest record on finds one by (mapping, index). A frame that is down to one alias
      stays protected until that alias is written, as in the manager.
    - Replicas hang off the frame in a ring, the newest first, for all aliases. Their own frame
      records link the ring: no other structure is needed.
    - Migration follows the list: a step and a look-up for each alias.

    The manager (:mod:`gpudedup.mm`) is this layout, but its page records are the alias records, so
    that a break need not walk: every page pays for them (:mod:`gpudedup.mm.state.arrays`).
    """

    name = "frame"

    def __init__(self, store: FramePools, meter: Meter) -> None:
        super().__init__(store, meter)
        self._pages: dict[int, _Page] = {}
        self._ring: dict[int, int] = {}

    def find(self, region: Region, index: int, node: int) -> int:
        """Look the frame up; walk its replicas if it lies on another node."""
        frame = self.home_frame(region, index)
        if frame in self._ring and self.store.node_of(frame) != node:
            for replica in self._replicas(frame):
                if self.store.node_of(replica) == node:
                    return replica
        return frame

    def home_frame(self, region: Region, index: int) -> int:
        """Look the frame up."""
        found: int | None = region.trees[0].find(index)
        return ZERO if found is None else found

    def _replicas(self, frame: int) -> Iterator[int]:
        replica = self._ring.get(frame, frame)
        while replica != frame:
            self.meter.walks += 1
            following = self._ring[replica]
            yield replica
            replica = following

    def _collapse(self, frame: int) -> None:
        for replica in self._replicas(frame):
            del self._ring[replica]
            self.store.give_back(replica)
        self._ring.pop(frame, None)

    def own(self, region: Region, index: int, *, copy: bool = True) -> int:
        """Keep a frame without other aliases as it is; else leave its list and copy."""
        tree = region.trees[0]
        frame = tree.find(index)
        if frame is None:
            new = self.store.take_zeroed(region.node)
        elif self._pages[frame].aliases == 1:
            self._unprotect(self._pages[frame])
            self._collapse(frame)
            return int(frame)
        else:
            take = self.store.take_copy if copy else self._take
            new = take(frame, region.node)
            self._leave(frame, region, index)
            self.meter.hold(-ALIAS_BYTES)
        tree.put(index, new)
        self._pages[new] = _Page(region, index)
        return new

    def _take(self, _: int, node: int) -> int:
        return self.store.take(node)

    def _protect(self, page: _Page) -> None:
        """Give a frame its list, if it has none."""
        if page.first is None:
            page.aliases = 0
            self._append(page, self._new_alias(page.region, page.index))

    def _unprotect(self, page: _Page) -> None:
        """Free the list of a frame with one alias, if it has a list."""
        if page.first is not None:
            page.region, page.index = page.first.region, page.first.index
            page.first = page.last = None
            page.merged = False
            self.meter.hold(-ALIAS_BYTES)

    def _new_alias(self, region: Region, index: int) -> _Alias:
        self.meter.hold(ALIAS_BYTES)
        return _Alias(region, index)

    def _append(self, page: _Page, alias: _Alias) -> None:
        alias.before, alias.after = page.last, None
        if page.last is None:
            page.first = alias
        else:
            page.last.after = alias
        page.last = alias
        page.aliases += 1

    def _leave(self, frame: int, region: Region, index: int) -> _Alias:
        """Unlink an alias from the list of its frame; raise InvariantError if it is not there."""
        page = self._pages[frame]
        alias = page.first
        while alias is not None:
            self.meter.walks += 1
            if alias.region is region and alias.index == index:
                break
            alias = alias.after
        else:
            raise InvariantError(f"frame {frame} does not know page {index} of {region.name!r}")
        if alias.before is None:
            page.first = alias.after
        else:
            alias.before.after = alias.after
        if alias.after is None:
            page.last = alias.before
        else:
            alias.after.before = alias.before
        page.aliases -= 1
        return alias

    def _release(self, region: Region, index: int, entry: int) -> None:
        page = self._pages[entry]
        if page.first is None:
            page.aliases = 0
        else:
            self._leave(entry, region, index)
            self.meter.hold(-ALIAS_BYTES)
        self._free_if_unused(entry)

    def _free_if_unused(self, frame: int) -> None:
        """Free a frame without aliases, and its replicas."""
        if self._pages[frame].aliases == 0:
            self._collapse(frame)
            del self._pages[frame]
            self.store.give_back(frame)

    def share(self, region: Region, other: Region) -> None:
        """Add an alias to the list of every frame."""
        for index, frame in region.trees[0].scan():
            page = self._pages[frame]
            self._protect(page)
            self._append(page, self._new_alias(other, index))
            other.trees[0].put(index, frame)

    def migrate(self, region: Region, indices: list[int], node: int) -> None:
        """Copy each frame, and repoint the entries of the aliases on its list."""
        for index in indices:
            frame = self.home_frame(region, index)
            if not frame or self.store.node_of(frame) == node:
                continue
            self._collapse(frame)
            new = self.store.take_copy(frame, node)
            page = self._pages[new] = self._pages.pop(frame)
            if page.first is None:
                region.trees[0].put(index, new)
            alias = page.first
            while alias is not None:
                self.meter.walks += 1
                alias.region.trees[0].put(alias.index, new)
                alias = alias.after
            self.store.give_back(frame)

    def replicate(self, region: Region, index: int, node: int) -> None:
        """Hang a copy off the frame, if its ring has none on that node."""
        frame = self.home_frame(region, index)
        if not frame or self.store.node_of(frame) == node:
            return
        for replica in self._replicas(frame):
            if self.store.node_of(replica) == node:
                return
        new = self.store.take_copy(frame, node)
        self._ring[new] = self._ring.get(frame, frame)
        self._ring[frame] = new

    def collapse(self, region: Region, index: int) -> None:
        """Free the ring of the frame."""
        self._collapse(self.home_frame(region, index))

    def survey(self) -> Iterator[Surveyed]:
        """Walk the frames by address, and the list of each."""
        for frame in sorted(self._pages, key=self.store.place):
            self.meter.walks += 1
            page = self._pages[frame]
            if page.first is None:
                yield Surveyed(page.region, page.index, frame)
            alias = page.first
            while alias is not None:
                self.meter.walks += 1
                yield Surveyed(alias.region, alias.index, frame)
                alias = alias.after

    def sharers(self, frame: int) -> int:
        """Read the count of the frame."""
        return self._pages[frame].aliases

    def is_merged(self, frame: int) -> bool:
        """Read the flag of the frame."""
        return self._pages[frame].merged

    def mark_merged(self, page: Surveyed) -> None:
        """Protect the frame and set its flag."""
        self._protect(self._pages[page.frame])
        self._pages[page.frame].merged = True

    def join(self, page: Surveyed, target: Surveyed) -> None:
        """Move the alias from one list to the other, and repoint its entry."""
        old = self._pages[page.frame]
        if old.first is None:
            old.aliases = 0
            alias = self._new_alias(page.region, page.index)
        else:
            alias = self._leave(page.frame, page.region, page.index)
        page.region.trees[0].put(page.index, target.frame)
        self._append(self._pages[target.frame], alias)
        self._free_if_unused(page.frame)

    def merged(self) -> tuple[int, int]:
        """Scan the frames."""
        found = [page.aliases for page in self._pages.values() if page.merged]
        return len(found), sum(found)

    def check(self) -> tuple[list[int], int]:
        """Compare lists with entries, both ways, and replicas with their frames."""
        entries = {
            (region.number, index): frame
            for region in self.regions.values()
            for index, frame in region.trees[0].entries()
        }
        frames, aliases = [], 0
        for frame, page in self._pages.items():
            frames.append(frame)
            claims = [(page.region.number, page.index)]
            if page.first is not None:
                claims = []
                alias: _Alias | None = page.first
                while alias is not None:
                    claims.append((alias.region.number, alias.index))
                    require(alias.after is not None or alias is page.last, f"{frame}: no last")
                    alias = alias.after
                aliases += len(claims)
            require(len(claims) == page.aliases, f"frame {frame}: {page.aliases} is no count")
            require(page.first is not None or not page.merged, f"frame {frame}: merged, no list")
            for claim in claims:
                require(entries.pop(claim, 0) == frame, f"frame {frame}: {claim} is elsewhere")
            replica = self._ring.get(frame, frame)
            nodes = {self.store.node_of(frame)}
            while replica != frame:
                require(
                    np.array_equal(self.store.bytes(replica), self.store.bytes(frame)),
                    f"frame {replica} is no copy of {frame}",
                )
                nodes.add(self.store.node_of(replica))
                frames.append(replica)
                require(len(nodes) <= self.store.nodes, f"frame {frame}: endless ring")
                replica = self._ring[replica]
        require(not entries, f"entries without an alias: {list(entries)[:3]}")
        require(set(self._ring) <= set(frames), "replicas of no frame")
        return frames, aliases * ALIAS_BYTES
