"""Every script in examples/ runs as a reader runs it: without arguments, in a folder of its own.

They are found, not listed: a new one is tested as it is added.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTE = "gpudedup: note: "
MAX_LINES = 80
TIMEOUT_S = 300
"""A script takes seconds; the first one that uses the manager waits for numba to compile it."""


def test_there_are_examples() -> None:
    assert SCRIPTS, f"none in {EXAMPLES}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_in_a_fresh_folder(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        # -P: the folder of the script is not searched for modules, so each stands alone.
        [sys.executable, "-P", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    unexpected = [line for line in done.stderr.splitlines() if not line.startswith(NOTE)]
    assert not unexpected, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_begins_with_the_question_that_it_answers(script: Path) -> None:
    text = script.read_text()
    question = (ast.get_docstring(ast.parse(text)) or "").splitlines()[:1]
    assert question
    assert question[0].endswith("?")
    assert len(text.splitlines()) <= MAX_LINES, "an example is read as a whole"
