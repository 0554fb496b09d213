"""``gpudedup merge``, ``restore`` and ``verify``: what they print and write, and exit codes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.images.opening import open_image

from .conftest import Run

RECIPE = gd.Recipe(pages=400, zero=0.25, duplicate=0.3, group_sizes=(2, 5), owners=4, seed=9)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    gd.generate(RECIPE, tmp_path / "dump.arrow")
    return tmp_path / "dump.arrow"


@pytest.fixture
def merged(run: Run, dump: Path) -> Path:
    path = dump.with_name("m.arrow")
    assert run("merge", dump, "-o", path).code == 0
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_merge_says_what_it_saved(run: Run, dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.arrow"
    done = run("merge", dump, "-o", out)
    assert (done.code, done.err) == (0, "")
    first, second, third = done.out.splitlines()
    assert first == f"{out}: 400 pages in 4 mappings"
    assert re.fullmatch(
        r"216 frames of 4 KiB; 1\.6 MiB of pages in a file of \S+ KiB: 4\d\.\d % saved\.", second
    )
    assert re.fullmatch(r"Every match was compared byte by byte\. \d+\.\d\d s\.", third)


def test_merge_again_adds_new_frames_only(run: Run, merged: Path, tmp_path: Path) -> None:
    raw = tmp_path / "r.mem"
    raw.write_bytes(np.random.default_rng(0).bytes(5 * 4096) + bytes(4096))
    done = run("merge", merged, raw, "-o", merged, "--force")
    assert done.code == 0
    assert "221 frames of 4 KiB, 5 of them new; " in done.out


def test_merge_json(run: Run, dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.arrow"
    record = json.loads(run("merge", dump, "-o", out, "--json").out)
    assert record["timings"].keys() == {"open_s", "scan_s", "plan_s", "frames_s", "rows_s"}
    del record["timings"]
    assert record == {
        "schema_version": 1,
        "path": str(out),
        "page_size": 4096,
        "pages": 400,
        "mappings": 4,
        "absent": {"holes": 0, "excluded": 0, "unreadable": 0},
        "frames": 216,
        "new_frames": 216,
        "bytes": 400 * 4096,
        "file_bytes": out.stat().st_size,
    }


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ([], 216),
        (["--kinds", "file"], 400),
        (["--kinds", "anon,file"], 216),
        (["--max-page-sharing", "2"], None),
        (["--no-zero-pages"], 216),
        (["--no-zero-pages", "--max-page-sharing", "50"], None),
        (["--within-domain", "--within-node"], 216),
    ],
)
def test_policies(
    run: Run, dump: Path, tmp_path: Path, options: list[str], frames: int | None
) -> None:
    record = json.loads(run("merge", dump, "-o", tmp_path / "m", "--json", *options).out)
    if frames is None:
        assert 216 < record["frames"] < 400
    else:
        assert record["frames"] == frames
    run("restore", tmp_path / "m", "-o", tmp_path / "back")
    assert sha(tmp_path / "back") == sha(dump)


def test_restore_is_the_way_back(run: Run, dump: Path, merged: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.arrow"
    done = run("restore", merged, "-o", back)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{back}: 400 pages in 4 mappings\n"
    assert sha(back) == sha(dump)
    again = run("restore", merged, "-o", back)
    assert (again.code, again.err) == (
        1,
        f"gpudedup: {back}: exists already (--force replaces it)\n",
    )
    assert run("restore", merged, "-o", back, "--force", "--input", "dump.arrow").code == 0
    assert sha(back) == sha(dump)


def test_restore_raw(run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "guest.mem"
    with raw.open("wb") as file:
        file.write(b"x" * 8192)
        file.truncate(1 << 20)
    run("merge", raw, "-o", tmp_path / "m")
    done = run("restore", tmp_path / "m", "--raw", "-o", tmp_path / "out")
    assert done.code == 0
    back = tmp_path / "out" / "guest.mem"
    assert done.out == f"{back}: 2 pages of guest.mem, 1 MiB with holes\n"
    assert sha(back) == sha(raw)


def test_what_was_merged(run: Run, merged: Path, dump: Path, tmp_path: Path) -> None:
    raw = tmp_path / "a b.mem"
    raw.write_bytes(bytes(8192))
    run("merge", merged, raw, "-o", tmp_path / "both")
    done = run("restore", tmp_path / "both", "--list")
    assert (done.code, done.err) == (0, "")
    assert [line.split(maxsplit=4) for line in done.out.splitlines()] == [
        ["format", "pages", "mappings", "name"],
        ["0", "arrow", "400", "4", "dump.arrow"],
        ["1", "raw", "2", "1", "a b.mem"],
    ]
    done = run("restore", tmp_path / "both", "--raw", "--input", "1", "-o", tmp_path / "out")
    assert done.code == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_b.mem"]
    done = run("restore", tmp_path / "both")
    assert (done.code, done.err) == (2, "gpudedup: missing option --output (-o)\n")


def test_verify(run: Run, merged: Path) -> None:
    done = run("verify", merged)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"{merged}: intact. 216 frames of 4 KiB match their digests, 400 pages in 4 mappings"
        " refer to them\n"
    )
    with open_image(merged) as image:
        offset = image.offset_of_stored(7)
    with merged.open("r+b") as file:
        file.seek(offset + 99)
        file.write(b"\xff\x00")
    done = run("verify", merged)
    assert (done.code, done.out) == (3, "")
    line = f"{merged}: offset {offset}: frame 7 does not match its digest"
    assert done.err == f"gpudedup: {line}\n"
    done = run("verify", merged, "--json")
    assert done.code == 3
    record = json.loads(done.out)
    assert (record["frames"], record["damaged_frames"], record["damage"]) == (216, 1, [line])


def test_damage_is_exit_code_3_and_nothing_is_written(run: Run, merged: Path) -> None:
    folder = merged.parent
    with open_image(merged) as image:
        offset = image.offset_of_stored(7)
    with merged.open("r+b") as file:
        file.seek(offset + 99)
        file.write(b"\xff\x00\xff")
    before = {path.name: sha(path) for path in folder.iterdir()}
    for command in (
        ["restore", merged, "-o", folder / "out"],
        ["restore", merged, "-o", folder / "out", "--raw"],
        ["restore", merged, "-o", folder / "dump.arrow", "--force"],
        ["import", merged, "-o", folder / "out"],
        ["merge", merged, "-o", merged, "--force"],
        ["merge", folder / "dump.arrow", merged, "-o", folder / "out"],
    ):
        done = run(*command)
        assert (done.code, done.out) == (3, "")
        assert re.fullmatch(
            rf"gpudedup: {merged}: offset {offset}: frame 7 does not match its digest;"
            r" 1 page has it: \d+ of '\S+' '[^']*'; nothing was written\n",
            done.err,
        ), done.err
        assert {path.name: sha(path) for path in folder.iterdir()} == before
    assert run("verify", merged).code == 3


def test_what_could_not_be_read_is_exit_code_3(run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "odd.mem"
    raw.write_bytes(np.random.default_rng(1).bytes(2 * 4096 + 7))
    done = run("merge", raw, "-o", tmp_path / "m")
    assert done.code == 3
    assert done.err.startswith(f"gpudedup: unreadable: {raw}: offset 8192: the last 7 bytes")
    done = run("restore", tmp_path / "m", "-o", tmp_path / "back")
    assert done.code == 0
    assert done.out == f"{tmp_path / 'back'}: 2 pages in 1 mapping; not in it: 1 unreadable\n"


@pytest.mark.parametrize(
    ("command", "arguments", "code", "reason"),
    [
        ("merge", ["--kinds", "heap"], 2, "kind 'heap': not one of anon, file, shmem, guest"),
        ("merge", ["--kinds", ""], 2, "kind '': not one of"),
        ("merge", ["--max-page-sharing", "1"], 2, "max_page_sharing 1: must be at least 2"),
        ("merge", ["--threads", "0"], 2, "threads 0: must be at least 1"),
        ("merge", ["--backend", "abacus"], 2, "backend 'abacus': not one of auto, cpu, cuda"),
        ("merge", ["--backend", "cuda"], 4, "backend cuda: "),
        ("merge", ["--page-size", "8K"], 2, "page size is 4096, not 8192"),
        ("restore", ["--input", "x"], 2, "input 'x': not one of dump.arrow"),
        ("restore", ["--input", "1"], 2, "input 1: there are 1, counted from 0"),
        ("restore", ["--input", "1", "--raw"], 2, "input 1: there are 1, counted from 0"),
    ],
)
def test_usage(
    run: Run,
    merged: Path,
    tmp_path: Path,
    command: str,
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    before = sorted(tmp_path.iterdir())
    done = run(command, merged, "-o", tmp_path / "out", *arguments)
    assert done.code == code
    assert reason in done.err
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_not_a_merged_dump_is_one_line(run: Run, dump: Path, tmp_path: Path) -> None:
    for command in (["restore", "-o", tmp_path / "out"], ["verify"]):
        done = run(*command, dump)
        assert (done.code, done.err) == (1, f"gpudedup: {dump}: not a merged dump (arrow)\n")


def test_a_cut_merged_dump_is_one_line(run: Run, merged: Path, tmp_path: Path) -> None:
    merged.write_bytes(merged.read_bytes()[:-100])
    size = merged.stat().st_size
    for command in (["restore", "-o", tmp_path / "out"], ["verify"], ["scan"]):
        done = run(*command, merged)
        assert done.code == 1
        assert done.err.startswith(f"gpudedup: {merged}: offset {size}: cut off")
        assert done.err.count("\n") == 1
