"""Events done together mean what they mean one by one, also where not all of them can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudedup.devices.host import HostDevice
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.memory import memory
from gpudedup.traces import player as module

from .common import MAPPINGS, PAGE, event, word, write_image
from .direct import manager, play, playing, told


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("bulk") / "image.arrow", MAPPINGS)


def test_neighbours_are_one_call(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one operation, mapping, node and device, and no more pages than a piece has."""
    calls: list[tuple[int, list[int]]] = []
    migrate, write = MemoryManager.migrate, MemoryManager.file_write

    def noted(method: Any) -> Any:
        def call(mm: MemoryManager, mapping: Any, index: Any, *more: Any, **where: Any) -> Any:
            calls.append((player.mappings.index(mapping), index.tolist()))
            return method(mm, mapping, index, *more, **where)

        return call

    monkeypatch.setattr(MemoryManager, "migrate", noted(migrate))
    monkeypatch.setattr(MemoryManager, "file_write", noted(write))
    monkeypatch.setattr(module, "WORD_PAGES", 4)
    monkeypatch.setattr(module, "WHOLE_BYTES", 2 * PAGE + 1)
    player, _ = playing(manager(image))
    play(player, [event("migrate", 0, at, node=1) for at in (3, 0, 1)])
    assert calls == [(0, [3, 0, 1])]
    calls.clear()
    others = [(0, {"node": 0}), (0, {"device": 0}), (1, {"device": 0}), (1, {"device": 1})]
    play(player, [event("migrate", m, 5, **place) for m, place in [(0, {"node": 1}), *others]])
    assert calls == [(0, [5]), *((m, [5]) for m, _ in others)]
    for events in (
        [event("migrate", 0, 1, 6, node=1)],
        [event("migrate", 0, 1, 5, node=1), event("migrate", 0, 6, node=1)],
        [event("migrate", 0, 1, 6, node=1), event("migrate", 0, 0, 0, node=1)],
    ):
        calls.clear()
        play(player, events)
        assert calls == [(0, [1, 2, 3, 4]), (0, [5, 6])]
    calls.clear()
    play(player, [event("migrate", 0, 8, 0, node=1)])
    assert calls == []
    play(player, [event("file_write", 2, at, 2) for at in (0, 60, 8)])
    play(player, [event("file_write", 2, 0, 3)])
    assert calls == [(2, [0, 1]), (2, [60, 61]), (2, [8, 9]), (2, [0, 1]), (2, [2])]


def test_what_is_refused_of_each_piece_is_added_up(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORD_PAGES", 2)
    player, accounts = playing(manager(image))
    play(player, [event("pin", 0, 0, 8), event("migrate", 0, 0, 8, node=1)])
    # Pages 3 and 4 have no frame that could be pinned.
    assert told(accounts) == {"pin": 0, "migrate": 6}


@pytest.mark.parametrize("singly", [True, False])
def test_who_comes_first_ends_exclusive_access(image: Path, singly: bool) -> None:
    player, accounts = playing(manager(image))
    taken = [event("acquire_exclusive", 1, at) for at in (0, 1)]
    play(player, [*taken, event("write", 1, 0), event("read", 1, 0, 2)], singly=singly)
    assert told(accounts, "revoked") == {"acquire_exclusive": 0, "write": 1, "read": 1}


in_both_ways = pytest.mark.parametrize("singly", [True, False])


@in_both_ways
@pytest.mark.parametrize("operation", ["device_read", "atomic_add"])
def test_a_page_that_comes_twice_is_one_fault(image: Path, operation: str, singly: bool) -> None:
    player, accounts = playing(manager(image))
    play(player, [event(operation, 0, 3, device=0)] * 4, singly=singly)
    assert told(accounts, "device_faults") == {operation: 1}


LARGE = 200
"""Pages of a mapping of which some fit into a little device."""


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], MemoryManager]:
    """Return what makes a manager with a device of so many bytes, which frames take by 64."""
    monkeypatch.setattr(memory, "CHUNK_BYTES", 64 * PAGE)

    def make(memory: int) -> MemoryManager:
        mm = MemoryManager(PAGE, device_engine=[HostDevice(0, memory)])
        large = mm.create("large", pages=LARGE)
        mm.write(large, range(LARGE), np.arange(LARGE, dtype=np.uint8)[:, None].repeat(PAGE, 1))
        return mm

    return make


@in_both_ways
@pytest.mark.parametrize("operation", ["migrate", "replicate"])
def test_as_many_pages_go_to_a_device_as_fit(
    little: Callable[[int], MemoryManager], operation: str, singly: bool
) -> None:
    player, accounts = playing(little(96 * PAGE))
    play(player, [event(operation, 0, at, device=0) for at in range(LARGE)], singly=singly)
    assert told(accounts) == {operation: LARGE - 64}


@in_both_ways
def test_the_host_adds_where_the_device_has_no_room(
    little: Callable[[int], MemoryManager], singly: bool
) -> None:
    mm = little(200 << 10)
    player, accounts = playing(mm)
    before = mm.read(player.mappings[0], range(LARGE), size=8).view("<u8")[:, 0]
    adds = [event("atomic_add", 0, at, device=0, seed=3) for at in range(LARGE)]
    play(player, adds, singly=singly)
    # Buffers for rows in bulk may take what room there is.
    assert 0 < told(accounts)["atomic_add"] < LARGE + (not singly)
    after = mm.read(player.mappings[0], range(LARGE), size=8).view("<u8")[:, 0]
    assert (after - before).tolist() == [word(3, at) for at in range(LARGE)]


@in_both_ways
def test_the_host_adds_where_somebody_else_has_pinned(image: Path, singly: bool) -> None:
    mm = manager(image)
    player, accounts = playing(mm)
    with mm.pin(player.mappings[0], 3, write=True):
        play(player, [event("atomic_add", 0, at, device=0) for at in range(5)], singly=singly)
    assert told(accounts) == {"atomic_add": 1}
