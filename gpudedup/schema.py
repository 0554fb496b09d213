"""The Arrow schema of every table that is read or written, each with a version.

``dump``: one row is one mapped page; in a merged dump equal pages share their bytes. ``pages`` and
``contents``: the result of a scan. ``mm.*``: the state of a memory manager. ``trace`` and
``replay.*``: events, and what came of them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import pyarrow as pa

from gpudedup.errors import UsageError

DUMP_VERSION = 1
MERGED_VERSION = 1
RESULT_VERSION = 1
MANAGER_VERSION = 1
TRACE_VERSION = 1
REPLAY_VERSION = 1

MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 2 << 20

KINDS = ("anon", "file", "shmem", "guest", "device", "kernel")
"""Kinds of memory, as in ``mapping.kind``.

anon: private anonymous; file: backed by a file, private or shared; shmem: shared anonymous, tmpfs,
memfd, System V; guest: physical memory of a virtual or real machine; device: memory of a device;
kernel: special mappings made by the kernel ([vdso], [vvar]).
"""

FILE_KINDS = ("file", "shmem")
"""Kinds whose pages are a page cache: written by write(2) too, dirty, copied by reflink."""


class PageFlag(IntFlag):
    """Bits of the column ``flags``: what the source knew of the page when it was read.

    Names are those of ``/proc/PID/pagemap`` and ``/proc/kpageflags`` in Linux's
    Documentation/admin-guide/mm/pagemap.rst.
    """

    SOFT_DIRTY = 1 << 0
    MMAP_EXCLUSIVE = 1 << 1
    FILE = 1 << 2
    SWAP = 1 << 3
    DIRTY = 1 << 4
    WRITEBACK = 1 << 5
    KSM = 1 << 6
    HUGE = 1 << 7
    THP = 1 << 8
    ZERO_PAGE = 1 << 9
    PINNED = 1 << 10


MAPPING = pa.struct(
    [
        pa.field("owner", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("start", pa.uint64(), nullable=False),
        pa.field("flags", pa.string(), nullable=False),
    ]
)


def check_page_size(page_size: int) -> int:
    """Return ``page_size`` (bytes) if a dump may have it: a power of two, 512 B to 2 MiB.

    :raises UsageError: if not
    """
    if not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE or page_size & (page_size - 1):
        raise UsageError(f"page size {page_size}: not a power of two from 512 to 2097152")
    return page_size


def dump_schema(page_size: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Schema of a dump whose pages have ``page_size`` bytes."""
    return pa.schema(
        [
            pa.field("mapping", pa.dictionary(pa.int32(), MAPPING), nullable=False),
            pa.field("index", pa.uint64(), nullable=False),
            pa.field("frame", pa.uint64()),
            pa.field("node", pa.int16()),
            pa.field("flags", pa.uint32(), nullable=False),
            pa.field("content", pa.binary(page_size), nullable=False),
        ],
        metadata=metadata,
    )


