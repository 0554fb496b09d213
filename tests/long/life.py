"""The life of one manager: random steps, each compared with a dict of bytes, and faults in some."""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np

from gpudedup.errors import BusyError, DeviceError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory import memory
from gpudedup.mm.memory.device_table import SLAB_BYTES
from gpudedup.mm.memory.pools import OutOfMemory
from gpudedup.mm.pins import Buffer, Pin

from ..mm.common import PAGE, Model, page, rows
from ..mm.test_interrupted import Raising, is_locked
from .faults import FailingDevice, Owner, WritebackError, join_callbacks, writeback_of

MOST_PAGES = 80
"""Pages of a mapping: two leaves."""

SMALL = 64 * PAGE + 2 * SLAB_BYTES + (1 << 13)
"""Bytes of a device that soon has no room."""

ROOMY = 1 << 22

Writes = dict[tuple[Mapping, int], bytes]
Held = dict[Mapping, dict[int, bytes]]


@dataclass
class Step:
    """One call of the manager.

    :param call: makes the call; may be repeated, unless ``once``
    :param know: notes in the model what it did, given what it returned; None: it raised
    :param makes: it makes a mapping
    :param may_be_refused: it may end with BusyError or OutOfMemory
    :param writes_back: it may call a writeback
    :param sizes: pages that mappings may have if it raised, besides those that they had
    :param may_zero: mapping whose pages may read as zero if it raised
    :param may_lose: pages that are lost if a device fails meanwhile: it moves them there
    :param drops: mapping that is gone afterwards
    """

    name: str
    call: Callable[[], Any]
    know: Callable[[Any], None] = lambda _: None
    once: bool = False
    makes: bool = False
    may_be_refused: bool = False
    writes_back: bool = False
    sizes: dict[Mapping, int] = field(default_factory=dict)
    may_zero: Mapping | None = None
    may_lose: bool = False
    drops: Mapping | None = None


