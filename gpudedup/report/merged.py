"""Results of merge, restore and verify as text; that of merge also as a JSON record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpudedup.report.text import table, written
from gpudedup.report.units import plural, printable, share, size

if TYPE_CHECKING:
    from gpudedup.merged.merging import Merged
    from gpudedup.merged.opened import MergedDump
    from gpudedup.merged.restoring import RestoredImage
    from gpudedup.merged.verifying import Verified


def merged(path: str, done: Merged) -> str:
    """Return what ``gpudedup merge`` prints, several lines."""
    logical = done.pages * done.page_size
    lines = [written(path, done.pages, done.mappings, done.absent)]
    frames = f"{plural(done.frames, 'frame')} of {size(done.page_size)}"
    if done.kept:
        frames += f", {done.frames - done.kept:,} of them new"
    kept = f"{size(logical)} of pages in a file of {size(done.size)}"
    if done.size < logical:
        kept += f": {share(logical - done.size, logical)} saved"
    lines.append(f"{frames}; {kept}.")
    took = sum(done.seconds.values())
    lines.append(f"Every match was compared byte by byte. {took:.2f} s.")
    return "\n".join(lines) + "\n"


def merged_record(path: str, done: Merged) -> dict[str, object]:
    """Return what ``gpudedup merge --json`` prints."""
    return {
        "schema_version": 1,
        "path": path,
        "page_size": done.page_size,
        "pages": done.pages,
        "mappings": done.mappings,
        "absent": done.absent.as_dict(),
        "frames": done.frames,
        "new_frames": done.frames - done.kept,
        "bytes": done.pages * done.page_size,
        "file_bytes": done.size,
        "timings": {stage: round(seconds, 6) for stage, seconds in done.seconds.items()},
    }


def restored(files: Sequence[RestoredImage]) -> str:
    """Return a line about each raw image that was restored."""
    return "".join(
        f"{printable(os.fspath(file.path))}: {plural(file.pages, 'page')} of"
        f" {printable(file.owner)}, {size(file.size)} with holes\n"
        for file in files
    )


def inputs(dump: MergedDump) -> str:
    """Return a line about each image that a merged dump was made of."""
    rows = [
        [str(at), printable(one.format), f"{one.rows:,}", f"{one.mappings:,}", printable(one.name)]
        for at, one in enumerate(dump.inputs)
    ]
    return table(["", "format", "pages", "mappings", "name"], rows, numbers=(0, 2, 3)) + "\n"


def intact(path: str, found: Verified) -> str:
    """Return a line about a merged dump that is intact."""
    return (
        f"{printable(path)}: intact. {plural(found.frames, 'frame')} of {size(found.page_size)}"
        f" match their digests, {plural(found.pages, 'page')} in"
        f" {plural(found.mappings, 'mapping')} refer to them"
    )
