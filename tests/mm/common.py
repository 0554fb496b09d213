"""The oracle of the manager: a dict of bytes, nothing shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageSource, Partition
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

PAGE = 512

Pages = npt.NDArray[np.uint8]


def page(content: int, page_size: int = PAGE) -> Pages:
    """Return one page: 0 is zero, the rest is random, in pairs that differ in one bit."""
    if content == 0:
        return np.zeros(page_size, np.uint8)
    made = np.random.default_rng(content // 2 + 1).integers(0, 256, page_size, dtype=np.uint8)
    made[-1] = (made[-1] & 0xFE) | (content & 1)
    return made


def pages(*contents: int, page_size: int = PAGE) -> Pages:
    return np.stack([page(c, page_size) for c in contents]) if contents else no_pages(page_size)


def no_pages(page_size: int = PAGE) -> Pages:
    return np.empty((0, page_size), np.uint8)


class Model:
    """The bytes of each page of each mapping; a fork copies them all."""

    def __init__(self) -> None:
        self.held: dict[Mapping, dict[int, bytes]] = {}

    def read(self, mapping: Mapping, index: int) -> bytes:
        return self.held[mapping].get(index, bytes(PAGE))

    def write(self, mapping: Mapping, index: int, data: bytes, offset: int = 0) -> None:
        old = self.read(mapping, index)
        self.held[mapping][index] = old[:offset] + data + old[offset + len(data) :]

    def fork(self, mapping: Mapping, child: Mapping) -> None:
        self.held[child] = dict(self.held[mapping])

    def truncate(self, mapping: Mapping, pages: int) -> None:
        self.held[mapping] = {i: b for i, b in self.held[mapping].items() if i < pages}

    def compare(self, mm: MemoryManager) -> None:
        """Read every page of the manager from every node, and compare it with the model."""
        assert set(mm.mappings) == set(self.held)
        for mapping in mm.mappings:
            expected = [self.read(mapping, i) for i in range(mapping.pages)]
            for node in range(mm.nodes):
                assert rows(mm.read(mapping, range(mapping.pages), node=node)) == expected


class Meanwhile(CpuEngine):
    """An engine that calls ``act`` after its partition, before the merge uses it."""

    def __init__(self, act: Callable[[], None] = lambda: None, digest_bits: int = 128) -> None:
        super().__init__(1)
        self.act = act
        self.bits = digest_bits

    def partition(self, source: PageSource, **options: Any) -> Partition:
        found = super().partition(source, **{**options, "digest_bits": self.bits})
        self.act()
        return found


def rows(found: Any) -> list[bytes]:
    return [row.tobytes() for row in found]
