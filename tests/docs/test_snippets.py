"""README.md, CONTRIBUTING.md and docs/ are run as they stand, so that they cannot rot.

The snippets of a page run in order, in one fresh folder that has the files of :func:`prepared`:

- ``python``: all in one namespace. Where an expression has the comment ``# -> ...``, its value must
  have this representation.
- ``console``: a line that begins with ``$ `` is a command of the shell, and must exit with 0. The
  lines beneath it are its stdout, times and rates apart; a line ``...`` stands for any number of
  lines, and a command with nothing beneath it may print anything.
- ``text``: not run. For what differs from one run to the next, such as captures of live processes.
"""

from __future__ import annotations

import ast
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import gpudedup as gd

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("README.md"), *ROOT.glob("CONTRIBUTING.md"), *ROOT.glob("docs/*.md"))
)
CORES = ROOT / "tests" / "images" / "fixtures"

README_LINES = 150
WIDTH = 100

TIME_OR_RATE = re.compile(r"\d[\d,]*(?:\.\d+)? (?:s|events/s|GB/s)\b")
VALUE = re.compile(r"# -> (.*)$")
LINK = re.compile(r"(?:\]\(|src=\")([^)\"#\s]+)")


class Block(NamedTuple):
    """One fenced block: language, number of its first line within the page, its lines."""

    language: str
    line: int
    lines: list[str]


class Command(NamedTuple):
    """One command of a ``console`` block: where it is, what is typed, what it prints."""

    line: int
    typed: str
    printed: list[str]


def text_of(page: str) -> list[str]:
    return (ROOT / page).read_text().splitlines()


def blocks(page: str) -> Iterator[Block]:
    language, first, inside = "", 0, False
    lines = text_of(page)
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if inside:
            yield Block(language, first, lines[first - 1 : number - 1])
        else:
            language, first = line[3:].strip(), number + 1
        inside = not inside
    assert not inside, f"{page}:{first}: the block is not closed"


def prose(page: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a page outside of blocks."""
    fenced = {
        number
        for block in blocks(page)
        for number in range(block.line - 1, block.line + len(block.lines) + 1)
    }
    for number, line in enumerate(text_of(page), start=1):
        if number not in fenced:
            yield number, line


def commands(page: str, block: Block) -> list[Command]:
    found: list[Command] = []
    for number, line in enumerate(block.lines, start=block.line):
        if line.startswith("$ "):
            found.append(Command(number, line[2:], []))
        else:
            assert found, f"{page}:{number}: output without a command"
            found[-1].printed.append(line)
    return found


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages presume to exist: two dumps that have pages in common, a core, a raw image."""
    folder = tmp_path_factory.mktemp("presumed")
    gd.generate(gd.Recipe(pages=1024, owners=4), folder / "dump.arrow")
    gd.generate(gd.Recipe(pages=512, owners=2), folder / "b.arrow")
    gd.generate(gd.Recipe(pages=256), folder / "guest.mem", format="raw")
    (folder / "core.1").write_bytes(lzma.decompress((CORES / "gcore.core.xz").read_bytes()))
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_snippets_of(
    page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "folder"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            run_python(page, block, namespace)
        elif block.language == "console":
            for command in commands(page, block):
                run_command(page, command, folder)
        else:
            assert block.language == "text", f"{page}:{block.line}: {block.language!r}?"


def run_python(page: str, block: Block, namespace: dict[str, Any]) -> None:
    """Run the statements of a block; a traceback names the line of the page."""
    name = str(ROOT / page)
    tree = ast.parse("\n" * (block.line - 1) + "\n".join(block.lines), name)
    for statement in tree.body:
        stated = None
        if isinstance(statement, ast.Expr) and statement.end_lineno is not None:
            stated = VALUE.search(block.lines[statement.end_lineno - block.line])
        if stated is None:
            exec(compile(ast.Module([statement], []), name, "exec"), namespace)
            continue
        assert isinstance(statement, ast.Expr)
        value = eval(compile(ast.Expression(statement.value), name, "eval"), namespace)
        assert repr(value) == stated[1], f"{page}:{statement.lineno}"


def run_command(page: str, command: Command, folder: Path) -> None:
    where = f"{page}:{command.line}: {command.typed}"
    done = subprocess.run(
        command.typed, shell=True, cwd=folder, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
    if command.printed:
        as_shown = re.fullmatch(pattern(command.printed), masked(done.stdout.splitlines()))
        assert as_shown is not None, f"{where}\n{done.stdout}"


def masked(lines: list[str]) -> str:
    """Return lines without times and rates, and without what depends on how long these are."""
    plain = [" ".join(TIME_OR_RATE.sub("#", line).split()) for line in lines]
    return "".join(f"{line}\n" for line in plain).rstrip("\n") + "\n"


def pattern(lines: list[str]) -> str:
    """Return a regular expression of what is shown; ``...`` matches any lines."""
    return "".join(
        r"(?:.*\n)*" if line == "...\n" else re.escape(line)
        for line in masked(lines).splitlines(keepends=True)
    )


def test_readme_is_short() -> None:
    assert len(text_of("README.md")) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_prose_has_lines_of_one_length(page: str) -> None:
    long = [n for n, line in prose(page) if len(line) > WIDTH and not line.startswith("|")]
    assert not long, f"{page}: lines {long}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for number, line in prose(page):
        for target in LINK.findall(line):
            if "://" in target or target.startswith("mailto:"):
                continue
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}:{number}: {target}"
