"""Draw docs/house.svg: the packages of gpudedup on their layers, and which imports which.

Everything is read from the sources: the layers from ``LAYERS`` in tests/test_layers.py, imports
(those for types too) and lines from the modules. The same sources give the same bytes. Left out are
arrows that a longer way implies, and gpudedup/__init__.py, which imports lazily from all layers.

The layout is Sugiyama's: an import that passes a layer has a place of its own in it, the places
of a layer are ordered so that few arrows cross, then each moves towards what it is joined to.

    python docs/house.py [FILE]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "house.svg"

Edge = tuple[str, str]
Rows = list[list[str]]

BOX_WIDTH, BOX_HEIGHT = 148, 50
WAY_WIDTH = 22
"""What an arrow takes that passes a layer."""
GAP, ROW_GAP = 26, 58
MARGIN, TITLE_HEIGHT, LEGEND_HEIGHT = 36, 64, 62
STARTS, SWEEPS, ROUNDS = 100, 8, 160
CENTRING = 0.4
"""How much the middle of the picture pulls at a box; an arrow between two boxes pulls with 1."""

PACKAGE, KERNELS, MODULE = ("#dbe7f5", "#3f6aa0"), ("#dff0dc", "#4b8a45"), ("#ffffff", "#8b95a3")
"""Fill and border of a box."""


def read_layers(root: Path) -> Rows:
    """Return the layers, top first; what LAYERS does not name lies in the lowest: kernels."""
    tree = ast.parse((root / "tests" / "test_layers.py").read_text())
    values = (node.value for node in tree.body if isinstance(node, ast.Assign) and _is_layers(node))
    known = rooms(root)
    layers = [[room for room in layer if room in known] for layer in ast.literal_eval(next(values))]
    named = {room for layer in layers for room in layer}
    layers[-1] += [room for room in known if room not in named]
    return [layer for layer in layers if layer]


def _is_layers(node: ast.Assign) -> bool:
    return [ast.unparse(target) for target in node.targets] == ["LAYERS"]


def rooms(root: Path) -> dict[str, list[Path]]:
    """Return the files of each package, and of each module beside the packages."""
    found = {}
    for path in sorted((root / "gpudedup").iterdir()):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        code = [file for file in files if file.suffix in (".py", ".cu", ".cuh")]
        if code and not path.name.startswith("__"):
            found[path.stem] = code
    return found


def read_imports(root: Path) -> set[Edge]:
    """Return who imports whom, as pairs."""
    known = rooms(root)
    edges = set()
    for room, files in known.items():
        for file in files:
            if file.suffix == ".py":
                edges |= {(room, other) for other in _imported(file) if other in known}
    return {(room, other) for room, other in edges if room != other}


def _imported(file: Path) -> Iterator[str]:
    """Yield the rooms that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("gpudedup."))


def without_implied(edges: set[Edge]) -> set[Edge]:
    """Return the edges that no longer way joins."""
    below: dict[str, set[str]] = {}
    for room, other in edges:
        below.setdefault(room, set()).add(other)

    def reached(room: str) -> set[str]:
        near = below.get(room, set())
        return near.union(*(reached(other) for other in near))

    return {
        (room, other)
        for room, other in edges
        if not any(other in reached(near) for near in below[room] - {other})
    }


def with_ways(layers: Rows, edges: set[Edge]) -> tuple[Rows, list[list[str]]]:
    """Return the layers with places for arrows that pass them, and each arrow as its places."""
    depth = {room: at for at, layer in enumerate(layers) for room in layer}
    rows, paths = [list(layer) for layer in layers], []
    for room, other in sorted(edges, key=lambda edge: (depth[edge[0]], edge)):
        passed = [f"{room} {other} {at}" for at in range(depth[room] + 1, depth[other])]
        for at, way in enumerate(passed, depth[room] + 1):
            rows[at].append(way)
        paths.append([room, *passed, other])
    return rows, paths


def ordered(rows: Rows, links: list[Edge]) -> Rows:
    """Return the rows in an order in which few links cross, and go aside little.

    Sorting a row by what its places are joined to, again and again, ends in one of many orders: the
    best from several beginnings is taken.
    """
    found = [settled(_shuffled(rows, start), links) for start in range(STARTS)]
    fewest = min(crossings(order, links) for order in found)
    best = [order for order in found if crossings(order, links) == fewest]
    return min(best, key=lambda order: aside(placed(order, links), links))


def _shuffled(rows: Rows, start: int) -> Rows:
    """Return the rows in an order that differs with ``start``, and never with Python's version."""
    return [
        sorted(row, key=lambda room: sha256(f"{start} {room}".encode()).digest()) for row in rows
    ]


