"""``gpudedup scan``: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpudedup as gd
from gpudedup.schema import CONTENTS, PAGES

from .conftest import Run

RECIPE = gd.Recipe(pages=400, zero=0.25, duplicate=0.3, group_sizes=(2, 5), owners=4, seed=9)


@pytest.fixture
def dump(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """Return a dump and the totals that a scan must find."""
    path = tmp_path / "dump.arrow"
    return path, asdict(gd.generate(RECIPE, path))


def test_json_is_the_contract(run: Run, dump: tuple[Path, dict[str, int]]) -> None:
    path, answer = dump
    done = run("scan", path, "--json", "--threads", 2)
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert list(result) == ["schema_version", "inputs", "engine", "totals", "timings", "collisions"]
    assert result["schema_version"] == 1
    assert result["totals"] == answer
    assert result["inputs"] == [
        {
            "path": str(path),
            "format": "arrow",
            "page_size": 4096,
            "pages": 400,
            "mappings": 4,
            "absent": {"holes": 0, "excluded": 0, "unreadable": 0},
        }
    ]
    engine = result["engine"]
    assert set(engine) == {"name", "device", "threads", "digest", "verify", "passed_over"}
    assert (engine["name"], engine["threads"], engine["verify"]) == ("cpu", 2, True)
    assert result["timings"]["total_s"] > 0


def test_text_leads_with_the_answer(run: Run, dump: tuple[Path, dict[str, int]]) -> None:
    path, answer = dump
    done = run("scan", path)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{path}: 400 pages of 4 KiB in 4 mappings"
    assert re.fullmatch(r"\S+ KiB of 1.6 MiB \(\S+ %\) would be saved .*", lines[1])
    rows = dict(re.findall(r"^ *(\S[a-z ]*\S) +([\d,]+) +\S+ \w*B +\S+ %$", done.out, re.MULTILINE))
    assert int(rows["zero"]) == answer["zero_frames"] == 100
    assert int(rows["could be shared"]) == answer["sharing_frames"]
    assert int(rows["within one owner"]) + int(rows["between owners"]) == answer["sharing_frames"]
    assert int(rows["unique"]) == answer["unique_frames"]
    assert "byte by byte" in done.out
    for title in ("By kind of memory", "By owner", "Most shared contents"):
        assert title in done.out


def test_no_verify_prints_the_bound(run: Run, dump: tuple[Path, dict[str, int]]) -> None:
    path, answer = dump
    text = run("scan", path, "--no-verify").out
    bound = answer["distinct_contents"] * (answer["distinct_contents"] - 1) / 2 / 2**128
    assert f"is below {bound:.0e}" in text
    assert "byte by byte" not in text
    result = json.loads(run("scan", path, "--no-verify", "--json").out)
    assert result["collision_bound"] == bound
    assert result["totals"] == answer


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_tables_in_files(
    run: Run, dump: tuple[Path, dict[str, int]], tmp_path: Path, suffix: str
) -> None:
    path, answer = dump
    pages, contents = tmp_path / f"r.{suffix}", tmp_path / f"r.contents.{suffix}"
    assert run("scan", path, "-o", pages).code == 0

    def read(path: Path) -> pa.Table:
        return pq.read_table(path) if suffix == "parquet" else pa.ipc.open_file(path).read_all()

    result = gd.scan(path)
    assert read(pages).cast(PAGES) == result.pages
    assert read(contents).cast(CONTENTS) == result.contents
    assert pages.stat().st_mode & 0o777 == contents.stat().st_mode & 0o777 == 0o600
    if suffix == "parquet":
        sharing = (
            duckdb.connect()
            .execute(
                f"SELECT count(*) FROM '{pages}' WHERE row <> representative AND class = 'content'"
            )
            .fetchone()
        )
        assert sharing == (answer["sharing_frames"],)


def test_an_output_is_not_replaced_unasked(
    run: Run, dump: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    beside = tmp_path / "r.contents.arrow"
    beside.write_text("precious")
    done = run("scan", dump[0], "-o", tmp_path / "r.arrow")
    assert done.code == 1
    assert done.err == f"gpudedup: {beside}: exists already (--force replaces it)\n"
    assert beside.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dump.arrow", "r.contents.arrow"]
    assert run("scan", dump[0], "-o", tmp_path / "r.arrow", "--force").code == 0


def test_an_output_that_says_no_format(run: Run, dump: tuple[Path, dict[str, int]]) -> None:
    done = run("scan", dump[0], "-o", "result.csv")
    assert done.code == 2
    assert done.err == "gpudedup: result.csv: a result is named *.arrow or *.parquet\n"


def test_several_images_are_one_population(
    run: Run, dump: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    raw = tmp_path / "machine.mem"
    gd.generate(RECIPE, raw, format="raw")
    result = json.loads(run("scan", dump[0], raw, "--json").out)
    assert [entry["format"] for entry in result["inputs"]] == ["arrow", "raw"]
    assert result["totals"]["distinct_contents"] == dump[1]["distinct_contents"]
    assert result["totals"]["unique_frames"] == 0


def test_partly_unreadable_is_told_and_is_exit_code_3(run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "odd.mem"
    raw.write_bytes(np.random.default_rng(1).bytes(2 * 4096 + 7))
    done = run("scan", raw)
    assert done.code == 3
    assert done.out.startswith(f"{raw}: 2 pages of 4 KiB in 1 mapping; not in it: 1 unreadable\n")
    assert done.err == (
        f"gpudedup: unreadable: {raw}: offset 8192: the last 7 bytes are less than a page\n"
    )


def test_names_from_an_image_cannot_speak_to_the_terminal(run: Run, tmp_path: Path) -> None:
    from gpudedup.images.dumps.writer import DumpWriter
    from gpudedup.images.rows import Mapping, PageColumns

    path = tmp_path / "evil.arrow"
    mappings = [Mapping(f"\x1b[2J{at}[bold]", "", "anon", "\x07[red]\n", 0) for at in range(2)]
    with DumpWriter(path, 4096, mappings, source="test") as dump:
        rows = np.arange(2)
        pages = np.full((2, 4096), 7, np.uint8)
        pages[:, 0] = 8
        dump.write(PageColumns(0, rows.astype(np.int32), rows.astype(np.uint64)), pages)
    out = run("scan", path).out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\N{REPLACEMENT CHARACTER}[2J0[bold]" in out
    assert "[red]" in out


BAD = {
    "missing": (None, 1, "{path}: No such file or directory"),
    "empty": (b"", 1, "{path}: offset 0: empty file"),
    "xz": (
        b"\xfd7zXZ\0" + bytes(50),
        1,
        "{path}: offset 0: compressed with xz: decompress it first",
    ),
    "elf": (b"\x7fELF", 1, "{path}: .*"),
    "arrow": (b"ARROW1\0\0" + bytes(500), 1, "{path}: offset 508: cut off: .*"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line(run: Run, tmp_path: Path, name: str) -> None:
    content, code, line = BAD[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    done = run("scan", path)
    assert (done.code, done.out) == (code, "")
    assert re.fullmatch("gpudedup: " + line.format(path=re.escape(str(path))) + "\n", done.err)


def test_a_directory_is_one_line(run: Run, tmp_path: Path) -> None:
    done = run("scan", tmp_path)
    assert (done.code, done.err) == (1, f"gpudedup: {tmp_path}: is a directory\n")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--backend", "cuda"], 4, "backend cuda: "),
        (["--backend", "abacus"], 2, "backend 'abacus': not one of auto, cpu, cuda"),
        (["--threads", "0"], 2, "threads 0: must be at least 1"),
        (["--format", "zip"], 2, "format 'zip': not one of arrow, elf, raw"),
        (["--page-size", "8K"], 2, "page size is 4096, not 8192"),
        (["--page-size", "3000"], 2, "page size 3000: not a power of two from 512 to 2097152"),
    ],
)
def test_usage(
    run: Run, dump: tuple[Path, dict[str, int]], arguments: list[str], code: int, reason: str
) -> None:
    done = run("scan", dump[0], *arguments)
    assert done.code == code
    assert reason in done.err
    assert done.err.count("\n") == 1
