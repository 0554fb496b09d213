"""Mutated files of all formats: an image that holds together, or an error in one line.

Never a crash, a hang, more memory than docs/reliability.md allows, or a descriptor left open.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import bases
from .amounts import SEED, amount, say
from .watched import read_all

CASES = amount(2_000, 1_000_000)


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    bases.make(tmp_path / "bases")
    read, refused, failures = read_all(tmp_path, SEED, CASES)
    assert not failures, f"{len(failures)} or more, see {tmp_path}:\n" + "".join(failures)
    assert read == CASES
    # Damage that nobody notices is as wrong as a mutation that always breaks the first check.
    assert 0.2 * CASES < refused < 0.98 * CASES
    say(f"{read} mutated files, of which {refused} were refused")
