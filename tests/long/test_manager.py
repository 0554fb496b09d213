"""Random steps of the memory manager, with faults, against a dict of bytes.

In one step of seven a KeyboardInterrupt or MemoryError comes at a random line of its Python, a
writeback fails, or a device is lost; owners of exclusive pages raise, write or hang when they are
told. Then every page holds what it held before, or what the step was to write; the books agree,
nothing is left over, and the step can be repeated.
"""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import pytest

from gpudedup.mm import grants

from .amounts import SEED, amount, say
from .life import Life
from .manager_steps import next_step

STEPS = amount(4_000, 1_000_000)

IN_A_LIFE = 600
"""Steps in the life of one manager."""

COMPARED = 16
"""Steps from one full comparison to the next."""

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""An exception drops pins that nobody unpinned: the manager does it."""


@pytest.mark.slow
def test_random_steps_with_faults() -> None:
    faults: Counter[str] = Counter()
    for number in range(-(-STEPS // IN_A_LIFE)):
        faults += live(number, min(IN_A_LIFE, STEPS - number * IN_A_LIFE))
    assert faults["KeyboardInterrupt"]
    assert faults["MemoryError"]
    assert STEPS < 100_000 or (faults["WritebackError"] and faults["DeviceError"])
    say(f"{STEPS} steps, faults: {dict(faults)}")


def live(number: int, steps: int) -> Counter[str]:
    """Run the life of one manager; return its faults."""
    life, step, name = Life(SEED, number), 0, ""
    patience = 0.002 if life.manners == ("hangs",) else 20.0
    try:
        with patch.object(grants, "PATIENCE_S", patience):
            for step in range(steps):
                chosen = next_step(life)
                name = chosen.name
                life.run(chosen)
                if step % COMPARED == COMPARED - 1:
                    name += ", or before"
                    life.compare()
            life.finish()
    except BaseException as error:
        error.add_note(f"seed {SEED}, life {number}, step {step}: {name}")
        raise
    finally:
        life.end.set()
    return life.faults
