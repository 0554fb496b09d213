"""Restore: merging and restoring is the identity."""

from __future__ import annotations

import errno
import lzma
import os
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import ImageError, OutputError, UsageError
from gpudedup.merged import restoring
from gpudedup.processes.capture import capture
from gpudedup.schema import KINDS

from ..images.dumps.arrow_files import batch, plain
from ..processes.children import child
from .common import MAPPINGS, PAGE, as_others_see, pages_of, sha, table, write_dump

FIXTURES = Path(__file__).parent.parent / "images" / "fixtures"
LETTERS = [1, 2, 0, 1, 3, 0, 4, 2, 5, 1, 6, 0, 7, 3, 3]


def cycle(source: Path | list[Path], folder: Path, **how: object) -> Path:
    """Merge, restore, and return the path of the restored dump."""
    gd.merge_images(source, folder / "merged", force=True, **how)  # type: ignore[arg-type]
    gd.restore(folder / "merged", folder / "restored", force=True)
    return folder / "restored"


@pytest.mark.parametrize("owners", [1, 5])
def test_a_generated_dump_comes_back_to_the_bit(tmp_path: Path, owners: int) -> None:
    path = tmp_path / "d.arrow"
    gd.generate(gd.Recipe(3000, 4096, group_sizes=(2, 9), owners=owners), path)
    assert sha(cycle(path, tmp_path)) == sha(path)
    policy = gd.MergePolicy(kinds=KINDS, within_domain=True, max_page_sharing=2)
    assert sha(cycle(path, tmp_path, policy=policy)) == sha(path)


HOLDS = """
at = map(40); fill(at, "a", range(20)); fill(at, "a", range(10, 20))
ctypes.memmove(at + 20 * PAGE, at, 10 * PAGE); ctypes.memset(at + 30 * PAGE, 0, 3 * PAGE)
pid = os.fork()
if pid: tell(pid=pid)
signal.pause()
"""


def test_a_capture_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "d.arrow"
    with child(HOLDS) as one:
        pids = [one.pid, one.said["pid"]]
        try:
            capture(pids, str(path), stop=True)
        finally:
            os.kill(pids[1], 9)
    assert sha(cycle(path, tmp_path)) == sha(path)
    # Its frame numbers stay those of the processes, whatever is merged with it.
    other = write_big(tmp_path / "o")
    gd.merge_images([other, path, other], tmp_path / "three")
    gd.restore(tmp_path / "three", tmp_path / "one", input=1)
    assert sha(tmp_path / "one") == sha(path)


def write_big(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(1).bytes(8 * 4096))
    return path


@pytest.mark.parametrize("name", ["gcore", "kernel", "qemu", "qemu-paging"])
def test_an_elf_core(tmp_path: Path, name: str) -> None:
    core = tmp_path / f"{name}.core"
    core.write_bytes(lzma.decompress((FIXTURES / f"{name}.core.xz").read_bytes()))
    back, imported = cycle(core, tmp_path), tmp_path / "imported"
    gd.import_images(core, imported)
    assert as_others_see(back) == as_others_see(imported)
    assert gd.scan(back).inputs()[0]["absent"] == gd.scan(core).inputs()[0]["absent"]


