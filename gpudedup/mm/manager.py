"""The memory manager: the access paths, and who shares what."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import Engine
from gpudedup.engines.select import choose
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.mapping import Mapping, as_index
from gpudedup.mm.merge_passes import unmerge_pages
from gpudedup.mm.merging import merge
from gpudedup.mm.policy import MergePolicy, MergeReport


class MemoryManager(AccessPaths):
    """Frames, mappings and aliases with real bytes behind them.

    :param page_size: bytes, a power of two from 512 to 2 MiB
    :param nodes: NUMA nodes of the host, at least 1
    :raises UsageError: if one of them lies outside its range
    """

    def merge(
        self, policy: MergePolicy | None = None, *, engine: Engine | None = None
    ) -> MergeReport:
        """Let pages with equal bytes share a frame, which is copied when one of them is written.

        Pages that are pinned, held exclusively or written meanwhile are left alone. Dirty pages of
        files are written back first. Other threads go on while pages are digested.

        :param policy: which pages; None: KSM's defaults
        :param engine: digests pages; None: the fastest here
        """
        return merge(self, policy or MergePolicy(), engine or choose())

    def unmerge(self, mapping: Mapping, index: Any = None) -> npt.NDArray[np.bool_]:
        """Give merged pages, and zero pages that a merge left without, a frame of their own again.

        :param index: (n,) int, or one; None: all pages
        :return: (n,) bool, whether the page is merged still: only if it is pinned
        :raises UsageError: if an index lies outside
        """
        with self.lock:
            index = np.arange(mapping.pages) if index is None else as_index(index)
            pages = self._locate(mapping, index)
            merged = np.empty(len(pages), np.bool_)
            self.memory.ensure(mapping.node, len(pages))
            self._copying(unmerge_pages, len(pages), pages, mapping.node, merged)
            return merged

    def note_volatile(self, pages: int) -> None:
        """Remember how many pages the last merge could not judge."""
        self._volatile = pages
