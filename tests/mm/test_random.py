"""Random operations against a dict of bytes that shares nothing."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from gpudedup.devices.host import HostDevice
from gpudedup.errors import BusyError
from gpudedup.mm.exclusive import Exclusive
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory import memory as manager_memory
from gpudedup.mm.memory.device_table import SLAB_BYTES
from gpudedup.mm.memory.pools import Frames, OutOfMemory
from gpudedup.mm.pins import Buffer, Pin
from gpudedup.mm.policy import MergePolicy

from ..kernels.shim.device import ShimDevice
from .common import PAGE, Meanwhile, Model, page, rows

SHIM = shutil.which("g++") is not None
"""True: device 1 is the shim, which runs the kernels; False, without g++: a host device."""

MOST = 150
"""Pages of a mapping: three leaves."""

contents = st.integers(0, 5)
places = st.lists(st.integers(0, 4) | st.integers(0, MOST), max_size=6)
nodes = st.integers(0, 1)
devices = st.integers(0, 1)
DEVICE_MEMORY = 64 * PAGE + 2 * SLAB_BYTES
"""Bytes of frames and page tables on the device that soon has no room."""

sums = st.integers(0, 3) | st.just((1 << 64) - 1)


class Random(RuleBasedStateMachine):
    """Each rule does one operation in the manager and in the model, then all state is checked."""

    mappings = Bundle("mappings")
    pins = Bundle("pins")
    buffers = Bundle("buffers")
    grants = Bundle("grants")

    @initialize(seed=st.integers(0, 3), small=st.booleans())
    def begin(self, seed: int, small: bool) -> None:
        memory = DEVICE_MEMORY + (1 << 13) if small else 1 << 24
        second = ShimDevice(seed=seed, memory=memory) if SHIM else HostDevice(1, memory)
        with patch.object(manager_memory, "CHUNK_BYTES", 64 * PAGE):
            self.mm = MemoryManager(PAGE, nodes=2, device_engine=[HostDevice(0), second])
        copy = self.mm.memory.copy

        def copy_in_any_order(source: Frames, target: Frames) -> None:
            assert not np.isin(source, target).any()
            copy(source, target)

        self.mm.memory.copy = copy_in_any_order  # type: ignore[method-assign]  # asserts, copies
        self.model = Model()
        self.disk: dict[Mapping, dict[int, bytes]] = {}
        self.held: list[Any] = []

    def here(self, mapping: Mapping, index: list[int]) -> list[int]:
        return [i for i in index if i < mapping.pages]

    @rule(
        target=mappings,
        kind=st.sampled_from(["anon", "file"]),
        pages=st.integers(0, MOST),
        node=nodes,
        domain=st.sampled_from(["red", "blue"]),
    )
    def create(self, kind: str, pages: int, node: int, domain: str) -> Mapping:
        disk: dict[int, bytes] = {}

        def keep(index: Any, data: Any) -> None:
            disk.update(zip(index.tolist(), rows(data), strict=True))

        mapping = self.mm.create(
            "m", kind=kind, pages=pages, node=node, domain=domain, writeback=keep
        )
        self.model.held[mapping] = {}
        self.disk[mapping] = disk
        return mapping

    @rule(mapping=mappings, index=places, seed=st.lists(contents, min_size=6, max_size=6))
    def write(self, mapping: Mapping, index: list[int], seed: list[int]) -> None:
        index = self.here(mapping, index)
        data = np.stack([page(s) for s in seed])[: len(index)]
        self.mm.write(mapping, index, data)
        for i, content in zip(index, seed, strict=False):
            self.model.write(mapping, i, page(content).tobytes())

    @rule(mapping=mappings, start=st.integers(0, MOST), size=st.integers(0, 70), content=contents)
    def write_many(self, mapping: Mapping, start: int, size: int, content: int) -> None:
        index = self.here(mapping, list(range(start, start + size)))
        self.mm.write(mapping, index, page(content))
        for i in index:
            self.model.write(mapping, i, page(content).tobytes())

    @rule(mapping=mappings, index=places, offset=st.integers(0, PAGE), byte=st.integers(0, 2))
    def write_part(self, mapping: Mapping, index: list[int], offset: int, byte: int) -> None:
        index = self.here(mapping, index)
        data = bytes([byte]) * min(3, PAGE - offset)
        self.mm.write(mapping, index, data, offset=offset)
        for i in index:
            self.model.write(mapping, i, data, offset)

    @rule(mapping=mappings, index=places, content=contents)
    def file_write(self, mapping: Mapping, index: list[int], content: int) -> None:
        if mapping.is_file:
            self.mm.file_write(mapping, index, page(content))
            for i in index:
                self.model.write(mapping, i, page(content).tobytes())

    @rule(target=mappings, mapping=mappings)
    def fork(self, mapping: Mapping) -> Any:
        if mapping.is_file or len(self.mm.mappings) > 8:
            return multiple()
        child = self.mm.fork(mapping)
        self.model.fork(mapping, child)
        return child

    @rule(mapping=mappings, pages=st.integers(0, MOST))
    def truncate(self, mapping: Mapping, pages: int) -> None:
        self.mm.truncate(mapping, pages)
        self.model.truncate(mapping, pages)

    @rule(mapping=mappings, index=places)
    def punch(self, mapping: Mapping, index: list[int]) -> None:
        index = self.here(mapping, index)
        self.mm.punch(mapping, index)
        for i in index:
            self.model.held[mapping].pop(i, None)

    @rule(mapping=consumes(mappings))
    def drop(self, mapping: Mapping) -> None:
        self.mm.drop(mapping)
        del self.model.held[mapping]

    @rule(mapping=mappings, index=places)
    def writeback(self, mapping: Mapping, index: list[int]) -> None:
        index = self.here(mapping, index)
        self.mm.writeback(mapping, index)
        if mapping.is_file and mapping.writeback is not None:
            for i in index:
                if self.model.read(mapping, i) != bytes(PAGE):
                    assert self.disk[mapping][i] == self.model.read(mapping, i)

    @rule(mapping=mappings, index=places, node=nodes)
    def migrate(self, mapping: Mapping, index: list[int], node: int) -> None:
        self.mm.migrate(mapping, self.here(mapping, index), node=node)

    @rule(
        kinds=st.sampled_from([("anon",), ("file",), ("anon", "file")]),
        within_domain=st.booleans(),
        cap=st.sampled_from([2, 3, 256]),
        across=st.booleans(),
        use_zero_pages=st.booleans(),
        bits=st.sampled_from([128, 128, 2]),
    )
    def merge(
        self,
        kinds: tuple[str, ...],
        within_domain: bool,
        cap: int,
        across: bool,
        use_zero_pages: bool,
        bits: int,
    ) -> None:
        policy = MergePolicy(kinds, within_domain, cap, across, use_zero_pages)
        report = self.mm.merge(policy, engine=Meanwhile(digest_bits=bits))
        assert report.written == 0
        if bits == 128:
            assert report.unequal == 0
            assert self.mm.merge(policy).merged == 0

    @rule(mapping=mappings, index=places)
    def unmerge(self, mapping: Mapping, index: list[int]) -> None:
        self.mm.unmerge(mapping, self.here(mapping, index))

    @rule(mapping=mappings, index=places, node=nodes)
    def replicate(self, mapping: Mapping, index: list[int], node: int) -> None:
        self.mm.replicate(mapping, self.here(mapping, index), node=node)

    @rule(mapping=mappings, index=places)
    def collapse(self, mapping: Mapping, index: list[int]) -> None:
        self.mm.collapse(mapping, self.here(mapping, index))

    @rule(mapping=mappings, index=places, node=nodes)
    def cache(self, mapping: Mapping, index: list[int], node: int) -> None:
        self.mm.cache(mapping, self.here(mapping, index), node=node)

    @rule(mapping=mappings, index=places, evict=st.booleans())
    def flush(self, mapping: Mapping, index: list[int], evict: bool) -> None:
        (self.mm.evict if evict else self.mm.flush)(mapping, self.here(mapping, index))

    @rule(target=mappings, mapping=mappings)
    def reflink(self, mapping: Mapping) -> Any:
        if not mapping.is_file or len(self.mm.mappings) > 8:
            return multiple()
        copy = self.mm.reflink(mapping, name="copy")
        self.model.fork(mapping, copy)
        self.disk[copy] = dict(self.disk[mapping])
        copy.writeback = None
        return copy

    @rule(mapping=mappings, index=places, device=devices)
    def device_read(self, mapping: Mapping, index: list[int], device: int) -> None:
        index = self.here(mapping, index)
        found = rows(self.mm.device(device).read(mapping, index))
        assert found == [self.model.read(mapping, i) for i in index]

    @rule(device=devices)
    def device_read_all(self, device: int) -> None:
        for mapping in self.mm.mappings:
            expected = [self.model.read(mapping, i) for i in range(mapping.pages)]
            assert rows(self.mm.device(device).read(mapping, range(mapping.pages))) == expected

    @rule(
        mapping=mappings,
        index=places,
        device=devices,
        offset=st.integers(0, PAGE),
        content=contents,
    )
    def device_write(
        self, mapping: Mapping, index: list[int], device: int, offset: int, content: int
    ) -> None:
        index = self.here(mapping, index)
        data = page(content)[offset:].tobytes()
        self.mm.device(device).write(mapping, index, data, offset=offset)
        for i in index:
            self.model.write(mapping, i, data, offset)

    @rule(mapping=mappings, index=places, device=devices, value=sums)
    def device_add(self, mapping: Mapping, index: list[int], device: int, value: int) -> None:
        index = self.here(mapping, index)
        expected: list[int] = []
        try:
            before = self.mm.device(device).atomic_add(mapping, index, 3, np.uint64(value))
        except (BusyError, OutOfMemory):
            return
        for i in index:
            held = int.from_bytes(self.model.read(mapping, i)[24:32], "little")
            expected.append(held)
            data = (held + value & (1 << 64) - 1).to_bytes(8, "little")
            self.model.write(mapping, i, data, 24)
        assert sorted(before.tolist()) == sorted(expected)

    @rule(mapping=mappings, index=places, device=devices, replicate=st.booleans())
    def bring(self, mapping: Mapping, index: list[int], device: int, replicate: bool) -> None:
        """Migrate or replicate pages to a device before it faults on them."""
        bring = self.mm.replicate if replicate else self.mm.migrate
        with suppress(OutOfMemory):
            bring(mapping, self.here(mapping, index), device=device)

    @rule(
        target=grants,
        mapping=mappings,
        index=places,
        content=contents,
        device=st.none() | devices,
        value=sums,
    )
    def acquire(
        self, mapping: Mapping, index: list[int], content: int, device: int | None, value: int
    ) -> Any:
        """Take pages exclusively, write them as their owner, and hold them until a touch."""
        index = self.here(mapping, index)
        told: list[int] = []
        try:
            held = self.mm.acquire_exclusive(
                mapping,
                index,
                device=device,
                on_revoke=lambda _, which: told.extend(which.tolist()),
            )
            held.write(index, page(content))
        except (BusyError, OutOfMemory):
            return multiple()
        for i in index:
            self.model.write(mapping, i, page(content).tobytes())
        # Device 1 may have no room for entries: its atomics fail, its stores revoke the grant.
        if device != 1 and index:
            first = int.from_bytes(page(content)[:8].tobytes(), "little")
            before = held.atomic_add(index[:1], 0, np.uint64(value))
            assert before.tolist() == [first]
            data = (first + value & (1 << 64) - 1).to_bytes(8, "little")
            self.model.write(mapping, index[0], data)
            if device is not None:
                self.mm.device(device).write(mapping, index[:1], b"!", offset=PAGE - 1)
                self.model.write(mapping, index[0], b"!", PAGE - 1)
        assert not told
        return held, told

    @rule(grant=consumes(grants))
    def use(self, grant: tuple[Exclusive, list[int]]) -> None:
        """The invariant has read all pages since, which revoked them and called their owner."""
        held, told = grant
        assert sorted(told) == held.index.tolist()
        assert held.left == 0
        held.release()

    @rule(target=pins, mapping=mappings, index=places)
    def pin(self, mapping: Mapping, index: list[int]) -> Any:
        index = self.here(mapping, index)
        pin = self.mm.pin(mapping, index)
        self.held.append(pin)
        assert rows(pin.read()) == [self.model.read(mapping, i) for i in index]
        return pin

    @rule(mapping=mappings, index=places, content=contents)
    def direct_io(self, mapping: Mapping, index: list[int], content: int) -> None:
        """Pin, splice and fork the pinned pages, write through the pin, unpin."""
        index = self.here(mapping, index)
        with self.mm.pin(mapping, index, write=True) as pin:
            before = b"".join(self.model.read(mapping, i) for i in index)
            with self.mm.splice(mapping, index) as buffer:
                if not mapping.is_file:
                    child = self.mm.fork(mapping)
                pin.write(page(content))
                assert buffer.bytes() == before
            if not mapping.is_file:
                found = self.mm.read(child, index).tobytes()
                assert found == before
                self.mm.drop(child)
        for i in index:
            self.model.write(mapping, i, page(content).tobytes())

    @rule(pin=consumes(pins))
    def unpin(self, pin: Pin) -> None:
        pin.unpin()

    @rule(target=buffers, mapping=mappings, index=places)
    def splice(self, mapping: Mapping, index: list[int]) -> Any:
        index = self.here(mapping, index)
        buffer = self.mm.splice(mapping, index)
        self.held.append(buffer)
        return buffer, b"".join(self.model.read(mapping, i) for i in index)

    @rule(spliced=consumes(buffers))
    def close(self, spliced: tuple[Buffer, bytes]) -> None:
        buffer, expected = spliced
        assert buffer.bytes() == expected
        buffer.close()

    @invariant()
    def all_is_well(self) -> None:
        self.mm.check()
        self.model.compare(self.mm)

    def teardown(self) -> None:
        if not hasattr(self, "mm"):
            return
        for holder in self.held:
            holder.unpin() if isinstance(holder, Pin) else holder.close()
        for mapping in self.mm.mappings:
            self.mm.drop(mapping)
        self.mm.check()
        left = self.mm.counters
        assert left.pages == left.frames == left.pins == left.dirty == left.replicas == 0
        assert left.mirrored == 0
        assert all(device.table.leaves_used == 0 for device in self.mm.devices)
        assert left.pages_shared == left.pages_sharing == left.ksm_zero_pages == 0
        assert not self.mm._mappings
        assert left.pages_unshared == left.stable_node_chains == left.stable_node_dups == 0


TestRandom = Random.TestCase
TestRandom.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
