"""The bookkeeping of the memory manager: arrays of records that compiled passes work on.

A *page* is one page of one mapping, known by its number. Numbers are given out in leaves of
:data:`LEAF_PAGES`, which a mapping's *directory* lists, as a page table does: page ``index`` of a
mapping is ``directory[index // LEAF_PAGES] * LEAF_PAGES + index % LEAF_PAGES``. Leaf 0 stands for
every absent leaf; its pages never get a frame.

A *frame* is a page of memory in a pool. Frame 0 is a page of zeros: pages that were never written,
were punched, or were found zero by a merge map it, without being its aliases. Frames are numbered
in chunks, each of one pool and contiguous in memory, so that the number gives pool and address.

A page with another frame is an *alias* of the frame. The aliases of a frame form a ring: joining
and leaving take constant time, a walk takes time in proportion to the aliases. The metadata of a
page with a frame to itself are one each of :data:`gpudedup.mm.state.numba_type.RECORDS`.

Devices hold copies of page tables, which no pass can reach: a pass that changes what an entry maps
lists the page as *gone* (:func:`gpudedup.mm.state.steps.invalidate`), and directly after the pass
:meth:`gpudedup.mm.memory.memory.Memory.run` invalidates the entries.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.memory import zeros
from gpudedup.mm.state.numba_type import ARRAYS, FIELDS, HOME, STATE
from gpudedup.mm.state.prefetch import AHEAD

LEAF_BITS = 6
LEAF_PAGES = 1 << LEAF_BITS

MAX_LEAVES = 1 << (32 - LEAF_BITS)
MAX_FRAMES = (1 << 32) - 1


class Page(IntEnum):
    """Bits of a page, ``flags``."""

    WRITABLE = 1
    """Stores do not fault."""
    DIRTY = 2
    """A page of a file, not written back since it was written."""
    MERGED_ZERO = 4
    """Has frame 0 because a merge found it to be zero."""
    UNSHARED = 8
    """Found equal to no other by the last merge that scanned it; not written since."""
    HIDDEN = 16
    """Belongs to a reflink's hidden mapping: dropped when no other alias of its frame is left."""
    MIRRORED = 32
    """The devices in `mirrors` may have an entry for it."""


class Frame(IntEnum):
    """Bits of a frame, ``protection``."""

    USED = 1
    """Not free."""
    SHARED = 2
    """A store by an alias breaks COW, unless no other alias and no pin is left."""
    MERGED = 4
    """A merge shares it among equal pages (KSM's stable node). Always SHARED too."""
    REPLICATED = 8
    """Has read-only copies, of which `ring` is the first."""
    REPLICA = 16
    """A read-only copy, or a home: no aliases, `first` is the original, `ring` the next copy."""
    EXCLUSIVE = 32
    """Held by one owner, by grant `token`; any other touch revokes the grant first."""
    CACHED = 64
    """Holds a page in place of its home: the frame in `ring`, a REPLICA until evicted."""
    OWNED = 128
    """One of its aliases is HIDDEN."""


class Count(IntEnum):
    """Indices into ``State.counts``; :class:`gpudedup.mm.counters.Counters` has KSM's names."""

    PAGES = 0
    """pages with a frame other than 0, HIDDEN ones included"""
    FRAMES = 1
    """frames in use, with replicas, without frame 0"""
    MERGED_FRAMES = 2
    MERGED_PAGES = 3
    """aliases of merged frames, without HIDDEN ones"""
    ZERO_PAGES = 4
    """pages with MERGED_ZERO"""
    UNSHARED_PAGES = 5
    DIRTY_PAGES = 6
    CHAINS = 7
    """contents in two or more merged frames"""
    CHAIN_FRAMES = 8
    """merged frames of these"""
    REPLICAS = 9
    PINS = 10
    NEW_FRAMES = 11
    """event: a store, or an undone merge, took a new frame"""
    REUSES = 12
    """event: a store found no other alias or pin left and took the frame as it was"""
    COLLAPSES = 13
    """event: all replicas of a frame, or the home of a cached one, were freed"""
    LEAF_FREE = 14
    """head of the list of free leaves"""
    LEAF_FRESH = 15
    """first leaf that was never used"""
    LEAVES_LEFT = 16
    """leaves that can be taken before the arrays must grow"""
    CHAIN_FREE = 17
    CHAIN_FRESH = 18
    HIDDEN_GONE = 19
    """event: dropping the last alias beside a hidden page dropped that page"""
    MIRRORED_PAGES = 20
    GONE = 21
    """device entries to be invalidated before anything else happens"""
    EXCLUSIVE_FRAMES = 22
    COPIES = 23
    """frames listed to be copied before anything else happens"""
    FRAMES_COPIED = 24
    """event: a frame's bytes were copied to another"""
    CHUNKS = 25
    """chunks of all pools"""
    HIDDEN_PAGES = 26


class Geometry(IntEnum):
    """Indices into ``State.geometry``, which never changes."""

    PAGE_SIZE = 0
    CHUNK_BITS = 1
    NODES = 2
    """host pools; pools from this number on are devices'"""


Array = npt.NDArray[Any]
PageNumbers = npt.NDArray[np.uint32]


