"""Layout `tagged`: the entry of a shared page leads to a descriptor of its own, keyed by node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpudedup.errors import InvariantError
from gpudedup.layouts.base import Layout, Region, Surveyed, require
from gpudedup.layouts.meter import DESCRIPTOR_BYTES, ENTRY_BYTES, Meter
from gpudedup.layouts.pools import ZERO, FramePools
from gpudedup.layouts.tree import Tree


@dataclass(eq=False, slots=True)
class _Descriptor:
    """The frames behind one entry, by node; that of ``home`` always exists."""

    home: int
    frames: dict[int, int]


_Entry = int | _Descriptor


class TaggedLayout(Layout):
    """Wilcox's tagged entries, with the rules of Piggin's page-cache replication of 2007.

    - A page without sharers and replicas is a plain entry. Any other entry leads to a descriptor of
      its own; reading the descriptor is a look-up by node.
    - A frame counts its entries but does not list them: migrating a shared frame walks all regions
      until that many are found. One walk finds all pages of a call, which favours this layout: a
      kernel walks for each.
    - Replicas belong to an entry. Sharing (fork, reflink, merge) copies the descriptor, and so
      shares its replicas; a replica made later serves only the page it was made for.
    - A store drops the replicas. A home frame without other entries is kept, and the entry becomes
      plain. Until then the last sharer keeps its descriptor: the frame cannot find it.
    """

    name = "tagged"

    def __init__(self, store: FramePools, meter: Meter) -> None:
        super().__init__(store, meter)
        # Fields of the frame records, found by address: reading them is no look-up.
        self._count: dict[int, int] = {}
        self._merged: set[int] = set()

    def _look(self, region: Region, index: int) -> _Entry | None:
        """Look an entry up, and read its descriptor if it has one."""
        entry: _Entry | None = region.trees[0].find(index)
        if isinstance(entry, _Descriptor):
            self.meter.lookups += 1
        return entry

    def find(self, region: Region, index: int, node: int) -> int:
        """Look the entry up, then its frame on that node, or else at home."""
        entry = self._look(region, index)
        if isinstance(entry, _Descriptor):
            return entry.frames.get(node, entry.frames[entry.home])
        return ZERO if entry is None else entry

    def home_frame(self, region: Region, index: int) -> int:
        """Look the entry up, then its frame at home."""
        entry = self._look(region, index)
        return ZERO if entry is None else self._home(entry)

    def _home(self, entry: _Entry) -> int:
        return entry.frames[entry.home] if isinstance(entry, _Descriptor) else entry

    def _new_descriptor(self, frames: dict[int, int], home: int) -> _Descriptor:
        self.meter.hold(DESCRIPTOR_BYTES + ENTRY_BYTES * self.store.nodes)
        return _Descriptor(home, frames)

    def _free_descriptor(self) -> None:
        self.meter.hold(-DESCRIPTOR_BYTES - ENTRY_BYTES * self.store.nodes)

    def _described(self, tree: Tree[_Entry], index: int, entry: _Entry) -> _Descriptor:
        """Return the descriptor of an entry just found; give a plain entry one."""
        if isinstance(entry, _Descriptor):
            return entry
        node = self.store.node_of(entry)
        made = self._new_descriptor({node: entry}, node)
        tree.put(index, made)
        return made

    def _copied(self, entry: _Descriptor) -> _Descriptor:
        """Return another descriptor of the same frames."""
        for frame in entry.frames.values():
            self.meter.walks += 1
            self._count[frame] += 1
        return self._new_descriptor(dict(entry.frames), entry.home)

    def _put(self, frame: int) -> None:
        """Drop a reference to a frame; dropping the last frees the frame."""
        self._count[frame] -= 1
        if not self._count[frame]:
            self._merged.discard(frame)
            del self._count[frame]
            self.store.give_back(frame)

    def _drop_replicas(self, entry: _Descriptor) -> None:
        for node in [node for node in entry.frames if node != entry.home]:
            self.meter.walks += 1
            self._put(entry.frames.pop(node))

    def own(self, region: Region, index: int, *, copy: bool = True) -> int:
        """Keep a home frame without other entries as it is; else drop all references and copy."""
        tree = region.trees[0]
        entry = self._look(region, index)
        if isinstance(entry, int):
            return entry
        if entry is None:
            new = self.store.take_zeroed(region.node)
            self._count[new] = 1
        else:
            home = self._home(entry)
            if self._count[home] == 1:
                new = home
                self._merged.discard(home)
                self._drop_replicas(entry)
                self._free_descriptor()
            else:
                if copy:
                    new = self.store.take_copy(home, region.node)
                else:
                    new = self.store.take(region.node)
                self._count[new] = 1
                self._release(region, index, entry)
        tree.put(index, new)
        return new

    def _release(self, region: Region, index: int, entry: _Entry) -> None:
        if isinstance(entry, int):
            self._put(entry)
            return
        for frame in entry.frames.values():
            self.meter.walks += 1
            self._put(frame)
        self._free_descriptor()

    def share(self, region: Region, other: Region) -> None:
        """Copy every descriptor."""
        tree = region.trees[0]
        for index, entry in tree.scan():
            other.trees[0].put(index, self._copied(self._described(tree, index, entry)))

    def migrate(self, region: Region, indices: list[int], node: int) -> None:
        """Move unshared frames directly; walk all regions for the entries of shared ones."""
        wanted: dict[int, list[_Descriptor]] = {}
        for index in indices:
            entry = self._look(region, index)
            home = ZERO if entry is None else self._home(entry)
            if entry is None or self.store.node_of(home) == node:
                continue
            if isinstance(entry, int):
                region.trees[0].put(index, self._moved(home, node, []))
            elif self._count[home] == 1:
                self._moved(home, node, [entry])
            else:
                wanted[home] = []
        self._find_users(wanted)
        for home, users in wanted.items():
            self._moved(home, node, users)

    def _find_users(self, wanted: dict[int, list[_Descriptor]]) -> None:
        """List the descriptors of shared frames; raise InvariantError if some are not found."""
        missing = sum(self._count[frame] for frame in wanted)
        for region in self.regions.values():
            if not missing:
                return
            for _, entry in region.trees[0].scan():
                if isinstance(entry, _Descriptor) and self._home(entry) in wanted:
                    wanted[self._home(entry)].append(entry)
                    missing -= 1
                    if not missing:
                        return
        require(not missing, f"{missing} entries of shared frames are nowhere")

    def _moved(self, frame: int, node: int, users: list[_Descriptor]) -> int:
        """Move a frame, repoint the descriptors that have it, and drop their replicas."""
        for user in users:
            self._drop_replicas(user)
        new = self.store.take_copy(frame, node)
        for user in users:
            user.home, user.frames = node, {node: new}
        self._count[new] = self._count.pop(frame)
        if frame in self._merged:
            self._merged.remove(frame)
            self._merged.add(new)
        self.store.give_back(frame)
        return new

    def replicate(self, region: Region, index: int, node: int) -> None:
        """Add a copy to the descriptor of the page."""
        entry = self._look(region, index)
        if entry is None or self.store.node_of(self._home(entry)) == node:
            return
        entry = self._described(region.trees[0], index, entry)
        if node not in entry.frames:
            new = entry.frames[node] = self.store.take_copy(self._home(entry), node)
            self._count[new] = 1

    def collapse(self, region: Region, index: int) -> None:
        """Drop all replicas; an unmerged entry without sharers becomes plain again."""
        entry = self._look(region, index)
        if isinstance(entry, _Descriptor):
            self._drop_replicas(entry)
            home = self._home(entry)
            if self._count[home] == 1 and home not in self._merged:
                self._free_descriptor()
                region.trees[0].put(index, home)

    def survey(self) -> Iterator[Surveyed]:
        """Scan the entries of all regions, and read the descriptors."""
        for region in self.regions.values():
            for index, entry in region.trees[0].scan():
                if isinstance(entry, _Descriptor):
                    self.meter.lookups += 1
                yield Surveyed(region, index, self._home(entry))

    def sharers(self, frame: int) -> int:
        """Read the count of the frame."""
        return self._count[frame]

    def is_merged(self, frame: int) -> bool:
        """Read the flag of the frame."""
        return frame in self._merged

    def mark_merged(self, page: Surveyed) -> None:
        """Set the flag of the frame; the entry gets a descriptor."""
        entry = self._look(page.region, page.index)
        if entry is None:
            raise InvariantError(f"page {page.index} of {page.region.name!r} is gone")
        self._described(page.region.trees[0], page.index, entry)
        self._merged.add(page.frame)

    def join(self, page: Surveyed, target: Surveyed) -> None:
        """Copy the descriptor of the target."""
        theirs = self._look(target.region, target.index)
        old = self._look(page.region, page.index)
        if old is None or not isinstance(theirs, _Descriptor):
            raise InvariantError(f"page {page.index} of {page.region.name!r} cannot be merged")
        page.region.trees[0].put(page.index, self._copied(theirs))
        self._release(page.region, page.index, old)

    def merged(self) -> tuple[int, int]:
        """Scan the merged frames."""
        return len(self._merged), sum(self._count[frame] for frame in self._merged)

    def check(self) -> tuple[list[int], int]:
        """Recount the references of the entries."""
        found: dict[int, int] = {}
        homes: set[int] = set()
        descriptors = 0
        for region in self.regions.values():
            for index, entry in region.trees[0].entries():
                where = f"page {index} of {region.name!r}"
                homes.add(self._home(entry))
                if isinstance(entry, int):
                    require(self._count[entry] == 1, f"{where}: a plain entry of a shared frame")
                    require(entry not in self._merged, f"{where}: a plain entry of a merged frame")
                    found[entry] = found.get(entry, 0) + 1
                    continue
                descriptors += 1
                for node, frame in entry.frames.items():
                    found[frame] = found.get(frame, 0) + 1
                    require(self.store.node_of(frame) == node, f"{where}: {frame} on a wrong node")
                    require(
                        np.array_equal(
                            self.store.bytes(frame), self.store.bytes(self._home(entry))
                        ),
                        f"{where}: {frame} is no copy",
                    )
        require(found == self._count, "frames count other entries than there are")
        require(self._merged <= homes, "a merged frame stands for no page")
        return list(found), descriptors * (DESCRIPTOR_BYTES + ENTRY_BYTES * self.store.nodes)
