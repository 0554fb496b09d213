"""What of an input could not be read: stretches, each with its place and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpudedup.errors import ImageError

MAX_LOSSES = 20
"""Stretches that are listed; the others are only counted."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A stretch that could not be read; as text, one line like that of an error.

    :param where: path of the file, or another name of the input such as ``pid 42``
    :param reason: what is lost, and why
    :param offset: byte offset in the file, where there is one
    """

    where: str
    reason: str
    offset: int | None = None

    def __str__(self) -> str:
        return str(self.error())

    def error(self) -> ImageError:
        """Return the error of an input of which nothing else is left."""
        return ImageError(self.where, self.reason, self.offset)


def lines(losses: Sequence[Loss], more: int = 0) -> list[str]:
    """Return a line for each loss, and one for ``more`` that were only counted."""
    return [*map(str, losses), *([f"and {more} more such places"] if more else [])]
