"""The counters of the memory manager: each is defined here, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gpudedup.mm.memory.mirror import Mirror
from gpudedup.mm.state.arrays import Count, State


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts of the present state, and of events so far.

    Counters with names of ``/sys/kernel/mm/ksm`` are what KSM's would read at rest after a scan,
    while nothing was written since the last merge. The hidden mapping that owns the frames of
    reflinked files is nobody's: its pages count nowhere.

    :param pages_shared: merged frames
    :param pages_sharing: aliases of merged frames beyond the first of each: frames saved
    :param pages_unshared: pages that the last merge found equal to no other, not written since
    :param pages_volatile: pages that the last merge could not judge: written while it ran, or
        sharing by fork a frame that has the only such content
    :param ksm_zero_pages: pages without a frame because a merge found them all zero
    :param stable_node_chains: contents in two or more merged frames
    :param stable_node_dups: merged frames of these contents
    :param pages: pages that have a frame
    :param frames: frames in use, replicas included
    :param replicas: read-only copies, and homes of cached pages
    :param dirty: pages of files not written back since they were written
    :param pins: pins that are held, splices included
    :param new_frames: stores, and merges undone, that took a new frame
    :param frames_copied: frames whose bytes were copied to another, for whatever reason
    :param reuses: stores to protected frames without other aliases or pins: nothing was copied
    :param collapses: frames whose replicas, or whose home, were freed
    :param written_back: pages written back
    :param revoked: pages taken from an exclusive owner by another's touch
    :param mirrored: pages for which devices may have an entry in their page tables
    :param device_faults: rows of accesses of devices that found no entry that allowed them
    :param mapped_around: pages that faults of devices mapped beside those that faulted
    :param invalidations: device entries invalidated
    :param retries: faults of devices whose entries were invalidated before they were entered
    :param remote: rows that the host read or wrote in a device's place: pinned, or no room there
    """

    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    ksm_zero_pages: int
    stable_node_chains: int
    stable_node_dups: int
    pages: int
    frames: int
    replicas: int
    dirty: int
    pins: int
    new_frames: int
    frames_copied: int
    reuses: int
    collapses: int
    written_back: int
    revoked: int
    mirrored: int
    device_faults: int
    mapped_around: int
    invalidations: int
    retries: int
    remote: int

    @property
    def copies(self) -> int:
        """Return :attr:`new_frames`: the name of 0.1."""
        return self.new_frames

    @property
    def copied(self) -> int:
        """Return :attr:`frames_copied`: the name of 0.1."""
        return self.frames_copied

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name, and renamed ones by their old names too."""
        return {**asdict(self), "copies": self.copies, "copied": self.copied}


def read_counters(
    state: State,
    *,
    frames_copied: int,
    volatile: int,
    written_back: int,
    revoked: int,
    devices: Sequence[Mirror],
) -> Counters:
    """Return the counters of a state, and those that the manager and its devices keep."""
    count = {which: int(state.counts[which]) for which in Count}
    shared = count[Count.MERGED_FRAMES]
    return Counters(
        pages_shared=shared,
        pages_sharing=count[Count.MERGED_PAGES] - shared,
        pages_unshared=count[Count.UNSHARED_PAGES],
        pages_volatile=volatile,
        ksm_zero_pages=count[Count.ZERO_PAGES],
        stable_node_chains=count[Count.CHAINS],
        stable_node_dups=count[Count.CHAIN_FRAMES],
        pages=count[Count.PAGES] - count[Count.HIDDEN_PAGES],
        frames=count[Count.FRAMES],
        replicas=count[Count.REPLICAS],
        dirty=count[Count.DIRTY_PAGES],
        pins=count[Count.PINS],
        new_frames=count[Count.NEW_FRAMES],
        frames_copied=frames_copied,
        reuses=count[Count.REUSES],
        collapses=count[Count.COLLAPSES],
        written_back=written_back,
        revoked=revoked,
        mirrored=count[Count.MIRRORED_PAGES],
        device_faults=sum(device.faults for device in devices),
        mapped_around=sum(device.around for device in devices),
        invalidations=sum(device.invalidations for device in devices),
        retries=sum(device.retries for device in devices),
        remote=sum(device.remote for device in devices),
    )