class Life:
    """A manager, what its pages must hold, and who holds some of them."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = random.Random(seed << 40 | number)
        self.manners = self.rng.choice([("quiet", "raises"), ("quiet", "writes"), ("hangs",)])
        self.devices = [FailingDevice(at, self.rng.choice([ROOMY, SMALL])) for at in range(2)]
        with patch.object(memory, "CHUNK_BYTES", 64 * PAGE):
            self.mm = MemoryManager(PAGE, nodes=2, device_engine=self.devices)
        self.model = Model()
        self.disks: dict[Mapping, dict[int, bytes]] = {}
        self.failing: list[BaseException] = []
        self.pins: list[Pin] = []
        self.buffers: list[tuple[Buffer, bytes]] = []
        self.owners: list[Owner] = []
        self.wrote: Writes = {}
        self.faulty = False
        self.end = threading.Event()
        self.faults: Counter[str] = Counter()

    # Choices

    def alive(self) -> list[int]:
        return [at for at, device in enumerate(self.devices) if not device.failed]

    def some(self, mapping: Mapping) -> list[int]:
        """Return a few pages of a mapping, in any order, some perhaps twice."""
        if not mapping.pages:
            return []
        if self.rng.random() < 0.1:
            return list(range(self.rng.randrange(mapping.pages), mapping.pages))
        return [self.rng.randrange(mapping.pages) for _ in range(self.rng.randrange(7))]

    def page(self) -> bytes:
        return page(self.rng.randrange(12)).tobytes()

    def added(self, mapping: Mapping) -> None:
        """Give a new file a writeback."""
        self.disks[mapping] = {}
        mapping.writeback = writeback_of(self.disks[mapping], self.failing)

    # Steps

    def run(self, step: Step) -> None:
        """Do a step, perhaps with a fault, and check what came of it."""
        self.wrote.clear()
        fault = self._fault(step)
        self.faulty = fault is not None
        if fault is None:
            self._succeed(step)
            return
        was = _Before(
            held=_copied(self.model),
            sizes={mapping: mapping.pages for mapping in self.model.held},
            pins=self.mm.counters.pins,
            on_devices=self._on(range(2, 4)),
        )
        failed = [device.failed for device in self.devices]
        raised = None
        try:
            with fault:
                found = step.call()
        except (BusyError, OutOfMemory) as error:
            self._refused(step, error)
        except (KeyboardInterrupt, MemoryError, DeviceError, WritebackError) as error:
            raised = type(error).__name__
        else:
            self._know(step, found)
            self._survive_losses(step, was, [_copied(self.model)])
        self.failing.clear()
        # Not among the handlers: there the exception still holds what the step had.
        if raised:
            self.faults[raised] += 1
            assert not is_locked(self.mm), f"{step.name}: the lock is held"
            self._recover(step, was)
            self.faulty = False
            if not step.once and failed == [device.failed for device in self.devices]:
                self._succeed(step)

    def _fault(self, step: Step) -> Any:
        """Return a context in which a step may fail; None: there is no fault."""
        chance = self.rng.random()
        if chance < 0.12:
            kind = self.rng.choice([KeyboardInterrupt, MemoryError])
            return Raising(int(self.rng.expovariate(1 / 60)) + 1, kind)
        if chance < 0.4 and step.writes_back:
            kinds = (WritebackError, KeyboardInterrupt, MemoryError)
            self.failing.append(self.rng.choice(kinds)("writeback"))
            return nullcontext()
        if chance < 0.13 and (alive := self.alive()):
            return self.devices[self.rng.choice(alive)].failing_after(self.rng.randrange(30))
        return None

    def _succeed(self, step: Step) -> None:
        try:
            found = step.call()
        except (BusyError, OutOfMemory) as error:
            self._refused(step, error)
        else:
            self._know(step, found)

    def _refused(self, step: Step, error: BusyError | OutOfMemory) -> None:
        """Note what was done before a step was refused: rows of atomics that the error names."""
        assert step.may_be_refused, step.name
        self._owners_wrote()
        if getattr(error, "done", None) is not None:
            step.know(error)

    def _know(self, step: Step, found: Any) -> None:
        self._owners_wrote()
        step.know(found)

    def _owners_wrote(self) -> None:
        for (mapping, i), data in self.wrote.items():
            if mapping in self.model.held:
                self.model.held[mapping][i] = data

    def _recover(self, step: Step, was: _Before) -> None:
        """Check that each page holds what it held, or what the step was to write; go on so."""
        if self.manners != ("hangs",):
            join_callbacks()
        self.mm.check()
        if step.name not in ("unpin", "close") and self.mm.counters.pins != was.pins:
            # A pin of the step may be in a cycle with the exception.
            gc.collect()
            assert self.mm.counters.pins == was.pins, f"{step.name}: pins"
        self._owners_wrote()
        owned = _copied(self.model)
        step.know(None)
        known = [was.held, owned, _copied(self.model)]
        self._check_mappings(step, was)
        lost = self._survive_losses(step, was, known)
        for mapping in self.mm.mappings:
            found = rows(self.mm.read(mapping, range(mapping.pages)))
            for i, row in enumerate(found):
                allowed = _allowed(known, mapping, i)
                if (mapping, i) in self.wrote:
                    # Its owner, when it was told of this read or of the step.
                    allowed.add(self.wrote[mapping, i])
                if mapping is step.may_zero or (mapping, i) in lost:
                    allowed.add(bytes(PAGE))
                assert row in allowed, f"{step.name}: page {i} of {mapping.name}"
            self.model.held[mapping] = dict(enumerate(found))

    def _check_mappings(self, step: Step, was: _Before) -> None:
        """Check which mappings there are, and their sizes; drop one that was made half."""
        for mapping in set(self.mm.mappings) - set(was.held):
            assert step.makes, step.name
            self.mm.drop(mapping)
        for mapping in set(was.held) - set(self.mm.mappings):
            assert mapping is step.drops, step.name
        self.model.held = {mapping: {} for mapping in self.mm.mappings}
        for mapping in self.model.held:
            sizes = {was.sizes[mapping], step.sizes.get(mapping, was.sizes[mapping])}
            assert mapping.pages in sizes, f"{step.name}: {mapping.pages} pages, not {sizes}"

    # Devices

    def _on(self, pools: Iterable[int]) -> set[tuple[Mapping, int]]:
        """Return the pages whose frame is in one of these pools."""
        state, found = self.mm.memory.state, set()
        for mapping in self.mm.mappings:
            pages, _ = self.mm.memory.locate(mapping, np.arange(mapping.pages))
            nodes = self.mm.memory.node_of(state.frame[pages])
            places = np.flatnonzero(np.isin(nodes, list(pools)))
            found |= {(mapping, int(i)) for i in places}
        return found

    def _survive_losses(
        self, step: Step, was: _Before, known: list[Held]
    ) -> set[tuple[Mapping, int]]:
        """Check which pages were lost with a device, if one was; punch them."""
        pools = [2 + at for at, device in enumerate(self.devices) if device.failed]
        lost = self._on(pools) if pools else set()
        assert step.may_lose or lost <= was.on_devices, step.name
        for mapping, i in lost:
            for node in range(self.mm.nodes):
                # A replica may serve one node still.
                with suppress(DeviceError):
                    (row,) = rows(self.mm.read(mapping, i, node=node))
                    assert row in _allowed(known, mapping, i), f"{step.name}: page {i}"
            self.mm.punch(mapping, i)
            self.model.held[mapping].pop(i, None)
        return lost

    # Comparisons

    def compare(self) -> None:
        """Check the books and compare every page, which ends all exclusive access."""
        self.wrote.clear()
        self.mm.check()
        for mapping in self.mm.mappings:
            self.mm.read(mapping, range(mapping.pages))
        self._owners_wrote()
        self.model.compare(self.mm)
        for buffer, data in self.buffers:
            with self.lost_allowed():
                assert buffer.bytes() == data, "a spliced buffer"
        for owner in self.owners:
            self._check_owner(owner)
        self.owners.clear()

    def lost_allowed(self) -> AbstractContextManager[None]:
        """Allow a DeviceError if a device was lost: frames of buffers may have been there."""
        return suppress(DeviceError) if len(self.alive()) < 2 else nullcontext()

    def _check_owner(self, owner: Owner) -> None:
        assert owner.handle is not None
        assert owner.handle.left == 0, "an owner still has pages that were read"
        if owner.manner != "hangs":
            assert len(owner.told) == len(set(owner.told)), "an owner was told twice"
            ended = owner.released | set(owner.told)
            assert ended == set(owner.handle.index.tolist()), (
                f"told of {ended} of {owner.handle.index}"
            )

    def finish(self) -> None:
        """End the life: write all files back, drop everything, and check that nothing is left."""
        self.end.set()
        join_callbacks()
        self.compare()
        for mapping in self.mm.mappings:
            if mapping.is_file:
                self.mm.writeback(mapping)
                disk = self.disks[mapping]
                for i, row in self.model.held[mapping].items():
                    # A punched page keeps what the disk has.
                    assert row in (bytes(PAGE), disk.get(i)), f"page {i} is not on the disk"
        for pin in self.pins:
            pin.unpin()
        for buffer, _ in self.buffers:
            buffer.close()
        for mapping in self.mm.mappings:
            self.mm.drop(mapping)
        self.mm.check()
        left = self.mm.counters
        assert left.pages == left.frames == left.pins == left.dirty == left.replicas == 0
        assert left.pages_shared == left.pages_unshared == left.ksm_zero_pages == 0
        assert left.mirrored == 0
        assert not self.mm._mappings
        assert not self.mm.grants._grants


@dataclass(frozen=True)
class _Before:
    """What there was before a step.

    :param held: the model
    :param makes: it makes a mapping
    :param may_be_refused: it may end with BusyError or OutOfMemory
    :param writes_back: it may call a writeback
    :param sizes: pages of each mapping
    :param pins: pins of the manager
    :param on_devices: pages whose frame was on a device
    """

    held: Held
    sizes: dict[Mapping, int]
    pins: int
    on_devices: set[tuple[Mapping, int]]


def _copied(model: Model) -> Held:
    return {mapping: dict(held) for mapping, held in model.held.items()}


def _allowed(known: list[Held], mapping: Mapping, index: int) -> set[bytes]:
    """Return what a page held at one time or another."""
    return {held.get(mapping, {}).get(index, bytes(PAGE)) for held in known}
