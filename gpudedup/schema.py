"""The Arrow schema of every table that is read or written, each with a version.

``dump``: one row is one mapped page; in a merged dump equal pages share their bytes. ``pages`` and
``contents``: the result of a scan. ``mm.*``: the state of a memory manager, and what layouts cost.
``trace`` and ``replay.*``: events and their effects.
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
"""Kinds with a page cache: their pages are also written by write(2), written back, reflinked."""


class PageFlag(IntFlag):
    """Bits of the column ``flags``: what the source knew of the page when it was read.

    Named as in Linux's Documentation/admin-guide/mm/pagemap.rst, but PINNED, which no reader sets.
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
    """Return ``page_size``, bytes.

    :raises UsageError: if it is no power of two from MIN_PAGE_SIZE to MAX_PAGE_SIZE
    """
    if not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE or page_size & (page_size - 1):
        raise UsageError(f"page size {page_size}: not a power of two from 512 to 2097152")
    return page_size


def dump_schema(page_size: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Return the schema of a dump with pages of ``page_size`` bytes."""
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
    """Return the schema of a merged dump with ``frames`` frames: logically that of a dump.

    ``content`` is dictionary-encoded: frames in the dictionary, the page table as its indices.
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
index: where that row is. kinds, owners: those of all pages that hold it, sorted.
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

Columns as in :class:`gpudedup.mm.state.arrays.State`. protection: bits of ``Frame`` there; 0: free.
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
"""The pages of a memory manager that have a frame; rows of one frame share it.

page: its number. node: pool of the frame. flags: bits of :class:`gpudedup.mm.state.arrays.Page`.
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
"""All page numbers of a manager; the row is the number. frame 0: none. generation: 16 bits."""

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
"""Costs of layouts on one trace, as in :class:`gpudedup.layouts.meter.Costs`; a row is a layout."""


class Operation(IntEnum):
    """Operation of a trace's event: the memory manager's method of that name.

    ``device_read``, ``device_write`` and ``atomic_add`` are methods of its devices. ``pin_write``
    pins for writing and writes through the pin; ``unpin`` and ``close`` end the oldest pin or
    splice still held on exactly these pages. Rules: :data:`gpudedup.traces.operations.RULES`.
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
"""Words of the column ``operation``, in the order of codes."""


def trace_schema(page_size: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Return the schema of a trace; one row is one event, in the order in which they happened.

    operation: one of :data:`OPERATIONS`. mapping: its number from 0, in the image's order; fork and
    reflink take the next numbers. index, count: pages ``index .. index + count - 1``, for a count
    of 0 none, wherever the index lies; truncate leaves ``index`` pages; fork, reflink, drop and
    merge ignore both. node, device: source of a read; target of migrate, replicate, cache, device_*
    and atomic_add; who acquires, null: the host. seed: with the page's index it makes the bytes
    written (:mod:`gpudedup.traces.contents`); null is 0. time_ns: time of the event, null where
    unknown.

    :param page_size: bytes of a page of the image
    :param metadata: further schema metadata
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
"""Effects of a replay's events: one row for each operation that occurs, in the order of codes.

pages: pages of its events, repetitions included. breaks: pages that left a frame, or the page of
zeros that a merge gave them, for a new one. fills: pages that had no frame and got one.
bytes_copied: bytes copied between frames for any reason, fills included. refused: pages that were
pinned, or had no room; the host does a refused atomic_add. The other counts are increments of those
in :class:`gpudedup.mm.counters.Counters`.
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

event: events done. time_ns: time of the last of these that had one. bytes: frames times page size.
unshared_bytes: bytes with a frame for each page, also those that a merge found zero, and replicas.
From ``breaks`` on: since the first event. The rest: :class:`gpudedup.mm.counters.Counters`.
"""