class State:
    """All arrays; growing replaces some. Fields of pages and of frames lie in records.

    ============  =========  =======================================================
    of a page
    frame         u32        0: reads as zero
    next, prev    u32        the ring of aliases of its frame; undefined if frame is 0
    flags         u8         bits of :class:`Page`
    generation    u16        counts writes and punches, and wraps: merging compares bytes too
    mirrors       u8         bit d: device d may have an entry for it
    of a leaf
    leaf_mapping  u32        number of the mapping; 0: free
    leaf_place    u32        index in the directory; of a free leaf the next free
    of a frame
    first         u32        an alias; of a replica its original; of a free frame the next free
    aliases       u32        number of aliases
    pins          u32        number of pins; of a free frame one further down the free list
    protection    u8         bits of :class:`Frame`
    ring          u32        first or next replica, or home; the last leads back; 0: none
    token         u32        merged: number of its content; EXCLUSIVE: of the grant; else 0
    of a content
    chain         u32        merged frames that hold it; of a free number the next free
    scope         u32        0: any domain's pages may join; else 1 + the only domain
    of a chunk
    base          u64        address of its first frame
    chunk_node    u8         its pool
    chunk_fresh   i64        frames given out so far
    chunk_link    i64        next chunk of the pool with frames never used; -1: none
    of a pool
    free          u32        first free frame; 0: none
    fresh         i64        first chunk with frames never used; -1: none
    room          i64        frames that can be taken before it must grow
    freed         u32        the last AHEAD frames freed, for ``pins`` of those freed after them
    of a mapping
    populated     i64        pages with a frame other than 0
    domain        u32        number of its security domain
    of a device entry to invalidate, with room for all pages with MIRRORED
    gone_mapping  u32
    gone_index    i64
    gone_mirrors  u8         its devices, as in ``mirrors``
    ============  =========  =======================================================
    """

    __slots__ = (*ARRAYS, *HOME, "_table", "at")
    _numba_type_ = STATE

    page_records: Array
    frame_records: Array

    frame: Array
    next: Array
    prev: Array
    flags: Array
    generation: Array
    mirrors: Array
    leaf_mapping: Array
    leaf_place: Array
    first: Array
    aliases: Array
    pins: Array
    protection: Array
    ring: Array
    token: Array
    chain: Array
    scope: Array
    base: Array
    chunk_node: Array
    chunk_fresh: Array
    chunk_link: Array
    free: Array
    fresh: Array
    room: Array
    freed: Array
    populated: Array
    domain: Array
    gone_mapping: Array
    gone_index: Array
    gone_mirrors: Array
    counts: Array
    geometry: Array

    def __init__(self, arrays: dict[str, Array]) -> None:
        for name, dtype in ARRAYS.items():
            setattr(self, name, np.ascontiguousarray(arrays[name], dtype))
        for name, home in HOME.items():
            setattr(self, name, getattr(self, home)[name])
        self._table = np.empty((len(FIELDS), 2), np.uint64)
        for place, name in enumerate(FIELDS):
            array = getattr(self, name)
            self._table[place] = array.ctypes.data, len(array)
        self.at: int = self._table.ctypes.data

    def replaced(self, arrays: dict[str, Array]) -> State:
        """Return a state with some arrays replaced and the others in common."""
        return State({name: getattr(self, name) for name in ARRAYS} | arrays)


PER_PAGE = ("page_records",)
PER_LEAF = ("leaf_mapping", "leaf_place")
PER_FRAME = ("frame_records", "rare_records")
PER_CONTENT = ("chain", "scope")
PER_CHUNK = ("base", "chunk_node", "chunk_fresh", "chunk_link")
PER_MAPPING = ("populated", "domain")
PER_GONE = ("gone_mapping", "gone_index", "gone_mirrors")


def empty(page_size: int, chunk_bits: int, nodes: int, devices: int = 0) -> State:
    """Return the state of an empty manager, without even the chunk of frame 0."""
    pools = nodes + devices
    # Leaf 0 and content 0 stand for none.
    sizes = dict.fromkeys((*PER_FRAME, *PER_CHUNK, *PER_MAPPING, *PER_GONE), 0)
    sizes |= dict.fromkeys(PER_PAGE, LEAF_PAGES) | dict.fromkeys((*PER_LEAF, *PER_CONTENT), 1)
    arrays: dict[str, Array] = {name: np.zeros(n, ARRAYS[name]) for name, n in sizes.items()}
    counts = np.zeros(len(Count), np.int64)
    counts[Count.CHAIN_FRESH] = counts[Count.LEAF_FRESH] = 1
    return State(
        arrays
        | {
            "free": np.zeros(pools, np.uint32),
            "fresh": np.full(pools, -1, np.int64),
            "room": np.zeros(pools, np.int64),
            "freed": np.zeros(pools * AHEAD, np.uint32),
            "counts": counts,
            "geometry": np.array([page_size, chunk_bits, nodes], np.int64),
        }
    )


def grown(state: State, names: tuple[str, ...], least: int, scale: int = 1) -> State:
    """Return the state with some arrays made longer, by half at least, so that growth is cheap.

    :param least: entries that each array must have
    :param scale: the entries are rounded up to a multiple of this number
    """
    old = len(getattr(state, names[0]))
    if least <= old:
        return state
    size = -(-max(least, old + old // 2) // scale) * scale
    longer = {}
    for name in names:
        before = getattr(state, name)
        longer[name] = zeros((size,), before.dtype)
        # As bytes: NumPy copies records field by field.
        longer[name].view(np.uint8)[: before.nbytes] = before.view(np.uint8)
    return state.replaced(longer)
