"""What devices leave to the host is split by bytes; of what cannot be read again little is lost."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudedup.engines.base import PageClass, PageSource, Partition
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.offload import pipeline
from gpudedup.engines.offload import reconcile as module
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.engines.offload.reconcile import reconcile
from gpudedup.engines.offload.staging import LEFT

from ...kernels.shim.device import ShimDevice
from ..common import Pages, file_source, joined, needed, on_device, oracle, population
from .common import SIZE, unique

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")

Rows = npt.NDArray[np.int64]


def as_devices_say(
    pages: Pages, device: Sequence[int], kept: Sequence[bool], bits: int = 128
) -> Partition:
    """Return what devices find, each of its own rows.

    :param device: (n,), whose row it is
    :param kept: (n,), whether the bytes of an anchor stay, so that others are compared with them
    """
    known = CpuEngine(1).partition(PageSource.of_array(pages), digest_bits=bits)
    classes, representative = known.classes.copy(), np.arange(len(pages))
    anchors: dict[tuple[int, int, bytes], int] = {}
    for row in np.flatnonzero(classes != PageClass.ZERO).tolist():
        filled = classes[row] == PageClass.FILLED
        key = pages[row].tobytes() if filled else known.digests[row].tobytes()
        anchor = anchors.setdefault((device[row], classes[row], key), row)
        representative[row] = anchor
        if anchor != row and not filled:
            equal = kept[anchor] and (pages[row] == pages[anchor]).all()
            classes[row] = PageClass.CONTENT if equal else LEFT
    return Partition(known.digests.copy(), classes, representative, 0)


def expected(pages: Pages, told: Partition, gone: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Return classes and representatives, by a dict of bytes."""
    classes, representative = told.classes.tolist(), told.representative.tolist()
    first: dict[bytes, int] = {}
    for row, (kind, anchor) in enumerate(zip(classes, representative, strict=True)):
        if kind == LEFT and (gone[row] or gone[anchor]):
            classes[row], representative[row] = PageClass.UNREADABLE, row
        elif kind == LEFT or (kind != PageClass.ZERO and anchor == row and not gone[row]):
            classes[row] = PageClass.CONTENT if kind == LEFT else kind
            representative[row] = first.setdefault(pages[row].tobytes(), row)
    return classes, representative


def split(
    source: PageSource, told: Partition, devices: Sequence[Any], *, bits: int = 128, **more: Any
) -> Partition:
    """Reconcile a copy of what devices said."""
    copy = Partition(
        told.digests.copy(), told.classes.copy(), told.representative.copy(), told.collisions
    )
    options = {"threads": 2, "verify": True, "digest_bits": bits, **more}
    return reconcile(source, copy, devices, **options)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 120),
    devices=st.integers(1, 3),
    bits=st.sampled_from([128, 5]),
    most_kept=st.sampled_from([0.0, 0.5, 1.0]),
    most_gone=st.sampled_from([0.0, 0.0, 0.3]),
)
def test_it_is_what_a_dict_of_bytes_says(
    tmp_path: Path, seed: int, count: int, devices: int, bits: int, most_kept: float,
    most_gone: float,
) -> None:  # fmt: skip
    """Rows lie in memory, on devices, or in a file that has become too short."""
    rng = np.random.default_rng(seed)
    pages, shims = population(seed, count, SIZE), [ShimDevice(seed=at) for at in range(devices)]
    gone = (rng.random(count) < most_gone).tolist()
    told = as_devices_say(
        pages, rng.integers(0, devices, count).tolist(), (rng.random(count) < most_kept).tolist(),
        bits,
    )  # fmt: skip
    held = [on_device(shim, pages, 8) for shim in shims]
    with file_source(tmp_path / "short", pages[:0]) as short:
        stores = [PageSource.of_array(pages), short, *(store for store, _ in held)]
        places = np.where(gone, 1, rng.choice([0, *range(2, len(stores))], count))
        source = joined(stores, [(at, row, row + 1) for row, at in enumerate(places.tolist())])
        found = split(source, told, shims, bits=bits)
    classes, representative = expected(pages, told, gone)
    assert found.classes.tolist() == classes
    assert found.representative.tolist() == representative
    assert np.array_equal(found.digests, told.digests)
    if not any(gone):
        everything = CpuEngine(1).partition(PageSource.of_array(pages), digest_bits=bits)
        assert found.collisions == everything.collisions


def test_contents_whose_digests_collide_are_told_apart() -> None:
    a, b, c = unique(3)
    pages = np.stack([a, b, a, c, b, c])
    told = as_devices_say(pages, [0] * 6, [True] * 6, bits=0)
    assert told.representative.tolist() == [0] * 6
    assert told.classes.tolist() == [0, LEFT, 0, LEFT, LEFT, LEFT]
    found = split(PageSource.of_array(pages), told, [None], bits=0)
    assert found.representative.tolist() == [0, 1, 0, 3, 1, 3]
    assert not found.classes.any()
    assert found.collisions == 2


def test_what_no_device_kept_is_compared() -> None:
    pages = unique(4, copies=3)
    told = as_devices_say(pages, [0] * 12, [False] * 12)
    found = split(PageSource.of_array(pages), told, [None])
    assert found.representative.tolist() == oracle(pages)
    assert not found.classes.any()