@pytest.mark.parametrize("tail", ["data", "hole"])
def test_a_raw_image_comes_back_with_its_holes(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "guest.mem"
    data = np.random.default_rng(0).integers(0, 256, (8, 4096), dtype=np.uint8)
    data[3] = data[1]
    data[4] = 0
    with path.open("wb") as file:
        file.write(data[:5].tobytes())
        file.seek(4096 << 8)
        file.write(data[5:].tobytes())
        if tail == "hole":
            file.truncate(4096 << 9)
    gd.merge_images(path, tmp_path / "m")
    (file_,) = gd.restore_raw(tmp_path / "m", tmp_path / "out")
    assert (file_.path.name, file_.owner) == ("guest.mem", "guest.mem")
    assert sha(file_.path) == sha(path)
    assert stat.S_IMODE(file_.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file_.path.parent.stat().st_mode) == 0o700
    assert holes(file_.path) == holes(path)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["guest.mem"]


def holes(path: Path) -> list[int]:
    """Return the offsets where data begin and end, in turn."""
    found, at = [], 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found += [start, at]
    return found


def test_each_input_can_be_given_back(tmp_path: Path) -> None:
    a = write_dump(tmp_path / "a", LETTERS, frame=[*range(14), None], source="one")
    b = write_dump(tmp_path / "b", [9, 2, 9, 10, 0], frame=[0, 1, None, 3, 4], source="two")
    raw = tmp_path / "c.mem"
    raw.write_bytes(pages_of([1, 0, 8, 8]).tobytes())
    gd.merge_images([a, raw], tmp_path / "m1", page_size=PAGE)
    gd.merge_images([b, tmp_path / "m1", a], tmp_path / "m2")
    merged, out = tmp_path / "m2", tmp_path / "out"
    for which, original in (("b", b), (1, a), ("0", b), (3, a)):
        gd.restore(merged, out, input=which, force=True)
        before, after = pa.memory_map(str(original)), pa.memory_map(str(out))
        one, two = pa.ipc.open_file(before), pa.ipc.open_file(after)
        assert one.schema.metadata == two.schema.metadata
        assert list(one.schema.metadata) == list(two.schema.metadata)
        assert one.read_all().combine_chunks().equals(two.read_all().combine_chunks())
    gd.restore(merged, out, input="c.mem", force=True)
    gd.import_images(raw, tmp_path / "imported", page_size=PAGE)
    assert as_others_see(out) == as_others_see(tmp_path / "imported")
    for which, line in (
        ("a", "input 'a': there are several: 1, 3; say which by its number"),
        (4, "input 4: there are 4, counted from 0"),
        ("4", "input 4: there are 4, counted from 0"),
        ("x", "input 'x': not one of b, a, c.mem, a"),
    ):
        with pytest.raises(UsageError) as caught:
            gd.restore(merged, out, input=which)
        assert str(caught.value) == line


def test_metadata_of_a_dump_by_others(tmp_path: Path) -> None:
    """Restoring adds no metadata that the dump did not have."""
    for metadata in (None, {"mine": "own words", "gpudedup.absent": '{"holes": 7}'}):
        path = plain(tmp_path / "d", [batch(0, 9)], metadata=metadata)  # type: ignore[arg-type]
        back = cycle(path, tmp_path)
        with pa.memory_map(str(back)) as source:
            found = pa.ipc.open_file(source).schema.metadata or {}
        assert found.get(b"mine", b"").decode() == (metadata or {}).get("mine", "")
        assert set(found) == {key.encode() for key in metadata or {}}
        assert table(back).equals(table(path))
        assert gd.scan(back).inputs()[0]["absent"] == gd.scan(path).inputs()[0]["absent"]


def test_a_merged_dump_by_others(tmp_path: Path) -> None:
    merged = as_merged_by_pyarrow(tmp_path / "m")
    gd.restore(merged, tmp_path / "r")
    assert as_others_see(tmp_path / "r") == as_others_see(merged)
    gd.restore(merged, tmp_path / "0", input=0)
    assert as_others_see(tmp_path / "0") == as_others_see(merged)
    gd.merge_images([merged, merged], tmp_path / "mm")
    contents = [row["content"] for row in as_others_see(merged)]
    assert [row["content"] for row in as_others_see(tmp_path / "mm")] == contents * 2


def as_merged_by_pyarrow(path: Path) -> Path:
    one = batch(0, 6)
    at = one.schema.get_field_index("content")
    codes = pa.DictionaryArray.from_arrays(pa.array([3, 1, 3, 5, 0, 1], pa.int8()), one.column(at))
    field = pa.field("content", codes.type, nullable=False)
    columns = [*one.columns[:at], codes, *one.columns[at + 1 :]]
    return plain(path, [pa.RecordBatch.from_arrays(columns, schema=one.schema.set(at, field))])


def test_raw_images_of_processes_tell_their_addresses(tmp_path: Path) -> None:
    a = write_dump(tmp_path / "a", LETTERS)
    gd.merge_images([a, a], tmp_path / "m")
    files = gd.restore_raw(tmp_path / "m", tmp_path / "out")
    names = ["a[1].raw", "b[2].raw", "c[3].raw", "a[1]-2.raw", "b[2]-2.raw", "c[3]-2.raw"]
    assert [file.path.name for file in files] == names
    rows = as_others_see(a)
    for file in files:
        raw = file.path.read_bytes()
        assert len(raw) == file.size
        mine = [row for row in rows if row["mapping"]["owner"] == file.owner]
        assert file.pages == len(mine)
        maps = Path(f"{file.path}.maps")
        places = {(m["kind"], m["start"]): m["start"] for m in (row["mapping"] for row in mine)}
        if file.owner != "c[3]":
            for line in maps.read_text().splitlines()[1:]:
                offset, address, _, kind, _ = line.split()
                places[kind, int(address, 16)] = int(offset, 16)
        else:
            assert not maps.exists()
        covered = set()
        for row in mine:
            key = row["mapping"]["kind"], row["mapping"]["start"]
            at = places[key] + row["index"] * PAGE
            assert raw[at : at + PAGE] == row["content"]
            covered.add(at)
        rest = (raw[at : at + PAGE] for at in range(0, len(raw), PAGE) if at not in covered)
        assert not any(any(page) for page in rest)


def test_names_are_fit_for_a_folder(tmp_path: Path) -> None:
    from gpudedup.images.dumps.writer import DumpWriter
    from gpudedup.images.rows import Mapping, PageColumns

    owners = ["../../etc/passwd", "a b\n", "..", "x" * 300, "", "a_b_"]
    mappings = [Mapping(owner, "", "anon", "n\nm", 0) for owner in owners]
    with DumpWriter(tmp_path / "d", PAGE, mappings, source="test") as dump:
        n = len(owners)
        columns = PageColumns(0, np.arange(n, dtype=np.int32), np.zeros(n, np.uint64))
        dump.write(columns, pages_of(range(1, n + 1)))
    gd.merge_images(tmp_path / "d", tmp_path / "m")
    files = gd.restore_raw(tmp_path / "m", tmp_path / "out")
    assert [file.path.parent for file in files] == [tmp_path / "out"] * n
    assert [file.path.name for file in files] == [
        "_.._etc_passwd.raw", "a_b_.raw", "owner.raw", "x" * 200 + ".raw", "owner-2.raw",
        "a_b_-2.raw",
    ]  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 3 * PAGE])
