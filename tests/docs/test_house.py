"""The picture of the house is that of the sources, and the page beside it names every package."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "house.py"
PAGE = ROOT / "docs" / "architecture.md"
REDRAW = "redraw it: make house"

LINES = re.compile(r">about ([\d,]+) lines<")

LAYERS = """
LAYERS = [["top"], ["middle", "aside"], ["low"]]
"""
MODULES = {
    "top/__init__.py": "from gpudedup.middle import thing\nimport gpudedup.low.first\n",
    "middle/__init__.py": "",
    "middle/thing.py": "if TYPE_CHECKING:\n    from gpudedup.low import first\n",
    "aside/__init__.py": "def late():\n    import gpudedup.kernels\n",
    "low/__init__.py": "",
    "low/first.py": "import gpudedup, gpudedup.low\n",
    "kernels/__init__.py": "",
    "__init__.py": "from gpudedup.top import everything\n",
}


@pytest.fixture(scope="module")
def house() -> Any:
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def today(house: Any) -> str:
    picture: str = house.draw()
    return picture


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Sources with an arrow that is implied, one for types, and one from within a function."""
    for name, text in MODULES.items():
        (tmp_path / "gpudedup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "gpudedup" / name).write_text(text)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_layers.py").write_text(LAYERS)
    return tmp_path


def test_the_committed_picture_is_todays(house: Any, today: str) -> None:
    """But for the numbers of lines: they may be off by half, or every commit would redraw it."""
    committed = house.PICTURE.read_text()
    assert LINES.sub("", committed) == LINES.sub("", today), REDRAW
    for old, new in zip(LINES.findall(committed), LINES.findall(today), strict=True):
        before, now = (int(text.replace(",", "")) for text in (old, new))
        assert max(before, now) <= 1.5 * min(before, now) or abs(before - now) < 100, REDRAW


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_same_sources_give_the_same_bytes(today: str, tmp_path: Path, seed: str) -> None:
    target = tmp_path / "house.svg"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, SCRIPT, target], cwd=tmp_path, env=environment, check=True)
    assert target.read_text() == today


def test_imports_are_found_wherever_they_stand(house: Any, small: Path) -> None:
    edges = house.read_imports(small)
    kept = {("top", "middle"), ("middle", "low"), ("aside", "kernels")}
    assert edges == kept | {("top", "low")}
    assert house.without_implied(edges) == kept
    assert house.read_layers(small) == [["top"], ["middle", "aside"], ["low", "kernels"]]
    picture = house.draw(small)
    assert picture.count('class="import"') == len(kept)
    assert re.findall(r">(\w+/)<", picture) == ["aside/", "kernels/", "low/", "middle/", "top/"]


def test_no_arrow_passes_a_box(today: str) -> None:
    """An arrow that passes a layer does so upright, between the boxes of that layer."""
    boxes = re.findall(r'<rect x="([\d.]+)" y="(\d+)" width="(\d+)" height="(\d+)" rx', today)
    upright = re.findall(r" ([\d.]+),(\d+) V(\d+)", today)
    assert boxes
    assert upright
    for x, upper, lower in upright:
        for left, top, width, height in (map(float, box) for box in boxes):
            if top < float(lower) and top + height > float(upper):
                assert not left - 5 < float(x) < left + width + 5


def test_the_page_names_every_package(house: Any) -> None:
    text = PAGE.read_text()
    assert "house.svg" in text
    for room, files in house.rooms(ROOT).items():
        name = f"{room}/" if files[0].parent != ROOT / "gpudedup" else f"{room}.py"
        assert f"`{name}`" in text, f"{name} is not in {PAGE.name}"