@pytest.mark.parametrize("verify", [True, False])
def test_anchors_of_several_devices_become_one(verify: bool) -> None:
    """The lowest of them; those that follow another one still do."""
    pages = unique(2, copies=4)
    told = as_devices_say(pages, [2, 2, 1, 1, 0, 0, 1, 0], [True] * 8)
    assert told.representative.tolist() == [0, 1, 2, 3, 4, 5, 2, 5]
    source = PageSource.of_array(pages)
    found = split(source, told, [None] * 3, verify=verify)
    assert found.representative.tolist() == [0, 1, 0, 1, 0, 1, 2, 5]
    assert not found.classes.any()
    # Those of one device are told apart by itself.
    assert split(source, told, [None]).representative.tolist() == told.representative.tolist()


def test_any_digest_may_be_met_twice() -> None:
    pages = unique(1, copies=2)
    told = as_devices_say(pages, [0, 1], [True] * 2)
    told.digests[:] = (1 << 64) - 1
    found = split(PageSource.of_array(pages), told, [None] * 2)
    assert found.representative.tolist() == [0, 0]


def test_rows_of_two_files_in_turn(tmp_path: Path) -> None:
    """At offsets that follow one another: only the descriptor tells that it is another place."""
    in_a, in_b = unique(3, copies=3), ~unique(3, copies=3)
    pages = np.where(np.arange(9)[:, None] % 2, in_b, in_a)
    told = as_devices_say(in_a, [0] * 9, [False] * 9)
    with file_source(tmp_path / "a", in_a) as a, file_source(tmp_path / "b", in_b) as b:
        source = joined([a, b], [(row % 2, row, row + 1) for row in range(9)])
        assert split(source, told, [None]).representative.tolist() == oracle(pages)


def test_without_comparison_the_whole_digest_decides() -> None:
    pages = unique(4)
    told = as_devices_say(pages, [0, 1, 0, 1], [True] * 4, bits=0)
    told.classes[2:] = PageClass.CONTENT
    found = split(PageSource.of_array(pages), told, [None] * 2, bits=0, verify=False)
    assert (found.representative.tolist(), found.collisions) == ([0, 0, 0, 1], 0)
    told = as_devices_say(pages, [0, 1, 0, 1], [True] * 4)
    told.digests[:, 0] = 7
    found = split(PageSource.of_array(pages), told, [None] * 2, verify=False)
    assert found.representative.tolist() == [0, 1, 2, 3]


def test_only_what_may_be_equal_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []

    class Noting(CpuEngine):
        def partition(self, source: PageSource, **options: Any) -> Partition:
            base = source.base - pages.ctypes.data
            first = np.repeat(base // SIZE - source.first_row[:-1], np.diff(source.first_row))
            read.append((first + np.arange(source.pages)).tolist())
            return super().partition(source, **options)

    monkeypatch.setattr(module, "CpuEngine", Noting)
    pages = unique(50)
    pages[[3, 4, 25, 26, 40]] = pages[[3, 4, 3, 4, 3]]
    source, whose = PageSource.of_array(pages), [0] * 20 + [1] * 30
    told = as_devices_say(pages, whose, [True] * 50)
    assert split(source, told, [None]).representative[26] == 26
    assert read == []
    split(source, told, [None] * 2)
    assert read == [[3, 4, 25, 26]]
    split(source, as_devices_say(pages, whose, [False] * 50), [None])
    assert read[1:] == [[25, 40]]


def cut_after_the_devices(monkeypatch: pytest.MonkeyPatch, path: Path, content: bytes) -> None:
    """Let the host find other content in a file than the devices did."""
    run = pipeline.Pipeline.run

    def run_and_cut(self: pipeline.Pipeline, *rest: Any) -> None:
        run(self, *rest)
        path.write_bytes(content)

    monkeypatch.setattr(pipeline.Pipeline, "run", run_and_cut)


@needs_compiler
def test_a_file_that_can_be_read_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host would have to compare is gone: those rows are unreadable, no others."""
    pages = unique(40)
    pages[20:30] = pages[:10]
    path = tmp_path / "pages"
    cut_after_the_devices(monkeypatch, path, pages[:25].tobytes())
    engine = OffloadEngine([ShimDevice()], 2, memory=needed(40, SIZE), chunk_bytes=16 * SIZE)
    with file_source(path, pages) as source:
        result = engine.partition(source)
    found = np.array(oracle(pages))
    found[25:30] = range(25, 30)
    assert result.representative.tolist() == found.tolist()
    assert np.flatnonzero(result.classes).tolist() == list(range(25, 30))


@needs_compiler
def test_an_anchor_that_can_be_read_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 5 cannot be compared with it, row 20 of the other device with neither."""
    pages = unique(32)
    pages[5] = pages[20] = pages[0]
    path = tmp_path / "pages"
    monkeypatch.setattr(pipeline.Pipeline, "_allocate_kept", lambda *_: None)
    in_file = np.roll(pages, -1, axis=0)
    cut_after_the_devices(monkeypatch, path, in_file[:31].tobytes())
    engine = OffloadEngine([ShimDevice(), ShimDevice()], 2, chunk_bytes=16 * SIZE)
    with file_source(path, in_file) as source:
        rolled = joined([source], [(0, 31, 32), (0, 0, 31)])
        result = engine.partition(rolled)
    assert result.representative.tolist() == list(range(32))
    assert np.flatnonzero(result.classes).tolist() == [5]
