"""Synthetic images, counted by a dict of bytes and by the engine."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate, chain, cycle, islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.engines.base import PageClass, PageSource
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.errors import OutputError, UsageError
from gpudedup.images.raw import open_raw
from gpudedup.scanning.counts import Totals
from gpudedup.scanning.synthetic import Recipe, answer, fill_pages, generate, shuffled

Format = Literal["arrow", "raw"]
FORMATS: tuple[Format, ...] = get_args(Format)
SEEDS = st.integers(0, 2**64 - 1)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    pages = draw(st.integers(1, 200))
    zero = draw(st.floats(0, 1))
    return Recipe(
        pages=pages,
        page_size=draw(st.sampled_from([512, 1024, 4096])),
        zero=zero,
        duplicate=draw(st.floats(0, 1 - zero)),
        group_sizes=tuple(draw(st.lists(st.integers(2, 12), min_size=1, max_size=3))),
        owners=draw(st.integers(1, pages)),
        seed=draw(SEEDS),
    )


def pages_of(path: Path, format: Format, page_size: int) -> list[bytes]:
    if format == "arrow":
        with pa.ipc.open_file(path) as reader:
            contents: list[bytes] = reader.read_all().column("content").to_pylist()
            return contents
    data = path.read_bytes()
    return [data[at : at + page_size] for at in range(0, len(data), page_size)]


def counted(pages: list[bytes]) -> tuple[Totals, list[int]]:
    """Return the totals by a dict of bytes, and the sizes of the groups."""
    page_size = len(pages[0])
    frames = Counter(pages)
    distinct, zero = len(frames), frames.pop(bytes(page_size), 0)
    groups = sorted(n for n in frames.values() if n > 1)
    sharing = sum(groups) - len(groups)
    return Totals(
        pages=len(pages),
        bytes=sum(map(len, pages)),
        frames=len(pages),
        zero_frames=zero,
        distinct_contents=distinct,
        unique_frames=sum(n == 1 for n in frames.values()),
        shared_contents=len(groups),
        sharing_frames=sharing,
        saved_bytes=(sharing + zero) * page_size,
    ), groups


def made(recipe: Recipe) -> npt.NDArray[np.uint8]:
    pages = np.empty((recipe.pages, recipe.page_size), np.uint8)
    fill_pages(recipe, answer(recipe), 0, pages)
    return pages


@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=60)
@given(recipe=recipes())
def test_the_answer_is_what_a_dict_of_bytes_counts(format: Format, recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "image")
        known = generate(recipe, path, format=format)
        pages = pages_of(path, format, recipe.page_size)
    found, groups = counted(pages)
    assert found == known == answer(recipe)
    assert known.zero_frames == round(recipe.zero * recipe.pages)
    assert groups == sorted(islice(cycle(recipe.group_sizes), len(groups)))


@settings(deadline=None)
@given(recipe=recipes())
def test_duplicates_are_as_near_as_whole_groups_allow(recipe: Recipe) -> None:
    known = answer(recipe)
    wanted, limit = recipe.duplicate * recipe.pages, recipe.pages - known.zero_frames
    sizes = islice(cycle(recipe.group_sizes), recipe.pages)
    possible = [pages for pages in chain([0], accumulate(sizes)) if pages <= limit]
    duplicates = known.shared_contents + known.sharing_frames
    assert duplicates == min(possible, key=lambda pages: abs(pages - wanted))


@pytest.mark.parametrize(("page_size", "pages"), [(512, 20_000), (4096, 3_000), (2 << 20, 11)])
def test_the_engine_counts_the_same(tmp_path: Path, page_size: int, pages: int) -> None:
    recipe = Recipe(pages, page_size, group_sizes=(2, 3))
    known = generate(recipe, tmp_path / "raw", format="raw")
    data = np.fromfile(tmp_path / "raw", np.uint8).reshape(pages, page_size)
    found = CpuEngine().partition(PageSource.of_array(data))
    assert np.count_nonzero(found.classes == PageClass.ZERO) == known.zero_frames
    content = found.classes == PageClass.CONTENT
    assert np.count_nonzero(content) == pages - known.zero_frames
    _, frames = np.unique(found.representative[content], return_counts=True)
    assert np.count_nonzero(frames == 1) == known.unique_frames
    assert np.count_nonzero(frames > 1) == known.shared_contents > 0
    assert frames.sum() - len(frames) == known.sharing_frames


def test_the_dump_tells_owners_recipe_and_answer(tmp_path: Path) -> None:
    recipe = Recipe(10, 512, owners=3, group_sizes=(2, 3))
    known = generate(recipe, tmp_path / "dump.arrow")
    with pa.ipc.open_file(tmp_path / "dump.arrow") as reader:
        table = reader.read_all()
    rows = table.select(["mapping", "index", "frame"]).to_pylist()
    assert [row["mapping"]["owner"] for row in rows] == [
        f"synthetic[{i}]" for i in (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
    ]
    assert {row["mapping"]["kind"] for row in rows} == {"anon"}
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert [row["frame"] for row in rows] == list(range(10))
    fields: dict[str, Any] = json.loads(table.schema.metadata[b"gpudedup.recipe"])
    assert Recipe(**{**fields, "group_sizes": tuple(fields["group_sizes"])}) == recipe
    assert Totals(**json.loads(table.schema.metadata[b"gpudedup.answer"])) == known


def test_raw_zero_pages_are_no_holes(tmp_path: Path) -> None:
    recipe = Recipe(1000, zero=0.9, duplicate=0)
    generate(recipe, tmp_path / "raw", format="raw")
    with open_raw(str(tmp_path / "raw"), recipe.page_size) as image:
        assert (image.pages, image.absent.holes) == (1000, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_pieces_of_any_size_make_the_same_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    recipe = Recipe(333, 512, owners=5, seed=9)
    expected = [page.tobytes() for page in made(recipe)]
    for batch, tile in ((64 << 20, 256 << 10), (512, 512), (7 * 512, 3 * 512), (1, 1)):
        monkeypatch.setattr("gpudedup.scanning.synthetic.BATCH_BYTES", batch)
        monkeypatch.setattr("gpudedup.scanning.synthetic.TILE_BYTES", tile)
        generate(recipe, tmp_path / "image", format=format, force=True)
        assert pages_of(tmp_path / "image", format, 512) == expected


def test_a_recipe_makes_the_same_bytes_everywhere() -> None:
    """The digest was computed once; a change breaks every recorded recipe."""
    recipe = Recipe(100, 512, group_sizes=(2, 5), seed=7)
    digest = hashlib.sha256(made(recipe).tobytes()).hexdigest()
    assert digest == "edb1155a62e43c79609e2aef098bb4b319c3a1b4893ed140f918ddb386a14b40"


def test_another_seed_makes_other_contents() -> None:
    one = made(Recipe(500, 512, zero=0, seed=1)).view(np.uint64)
    other = made(Recipe(500, 512, zero=0, seed=2)).view(np.uint64)
    assert not np.isin(one, other).any()


def test_contents_are_random_throughout() -> None:
    pages = made(Recipe(1024, zero=0, duplicate=0))
    words = pages.view(np.uint64)
    assert len(np.unique(words)) == words.size
    assert len(zlib.compress(pages.tobytes(), 1)) > pages.nbytes
    ones = np.unpackbits(pages.reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / words.size**0.5
    expected = pages.nbytes / 256
    squares = (np.bincount(pages.reshape(-1), minlength=256) - expected) ** 2 / expected
    assert 255 - 6 * 22.6 < squares.sum() < 255 + 6 * 22.6


@settings(deadline=None)
@given(pages=st.integers(1, 5000), seed=SEEDS)
def test_the_shuffle_is_a_permutation(pages: int, seed: int) -> None:
    rows = np.arange(pages, dtype=np.uint64)
    assert (np.sort(shuffled(rows, pages, seed)) == rows).all()
    assert (rows == np.arange(pages)).all(), "the argument was changed"


def test_the_shuffle_of_an_image_beyond_memory() -> None:
    pages = 2**40 + 3
    rows = np.arange(pages - 100_000, pages, dtype=np.uint64)
    places = shuffled(rows, pages, 1)
    assert places.max() < pages
    assert len(np.unique(places)) == len(rows)


@pytest.mark.parametrize("pages", [100_000, 1 << 17])
def test_the_shuffle_spreads_and_separates(pages: int) -> None:
    first_half = shuffled(np.arange(pages, dtype=np.uint64), pages, 3) < pages // 2
    blocks = np.array([block.sum() for block in np.array_split(first_half, 100)])
    size = pages / 100
    assert np.abs(blocks - size / 2).max() < 6 * (size / 4) ** 0.5
    changes = np.count_nonzero(first_half[1:] != first_half[:-1])
    assert abs(changes - pages / 2) < 6 * (pages / 4) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pages": 0}, "pages 0"),
        ({"page_size": 1000}, "page size 1000"),
        ({"page_size": 256}, "page size 256"),
        ({"zero": -0.1}, "zero -0.1"),
        ({"zero": float("nan")}, "zero nan"),
        ({"duplicate": 1.1}, "duplicate 1.1"),
        ({"zero": 0.6, "duplicate": 0.5}, "more than 1"),
        ({"group_sizes": ()}, "group sizes"),
        ({"group_sizes": (4, 1)}, "group sizes"),
        ({"group_sizes": (4, 1 << 40)}, "group sizes"),
        ({"owners": 0}, "owners 0"),
        ({"owners": 11}, "owners 11"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_there_is_no_such_image(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        replace(Recipe(10), **arguments)


def test_there_is_no_such_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format 'elf'"):
        generate(Recipe(1), tmp_path / "x", format="elf")  # type: ignore[arg-type]  # the point
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_overwritten_and_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    monkeypatch.setattr("gpudedup.scanning.synthetic.BATCH_BYTES", 4 * 512)
    path, seen = tmp_path / "image", []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(Recipe(10, 512), path, format=format, progress=interrupt)
    assert seen == [(4, 10), (8, 10)]
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        generate(Recipe(10, 512), path, format=format)
    with pytest.raises(KeyboardInterrupt):
        generate(Recipe(10, 512), path, format=format, force=True, progress=interrupt)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"mine"]
    with pytest.raises(OutputError, match="No such file"):
        generate(Recipe(1), tmp_path / "nowhere" / "image", format=format)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make writes beyond ``size`` bytes fail (EFBIG; Python ignores SIGXFSZ): a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("room", [0, 1000, 100_000, 64 * 4096 - 1])
def test_a_full_disk_leaves_nothing(tmp_path: Path, format: Format, room: int) -> None:
    path = tmp_path / "image"
    with largest_file(room), pytest.raises(OutputError, match="File too large") as caught:
        generate(Recipe(64), path, format=format)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_room_is_asked_for_first(small_disk: Path, format: Format) -> None:
    pages = 1 << 20
    # A dump also has 26 bytes of metadata for each page.
    needed = pages * (4096 + (26 if format == "arrow" else 0))

    def fail(done: int, total: int) -> None:
        pytest.fail("work began")

    with pytest.raises(OutputError, match=rf"image: needs {needed} bytes, \d+ are free"):
        generate(Recipe(pages), small_disk / "image", format=format, progress=fail)
    assert not list(small_disk.iterdir())


GROWTH = """
import re, sys
from pathlib import Path
from gpudedup.scanning.synthetic import Recipe, generate

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

before = peak()
generate(Recipe(pages=(512 << 20) // 4096), sys.argv[1], format=sys.argv[2])
print(peak() - before)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_image(tmp_path: Path, format: Format) -> None:
    path = tmp_path / "image"
    command = [sys.executable, "-c", GROWTH, str(path), format]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert path.stat().st_size >= 512 << 20
    path.unlink()
    assert int(grown) < 150 << 20


def test_an_answer_is_plain_integers() -> None:
    assert {type(value) for value in asdict(answer(Recipe(10))).values()} == {int}
