"""Results as text. A scan leads with the answer and never shows the bytes of a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from gpudedup.engines.base import PageClass
from gpudedup.report.units import plural, printable, share, size

if TYPE_CHECKING:
    from gpudedup.engines.select import EngineInfo
    from gpudedup.images.base import Absent
    from gpudedup.scanning.result import Scan, Share

OWNERS = 10
CONTENTS = 10
LOOKED_AT = 10_000
"""Shared contents that the table of the most shared is made of, at most."""

NAME_WIDTH = 44


def text(scan: Scan) -> str:
    """Return the whole report, several lines."""
    parts = [_headline(scan), _answer(scan)]
    if scan.totals.frames:
        parts.append(_breakdown(scan, "kind", "By kind of memory", None))
        owners = scan.words("owner")[0]
        if len(owners) > 1:
            parts.append(_breakdown(scan, "owner", "By owner", OWNERS))
    if scan.totals.shared_contents:
        parts.append(_contents(scan))
    parts.append(_how(scan))
    return "\n\n".join(parts) + "\n"


def _headline(scan: Scan) -> str:
    totals, page_size = scan.totals, scan.population.page_size
    lines = [
        f"{printable(image.path)}: "
        + _extent(image.pages, f" of {size(page_size)}", len(image.mappings), item["absent"])
        for item, image in zip(scan.inputs(), scan.population.images, strict=True)
    ]
    if totals.frames < totals.pages:
        lines.append(
            f"{totals.pages - totals.frames:,} of the pages already share a frame with another; "
            "frames count once"
        )
    if not totals.frames:
        lines.append("No page could be read: there is nothing to share.")
        return "\n".join(lines)
    saved = totals.zero_frames + totals.sharing_frames
    lines.append(
        f"{size(totals.saved_bytes)} of {size(totals.frames * page_size)}"
        f" ({share(saved, totals.frames)}) would be saved if equal frames were shared."
    )
    return "\n".join(lines)


def _extent(pages: int, of: str, mappings: int, absent: Mapping[str, int]) -> str:
    """Return the numbers of pages and mappings of an image, and of absent pages by reason."""
    words = {"holes": "never populated", "excluded": "excluded", "unreadable": "unreadable"}
    missing = [f"{count:,} {words[what]}" for what, count in absent.items() if count]
    return f"{plural(pages, 'page')}{of} in {plural(mappings, 'mapping')}" + (
        f"; not in it: {', '.join(missing)}" if missing else ""
    )


def _answer(scan: Scan) -> str:
    totals, page_size = scan.totals, scan.population.page_size
    lines = [("zero", totals.zero_frames), ("could be shared", totals.sharing_frames)]
    if len(scan.words("owner")[0]) > 1:
        split = scan.sharing("owner")
        lines += [("  within one owner", split.within), ("  between owners", split.between)]
    lines += [
        ("kept for those that share", totals.shared_contents),
        ("unique", totals.unique_frames),
        ("all", totals.frames),
    ]
    return table(
        ["", "frames", "memory", "share"],
        [
            [what, f"{count:,}", size(count * page_size), share(count, totals.frames)]
            for what, count in lines
        ],
        numbers=(1, 2, 3),
    )


def _breakdown(scan: Scan, key: str, title: str, limit: int | None) -> str:
    assert key in ("kind", "owner")
    page_size = scan.population.page_size
    found = [s for s in scan.by(key) if s.pages]  # type: ignore[arg-type]  # asserted above
    rows = [_share_row(s, page_size) for s in found[:limit]]
    report = f"{title}\n" + table(
        [key, "memory", "zero", "could be shared", "unique"], rows, numbers=(1, 2, 3, 4)
    )
    more = len(found) - len(rows)
    return report + (f"\nand {plural(more, key)} more" if more else "")


def _share_row(part: Share, page_size: int) -> list[str]:
    return [
        printable(part.key, NAME_WIDTH) or "-",
        size(part.frames * page_size),
        share(part.zero_frames, part.frames),
        share(part.sharing_frames, part.frames),
        share(part.unique_frames, part.frames),
    ]


def _contents(scan: Scan) -> str:
    page_size = scan.population.page_size
    rows = []
    runs = sorted(_runs(scan), key=lambda run: -(run[0]["frames"] - 1) * run[1])
    for first, contents in runs[:CONTENTS]:
        mapping = first["mapping"]
        where = printable(mapping["name"], NAME_WIDTH) or mapping["kind"]
        address = mapping["start"] + first["index"] * page_size
        rows.append(
            [
                f"{contents:,}",
                f"{first['frames']:,}",
                size((first["frames"] - 1) * contents * page_size),
                str(len(first["owners"])),
                " ".join(first["kinds"]),
                f"{printable(mapping['owner'], NAME_WIDTH)} {where} {address:#x}"
                + (" (same-filled)" if first["filled"] else ""),
            ]
        )
    return "Most shared contents\n" + table(
        ["contents", "frames each", "saves", "owners", "kinds", "the first at"],
        rows,
        numbers=(0, 1, 2, 3),
    )


def _runs(scan: Scan) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the first and the length of runs: adjacent contents shared alike, most shared first."""
    first: dict[str, Any] = {}
    length = 0
    for content in scan.top_contents(LOOKED_AT).to_pylist():
        row = content["content"]
        content["filled"] = scan.partition.classes[row] == PageClass.FILLED
        alike = length and all(
            content[key] == first[key] for key in ("frames", "input", "mapping", "owners", "filled")
        )
        if alike and content["index"] == first["index"] + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = content, 1
    if length:
        yield first, length


