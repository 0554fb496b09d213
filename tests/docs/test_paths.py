"""Every file that the pages about the house name is there, so that a file is moved in them too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "docs/architecture.md")

PATH = re.compile(r"`([\w./-]+/[\w.-]*)`")
"""In backticks, with a slash; placeholders such as ``images/<format>.py`` are none."""


@pytest.mark.parametrize("page", PAGES)
def test_named_files_are_there(page: str) -> None:
    named = set(PATH.findall((ROOT / page).read_text()))
    assert named
    # Those of the package are named without it.
    missing = {path for path in named if not ((ROOT / path).exists() or _in_package(path).exists())}
    assert not missing, f"{page} names {sorted(missing)}"


def _in_package(path: str) -> Path:
    return ROOT / "gpudedup" / path
