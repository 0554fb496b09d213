"""Write the table of what each kernel takes, and what bounds it, into docs/figures.md.

Nothing in it is measured: registers, loads and instructions are those that the compile gate counted
(tests/kernels/resources.json), bytes follow from what a kernel promises, the card's numbers from
its data sheet. The same sources give the same text.

    python docs/kernels.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpudedup.kernels import KERNELS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "figures.md"
RESOURCES = ROOT / "tests" / "kernels" / "resources.json"
BEGIN, END = "<!-- begin: docs/kernels.py -->\n", "<!-- end: docs/kernels.py -->\n"

ARCHITECTURE = 90
MULTIPROCESSORS, CLOCK, BANDWIDTH = 132, 1.98e9, 4.8e12
"""Of an H200: multiprocessors, Hz at boost, bytes per second."""

PARTITIONS = 4
"""Parts of a multiprocessor; each issues an instruction of a warp per cycle."""

REGISTERS, REGISTER_UNIT, MOST_WARPS = 16 << 10, 256, 16
"""Of a partition; registers are given to a warp in units."""

WARP, WIDE_LOAD, SECTOR = 32, 16, 32
"""Lanes; bytes of a wide load; bytes that a load or store at a random place moves."""

SMALL = 4096
"""Bytes of a page of all kernels that are not compiled for a page size."""

FOLLOWERS, CONTENTS = 0.228, 0.7
"""Parts of the pages of the mix: with an equal page before them; neither zero nor filled."""

BYTES: dict[str, tuple[str, int]] = {
    "insert": (
        "class, digest, found, slot and another digest",
        25 + 2 * SECTOR,
    ),
    "resolve": ("class read and written, slot, found, head, address", 26 + SECTOR),
    "insert_words": ("of same-filled pages: class, word, found, slot, lowest", 17 + 2 * SECTOR),
    "settle": ("class read and written, head read and written, mark", 18 + SECTOR),
    "compare": ("page, anchor, class, head, address", 2 * SMALL + 9 + SECTOR),
    "copy_pages": ("page read and written, address", 2 * SMALL + 8),
    "read_words": ("page", SMALL),
    "load_pages": ("page read and written, index, missed, entry", 2 * SMALL + 9 + SECTOR),
    "store_pages": ("page read and written, index, missed, entry", 2 * SMALL + 9 + SECTOR),
    "add_words": ("29 in rows, entry, word read and written", 29 + 3 * SECTOR),
    "set_words": ("16 in rows, word", 16 + SECTOR),
}
"""What a kernel moves per page or row, all of it from memory, and its bytes."""

COLUMNS = (
    "kernel", "registers", "blocks", "in flight", "bytes", "instructions", "memory, ns", "issue, ns"
)  # fmt: skip

OF_DIGEST = 17
"""Bytes of results per page."""

SHOWN = [
    ("digest", 512, "octet"), ("digest", 4096, "octet"), ("digest", 4096, "quad"),
    ("digest", 64 << 10, "block"), ("digest", 2 << 20, "block"),
    *((name, 0, "") for name in BYTES),
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A kernel's line.

    :param blocks: blocks that a multiprocessor runs at once
    :param in_flight: bytes that a multiprocessor has under way at once
    :param moved: bytes per page or row
    :param issued: instructions per page or row that a warp issues at most; None: not counted
    """

    name: str
    registers: int
    blocks: int
    in_flight: int
    moved: int
    issued: float | None

    @property
    def memory_ns(self) -> float:
        """Return the nanoseconds per page that its bytes take."""
        return self.moved / BANDWIDTH * 1e9

    @property
    def issue_ns(self) -> float | None:
        """Return the nanoseconds per page that its instructions take."""
        rate = MULTIPROCESSORS * PARTITIONS * CLOCK
        return None if self.issued is None else self.issued / rate * 1e9

    def __str__(self) -> str:
        issued, issue = (
            "not counted" if value is None else f"{value:,.{digits}f}"
            for value, digits in ((self.issued, 1), (self.issue_ns, 4))
        )
        return (
            f"| {self.name} | {self.registers} | {self.blocks} | {self.in_flight >> 10} KiB"
            f" | {self.moved:,} | {issued} | {self.memory_ns:,.4f} | {issue} |"
        )