def _how(scan: Scan) -> str:
    engine, timings = scan.engine, scan.timings
    if engine.verify:
        how = "Exact: every match was compared byte by byte."
        if scan.collisions:
            how += f" {plural(scan.collisions, 'digest collision')} split."
    else:
        how = (
            "By digest alone (XXH3-128), bytes not compared: the chance that two different"
            f" contents count as one is below {max(scan.collision_bound, 1e-99):.0e}, unless"
            " made to collide."
        )
    took = timings["total_s"] - timings["load_s"]
    rate = scan.totals.bytes / took / 1e9 if took else 0.0
    lines = [
        how,
        f"{took:.2f} s ({rate:.1f} GB/s) on {engine.name}: {engine.device},"
        f" {plural(engine.threads, 'thread')}; {timings['load_s']:.2f} s before that to load it.",
    ]
    if "kernel_s" in timings:
        lines.append(
            f"Side by side in it: filling buffers {timings['staging_s']:.2f} s, transfer"
            f" {timings['transfer_s']:.2f} s, kernels {timings['kernel_s']:.2f} s."
        )
    if engine.passed_over:
        lines.append(f"Not on {engine.passed_over}.")
    return "\n".join(lines)


def written(path: str, pages: int, mappings: int, absent: Absent) -> str:
    """Return a line about a dump that was written."""
    return f"{printable(path)}: " + _extent(pages, "", mappings, absent.as_dict())


def environment(engines: Sequence[EngineInfo], versions: Mapping[str, str]) -> str:
    """Return what ``gpudedup info`` prints, several lines."""
    rows = [
        [
            engine.name,
            "yes" if engine.usable else "no",
            f"{engine.device}, {plural(engine.threads, 'thread')}"
            if engine.usable
            else engine.reason,
        ]
        for engine in engines
    ]
    return (
        table(["engine", "usable", ""], rows, numbers=())
        + "\n\n"
        + "\n".join(f"{name} {version}" for name, version in versions.items())
        + "\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """Return a table, one space-padded line per row; columns ``numbers`` are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for at, name in enumerate(head):
        made.add_column(name, justify="right" if at in numbers else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    out = StringIO()
    Console(
        file=out, width=1000, color_system=None, markup=False, highlight=False, emoji=False
    ).print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
