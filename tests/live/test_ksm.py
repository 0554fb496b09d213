"""The kernel's KSM as the oracle: its counters read what a capture predicts.

Children fill mergeable regions, a capture of them is partitioned, and KSM's counters are computed
from the partition in closed form. Then KSM runs over the same memory, and every counter must be
equal. Only the children know what they wrote.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from gpudedup.engines.base import PageClass, PageSource, Partition
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.processes.capture import capture
from gpudedup.schema import PageFlag

from ..mm.closed_form import closed_form
from .ksm import PAGE, Populations, let_ksm_run, read_ksm

pytestmark = pytest.mark.live


def look(pids: list[int], path: Path) -> tuple[pa.Table, Partition]:
    """Capture the processes; return the rows of their mergeable memory and its partition."""
    captured = capture(pids, str(path), stop=True)
    assert not captured.losses
    assert not captured.notes
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        mergeable = ["mg" in m["flags"].split() for m in table.column("mapping").to_pylist()]
        table = table.filter(pa.array(mergeable))
    assert not table.column("frame").null_count
    pages = np.frombuffer(b"".join(table.column("content").to_pylist()), np.uint8)
    return table, CpuEngine().partition(PageSource.of_array(pages.reshape(-1, PAGE)))


def foretell(table: pa.Table, found: Partition, cap: int, use_zero_pages: int) -> dict[str, int]:
    """Return what KSM's counters will read at rest."""
    by_node = not read_ksm("merge_across_nodes")
    kernel_zero = flagged(table, PageFlag.ZERO_PAGE)
    columns = zip(
        found.representative.tolist(),
        table.column("node").to_pylist(),
        table.column("frame").to_pylist(),
        strict=True,
    )
    pages = (
        ((content, node if by_node else 0), frame, found.classes[content] == PageClass.ZERO)
        for row, (content, node, frame) in enumerate(columns)
        if not kernel_zero[row]
    )
    return closed_form(pages, cap, bool(use_zero_pages))


def flagged(table: pa.Table, flag: PageFlag) -> npt.NDArray[np.bool_]:
    return np.asarray(table.column("flags").to_numpy() & int(flag) != 0)


def check(pids: list[int], directory: Path, cap: int, use_zero_pages: int) -> dict[str, int]:
    """Predict the counters, run KSM, compare; then compare the frames that are left."""
    before, found = look(pids, directory / "before")
    expected = foretell(before, found, cap, use_zero_pages)
    assert let_ksm_run(cap, use_zero_pages) == expected
    after, again = look(pids, directory / "after")
    assert after.column("content").equals(before.column("content"))
    assert np.array_equal(again.representative, found.representative)
    merged, zero = flagged(after, PageFlag.KSM), flagged(after, PageFlag.ZERO_PAGE)
    frame = after.column("frame").to_numpy()
    shared, sharing = expected["pages_shared"], expected["pages_sharing"]
    assert merged.sum() == shared + sharing
    assert len(np.unique(frame[merged])) == shared
    assert len(np.unique(frame[~zero])) == shared + expected["pages_unshared"]
    assert zero.sum() - flagged(before, PageFlag.ZERO_PAGE).sum() == expected["ksm_zero_pages"]
    assert len(np.unique(frame[zero])) == 1
    assert not flagged(before, PageFlag.KSM).any()
    return expected


COPIES = (1,) * 100 + (2,) * 20 + (3, 4, 5, 6, 10, 17, 100, 255, 256, 257, 258, 513, 514)


@pytest.mark.usefixtures("ksm")
@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize("cap", [256, 17, 2])
def test_counters_of_two_processes(
    tmp_path: Path, populations: Populations, cap: int, use_zero_pages: int
) -> None:
    contents = [seed for seed, copies in enumerate(COPIES, 1) for _ in range(copies)]
    contents += [0] * 300 + [-0xAA] * 40
    random.Random(cap).shuffle(contents)
    half = len(contents) // 2
    pids = [
        pid for part in (contents[:half], contents[half:]) for pid in populations.start(part).pids
    ]
    expected = check(pids, tmp_path, cap, use_zero_pages)
    if cap == 256 and use_zero_pages:
        # The same, worked by hand: pairs, small groups, 255 to 514 copies, the filled pages.
        assert expected == {
            "pages_shared": 20 + 7 + 1 + 1 + 1 + 2 + 2 + 3 + 1,
            "pages_sharing": 20 + 138 + 254 + 255 + 255 + 256 + 510 + 511 + 39,
            "pages_unshared": 100 + 1 + 1,
            "pages_volatile": 0,
            "ksm_zero_pages": 300,
            "stable_node_chains": 3,
            "stable_node_dups": 2 + 2 + 3,
        }


@pytest.mark.usefixtures("ksm")
@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_counters_of_forks(tmp_path: Path, populations: Populations, use_zero_pages: int) -> None:
    """Forked pages share one frame already; KSM counts their mappings all the same."""
    rng = random.Random(7)
    contents = [rng.choice([0, -3, *range(1, 200)]) for _ in range(400)]
    forks = tuple(
        [
            (place, rng.choice([0, 500 + place, *range(1, 200)]))
            for place in rng.sample(range(400), n)
        ]
        for n in (0, 10, 200)
    )
    pids = populations.start(contents, forks).pids
    pids += populations.start([rng.choice([0, *range(150, 250)]) for _ in range(100)]).pids
    expected = check(pids, tmp_path, 256, use_zero_pages)
    assert expected["pages_volatile"] > 0
