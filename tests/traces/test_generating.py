"""Generated traces have the shares of their mix, are reproducible, and fit their image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import OutputError, UsageError
from gpudedup.schema import OPERATIONS
from gpudedup.traces.generating import Mix, generate_trace
from gpudedup.traces.mixes import MIXES
from gpudedup.traces.replay import replay
from gpudedup.traces.writer import EVENT_BYTES

from .common import PAGE, write_image

MAPPINGS = [
    ("anon", [at % 7 for at in range(200)]),
    ("file", [at % 5 - 1 for at in range(100)]),
    ("kernel", [1]),
    ("anon", [-1, 3, 3]),
    ("shmem", [9] * 30),
]
ALL = gd.MergePolicy(kinds=("anon", "file", "shmem"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("mixes") / "image.arrow", MAPPINGS)


def made(image: Any, path: Path, mix: Mix) -> pa.Table:
    generate_trace(image, path, mix, force=True)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_what_it_says(image: Path, tmp_path: Path, name: str) -> None:
    count = 20_000
    table = made(image, tmp_path / "t.arrow", Mix(name, count, burst=1))
    found = Counter(table.column("operation").to_pylist())
    assert sum(found.values()) == count
    shares = MIXES[name].shares
    assert sum(shares.values()) == 1000
    assert set(found) <= set(shares) <= set(OPERATIONS)
    for word, share in shares.items():
        # A drop without forks becomes a fork, an access to an empty file becomes a file write.
        assert found[word] == pytest.approx(share * count / 1000, rel=0.25, abs=30)
    kinds = {MAPPINGS[m][0] for m in table.column("mapping").to_pylist() if m < len(MAPPINGS)}
    assert kinds <= set(MIXES[name].kinds)
    done = replay(image, tmp_path / "t.arrow", policy=ALL, device_engine="cpu", verify=True)
    assert done.totals["events"] == count
    assert done.verified


@pytest.mark.parametrize("name", MIXES)
def test_equal_arguments_make_equal_traces(image: Path, tmp_path: Path, name: str) -> None:
    one, again = (made(image, tmp_path / f"{at}", Mix(name, 3000, seed=5)) for at in range(2))
    assert one.equals(again)
    longer = made(image, tmp_path / "longer", Mix(name, 70_000, seed=5))
    assert longer.slice(0, 3000).equals(one)
    assert not made(image, tmp_path / "other", Mix(name, 3000, seed=6)).equals(one)


def test_parameters_are_kept(image: Path, tmp_path: Path) -> None:
    table = made(image, tmp_path / "t", Mix("device-atomics", 6400, devices=3, span=4))
    assert {d for d in table.column("device").to_pylist() if d is not None} == {0, 1, 2}
    words = np.array(table.column("operation").to_pylist()).reshape(-1, 64)
    assert (words == words[:, :1]).all()
    assert max(table.column("count").to_pylist()) == 4
    table = made(image, tmp_path / "t", Mix("read-mostly-numa", 2000, nodes=4, merge_every=100))
    assert {n for n in table.column("node").to_pylist() if n is not None} == {0, 1, 2, 3}
    words = np.array(table.column("operation").to_pylist())
    assert np.flatnonzero(words == "merge").tolist() == list(range(99, 2000, 100))
    table = made(image, tmp_path / "t", Mix("fork-storm", 20_000, children=2))
    alive = most = 0
    for word in table.column("operation").to_pylist():
        alive += (word == "fork") - (word == "drop")
        most = max(most, alive)
    assert most == 2


def test_one_node(image: Path, tmp_path: Path) -> None:
    """Only what must name a node or a device does, and the trace can be replayed."""
    table = made(image, tmp_path / "t.arrow", Mix("read-mostly-numa", 2000, nodes=1))
    rows = zip(table.column("operation").to_pylist(), table.column("node").to_pylist(), strict=True)
    assert {word for word, node in rows if node is not None} == {"migrate", "replicate"}
    assert replay(image, tmp_path / "t.arrow", policy=ALL).totals["events"] == 2000


def hottest(image: Path, path: Path, skew: int) -> float:
    """Return the share of accesses that the hottest fifth of the pages gets."""
    table = made(image, path, Mix("write-heavy", 20_000, skew=skew))
    places = zip(*(table.column(name).to_pylist() for name in ("mapping", "index")), strict=True)
    counts = sorted(Counter(places).values(), reverse=True)
    return sum(counts[:40]) / sum(counts)


def test_skew_makes_pages_hot(image: Path, tmp_path: Path) -> None:
    assert hottest(image, tmp_path / "t", 1) < 0.3
    assert hottest(image, tmp_path / "t", 4) == pytest.approx(0.2**0.25, abs=0.07)


def test_what_cannot_be(image: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mix 'x': not one of write-heavy, "):
        Mix("x", 1)
    for options in ({"nodes": 0}, {"devices": 9}, {"skew": 0}, {"burst": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match="not from "):
            Mix("write-heavy", 1, **options)
    with pytest.raises(UsageError, match="array: no pages of kind file or shmem, which file-"):
        generate_trace(
            np.ones((2, PAGE), np.uint8), tmp_path / "t", Mix("file-writes-truncates", 1)
        )
    path = tmp_path / "there"
    path.touch()
    with pytest.raises(OutputError, match="exists already"):
        generate_trace(image, path, Mix("write-heavy", 1))
    generate_trace(image, path, Mix("write-heavy", 0), force=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert replay(image, path).events == 0


def test_room_is_asked_for_first(image: Path, small_disk: Path) -> None:
    # The smallest file has no nodes, devices or times; no file is smaller than it is said to be.
    generate_trace(image, small_disk / "t", Mix("write-heavy", 1000))
    assert (small_disk / "t").stat().st_size > 1000 * EVENT_BYTES
    with pytest.raises(OutputError, match=rf"needs {EVENT_BYTES << 40} bytes, \d+ are free$"):
        generate_trace(image, small_disk / "all", Mix("write-heavy", 1 << 40))
    assert [path.name for path in small_disk.iterdir()] == ["t"]
