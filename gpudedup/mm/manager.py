"""The memory manager: the access paths, and who shares what."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.engines.base import Engine
from gpudedup.engines.select import choose
from gpudedup.images.base import Image
from gpudedup.images.memory import open_array
from gpudedup.images.probe import open_image
from gpudedup.mm import tables
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.loading import load_image, nodes_of
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

    @classmethod
    def from_image(cls, image: Any, *, nodes: int | None = None) -> MemoryManager:
        """Return a manager that holds the pages of an image, in the same frames.

        :param image: path, :class:`gpudedup.images.base.Image`, or array of pages. An image given
            opened stays open, and is not needed any more.
        :param nodes: NUMA nodes; None: as many as the image tells. Frames of others go to node 0.
        :raises ImageError: if the image cannot be read
        """
        with ExitStack() as opened:
            if isinstance(image, str | os.PathLike):
                image = opened.enter_context(open_image(image))
            elif not isinstance(image, Image):
                image = open_array(image)
            manager = cls(image.page_size, nodes_of(image) if nodes is None else nodes)
            load_image(manager, image)
        return manager

    def frames(self) -> pa.Table:
        """Return all frames, of schema :data:`gpudedup.schema.FRAMES`.

        A view: it shows later changes, until the manager grows.
        """
        with self.lock:
            return tables.frames_table(self.memory)

    def pages(self) -> pa.Table:
        """Return all page numbers, of schema :data:`gpudedup.schema.MANAGER_PAGES`; a view too."""
        with self.lock:
            return tables.pages_table(self.memory)

    def aliases(self) -> pa.Table:
        """Return the pages that have a frame, of schema :data:`gpudedup.schema.ALIASES`."""
        with self.lock:
            return tables.aliases_table(self.memory)

    def mappings_table(self) -> pa.Table:
        """Return the mappings, of schema :data:`gpudedup.schema.MANAGER_MAPPINGS`."""
        with self.lock:
            return tables.mappings_table(self.memory, self.mappings)

    def merge(
        self, policy: MergePolicy | None = None, *, engine: Engine | None = None
    ) -> MergeReport:
        """Let pages with equal bytes share a frame, which is copied when one of them is written.

        Pages that are pinned, held exclusively or written meanwhile are left alone. Dirty pages of
        files are written back first. Other threads go on while pages are digested.

        :param policy: which pages; None: KSM's defaults
        :param engine: digests pages; None: the fastest here
        """
        return merge(self, policy or MergePolicy(), engine or choose().engine)

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
