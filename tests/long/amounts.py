"""How much tests of this room do: a sample in ``make test``, all of it in ``make test-long``."""

from __future__ import annotations

import os
import sys

LONG = bool(os.environ.get("GPUDEDUP_LONG"))
"""Whether all of it runs."""

SEED = int(os.environ.get("GPUDEDUP_SEED", "1"))
"""Seed of everything that is random; every failure names it."""


def amount(sample: int, whole: int) -> int:
    """Return how often something is tried: ``GPUDEDUP_AMOUNT``, or all of it, or a sample."""
    return int(os.environ.get("GPUDEDUP_AMOUNT", whole if LONG else sample))


def say(what: str) -> None:
    """Print what was done, and with which seed."""
    sys.stdout.write(f"seed {SEED}: {what}\n")
