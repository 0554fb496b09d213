"""Traces done in two ways: by a player, and by the calls that its events are named after."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import gpudedup as gd
from gpudedup.errors import BusyError, UsageError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.memory.pools import OutOfMemory
from gpudedup.traces.accounts import Accounts
from gpudedup.traces.events import as_trace
from gpudedup.traces.player import Player

from .common import DEVICES, NODES, PAGE, POLICIES, Event, trace_of, whole, word

ALL = POLICIES[1]
"""Merges all kinds of memory."""


class Direct:
    """Does events one by one, each by the calls that a user of the manager would make.

    :param policy: of merges
    """

    def __init__(self, manager: MemoryManager, policy: gd.MergePolicy) -> None:
        self.manager, self.policy = manager, policy
        self.mappings = manager.mappings
        self.held: dict[tuple[Any, ...], list[Any]] = {}
        self.grants: list[Any] = []

    def __del__(self) -> None:
        release(self.held.values())

    def do(self, e: Event) -> int:
        """Do one event; return for how many pages it was refused.

        :raises UsageError: if it cannot be
        """
        mm, what, number = self.manager, e["operation"], e["mapping"]
        if what == "merge":
            mm.merge(self.policy)
            return 0
        if not 0 <= number < len(self.mappings):
            raise UsageError(f"no mapping {number}")
        m, node, seed = self.mappings[number], e.get("node"), e.get("seed")
        device: Any = e.get("device")
        numbers = range(e["index"], e["index"] + e["count"])
        index = np.array(numbers, None if numbers else np.int64)
        words = np.array([word(seed or 0, i) for i in numbers], np.uint64)
        data = np.frombuffer(b"".join(whole(seed or 0, i) for i in numbers), np.uint8)
        data, first = data.reshape(-1, PAGE), words.view(np.uint8).reshape(-1, 8)
        match what:
            case "read":
                mm.read(m, index, node=node)
            case "write":
                mm.write(m, index, first, offset=0)
            case "file_write":
                mm.file_write(m, index, data)
            case "fork":
                self.mappings.append(mm.fork(m, f"{m.owner} (fork {len(self.mappings)})"))
            case "reflink":
                name = f"{m.name} (reflink {len(self.mappings)})"
                self.mappings.append(mm.reflink(m, name=name))
            case "drop":
                mm.drop(m)
            case "truncate":
                mm.truncate(m, e["index"])
            case "pin" | "splice":
                held = mm.pin(m, index) if what == "pin" else mm.splice(m, index)
                self.held.setdefault((what == "pin", number, numbers), []).append(held)
            case "pin_write":
                pin = mm.pin(m, index, write=True)
                pin.write(data)
                self.held.setdefault((True, number, numbers), []).append(pin)
            case "unpin":
                self.held[True, number, numbers].pop(0).unpin()
            case "close":
                self.held[False, number, numbers].pop(0).close()
            case "cache" | "migrate" | "replicate":
                place = {"node": node} if what == "cache" else {"node": node, "device": device}
                return _refused(lambda: ~getattr(mm, what)(m, index, **place), e)
            case "unmerge":
                return int(mm.unmerge(m, index).sum())
            case "acquire_exclusive":
                return _refused(
                    lambda: self.grants.append(mm.acquire_exclusive(m, index, device=device)), e
                )
            case "device_read":
                mm.device(device).read(m, index, size=8)
            case "device_write":
                mm.device(device).write(m, index, first, offset=0)
            case "atomic_add":
                return sum(self._add(m, i, device, w) for i, w in zip(index, words, strict=True))
            case _:
                getattr(mm, what)(m, index)
        return 0

    def _add(self, m: Any, i: int, device: Any, value: Any) -> int:
        try:
            self.manager.device(device).atomic_add(m, i, 0, value)
        except (BusyError, OutOfMemory):
            held = self.manager.read(m, i, size=8).view(np.uint64) + value
            self.manager.write(m, i, held.view(np.uint8), offset=0)
            return 1
        return 0


def release(held: Iterable[Iterable[Any]]) -> None:
    """Unpin and close pins and buffers."""
    for several in held:
        for one in several:
            one.__exit__()


def _refused(call: Callable[[], Any], e: Event) -> int:
    try:
        done = call()
    except (BusyError, OutOfMemory):
        return int(e["count"])
    return 0 if done is None else int(done.sum())


def manager(image: Path, policy: gd.MergePolicy = ALL) -> MemoryManager:
    """Return a manager of an image's pages, merged, with some nodes and devices."""
    mm = MemoryManager.from_image(image, nodes=NODES, devices=DEVICES, device_engine="cpu")
    mm.merge(policy)
    return mm


class Played(Player):
    """A player that unpins, without a warning, what its events left pinned."""

    def __del__(self) -> None:
        release(self._held.values())


def playing(mm: MemoryManager, policy: gd.MergePolicy | None = ALL) -> tuple[Player, Accounts]:
    accounts = Accounts(mm)
    return Played(mm, policy, accounts, "t.arrow"), accounts


def play(player: Player, events: list[Event], *, singly: bool = False) -> None:
    for piece in as_trace(trace_of(events)).pieces():
        for at in range(len(piece) if singly else 1):
            player.play(piece.slice(at, at + 1) if singly else piece)


def told(accounts: Accounts, name: str = "refused") -> dict[str, int]:
    """Return one column of the causes by operation."""
    accounts.charge()
    rows = accounts.causes().to_pylist()
    return {row["operation"]: row[name] for row in rows}


def holdings(mm: MemoryManager) -> dict[str, Any]:
    """Return all that can be seen of a manager, but for the numbers of frames and pages."""
    mm.check()
    rows = sorted(mm.aliases().to_pylist(), key=lambda row: (row["mapping"], row["index"]))
    owns = mm.frames().select(["protection", "aliases", "pins"])
    owns = owns.take([row["frame"] for row in rows]).to_pylist()
    names: dict[int, tuple[int, int]] = {}
    pages = {}
    for row, own in zip(rows, owns, strict=True):
        place = (row["mapping"], row["index"])
        pages[place] = names.setdefault(row["frame"], place), row["node"], row["flags"], own
    contents = [mm.read(m, range(m.pages)).tobytes() for m in mm.mappings]
    return {"mappings": mm.mappings_table(), "pages": pages, "contents": contents}


def counted(mm: MemoryManager) -> dict[str, int]:
    return mm.counters.as_dict()