def test_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(restoring, "PIECE_BYTES", chunk)
    raw = tmp_path / "c.mem"
    raw.write_bytes(pages_of(LETTERS).tobytes())
    gd.merge_images(raw, tmp_path / "m", page_size=PAGE)
    (file,) = gd.restore_raw(tmp_path / "m", tmp_path / "out")
    assert sha(file.path) == sha(raw)
    path = tmp_path / "d.arrow"
    gd.generate(gd.Recipe(50, 4096), path)
    assert sha(cycle(path, tmp_path)) == sha(path)


def test_what_is_not_a_merged_dump(tmp_path: Path) -> None:
    a = write_dump(tmp_path / "a", LETTERS)
    for call in (
        lambda: gd.restore(a, tmp_path / "out"),
        lambda: gd.restore_raw(a, tmp_path / "out"),
        lambda: gd.verify(a),
        lambda: gd.open_merged(a),
    ):
        with pytest.raises(ImageError, match="not a merged dump"):
            call()
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    gd.merge_images(write_dump(tmp_path / "a", LETTERS), tmp_path / "m")
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        gd.restore(tmp_path / "m", tmp_path / "out")
    with pytest.raises(OutputError, match="not a directory"):
        gd.restore_raw(tmp_path / "m", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "c[3].raw").write_text("precious")
    with pytest.raises(OutputError, match=r"c\[3\].raw: exists already"):
        gd.restore_raw(tmp_path / "m", tmp_path / "folder")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["c[3].raw"]
    assert len(gd.restore_raw(tmp_path / "m", tmp_path / "folder", force=True)) == 3


def test_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    raw = tmp_path / "r.mem"
    raw.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    gd.merge_images(raw, tmp_path / "m")
    disk = os.statvfs(small_disk)
    free = disk.f_bfree * disk.f_frsize
    begun: list[int] = []
    for call, needed in ((gd.restore, 256 * (4096 + 26)), (gd.restore_raw, 1 << 20)):
        with pytest.raises(OutputError) as caught:
            call(tmp_path / "m", small_disk / "out", progress=lambda done, _: begun.append(done))
        assert str(caught.value) == f"{small_disk / 'out'}: needs {needed} bytes, {free} are free"
        assert not list(small_disk.rglob("*"))
    assert not begun


