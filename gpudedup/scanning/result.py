"""Results of a scan: totals, their shares by owner or kind, and tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageClass, Partition
from gpudedup.scanning.counts import Totals, is_ordinary, is_read, is_sharing, shared_rows
from gpudedup.scanning.population import Key, Population

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Share:
    """Counters of one owner, domain, kind or name.

    A shared content counts where its first frame is, a sharing frame where it is itself.
    """

    key: str
    pages: int
    frames: int
    zero_frames: int
    unique_frames: int
    shared_contents: int
    sharing_frames: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """Sharing frames within owners and between them.

    For a content with n_o frames of owner o: within = Σ(n_o - 1), between = owners - 1.
    """

    within: int
    between: int


@dataclass(frozen=True, slots=True)
class EngineUsed:
    """The engine of a scan, as in ``scan --json``.

    :param threads: host threads
    :param passed_over: ``cuda: <reason>`` if that engine is preferred but was not used; else empty
    """

    name: str
    device: str
    threads: int
    digest: str
    verify: bool
    passed_over: str = ""


@dataclass(frozen=True)
class Scan:
    """The result of a scan; independent of the image files.

    :param timings: seconds per stage, and their sum ``total_s``; with devices also ``staging_s``
        (host threads fill buffers), ``transfer_s`` (the bus, both ways) and ``kernel_s``, which
        overlap within ``stream_s`` and are summed over devices
    :param losses: one line for each stretch that was not read
    :param notes: remarks of the images' readers, one line each
    """

    population: Population
    partition: Partition
    engine: EngineUsed
    totals: Totals
    timings: dict[str, float]
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def collisions(self) -> int:
        """Return the number of contents whose digest an earlier one has; 0 if not verified."""
        return self.partition.collisions

    @property
    def collision_bound(self) -> float:
        """Return an upper bound of the chance that two contents have one digest.

        The birthday bound, for contents not made to collide: XXH3 is not cryptographic.
        """
        n = self.totals.distinct_contents
        return n * (n - 1) / 2 / 2.0**128

    @cached_property
    def pages(self) -> pa.Table:
        """Return the page table, of schema :data:`gpudedup.schema.PAGES`."""
        import pyarrow as pa

        from gpudedup.scanning.tables import page_batches
        from gpudedup.schema import PAGES

        return pa.Table.from_batches(page_batches(self.population, self.partition), PAGES)

    @cached_property
    def contents(self) -> pa.Table:
        """Return the shared contents, of schema :data:`gpudedup.schema.CONTENTS`."""
        return self.top_contents(None)

    def top_contents(self, limit: int | None) -> pa.Table:
        """Return the ``limit`` shared contents with the most frames; None: all of them."""
        from gpudedup.scanning.tables import contents_table

        return contents_table(self.population, self.partition, self.mapping_codes, limit)

    @cached_property
    def mapping_codes(self) -> npt.NDArray[np.int32]:
        """Return the index of each row's mapping in ``population.mappings``, (n,) int32."""
        return self.population.mapping_codes()

    def by(self, key: Key) -> list[Share]:
        """Return the share of each owner, domain, kind or name; most frames first."""
        words, codes = self.population.words(key)
        k = len(words)
        rows = codes[self.mapping_codes]
        classes, duplicate = self.partition.classes, self.is_sharing
        zero = np.bincount(rows[classes == PageClass.ZERO], minlength=k)
        sharing = np.bincount(rows[duplicate], minlength=k)
        shared = np.bincount(rows[self.shared_rows], minlength=k)
        own = np.bincount(rows[is_ordinary(classes)], minlength=k)
        pages = np.bincount(rows[self.is_read], minlength=k)
        shares = [
            Share(word, *(int(n) for n in numbers))
            for word, *numbers in zip(
                words, pages, zero + own, zero, own - shared - sharing, shared, sharing, strict=True
            )
        ]
        return sorted(shares, key=lambda s: (-s.frames, s.key))

    def sharing(self, key: Key) -> Sharing:
        """Return the sharing frames within one owner (domain, ...) and between several."""
        words, codes = self.population.words(key)
        members = self.is_sharing
        if len(words) < 2:
            return Sharing(self.totals.sharing_frames, 0)
        rows = np.concatenate([np.flatnonzero(members), self.shared_rows])
        pair = self.partition.representative[rows] * len(words) + codes[self.mapping_codes[rows]]
        between = len(np.unique(pair)) - self.totals.shared_contents
        return Sharing(self.totals.sharing_frames - between, between)

    @property
    def is_read(self) -> npt.NDArray[np.bool_]:
        """Return which rows were read, or are aliases of a row that was, (n,) bool."""
        return is_read(self.partition)

    @property
    def is_sharing(self) -> npt.NDArray[np.bool_]:
        """Return which rows are sharing frames, (n,) bool."""
        return is_sharing(self.partition)

    @property
    def shared_rows(self) -> npt.NDArray[np.int64]:
        """Return the representatives of shared contents, ascending."""
        return shared_rows(self.partition, self.is_sharing)

    def words(self, key: Key) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Return the distinct words of ``key``, and the index of each mapping's word."""
        return self.population.words(key)

    def inputs(self) -> list[dict[str, Any]]:
        """Return the inputs as in ``scan --json``."""
        lost = ~self.is_read
        result: list[dict[str, Any]] = []
        first = self.population.first_row.tolist()
        for at, image in enumerate(self.population.images):
            unread = int(np.count_nonzero(lost[first[at] : first[at + 1]]))
            absent = image.absent.as_dict()
            absent["unreadable"] += unread
            result.append(
                {
                    "path": image.path,
                    "format": image.format,
                    "page_size": image.page_size,
                    "pages": image.pages - unread,
                    "mappings": len(image.mappings),
                    "absent": absent,
                }
            )
        return result

    def as_dict(self) -> dict[str, object]:
        """Return the result as ``scan --json`` prints it."""
        result: dict[str, object] = {
            "schema_version": 1,
            "inputs": self.inputs(),
            "engine": asdict(self.engine),
            "totals": asdict(self.totals),
            "timings": {stage: round(seconds, 6) for stage, seconds in self.timings.items()},
            "collisions": self.collisions,
        }
        if not self.engine.verify:
            result["collision_bound"] = self.collision_bound
        return result
