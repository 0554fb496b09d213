"""A manager with devices, a heap and a file, and what each of their pages must hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpudedup.devices.base import Device
from gpudedup.mm.device import ManagedDevice
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from .common import PAGE, Model, Pages, pages, rows

PLACES = 80
"""Pages of each mapping: two leaves; most pages are never written."""

WRITTEN = (0, 1, 2, 3, 4, 5, 70, 71)


class World:
    """A manager and its model, kept in step."""

    def __init__(self, devices: list[Device]) -> None:
        self.mm = MemoryManager(PAGE, nodes=2, device_engine=devices)
        self.model = Model()
        self.disk: dict[int, bytes] = {}
        self.heap = self.create("heap", "anon")
        self.file = self.create("/a", "file")
        self.store(self.heap, WRITTEN, pages(1, 1, 2, 3, 4, 0, 5, 6))
        self.store(self.file, WRITTEN, pages(1, 2, 2, 7, 8, 0, 9, 10))

    def create(self, name: str, kind: str) -> Mapping:
        mapping = self.mm.create(name, kind=kind, pages=PLACES, writeback=self._keep)
        self.model.held[mapping] = {}
        return mapping

    def _keep(self, index: Any, data: Any) -> None:
        self.disk.update(zip(index.tolist(), rows(data), strict=True))

    def device(self, number: int) -> ManagedDevice:
        return self.mm.device(number)

    def store(
        self, mapping: Mapping, index: Iterable[int], data: Pages, by: int | None = None
    ) -> None:
        """Store whole pages from a device (``by``) or the host, and note them in the model."""
        index = list(index)
        (self.mm if by is None else self.device(by)).write(mapping, index, data)
        self.know(mapping, index, data)

    def know(self, mapping: Mapping, index: Iterable[int], data: Pages) -> None:
        """Note in the model what was written."""
        index = list(index)
        for i, row in zip(index, np.broadcast_to(data, (len(index), PAGE)), strict=True):
            self.model.write(mapping, i, row.tobytes())

    def agree(self) -> None:
        """Check the manager, and compare every page as each device and node reads it."""
        self.mm.check()
        for number in range(len(self.mm.devices)):
            self.agree_on(number)
        self.model.compare(self.mm)

    def agree_on(self, number: int) -> None:
        """Compare every page as one device loads it."""
        for mapping in self.mm.mappings:
            expected = [self.model.read(mapping, i) for i in range(mapping.pages)]
            assert rows(self.device(number).read(mapping, range(mapping.pages))) == expected
        self.mm.check()

    def mirrored(self, mapping: Mapping, number: int) -> list[int]:
        """Return the pages for which a device has an entry."""
        index, _ = self.device(number).table.present(mapping)
        found: list[int] = index.tolist()
        return found

    def drop_all(self) -> None:
        """Drop all mappings, and check that nothing is left."""
        for mapping in self.mm.mappings:
            self.mm.drop(mapping)
        self.mm.check()
        left = self.mm.counters
        assert left.pages == left.frames == left.replicas == left.dirty == left.pins == 0
        assert left.pages_shared == left.pages_unshared == left.ksm_zero_pages == 0
        assert left.mirrored == 0
        assert not self.mm._mappings
        assert not self.mm.grants._grants
        assert all(device.lost or not device.table.leaves_used for device in self.mm.devices)
