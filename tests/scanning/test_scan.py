"""Whole scans against an oracle in plain Python: dictionaries of bytes and frames, no arrays."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpudedup as gd
from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import Extent, Image
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import UNKNOWN_FRAME, Mapping, PageColumns
from gpudedup.scanning.result import Share

PAGE = 512
OWNERS = ("vm[1]", "vm[2]", "db[3]")
KINDS = ("anon", "file", "shmem")


@dataclass(frozen=True)
class Row:
    """One page of a made image: numbers of content, owner, kind and frame (None: unknown)."""

    content: int
    owner: int
    kind: int
    frame: int | None


def page_bytes(content: int) -> bytes:
    """Return a page: 0 is zero, 1 and 2 same-filled, the rest random, in pairs one bit apart."""
    if content < 3:
        return bytes([content]) * PAGE
    page = bytearray(np.random.default_rng(content // 2).bytes(PAGE))
    page[-1] = (page[-1] & 0xFE) | (content & 1)
    return bytes(page)


@st.composite
def images(draw: st.DrawFn) -> list[list[Row]]:
    """Draw images; rows with one known frame have one content, as in real memory."""
    result = []
    for _ in range(draw(st.integers(1, 3))):
        held: dict[int, int] = {}
        rows = []
        for _ in range(draw(st.integers(1, 40))):
            frame = draw(st.none() | st.integers(0, 12))
            content = draw(st.integers(0, 9))
            if frame is not None:
                content = held.setdefault(frame, content)
            rows.append(Row(content, draw(st.integers(0, 2)), draw(st.integers(0, 2)), frame))
        result.append(rows)
    return result


def write(path: Path, rows: list[Row], batch: int = 7) -> str:
    """Write an image as a dump of several record batches."""
    mappings = [
        Mapping(owner, f"uid:{at}", kind, f"{kind}.name", 0x1000)
        for at, owner in enumerate(OWNERS)
        for kind in KINDS
    ]
    with DumpWriter(path, PAGE, mappings, source="test", force=True) as dump:
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            columns = PageColumns(
                row=first,
                mapping=np.array([r.owner * len(KINDS) + r.kind for r in part], np.int32),
                index=np.arange(first, first + len(part), dtype=np.uint64),
                frame=np.array(
                    [UNKNOWN_FRAME if r.frame is None else r.frame for r in part], np.uint64
                ),
            )
            raw = b"".join(page_bytes(r.content) for r in part)
            dump.write(columns, np.frombuffer(raw, np.uint8).reshape(len(part), PAGE))
    return str(path)


class Oracle:
    """The same answers from dictionaries."""

    def __init__(self, population: list[list[Row]]) -> None:
        rows = [(image, row) for image, part in enumerate(population) for row in part]
        self.rows = [row for _, row in rows]
        first_of_frame: dict[tuple[int, int], int] = {}
        self.alias = [
            row.frame is not None and first_of_frame.setdefault((image, row.frame), at) != at
            for at, (image, row) in enumerate(rows)
        ]
        first: dict[int, int] = {}
        self.representative = [
            first.setdefault(row.content, at) for at, row in enumerate(self.rows)
        ]
        self.frames = [at for at, alias in enumerate(self.alias) if not alias]
        self.holders: dict[int, list[int]] = defaultdict(list)
        for at in self.frames:
            self.holders[self.rows[at].content].append(at)

    def totals(self) -> dict[str, int]:
        zero = len(self.holders.get(0, []))
        sizes = [len(rows) for content, rows in self.holders.items() if content]
        sharing = sum(sizes) - len(sizes)
        return {
            "pages": len(self.rows),
            "bytes": len(self.rows) * PAGE,
            "frames": len(self.frames),
            "zero_frames": zero,
            "distinct_contents": len(self.holders),
            "unique_frames": sizes.count(1),
            "shared_contents": sum(n > 1 for n in sizes),
            "sharing_frames": sharing,
            "saved_bytes": (sharing + zero) * PAGE,
        }

    def sharing(self) -> tuple[int, int]:
        within = between = 0
        for content, rows in self.holders.items():
            if content:
                owners = Counter(self.rows[at].owner for at in rows)
                within += sum(n - 1 for n in owners.values())
                between += len(owners) - 1
        return within, between

    def by_owner(self) -> set[Share]:
        shares = set()
        for owner, name in enumerate(OWNERS):
            frames = [at for at in self.frames if self.rows[at].owner == owner]
            groups = {at: self.holders[self.rows[at].content] for at in frames}
            full = [at for at in frames if self.rows[at].content]
            shares.add(
                Share(
                    key=name,
                    pages=sum(row.owner == owner for row in self.rows),
                    frames=len(frames),
                    zero_frames=len(frames) - len(full),
                    unique_frames=sum(len(groups[at]) == 1 for at in full),
                    shared_contents=sum(len(groups[at]) > 1 and groups[at][0] == at for at in full),
                    sharing_frames=sum(groups[at][0] != at for at in full),
                )
            )
        return shares


@settings(max_examples=150, deadline=None)
@given(population=images(), threads=st.integers(1, 3), verify=st.booleans())
def test_equals_dictionaries(
    tmp_path_factory: pytest.TempPathFactory,
    population: list[list[Row]],
    threads: int,
    verify: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "exact"
    folder.mkdir(exist_ok=True)
    paths = [write(folder / f"{at}.arrow", rows) for at, rows in enumerate(population)]
    result = gd.scan(paths, threads=threads, verify=verify)
    oracle = Oracle(population)
    assert asdict(result.totals) == oracle.totals()
    assert result.partition.representative.tolist() == oracle.representative
    sharing = result.sharing("owner")
    assert (sharing.within, sharing.between) == oracle.sharing()
    assert {share for share in result.by("owner") if share.pages} == {
        share for share in oracle.by_owner() if share.pages
    }
    assert sum(share.frames for share in result.by("kind")) == result.totals.frames
    check_tables(result, oracle, population, paths)


def check_tables(
    result: gd.Scan, oracle: Oracle, population: list[list[Row]], paths: list[str]
) -> None:
    pages = result.pages.to_pydict()
    assert pages["row"] == list(range(len(oracle.rows)))
    assert pages["representative"] == oracle.representative
    assert pages["input"] == [p for p, part in zip(paths, population, strict=True) for _ in part]
    assert pages["owner"] == [OWNERS[row.owner] for row in oracle.rows]
    assert pages["kind"] == [KINDS[row.kind] for row in oracle.rows]
    assert pages["index"] == [index for part in population for index in range(len(part))]
    assert [kind == "alias" for kind in pages["class"]] == oracle.alias
    by_digest = {digest: at for at, digest in enumerate(dict.fromkeys(pages["digest"]))}
    assert len(by_digest) == len(set(oracle.representative))

    shared = {
        content: rows for content, rows in oracle.holders.items() if content and len(rows) > 1
    }
    table = result.contents.to_pylist()
    assert [row["content"] for row in table] == [
        rows[0] for rows in sorted(shared.values(), key=lambda rows: (-len(rows), rows[0]))
    ]
    for row in table:
        content = oracle.rows[row["content"]].content
        holders = [r for r in oracle.rows if r.content == content]
        first = oracle.rows[row["content"]]
        assert row["frames"] == len(shared[content])
        assert row["pages"] == len(holders)
        assert row["owners"] == sorted({OWNERS[r.owner] for r in holders})
        assert row["kinds"] == sorted({KINDS[r.kind] for r in holders})
        assert row["mapping"]["owner"] == OWNERS[first.owner]
        assert row["index"] == pages["index"][row["content"]]
        assert row["digest"] == pages["digest"][row["content"]]


def test_top_contents_are_the_first_of_all(tmp_path: Path) -> None:
    rows = [Row(content, 0, 0, None) for content in range(3, 9) for _ in range(content)]
    result = gd.scan(write(tmp_path / "a.arrow", rows))
    assert result.top_contents(3).to_pylist() == result.contents.to_pylist()[:3]


def test_arrays_paths_and_images_are_one_population(tmp_path: Path) -> None:
    pages = np.random.default_rng(5).integers(0, 256, (6, PAGE), dtype=np.uint8)
    raw = tmp_path / "raw.mem"
    raw.write_bytes(pages[2:].tobytes())
    with gd.open_image(raw, page_size=PAGE) as image:
        result = gd.scan([pages[:4], image, raw], page_size=PAGE)
        assert image.fd >= 0, "an image given opened stays open"
    assert result.totals.pages == 12
    assert result.totals.distinct_contents == 6
    assert result.totals.shared_contents == 4
    assert [entry["format"] for entry in result.inputs()] == ["memory", "raw", "raw"]


def test_one_array_is_one_input() -> None:
    result = gd.scan(np.zeros((3, PAGE), np.uint8))
    assert result.totals.zero_frames == 3


def test_the_same_frame_number_in_two_images_is_two_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", [Row(5, 0, 0, 1), Row(5, 1, 0, 1)])
    assert gd.scan(path).totals.frames == 1
    assert gd.scan([path, path]).totals.frames == 2


def test_page_sizes_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", [Row(5, 0, 0, None)])
    with pytest.raises(ImageError, match=r"array1: page size 1024, but .*a\.arrow has 512"):
        gd.scan([path, np.zeros((1, 1024), np.uint8)])


def test_nothing_to_scan() -> None:
    with pytest.raises(UsageError, match="no input"):
        gd.scan([])
    empty = gd.scan(np.zeros((0, PAGE), np.uint8))
    assert empty.totals.pages == empty.totals.saved_bytes == 0
    assert empty.pages.num_rows == empty.contents.num_rows == 0


def test_what_vanishes_during_the_scan_is_lost_and_counted(tmp_path: Path) -> None:
    pages = np.random.default_rng(6).integers(0, 256, (8, PAGE), dtype=np.uint8)
    raw = tmp_path / "raw.mem"
    raw.write_bytes(pages.tobytes())
    with gd.open_image(raw, page_size=PAGE) as image:
        os.truncate(raw, 5 * PAGE)
        result = gd.scan(image)
    assert result.totals.pages == 5
    assert result.totals.unique_frames == 5
    entry = result.inputs()[0]
    assert (entry["pages"], entry["absent"]["unreadable"]) == (5, 3)
    assert result.losses == [f"{raw}: offset {5 * PAGE}: 3 pages could not be read"]
    assert result.pages.column("digest").null_count == 3


@dataclass(slots=True)
class Framed(Image):
    """A raw image whose rows are in the frames 1, 2, 2."""

    format = "framed"

    def columns(self) -> Iterator[PageColumns]:
        rows = np.arange(3, dtype=np.uint64)
        yield PageColumns(0, np.zeros(3, np.int32), rows, np.array([1, 2, 2], np.uint64))


def test_an_alias_of_an_unreadable_frame_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "raw.mem"
    path.write_bytes(page_bytes(4))
    fd = os.open(path, os.O_RDONLY)
    mapping = Mapping("a", "", "guest", "", 0)
    with Framed(str(path), fd, PAGE, (mapping,), [Extent(0, 3, 0)]) as image:
        result = gd.scan(image)
    assert (result.totals.pages, result.totals.frames) == (1, 1)
    assert result.inputs()[0]["absent"]["unreadable"] == 2
    assert result.losses == [f"{path}: offset {PAGE}: 1 page could not be read"]


def test_a_dump_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", [Row(content, 0, 0, 1) for content in range(9)])
    with gd.open_image(path) as image:
        os.truncate(path, image.offset_of(3))
        with pytest.raises(ImageError, match="the file became shorter while it was read"):
            gd.scan(image)


def test_progress_ends_at_all_rows() -> None:
    seen: list[tuple[int, int]] = []
    pages = np.zeros((1 << 18, PAGE), np.uint8)
    gd.scan(pages, progress=lambda done, total: seen.append((done, total)))
    assert all(total == len(pages) for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_json_is_the_contract() -> None:
    result = gd.scan(np.zeros((3, PAGE), np.uint8)).as_dict()
    assert list(result) == ["schema_version", "inputs", "engine", "totals", "timings", "collisions"]
    assert "collision_bound" in gd.scan(np.zeros((1, PAGE), np.uint8), verify=False).as_dict()
    timings = result["timings"]
    assert isinstance(timings, dict)
    stages = sum(seconds for name, seconds in timings.items() if name != "total_s")
    assert timings["total_s"] == pytest.approx(stages, abs=1e-4)


def test_collision_bound_is_the_birthday_bound() -> None:
    pages = np.arange(1000, dtype=np.uint64).repeat(PAGE // 8).reshape(1000, -1).view(np.uint8)
    result = gd.scan(pages, verify=False)
    assert result.collision_bound == 1000 * 999 / 2 / 2**128
