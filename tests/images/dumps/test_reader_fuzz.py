"""Damaged Arrow files: a dump that holds together, or one ImageError; never anything else."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpudedup.errors import ImageError
from gpudedup.images.dumps.reader import open_arrow

from ..common import holds_together
from .arrow_files import batch, contents, ours, plain


def seeds() -> dict[str, bytes]:
    """Return small dumps of all kinds, with few pages, so that most damage hits metadata."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "dump"
        made = {}
        ours(path, (2, 1))
        made["ours"] = path.read_bytes()
        batches = [batch(0, 2), batch(2, 1)]
        for kind, options in {
            "plain": {},
            "version 4": {"metadata_version": pa.ipc.MetadataVersion.V4},
            "compressed": {"compression": "lz4"},
        }.items():
            made[kind] = plain(path, batches, **options).read_bytes()
        more = batch(0, 2)
        for column, values in (("s", ["a", None]), ("l", [[1], [2, 3]]), ("d", [{"x": 1}, None])):
            more = more.append_column(column, pa.array(values))
        made["more columns"] = plain(path, [more]).read_bytes()
        return made


SEEDS = seeds()


def telling(data: bytes) -> list[int]:
    """Return the offsets of bytes that are neither in pages nor in the padding before them."""
    kept = set(range(len(data)))
    for page in (contents(0, 2).tobytes(), contents(2, 1).tobytes(), b"-" * 16):
        at = data.find(page)
        while at >= 0:
            kept -= set(range(at, at + len(page)))
            at = data.find(page, at + len(page))
    return sorted(kept)


PLACES = {kind: telling(data) for kind, data in SEEDS.items()}

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 64, 255, 512, 4096, 1 << 16, 1 << 31, 1 << 32, 1 << 63]),
    st.sampled_from([(1 << b) - d for b in (8, 16, 31, 32, 63, 64) for d in (1, 2, 8)]),
    st.integers(0, 2**64 - 1),
)

Edit = tuple[str, int, int, bytes]


@st.composite
def edits(draw: st.DrawFn, seed: str) -> list[Edit]:
    """Draw damage: kind, offset, length, replacement."""
    found: list[Edit] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "number", "number", "cut", "splice", "insert", "end"]))
        at = draw(st.sampled_from(PLACES[seed]))
        if kind == "flip":
            found.append((kind, at, 1, bytes([1 << draw(st.integers(0, 7))])))
        elif kind == "number":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(NUMBERS) & ((1 << 8 * width) - 1)
            found.append((kind, at // width * width, width, number.to_bytes(width, "little")))
        elif kind == "splice":
            other = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]
            begin = draw(st.integers(0, len(other) - 1))
            piece = other[begin : begin + draw(st.integers(1, 256))]
            found.append((kind, at, draw(st.sampled_from([0, len(piece)])), piece))
        elif kind == "insert":
            found.append((kind, at, 0, draw(st.binary(min_size=1, max_size=64))))
        else:
            length = draw(st.integers(1, 64)) if kind == "cut" else len(SEEDS[seed])
            found.append((kind, at, length, b""))
    return found


def damage(data: bytes, changes: Sequence[Edit]) -> bytes:
    result = bytearray(data)
    for kind, at, length, piece in changes:
        if kind == "flip" and at < len(result):
            result[at] ^= piece[0]
        elif kind != "flip":
            result[at : at + length] = piece
    return bytes(result)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    seed = draw(st.sampled_from(sorted(SEEDS)))
    return damage(SEEDS[seed], draw(edits(seed)))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "dump"
    path.touch()
    return path


@given(data=damaged())
@example(data=SEEDS["ours"])
@example(data=SEEDS["more columns"])
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_dump_or_an_image_error(scratch: Path, data: bytes) -> None:
    check(scratch, data or b"A")


@pytest.mark.parametrize("kind", ["ours", "more columns"])
def test_a_flipped_bit_anywhere(scratch: Path, kind: str) -> None:
    for at in PLACES[kind]:
        data = bytearray(SEEDS[kind])
        data[at] ^= 1 << at % 8
        check(scratch, bytes(data))


def check(path: Path, data: bytes) -> None:
    # Not write_bytes: ext4 flushes a file that was emptied first.
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    refusal = f"{path}: "
    try:
        with open_arrow(str(path)) as image:
            holds_together(image, len(data))
            for one in image.batches():
                one.validate(full=True)
    except ImageError as error:
        refusal = str(error)
    assert refusal.startswith(f"{path}: ")
    assert refusal.isprintable()
