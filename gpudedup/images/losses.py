"""Losses: stretches of an input that could not be read, each with its place and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpudedup.errors import ImageError

MAX_LOSSES = 20
"""Stretches listed at most; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A stretch that could not be read; ``str`` gives one line, as of an error.

    :param where: path of the file, or another name of the input such as ``pid 42``
    :param reason: the loss and its cause
    :param offset: byte offset in the file, where there is one
    """

    where: str
    reason: str
    offset: int | None = None

    def __str__(self) -> str:
        return str(self.error())

    def error(self) -> ImageError:
        """Return the loss as an error, for an input without any readable page."""
        return ImageError(self.where, self.reason, self.offset)


def lines(losses: Sequence[Loss], more: int = 0) -> list[str]:
    """Return a line for each loss, and one for ``more`` losses that were only counted."""
    return [*map(str, losses), *([f"and {more} more such places"] if more else [])]
