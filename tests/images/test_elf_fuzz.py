"""Damaged ELF cores: an image that holds together, or one ImageError; never anything else."""

from __future__ import annotations

import lzma
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpudedup.errors import ImageError
from gpudedup.images.elf import open_elf

from .common import holds_together, open_files

FIXTURES = Path(__file__).parent / "fixtures"
SEEDS = {
    path.name.partition(".")[0]: lzma.decompress(path.read_bytes())
    for path in sorted(FIXTURES.glob("*.core.xz"))
}

NUMBERS = st.one_of(
    st.sampled_from([n + d for n in (0, 1 << 12, 1 << 31, 1 << 32, 1 << 63) for d in (0, 1, 7)]),
    st.sampled_from([(1 << b) - d for b in (16, 32, 63, 64) for d in (1, 2, 4096)]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 1 << 21),
)


def places(data: bytes) -> list[tuple[int, int]]:
    """Return offset and width of every number in headers and notes."""
    at = [(4, 1), (5, 1), (16, 2), (32, 8), (40, 8), (54, 2), (56, 2), (58, 2)]
    phoff, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    for header in range(phoff, phoff + count * 56, 56):
        at += [(header, 4), (header + 4, 4)]
        at += [(header + field, 8) for field in (8, 16, 24, 32, 40)]
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", data, header)
        if kind == 4:
            at += note_places(data, offset, offset + size)
    return at


def note_places(data: bytes, at: int, stop: int) -> list[tuple[int, int]]:
    found = []
    while at + 12 <= stop:
        name, content, kind = struct.unpack_from("<III", data, at)
        found += [(at, 4), (at + 4, 4), (at + 8, 4)]
        begin = at + 12 + (name + 3 & ~3)
        if kind in (3, 6, 0x46494C45):
            found += [(begin + n, 8) for n in range(0, min(content, 160), 8)]
        at = begin + (content + 3 & ~3)
    return found


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    seed = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]
    data = bytearray(seed)
    for offset, width in draw(st.lists(st.sampled_from(places(seed)), max_size=4)):
        number = draw(NUMBERS) & ((1 << 8 * width) - 1)
        data[offset : offset + width] = number.to_bytes(width, "little")
    for offset in draw(st.lists(st.integers(0, min(len(data), 0x4000) - 1), max_size=3)):
        data[offset] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del data[draw(st.one_of(st.integers(0, 0x1200), st.integers(0, len(data)))) :]
    return bytes(data) + bytes(draw(st.sampled_from([0, 0, 1, 4095, 70_000])))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.core"


@given(data=damaged(), page_size=st.sampled_from([512, 4096, 65536, 2 << 20]))
@example(data=SEEDS["gcore"], page_size=4096)
@example(data=b"\x7fELF", page_size=4096)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_image_or_an_image_error(scratch: Path, data: bytes, page_size: int) -> None:
    scratch.write_bytes(data)
    before = open_files()
    refusal = f"{scratch}:"
    tracemalloc.start()
    try:
        with open_elf(str(scratch), page_size) as image:
            opening = tracemalloc.get_traced_memory()[1]
            holds_together(image, len(data))
            assert all(int(c.index.max()) * page_size < 2**64 for c in image.columns())
            assert bool(image.absent.unreadable) == bool(image.losses)
    except ImageError as error:
        refusal = str(error)
        opening = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert opening < 16 * len(data) + (1 << 20)
    assert refusal.startswith(f"{scratch}:")
    assert "\n" not in refusal
    assert open_files() == before
