"""Random traces leave the bytes that the model leaves, merged or not, in bulk or not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpudedup as gd
from gpudedup.mm.manager import MemoryManager
from gpudedup.traces import bulk as accesses
from gpudedup.traces import events as table
from gpudedup.traces import player
from gpudedup.traces.accounts import Accounts
from gpudedup.traces.checking import check_trace
from gpudedup.traces.digest import digest_of
from gpudedup.traces.events import as_trace
from gpudedup.traces.player import Player
from gpudedup.traces.replay import replay

from .common import (
    DEVICES,
    MAPPINGS,
    NODES,
    POLICIES,
    Event,
    Model,
    trace_of,
    traces,
    write_image,
)


@pytest.fixture(scope="module")
def image() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        yield write_image(Path(folder) / "image.arrow", MAPPINGS)


def causes(done: gd.Replay) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = done.causes.drop_columns(["seconds"]).to_pylist()
    return rows


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=traces(), policy=st.sampled_from(POLICIES))
def test_what_is_left_is_what_the_model_leaves(
    image: Path, events: list[Event], policy: gd.MergePolicy
) -> None:
    trace = as_trace(trace_of(events))
    mm = MemoryManager.from_image(image, nodes=NODES, devices=DEVICES, device_engine="cpu")
    assert check_trace(trace, mm.mappings, NODES, DEVICES) == len(events)
    mm.merge(policy)
    played = Player(mm, policy, Accounts(mm), "trace")
    for piece in trace.pieces():
        played.play(piece)
    mm.check()
    model = Model(MAPPINGS)
    model.play(events)
    assert len(played.mappings) == len(model.held)
    for at, (mapping, held) in enumerate(zip(played.mappings, model.held, strict=True)):
        assert mapping.dropped == (held is None)
        if held is not None:
            assert mapping.pages == model.size[at]
            found = mm.read(mapping, range(mapping.pages))
            expected = b"".join(model.page(at, i) for i in range(mapping.pages))
            assert found.tobytes() == expected
    digest = digest_of(mm, played.mappings)
    played.let_all_go()
    mm.check()
    assert mm.counters.pins == 0
    done = replay(
        image, trace, policy=policy, nodes=NODES, devices=DEVICES, device_engine="cpu", verify=True
    )
    assert done.digest == digest.whole
    assert done.verified


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=traces(), policy=st.sampled_from(POLICIES))
def test_bulk_changes_no_count(image: Path, events: list[Event], policy: gd.MergePolicy) -> None:
    options: dict[str, Any] = {
        "policy": policy, "nodes": NODES, "devices": DEVICES, "device_engine": "cpu",
    }  # fmt: skip
    trace = trace_of(events)
    bulk = replay(image, trace, samples=1, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(player, "WORD_PAGES", 3)
        patch.setattr(accesses, "PASS_PAGES", 3)
        sorted_ = replay(image, trace, samples=3, **options)
        patch.setattr(table, "PIECE", 1)
        single = replay(image, trace, samples=max(1, len(events)), **options)
    assert bulk.digest == sorted_.digest == single.digest
    assert causes(bulk) == causes(sorted_) == causes(single)
    assert bulk.samples.to_pylist()[-1] == single.samples.to_pylist()[-1]


def test_groups_keep_the_order() -> None:
    keys = np.random.default_rng(1).integers(0, 9, 1000)
    for scale in (1, 10**9):
        found = accesses.groups(keys * scale)
        assert [keys[group[0]] for group in found] == list(range(9))
        for key, group in enumerate(found):
            assert (group == np.flatnonzero(keys == key)).all()
    assert accesses.groups(keys[:0]) == []
