"""The direction of imports, read from the sources: a module may import what lies below it only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpudedup

ROOT = Path(gpudedup.__file__).parent
LAYERS = [
    ["cli"],
    ["report"],
    ["merged", "traces", "measuring"],
    ["mm", "layouts"],
    ["scanning", "processes"],
    ["engines", "images"],
    ["devices"],
    ["arguments", "arrow_input", "output", "schema", "threads"],
    ["compiled", "clock", "errors", "versions"],
]
"""Layers from top to bottom: a room imports rooms of lower layers only."""

OWNERS: dict[str, str | tuple[str, ...]] = {
    "typer": "cli/",
    "cupy": "devices/cuda.py",
    "rich": ("cli/", "report/"),
    "matplotlib": "report/plot.py",
}
"""The only paths that import a package, by package."""

SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    # The public face and the entry point name all layers by design.
    if path not in (ROOT / "__init__.py", ROOT / "__main__.py")
)


def imported(path: Path) -> set[str]:
    """Return the dotted names that a module imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module
            # ``from gpudedup.cli import scan`` imports a module too.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    depth = {room: at for at, rooms in enumerate(LAYERS) for room in rooms}
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in depth, f"{path} is in no layer"
    for name in imported(path):
        top, room, *_ = [*name.split("."), ""]
        assert str(path.relative_to(ROOT)).startswith(OWNERS.get(top, "")), f"{path}: {top}"
        if top == "gpudedup" and room in depth and room != own:
            assert depth[room] > depth[own], f"{path} imports {name}"


def modules() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, those for types included."""
    named = {
        ".".join(["gpudedup", *path.relative_to(ROOT).with_suffix("").parts]): path
        for path in SOURCES
    }
    return {name: imported(path) & named.keys() for name, path in named.items()}


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the first circle of imports, in its order; empty if none exists."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(imports[name]):
            if found := search(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (search(name, []) for name in imports)), [])


def test_no_modules_import_each_other() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle(modules()) == []


def test_the_public_names_are_lazy_and_there() -> None:
    code = (
        "import sys, gpudedup\n"
        "heavy = {'numpy', 'pyarrow', 'numba', 'cupy', 'typer', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "for name in gpudedup.__all__: getattr(gpudedup, name)\n"
        "assert not {'cupy', 'typer', 'rich'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'sacn'"):
        gpudedup.sacn  # noqa: B018 - the point of the test
    assert "scan" in dir(gpudedup)
