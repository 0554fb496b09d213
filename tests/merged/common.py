"""Images to merge, and the frames that a merge must give them, in plain Python."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.opening import open_image
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns
from gpudedup.mm.policy import MergePolicy

PAGE = 512

MAPPINGS = (
    Mapping("a[1]", "uid:1", "anon", "[heap]", 0x10000, "rd wr"),
    Mapping("a[1]", "uid:1", "file", "/lib/a", 0x70000),
    Mapping("b[2]", "uid:2", "anon", "[heap]", 0x10000, "rd wr"),
    Mapping("b[2]", "uid:2", "shmem", "/dev/shm/b", 0x80000),
    Mapping("c[3]", "uid:1", "guest", "memory", 0),
)


def pages_of(letters: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return one page for each number: random bytes with that seed, zeros for 0."""
    pages = np.zeros((len(letters), PAGE), np.uint8)
    for page, letter in zip(pages, letters, strict=True):
        if letter:
            page[:] = np.random.default_rng(letter).integers(0, 256, PAGE)
    return pages


def write_dump(
    path: Path,
    letters: Sequence[int],
    *,
    mapping: Sequence[int] | None = None,
    frame: Sequence[int | None] | None = None,
    node: Sequence[int] | None = None,
    batch: int = 7,
    source: str = "test",
) -> Path:
    """Write a dump with a row for each letter."""
    n = len(letters)
    number = np.arange(n)
    columns = PageColumns(
        0,
        np.array(number % len(MAPPINGS) if mapping is None else mapping, np.int32),
        (number * 3).astype(np.uint64),
        None
        if frame is None
        else np.array([UNKNOWN_FRAME if f is None else f for f in frame], np.uint64),
        np.where(number % 3, 1, UNKNOWN_NODE).astype(np.int16)
        if node is None
        else np.array(node, np.int16),
        (number << 2).astype(np.uint32),
    )
    with DumpWriter(path, PAGE, MAPPINGS, source=source) as dump:
        for first in range(0, n, batch):
            part = columns.slice(first, first + batch)
            dump.write(part, pages_of(letters[first : first + batch]))
        dump.absent.holes, dump.absent.excluded = 5, 6
    return path


def table(path: Path) -> pa.Table:
    """Return the logical table of any image."""
    with open_image(path, page_size=None) as image:
        return pa.Table.from_batches(list(image.batches())).combine_chunks()


def as_others_see(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an Arrow file, read by pyarrow alone."""
    with pa.memory_map(str(path)) as source:
        result: list[dict[str, Any]] = pa.ipc.open_file(source).read_all().to_pylist()
    return result


def frames_of(path: Path) -> list[bytes]:
    """Return the frames of a merged dump, in order."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        content = reader.get_batch(0).column("content").dictionary
        return [frame.as_py() for frame in content]


def slots_of(path: Path) -> list[int]:
    """Return the page table of a merged dump."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(at) for at in range(reader.num_record_batches)]
        return [slot for one in batches for slot in one.column("content").indices.to_pylist()]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expected_slots(
    letters: Sequence[int],
    mapping: Sequence[int],
    frame: Sequence[int | None],
    node: Sequence[int],
    policy: MergePolicy,
) -> list[int]:
    """Return the frame number of each row after merging a dump that was never merged."""
    units: dict[tuple[object, int], list[int]] = {}
    first: dict[int, int] = {}
    unit_of: list[tuple[object, int]] = []
    for row, letter in enumerate(letters):
        f = frame[row]
        name: tuple[object, int] = (("row", row), letter)
        if f is not None:
            head = first.setdefault(f, row)
            # A page that changed during the capture leaves its frame's unit.
            name = (("frame", f), letter) if letters[head] == letter else (("row", row), letter)
        units.setdefault(name, []).append(row)
        unit_of.append(name)
    slots: dict[tuple[object, int], int] = {}
    opened: dict[object, tuple[int, int]] = {}
    result, count = [], 0
    for row in range(len(letters)):
        unit = unit_of[row]
        if unit not in slots:
            rows = units[unit]
            kinds = {MAPPINGS[mapping[r]].kind for r in rows}
            key: object = unit
            bounded = True
            if kinds <= set(policy.kinds):
                domains = frozenset(MAPPINGS[mapping[r]].domain for r in rows)
                key = (
                    "content",
                    letters[row],
                    domains if policy.within_domain else None,
                    None if policy.merge_across_nodes else node[row],
                )
                if policy.use_zero_pages and letters[row] == 0:
                    key, bounded = "zero", False
            slot, filled = opened.get(key, (-1, 0))
            if slot < 0 or (bounded and filled + len(rows) > policy.max_page_sharing):
                slot, filled, count = count, 0, count + 1
            opened[key] = slot, filled + len(rows)
            slots[unit] = slot
        result.append(slots[unit])
    return result