def settled(rows: Rows, links: list[Edge]) -> Rows:
    """Return the rows, each sorted by the places above or beneath that its own are joined to."""
    for turn in range(SWEEPS):
        down = turn % 2 == 0
        for number in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            beside = rows[number - 1 if down else number + 1]
            place = {room: spot / len(beside) for spot, room in enumerate(beside)}
            means = {room: _mean(room, links, place) for room in rows[number]}
            rows[number].sort(key=means.__getitem__)
    return swapped(rows, links)


def aside(middle: dict[str, float], links: list[Edge]) -> float:
    """Return how far all links go to the left or right."""
    return round(sum(abs(middle[room] - middle[other]) for room, other in links), 1)


def _mean(room: str, links: list[Edge], place: dict[str, float]) -> float:
    near = [place[other] for pair in links if room in pair for other in pair if other in place]
    return sum(near) / len(near) if near else 0.5


def swapped(rows: Rows, links: list[Edge]) -> Rows:
    """Return the rows with neighbours exchanged as long as that lets fewer links cross."""
    fewest, better = crossings(rows, links), True
    while better:
        better = False
        for row in rows:
            for at in range(len(row) - 1):
                row[at], row[at + 1] = row[at + 1], row[at]
                count = crossings(rows, links)
                if count < fewest:
                    fewest, better = count, True
                else:
                    row[at], row[at + 1] = row[at + 1], row[at]
    return rows


def crossings(rows: Rows, links: list[Edge]) -> int:
    """Return how many pairs of links cross."""
    count = 0
    for upper, lower in pairwise(rows):
        ends = [(upper.index(a), lower.index(b)) for a, b in links if a in upper and b in lower]
        count += sum(a < c and b > d for a, b in ends for c, d in ends)
    return count


def placed(rows: Rows, links: list[Edge]) -> dict[str, float]:
    """Return the middle of each place: near what it is joined to, and clear of its neighbours."""
    middle = {
        room: float(spot) for row in rows for room, spot in zip(row, _apart(row), strict=True)
    }
    for turn in range(ROUNDS):
        for row in rows if turn % 2 else rows[::-1]:
            wanted = [_pulled(room, links, middle) for room in row]
            shifts = [spot - first for spot, first in zip(wanted, _apart(row), strict=True)]
            for room, spot, first in zip(row, _ascending(shifts), _apart(row), strict=True):
                middle[room] = spot + first
    left = min(spot - _width(room) / 2 for room, spot in middle.items())
    return {room: round(spot - left + MARGIN, 1) for room, spot in middle.items()}


def _pulled(room: str, links: list[Edge], middle: dict[str, float]) -> float:
    """Return where a place would lie best; ways pull at one another so that they stay straight."""
    weights = [(0.0, 0.01 if _is_way(room) else CENTRING)]
    for pair in links:
        if room in pair:
            other = pair[0] if pair[1] == room else pair[1]
            weights.append(
                (middle[other], 1 + 2 * _is_way(room) + 8 * (_is_way(room) and _is_way(other)))
            )
    return sum(spot * weight for spot, weight in weights) / sum(weight for _, weight in weights)