def merged_schema(page_size: int, frames: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Schema of a merged dump with ``frames`` frames: the same logical table as a dump.

    ``content`` is dictionary-encoded: the dictionary is the frame store, the indices are the page
    table.
    """
    index = pa.int32() if frames < 1 << 31 else pa.int64()
    schema = dump_schema(page_size, metadata)
    content = pa.field("content", pa.dictionary(index, pa.binary(page_size)), nullable=False)
    return schema.set(schema.get_field_index("content"), content)


def _words() -> pa.DictionaryType:
    return pa.dictionary(pa.int32(), pa.string())


PAGES = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("input", _words(), nullable=False),
        pa.field("owner", _words(), nullable=False),
        pa.field("kind", _words(), nullable=False),
        pa.field("name", _words(), nullable=False),
        pa.field("index", pa.uint64(), nullable=False),
        pa.field("class", _words(), nullable=False),
        pa.field("representative", pa.uint64(), nullable=False),
        pa.field("digest", pa.binary(16)),
    ],
    metadata={"gpudedup.table": "pages", "gpudedup.version": str(RESULT_VERSION)},
)
"""The page table of a scan; one row is one page, numbered over all inputs.

input, owner, kind, name, index: where the page is. class: content, zero, filled (one 64-bit word
repeated), alias (a frame that an earlier row has too) or unreadable. representative: lowest row
with the same bytes. digest: XXH3-128, big-endian as the reference prints it; null if unreadable.
"""

CONTENTS = pa.schema(
    [
        pa.field("content", pa.uint64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("frames", pa.uint64(), nullable=False),
        pa.field("pages", pa.uint64(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("mapping", MAPPING, nullable=False),
        pa.field("index", pa.uint64(), nullable=False),
        pa.field("kinds", pa.list_(pa.string()), nullable=False),
        pa.field("owners", pa.list_(pa.string()), nullable=False),
    ],
    metadata={"gpudedup.table": "contents", "gpudedup.version": str(RESULT_VERSION)},
)
"""The shared contents of a scan: not zero, in two frames or more; most frames first.

content: its representative row in the page table. frames, pages: how many hold it. input, mapping,
index: where the first of them is. kinds, owners: all that have it, sorted.
"""


def _of_manager(name: str, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(
        [pa.field(field, kind, nullable=False) for field, kind in fields],
        metadata={"gpudedup.table": f"mm.{name}", "gpudedup.version": str(MANAGER_VERSION)},
    )


FRAMES = _of_manager(
    "frames",
    [
        ("protection", pa.uint8()),
        ("aliases", pa.uint32()),
        ("pins", pa.uint32()),
        ("first", pa.uint32()),
        ("ring", pa.uint32()),
    ],
)
"""The frames of a memory manager; the row is the frame's number, row 0 the page of zeros.

Columns and bits as in :class:`gpudedup.mm.state.arrays.State`; protection 0 is a free frame.
"""

ALIASES = _of_manager(
    "aliases",
    [
        ("page", pa.uint32()),
        ("mapping", pa.uint32()),
        ("index", pa.uint64()),
        ("frame", pa.uint32()),
        ("node", pa.uint8()),
        ("flags", pa.uint8()),
    ],
)
"""The pages of a memory manager that have a frame; equal frames are shared.

page: its number. mapping: number, as in the table of mappings. flags: bits as in
:mod:`gpudedup.mm.state.arrays`.
"""

MANAGER_PAGES = _of_manager(
    "pages",
    [
        ("frame", pa.uint32()),
        ("next", pa.uint32()),
        ("flags", pa.uint8()),
        ("generation", pa.uint32()),
    ],
)
"""All page numbers of a memory manager, in use or not; the row is the number. frame 0: none.

generation: modulo 65536.
"""

MANAGER_MAPPINGS = _of_manager(
    "mappings",
    [
        ("mapping", pa.uint32()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("owner", pa.string()),
        ("domain", pa.string()),
        ("node", pa.uint8()),
        ("pages", pa.uint64()),
        ("populated", pa.uint64()),
    ],
)
"""The mappings of a memory manager. populated: pages that have a frame."""

LAYOUT_COSTS = pa.schema(
    [
        pa.field("layout", pa.string(), nullable=False),
        pa.field("lookups", pa.uint64(), nullable=False),
        pa.field("walks", pa.uint64(), nullable=False),
        pa.field("copies", pa.uint64(), nullable=False),
        pa.field("frames", pa.uint64(), nullable=False),
        pa.field("frames_peak", pa.uint64(), nullable=False),
        pa.field("metadata_bytes", pa.uint64(), nullable=False),
        pa.field("metadata_bytes_peak", pa.uint64(), nullable=False),
        pa.field("pages_shared", pa.uint64(), nullable=False),
        pa.field("pages_sharing", pa.uint64(), nullable=False),
        pa.field(
            "operations",
            pa.list_(
                pa.struct(
                    [
                        pa.field("operation", pa.string(), nullable=False),
                        pa.field("calls", pa.uint64(), nullable=False),
                        pa.field("pages", pa.uint64(), nullable=False),
                        pa.field("lookups", pa.uint64(), nullable=False),
                        pa.field("walks", pa.uint64(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
    ],
    metadata={
        "gpudedup.table": "mm.layout_costs",
        "gpudedup.version": str(MANAGER_VERSION),
    },
)
"""What layouts cost on one trace; a row is a layout. :class:`gpudedup.layouts.meter.Costs`."""


class Operation(IntEnum):
    """What an event of a trace may be; each is the memory manager's method of that name.

    ``device_read``, ``device_write`` and ``atomic_add`` are those of its devices. ``pin_write``
    pins for writing and writes through the pin; ``unpin`` and ``close`` end the oldest pin, or
    splice, of exactly these pages that is still held. What each needs of a row:
    :data:`gpudedup.traces.operations.RULES`.
    """

    READ = 0
    WRITE = 1
    FILE_WRITE = 2
    FORK = 3
    REFLINK = 4
    DROP = 5
    TRUNCATE = 6
    PUNCH = 7
    PIN = 8
    PIN_WRITE = 9
    UNPIN = 10
    SPLICE = 11
    CLOSE = 12
    WRITEBACK = 13
    MIGRATE = 14
    REPLICATE = 15
    COLLAPSE = 16
    CACHE = 17
    FLUSH = 18
    EVICT = 19
    MERGE = 20
    UNMERGE = 21
    DEVICE_READ = 22
    DEVICE_WRITE = 23
    ATOMIC_ADD = 24
    ACQUIRE_EXCLUSIVE = 25
    RELEASE_EXCLUSIVE = 26


OPERATIONS = tuple(operation.name.lower() for operation in Operation)
"""The words of the column ``operation``; the place is the code."""


def trace_schema(page_size: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Schema of a trace; one row is one event, in the order in which they happened.

    operation: one of :data:`OPERATIONS`. mapping: its number from 0, in the image's order; those
    that fork and reflink make are numbered on in the order of their events. index, count: pages
    ``index .. index + count - 1``; of truncate, index is how many pages are left; fork, reflink,
    drop and merge look at neither. node, device: where a read comes from; where migrate,
    replicate, cache, device_* and atomic_add go; who acquires, null being the host. seed: what is
    written is made of it and the page's index (:mod:`gpudedup.traces.contents`); null is 0.
    time_ns: when it was.

    :param page_size: of the image, bytes
    :param metadata: more of it
    """
    return pa.schema(
        [
            pa.field("operation", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("mapping", pa.int32(), nullable=False),
            pa.field("index", pa.uint64(), nullable=False),
            pa.field("count", pa.uint32(), nullable=False),
            pa.field("node", pa.int16()),
            pa.field("device", pa.int16()),
            pa.field("seed", pa.uint64()),
            pa.field("time_ns", pa.uint64()),
        ],
        metadata={
            "gpudedup.table": "trace",
            "gpudedup.version": str(TRACE_VERSION),
            "gpudedup.page_size": str(page_size),
            **(metadata or {}),
        },
    )


def _of_replay(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(
        fields,
        metadata={"gpudedup.table": f"replay.{name}", "gpudedup.version": str(REPLAY_VERSION)},
    )


def _counts(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.int64(), nullable=False) for name in names]


CAUSES = _of_replay(
    "causes",
    [
        pa.field("operation", pa.string(), nullable=False),
        *_counts(
            "events", "pages", "breaks", "fills", "reuses", "collapses", "bytes_copied",
            "invalidations", "device_faults", "remote", "revoked", "written_back", "refused",
        ),
        pa.field("seconds", pa.float64(), nullable=False),
    ],
)  # fmt: skip
"""What a replay's events brought about, one row for each operation that occurs, in order of codes.

pages: of its events, with repetitions. breaks: pages that left a frame, or the page of zeros that a
merge gave them, for a new one. fills: pages that had no frame and got one. bytes_copied: from frame
to frame, for whatever reason, fills included. refused: pages for which it could not be done: pinned
ones, or no room; a refused atomic_add is done by the host. The others, as in
:class:`gpudedup.mm.counters.Counters`, are what the manager counted meanwhile.
"""

SAMPLES = _of_replay(
    "samples",
    [
        *_counts("event"),
        pa.field("time_ns", pa.uint64()),
        *_counts(
            "bytes", "unshared_bytes", "frames", "pages", "pages_shared", "pages_sharing",
            "ksm_zero_pages", "replicas", "dirty", "pins", "mirrored", "breaks", "fills", "reuses",
            "collapses", "bytes_copied", "invalidations", "device_faults", "revoked",
        ),
    ],
)  # fmt: skip
"""A replay's memory over time; the first row is before the first event, the last after the last.

event: how many were done. time_ns: that of the last of them that had one. bytes: frames times page
size. unshared_bytes: with a frame of its own for each page, also for those that a merge found zero,
and replicas.
breaks and those after it: since the first event. The others as in
:class:`gpudedup.mm.counters.Counters`.
"""
