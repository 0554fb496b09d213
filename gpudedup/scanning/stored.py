"""A scan of stored pages, told of the rows that refer to them: as if each row had its own bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageClass, Partition
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.scanning.population import Population

Rows = npt.NDArray[np.int64]


def aliases_of_stored(population: Population, alias_of: Rows | None) -> Rows | None:
    """Return for each stored page the lowest one with the same frame; only those are read.

    Frames of a merged dump were compared before, and all are read.

    :param alias_of: (n,) int64, the same for rows, from :meth:`Population.alias_of`
    """
    if alias_of is None:
        return None
    result = np.arange(population.first_stored[-1])
    for at, image in enumerate(population.images):
        if not isinstance(image, MergedImage):
            rows = alias_of[population.first_row[at] : population.first_row[at + 1]]
            first, stop = population.first_stored[at : at + 2]
            result[first:stop] = rows - population.first_row[at] + first
    return result


def of_rows(found: Partition, stored: Rows, alias_of: Rows | None) -> Partition:
    """Return the partition of the rows.

    :param found: of the stored pages
    :param stored: (n,) int64, stored page of each row
    :param alias_of: (n,) int64, for each row the lowest row with the same frame; None: all differ
    """
    n = len(stored)
    rows = np.arange(n)
    own = rows if alias_of is None else rows[alias_of == rows]
    content = found.representative[stored]
    lowest = np.empty(len(found.classes), np.int64)
    # Of several values for one place NumPy keeps the last.
    lowest[content[own[::-1]]] = own[::-1]
    classes = found.classes[stored]
    representative = lowest[content]
    unread = classes == PageClass.UNREADABLE
    representative[unread] = rows[unread]
    if alias_of is not None:
        is_alias = alias_of != rows
        classes[is_alias] = PageClass.ALIAS
        representative[is_alias] = representative[alias_of[is_alias]]
    return replace(
        found, digests=found.digests[stored], classes=classes, representative=representative
    )
