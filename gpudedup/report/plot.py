"""Plot a replay's memory over time. The only module that imports matplotlib."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from gpudedup.errors import OutputError, UsageError
from gpudedup.output import reason, whole_file
from gpudedup.report.replay import replayed
from gpudedup.report.units import printable

if TYPE_CHECKING:
    from gpudedup.traces.replay import Replay

SUFFIXES = (".svg", ".png", ".html")

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

_EVENTS = {
    "breaks": "breaks",
    "fills": "fills",
    "reuses": "reuses",
    "collapses": "collapses",
    "invalidations": "invalidations",
    "device_faults": "device faults",
    "revoked": "revoked",
}


@contextmanager
def plot_file(
    path: str | os.PathLike[str], *, force: bool = False
) -> Iterator[Callable[[Replay], None]]:
    """Give a function that draws a replay to ``path``; the file appears when the block ends.

    :param path: ``*.svg``, ``*.png``, or ``*.html``: a page with the picture above the report
    :param force: replace an existing file
    :raises UsageError: if the suffix is none of :data:`SUFFIXES`
    :raises OutputError: if matplotlib is missing, the file exists (no force) or cannot be written
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise UsageError(f"{target}: a plot is named {' or '.join('*' + s for s in SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401 - fails before the work, not after it
    except ImportError:
        hint = "a plot needs matplotlib: pip install 'gpudedup[plot]'"
        raise OutputError(target, hint) from None
    with whole_file(target, force=force) as temporary:

        def write(done: Replay) -> None:
            try:
                _save(done, temporary, target.suffix)
            except (OSError, RuntimeError) as error:
                # FreeType says RuntimeError of a font that it cannot read.
                raise OutputError(target, reason(error)) from None

        yield write


def _save(done: Replay, path: Path, suffix: str) -> None:
    with catch_warnings():
        # Of a name with letters that no font here has, boxes are drawn.
        filterwarnings("ignore", "Glyph", UserWarning)
        _draw(done, path, suffix)


def _draw(done: Replay, path: Path, suffix: str) -> None:
    figure = draw(done)
    if suffix != ".html":
        figure.savefig(path, format=suffix[1:], dpi=150)
        return
    picture = StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    title = escape(f"Replay of {printable(done.trace)}")
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body { font-family: sans-serif; margin: 2em; } pre { overflow-x: auto; }"
        f" svg {{ max-width: 100%; height: auto; }}</style></head>\n<body><h1>{title}</h1>\n"
        f"{svg[svg.index('<svg') :]}\n<pre>{escape(replayed(done))}</pre>\n</body>\n</html>\n",
        "utf-8",
    )


def draw(done: Replay) -> Any:
    """Return a figure: memory in use and if unshared above, events so far below."""
    from matplotlib.figure import Figure

    samples = {name: done.samples.column(name).to_pylist() for name in done.samples.column_names}
    x, label = _axis(samples)
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    memory, events = figure.subplots(2, 1, sharex=True)
    factor, unit = _unit(max(samples["unshared_bytes"]))
    used = [value / factor for value in samples["bytes"]]
    unshared = [value / factor for value in samples["unshared_bytes"]]
    memory.fill_between(x, used, unshared, color="#9ecae1", alpha=0.5, label="saved by sharing")
    memory.plot(x, unshared, color="#6b6b6b", linestyle="--", label="if not shared")
    memory.plot(x, used, color="#08519c", label="in use")
    memory.set_ylabel(f"memory, {unit}")
    memory.set_ylim(bottom=0)
    memory.legend(loc="best")
    trace, image = (printable(Path(name).name, 60) for name in (done.trace, done.image))
    memory.set_title(f"{trace} on {image}", fontsize=10, parse_math=False)
    for name, title in _EVENTS.items():
        if samples[name][-1]:
            events.plot(x, samples[name], label=title)
    events.set_ylabel("pages or entries so far")
    events.set_ylim(bottom=0)
    events.yaxis.set_major_formatter(_count)
    if label == "events":
        events.xaxis.set_major_formatter(_count)
    if events.lines:
        events.legend(loc="best")
    events.set_xlabel(label)
    for axes in (memory, events):
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    return figure


def _axis(samples: dict[str, list[Any]]) -> tuple[list[float], str]:
    """Return the x of each sample, in the trace's own time if it has one, and the axis label."""
    times = samples["time_ns"][1:]
    if times and None not in times and times[-1] > times[0]:
        return [0.0, *((t - times[0]) / 1e9 for t in times)], "seconds of the trace"
    return samples["event"], "events"


def _count(value: float, _: object) -> str:
    return f"{value:,.0f}"


def _unit(most: int) -> tuple[int, str]:
    return next((pair for pair in _UNITS if most >= pair[0]), (1, "B"))
