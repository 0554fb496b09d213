"""Replays, recordings and summaries of traces as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpudedup.report.text import table
from gpudedup.report.units import plural, printable, share, size

if TYPE_CHECKING:
    from gpudedup.traces.recording import Recording
    from gpudedup.traces.replay import Replay
    from gpudedup.traces.summary import Summary

_COLUMNS = {
    "breaks": "breaks",
    "fills": "fills",
    "reuses": "reuses",
    "collapses": "collapses",
    "invalidations": "invalidations",
    "device_faults": "device faults",
    "remote": "remote",
    "revoked": "revoked",
    "written_back": "written back",
    "refused": "refused",
}
"""Columns of causes and their titles; a column that is 0 for every cause is left out."""


def replayed(done: Replay) -> str:
    """Return what ``gpudedup replay`` prints, several lines."""
    return "\n\n".join([_headline(done), _memory(done), _causes(done), _how(done)]) + "\n"


def _headline(done: Replay) -> str:
    lines = [
        f"{printable(done.trace)}: {plural(done.events, 'event')} on {printable(done.image)},"
        f" pages of {size(done.page_size)} in {plural(done.mappings, 'mapping')}"
    ]
    if done.devices:
        lines.append(f"Devices: {', '.join(map(printable, done.devices))}")
    merged = done.merged
    if merged is None:
        lines.append("Not merged before the first event.")
    else:
        freed = size(merged.frames_freed * done.page_size)
        moved = f"{merged.merged + merged.zeroed:,} of {plural(merged.pages, 'page')}"
        lines.append(
            f"Merged before the first event: {moved} went to the frame of an equal one, which freed"
            f" {freed}."
        )
    totals = done.totals
    broken = f"{plural(totals['breaks'], 'page')} broke what was shared"
    if pages := totals["pages"]:
        broken += f" ({share(totals['breaks'], pages)} of the pages touched)"
    lines.append(f"{broken}; {size(totals['bytes_copied'])} were copied.")
    return "\n".join(lines)


def _memory(done: Replay) -> str:
    used, unshared = (done.samples.column(name).to_pylist() for name in ("bytes", "unshared_bytes"))
    rows = [
        [when, size(used[at]), size(unshared[at]), share(unshared[at] - used[at], unshared[at])]
        for when, at in (
            ("before the first event", 0),
            ("at its highest", used.index(max(used))),
            ("after the last event", -1),
        )
    ]
    return table(["", "memory in use", "if not shared", "saved"], rows, numbers=(1, 2, 3))


def _causes(done: Replay) -> str:
    causes = done.causes.to_pylist()
    shown = [name for name in _COLUMNS if any(row[name] for row in causes)]
    head = ["cause", "events", "pages", *(_COLUMNS[name] for name in shown), "copied", "time"]
    rows = [
        [
            row["operation"],
            f"{row['events']:,}",
            f"{row['pages']:,}",
            *(f"{row[name]:,}" for name in shown),
            size(row["bytes_copied"]),
            f"{row['seconds']:.3f} s",
        ]
        for row in causes
    ]
    return table(head, rows, numbers=range(1, len(head)))


def _how(done: Replay) -> str:
    timings = done.timings
    lines = []
    if done.verified:
        lines.append(
            "Verified: the same events on memory that is never merged left the same contents."
        )
    took = timings["run_s"]
    rate = f" ({done.events / took:,.0f} events/s)" if took and done.events else ""
    lines.append(
        f"{took:.2f} s{rate}; besides {timings['load_s']:.2f} s to load, {timings['merge_s']:.2f} s"
        f" to merge, {timings['check_s']:.2f} s to check the trace, {timings['digest_s']:.2f} s to"
        " digest what is left"
        + (f", {timings['verify_s']:.2f} s to verify." if done.verified else ".")
    )
    lines.append(f"Contents at the end: {done.digest}")
    return "\n".join(lines)


def recorded(path: str, done: Recording) -> str:
    """Return what ``gpudedup trace record`` prints, two lines."""
    written = f"{plural(done.pages, 'written page')} in {plural(done.events, 'event')}"
    return (
        f"{printable(done.image)}: {plural(done.image_pages, 'page')} in"
        f" {plural(done.mappings, 'mapping')}\n"
        f"{printable(path)}: {written}, seen by {done.how} in {plural(done.looks, 'look')} over"
        f" {done.seconds:.1f} s\n"
    )


def summarised(path: str, found: Summary) -> str:
    """Return what ``gpudedup trace info`` prints, several lines."""
    lines = [f"{printable(path)}: {plural(found.events, 'event')}, {plural(found.pages, 'page')}"]
    if found.page_size is not None:
        lines[0] += f" of {size(found.page_size)}"
    if found.source:
        lines.append(f"From: {printable(found.source)}")
    if found.seconds is not None:
        lines.append(f"Over {found.seconds:.3f} s")
    rows = [[word, f"{events:,}", f"{pages:,}"] for word, events, pages in found.operations]
    return (
        "\n".join([*lines, "", table(["operation", "events", "pages"], rows, numbers=(1, 2))])
        + "\n"
    )