def resident_blocks(registers: int, threads: int) -> int:
    """Return the blocks of a kernel that a multiprocessor runs at once, as registers allow."""
    each = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    warps = PARTITIONS * min(MOST_WARPS, REGISTERS // each)
    return warps * WARP // threads


def line(row: dict[str, Any]) -> Line:
    """Return the line of a row of the gate's table."""
    name, page_size = row["kernel"], row["page_size"]
    threads = KERNELS[name].threads
    blocks = resident_blocks(row["registers"], threads)
    # Without wide loads, a thread has one random access under way.
    each = row["loads"] * WIDE_LOAD or SECTOR
    if page_size:
        shown = f"{page_size >> 10:,} KiB" if page_size >= 1024 else f"{page_size} bytes"
        issued = row["per_page"] and row["per_page"][1]
        moved, title = page_size + OF_DIGEST, f"`{name}`, {shown}, {row['layout']}"
    else:
        rows = 1 if row["loads"] else WARP
        issued = None if row["issued"] is None else row["issued"] / rows
        moved, title = BYTES[name][1], f"`{name}`"
    return Line(title, row["registers"], blocks, blocks * threads * each, moved, issued)


def lines() -> list[Line]:
    """Return the lines of all kernels of :data:`SHOWN`."""
    held = json.loads(RESOURCES.read_text())
    rows = [dict(zip(held["columns"], row, strict=True)) for row in held["rows"]]
    known = {
        (row["kernel"], row["page_size"], row["layout"]): row
        for row in rows
        if row["arch"] == ARCHITECTURE
    }
    return [line(known[key]) for key in SHOWN]


def table() -> str:
    """Return the text between the marks."""
    found = lines()
    bytes_of = {each.name: each.moved for each in found}
    mix = (
        bytes_of["`digest`, 4 KiB, octet"]
        + CONTENTS * (bytes_of["`insert`"] + bytes_of["`resolve`"])
        + FOLLOWERS * bytes_of["`compare`"]
        + bytes_of["`settle`"]
    )
    what = "; ".join(f"`{name}`: {text}" for name, (text, _) in BYTES.items())
    return "\n".join(
        [
            "| " + " | ".join(COLUMNS) + " |",
            "|---" * len(COLUMNS) + "|",
            *map(str, found),
            "",
            f"*Computed*, sm_{ARCHITECTURE}, per page or row (a page of 4 KiB where nothing else is"
            " said).",
            "Blocks and bytes in flight are per multiprocessor; a random access counts as"
            f" {SECTOR} bytes.",
            f"Rates: {BANDWIDTH / 1e12} TB/s;"
            f" {MULTIPROCESSORS} times {PARTITIONS} instructions of a warp at {CLOCK / 1e9} GHz.",
            f"An exact scan of the mix moves {mix:,.0f} bytes per page of 4,096: at most"
            f" {SMALL / mix:.2f} of the read rate.",
            *_wrapped(f"Bytes, all from memory: `digest`: page and {OF_DIGEST}; {what}."),
            "",
        ]
    )


def _wrapped(text: str, width: int = 100) -> list[str]:
    rows = [""]
    for word in text.split():
        if len(rows[-1]) + 1 + len(word) > width:
            rows.append(word)
        else:
            rows[-1] = f"{rows[-1]} {word}".strip()
    return rows


def replaced(page: str) -> str:
    """Return a page with the table of today between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table() + END + after


def main() -> None:
    """Rewrite docs/figures.md."""
    PAGE.write_text(replaced(PAGE.read_text()))


if __name__ == "__main__":
    main()
