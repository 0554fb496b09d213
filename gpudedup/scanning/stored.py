"""Expand the partition of stored pages to the rows that refer to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageClass, Partition
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.scanning.population import Population

Rows = npt.NDArray[np.int64]


def aliases_of_stored(population: Population, alias_of: Rows | None) -> Rows | None:
    """Return the lowest stored page of each stored page's frame; only those are read.

    Stored pages of a merged dump are all read: merging has joined the rows of a frame.

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

    :param found: partition of the stored pages
    :param stored: (n,) int64, stored page of each row
    :param alias_of: as for :func:`aliases_of_stored`
    """
    n = len(stored)
    rows = np.arange(n)
    own = rows if alias_of is None else rows[alias_of == rows]
    content = found.representative[stored]
    lowest = np.empty(len(found.classes), np.int64)
    # For a repeated index NumPy keeps the last value: the lowest row.
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
        found,
        digests=found.digests[stored],
        classes=classes,
        representative=representative,
        tally=None,
    )
