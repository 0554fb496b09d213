"""SplitMix64: pseudo-random 64-bit words from a counter, the same on every machine.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014). Imports no
numba: compiled code compiles :func:`mixed` itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GAMMA = 0x9E3779B97F4A7C15
"""Step from one state to the next: odd, and near 2**64 divided by the golden ratio."""

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Words = npt.NDArray[np.uint64]


def mixed(x: Any) -> Any:
    """Return SplitMix64's finaliser, a bijection, of a uint64 or of an array of them."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def mix(x: Words, spare: Words | None = None) -> Words:
    """Apply :func:`mixed` to ``x`` in place and return it; ``spare`` is scratch of its shape."""
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        x ^= np.right_shift(x, np.uint64(shift), out=spare)
        if factor != 1:
            x *= np.uint64(factor)
    return x