def _ascending(values: list[float]) -> list[float]:
    """Return the ascending values nearest to these, in squares: neighbours are pooled."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and _average(pools[-2]) > _average(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [_average(pool) for pool in pools for _ in pool]


def _average(values: list[float]) -> float:
    return sum(values) / len(values)


def _apart(row: list[str]) -> list[float]:
    """Return the middles of a row, about 0, whose places lie as near together as they may."""
    spots, edge = [], -(sum(map(_width, row)) + GAP * (len(row) - 1)) / 2
    for room in row:
        spots.append(edge + _width(room) / 2)
        edge += _width(room) + GAP
    return spots


def _is_way(place: str) -> bool:
    return " " in place


def _width(place: str) -> int:
    return WAY_WIDTH if _is_way(place) else BOX_WIDTH


def draw(root: Path = ROOT) -> str:
    """Return the picture of the sources under ``root``, as SVG."""
    rows, paths = with_ways(read_layers(root), without_implied(read_imports(root)))
    links = [link for path in paths for link in pairwise(path)]
    rows = ordered(rows, links)
    middle = placed(rows, links)
    top = {
        room: TITLE_HEIGHT + at * (BOX_HEIGHT + ROW_GAP)
        for at, row in enumerate(rows)
        for room in row
    }
    width = round(max(middle[room] + _width(room) / 2 for room in middle)) + MARGIN
    height = TITLE_HEIGHT + len(rows) * (BOX_HEIGHT + ROW_GAP) - ROW_GAP + LEGEND_HEIGHT
    parts = [*_frame(width, height), *_bands(rows, top, width)]
    parts += [_arrow(path, paths, middle, top) for path in paths]
    for room, files in rooms(root).items():
        parts += _box(room, files, middle[room] - BOX_WIDTH / 2, top[room])
    return "\n".join([*parts, *_legend(width, height), "</svg>", ""])


def _frame(width: int, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="Helvetica, Arial, Liberation Sans, sans-serif">'
    )
    yield "<title>The packages of gpudedup, and which imports which</title>"
    yield (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0,0.6 L8,4 L0,7.4 z" fill="#5b6675"/>'
        "</marker></defs>"
    )
    yield f'<rect width="{width}" height="{height}" fill="#fbfaf7"/>'
    yield (
        f'<text x="{width / 2:g}" y="34" font-size="17" font-weight="bold" fill="#26303c"'
        ' text-anchor="middle">gpudedup: packages on their layers; imports point down</text>'
    )


def _bands(rows: Rows, top: dict[str, int], width: int) -> Iterator[str]:
    for row in rows[::2]:
        y, height = top[row[0]] - ROW_GAP / 4, BOX_HEIGHT + ROW_GAP / 2
        yield f'<rect y="{y:g}" width="{width}" height="{height:g}" fill="#f1efe8"/>'


def _arrow(
    path: list[str], paths: list[list[str]], middle: dict[str, float], top: dict[str, int]
) -> str:
    """Return an arrow from box to box: upright within layers, curved between them."""
    spots = [middle[place] for place in path]
    spots[0] = _port(path, [other for other in paths if other[0] == path[0]], middle, 0)
    spots[-1] = _port(path, [other for other in paths if other[-1] == path[-1]], middle, -1)
    y = top[path[0]] + BOX_HEIGHT
    line = [f"M{spots[0]:g},{y}"]
    for (here, there), place in zip(pairwise(spots), path[1:], strict=True):
        end = top[place] - (2 if place == path[-1] else 0)
        half = y + (end - y) / 2
        line.append(f"C{here:g},{half:g} {there:g},{half:g} {there:g},{end}")
        y = top[place] + BOX_HEIGHT
        if place != path[-1]:
            line.append(f"V{y}")
    return (
        f'<path class="import" d="{" ".join(line)}" fill="none" stroke="#5b6675"'
        ' stroke-width="1.4" marker-end="url(#head)"/>'
    )


def _port(path: list[str], others: list[list[str]], middle: dict[str, float], end: int) -> float:
    """Return where at its box an arrow begins (end 0) or ends (-1): beside others, none crossed."""
    order = sorted(others, key=lambda other: middle[other[1 if end == 0 else -2]])
    step = min(26, (BOX_WIDTH - 40) / max(1, len(order) - 1))
    return middle[path[end]] + round((order.index(path) - (len(order) - 1) / 2) * step, 1)


def _box(room: str, files: list[Path], x: float, y: int) -> Iterator[str]:
    is_package = files[0].parent.name != "gpudedup"
    fill, border = MODULE if not is_package else KERNELS if room == "kernels" else PACKAGE
    name = f"{room}/" if is_package else f"{room}.py"
    middle = f"{x + BOX_WIDTH / 2:g}"
    yield (
        f'<rect x="{x:g}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" fill="{fill}"'
        f' stroke="{border}" stroke-width="1.4"/>'
    )
    yield (
        f'<text class="name" x="{middle}" y="{y + 22}" font-size="15" font-weight="bold"'
        f' fill="#1d2732" text-anchor="middle">{name}</text>'
    )
    yield (
        f'<text class="lines" x="{middle}" y="{y + 39}" font-size="11.5" fill="#55606e"'
        f' text-anchor="middle">about {rounded(count_lines(files)):,} lines</text>'
    )


def count_lines(files: list[Path]) -> int:
    """Return the lines of some files."""
    return sum(len(file.read_text().splitlines()) for file in files)


def rounded(count: int) -> int:
    """Return a number to one digit."""
    return round(count, 1 - len(str(count)))


def _legend(width: int, height: int) -> Iterator[str]:
    lines = (
        "An arrow: imports, for types too. Left out: arrows that a longer way implies, and"
        " gpudedup/__init__.py.",
        "Blue: packages; green: CUDA C++; white: single modules. Packages of one layer import"
        " nothing of one another.",
    )
    for number, line in enumerate(lines):
        yield (
            f'<text x="{width / 2:g}" y="{height - 32 + 17 * number}" font-size="12" fill="#55606e"'
            f' text-anchor="middle">{line}</text>'
        )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    target.write_text(draw())