def test_a_disk_that_becomes_full_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    raw = tmp_path / "r.mem"
    disk = os.statvfs(small_disk)
    raw.write_bytes(np.random.default_rng(0).bytes((disk.f_bfree - 1) * disk.f_frsize))
    gd.merge_images(raw, tmp_path / "m")
    (small_disk / "other").write_bytes(bytes(8192))
    for call in (gd.restore, gd.restore_raw):
        with pytest.MonkeyPatch.context() as patch:
            # What was free when it was asked for is taken meanwhile.
            patch.setattr(os, "statvfs", lambda _: disk)
            with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
                call(tmp_path / "m", small_disk / "out")
        assert [p.name for p in small_disk.rglob("*")] == ["other"]


def test_an_address_that_no_file_has(tmp_path: Path) -> None:
    """Any 64-bit index is allowed, also the last."""
    from gpudedup.images.dumps.writer import DumpWriter
    from gpudedup.images.rows import PageColumns

    for index in (2**64 - 1, 2**63, 2**63 // PAGE):
        for first in (0, 4):
            with DumpWriter(tmp_path / "d", PAGE, MAPPINGS, source="test", force=True) as dump:
                mapping = np.array([0, first], np.int32)
                dump.write(
                    PageColumns(0, mapping, np.array([3, index], np.uint64)), pages_of([1, 2])
                )
            gd.merge_images(tmp_path / "d", tmp_path / "m", force=True)
            gd.restore(tmp_path / "m", tmp_path / "r", force=True)
            assert sha(tmp_path / "r") == sha(tmp_path / "d")
            with pytest.raises(OutputError) as caught:
                gd.restore_raw(tmp_path / "m", tmp_path / "out")
            name = "c[3].raw" if first else "a[1].raw"
            reason = "an address lies beyond what a file can hold"
            assert str(caught.value) == f"{tmp_path / 'out' / name}: {reason}"
            assert not (tmp_path / "out").exists()
            with gd.open_merged(tmp_path / "m") as opened:
                assert (opened[first].pages([index])[0] == pages_of([2])[0]).all()
                with pytest.raises(UsageError, match="page -1 of"):
                    opened[first].pages(-1)
                if index >= 2**63:
                    with pytest.raises(UsageError, match=f": {index + 1} pages"):
                        len(opened[first])


def test_an_owner_named_as_a_file_of_another(tmp_path: Path) -> None:
    """``x.raw`` has its addresses in ``x.raw.maps``; a raw image is restored under its own name."""
    from gpudedup.images.dumps.writer import DumpWriter
    from gpudedup.images.rows import Mapping, PageColumns

    with DumpWriter(tmp_path / "d", PAGE, [Mapping("x", "", "anon", "", 0)], source="t") as dump:
        dump.write(PageColumns(0, np.zeros(1, np.int32), np.zeros(1, np.uint64)), pages_of([1]))
    raw = tmp_path / "x.raw.maps"
    raw.write_bytes(pages_of([2, 3]).tobytes())
    for force in (False, True):
        for inputs, names in (
            ([raw, tmp_path / "d"], {"x.raw.maps": raw, "x-2.raw": None, "x-2.raw.maps": None}),
            ([tmp_path / "d", raw], {"x.raw": None, "x.raw.maps": None, "x.raw.maps-2.raw": raw}),
        ):
            out = tmp_path / f"out{inputs[0].name}"
            gd.merge_images(inputs, tmp_path / "m", page_size=PAGE, force=True)
            gd.restore_raw(tmp_path / "m", out, force=force)
            assert {p.name for p in out.iterdir()} == set(names)
            for name, original in names.items():
                if original:
                    assert sha(out / name) == sha(original)
            maps = next(name for name, original in names.items() if not original and "maps" in name)
            assert (out / maps).read_text().startswith("# offset address pages kind name;")


def test_names_of_many_bytes(tmp_path: Path) -> None:
    """A name has at most 255 bytes; a letter of Chinese has three."""
    raw = tmp_path / ("界" * 85)
    raw.write_bytes(pages_of([1, 2]).tobytes())
    gd.merge_images([raw, raw], tmp_path / "m", page_size=PAGE)
    files = gd.restore_raw(tmp_path / "m", tmp_path / "out")
    assert [file.path.name for file in files] == ["界" * 66, "界" * 66 + "-2.raw"]
    assert [sha(file.path) for file in files] == [sha(raw)] * 2
