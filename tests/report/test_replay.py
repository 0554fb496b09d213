"""What is printed of replays, recordings and traces: every word of small ones."""

from __future__ import annotations

from typing import Any

import pytest

from gpudedup.report.replay import recorded, replayed, summarised
from gpudedup.traces.recording import Recording
from gpudedup.traces.summary import Summary

from .common import MERGED, NOISE, PAGE, replay

TOLD = """\
t.arrow: 1,500 events on i.core, pages of 4 KiB in 2 mappings
Devices: cpu (0), cpu (1)
Merged before the first event: 302 of 1,000 pages went to the frame of an equal one, which freed 1 MiB.
45 pages broke what was shared (2.5 % of the pages touched); 180 KiB were copied.

                         memory in use   if not shared    saved
before the first event           3 MiB           4 MiB   25.0 %
at its highest                 3.5 MiB           4 MiB   12.5 %
after the last event           3.2 MiB         3.2 MiB    0.0 %

cause          events   pages   breaks   reuses   device faults    copied      time
read              500     500        0        0               0       0 B   0.001 s
write             990   1,290       45        3               0   180 KiB   0.250 s
device_write       10      10        0        0              12       0 B   1.500 s

Verified: the same events on memory that is never merged left the same contents.
2.00 s (750 events/s); besides 1.00 s to load, 0.25 s to merge, 0.13 s to check the trace, 0.06 s to\
 digest what is left, 3.00 s to verify.
Contents at the end: 0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f
"""  # noqa: E501 - as long as it is printed

CAUSES: list[dict[str, Any]] = [
    {"operation": "read", "events": 500, "pages": 500, "seconds": 0.001},
    {
        "operation": "write", "events": 990, "pages": 1290, "breaks": 45, "reuses": 3,
        "bytes_copied": 45 * PAGE, "seconds": 0.25,
    },
    {
        "operation": "device_write", "events": 10, "pages": 10, "device_faults": 12,
        "seconds": 1.5,
    },
]  # fmt: skip

SAMPLES: list[dict[str, Any]] = [
    {"event": event, "bytes": used * PAGE, "unshared_bytes": unshared * PAGE}
    for event, used, unshared in [(0, 768, 1024), (700, 896, 1024), (1500, 819, 819)]
]

TIMINGS = {
    "load_s": 1.0, "check_s": 0.13, "merge_s": 0.25, "run_s": 2.0, "digest_s": 0.0625,
    "verify_s": 3.0,
}  # fmt: skip


def test_a_replay() -> None:
    done = replay(
        causes=CAUSES, samples=SAMPLES, mappings=2, devices=("cpu (0)", "cpu (1)"), events=1500,
        merged=MERGED, verified=True, timings=TIMINGS,
    )  # fmt: skip
    assert replayed(done) == TOLD


def test_the_smallest_replay() -> None:
    """One of each; nothing that was not asked for is told, and no rate without time."""
    assert replayed(replay()).split("\n\n") == [
        "t.arrow: 1 event on i.core, pages of 4 KiB in 1 mapping\n"
        "Not merged before the first event.\n"
        "0 pages broke what was shared (0.0 % of the pages touched); 0 B were copied.",
        "                         memory in use   if not shared   saved\n"
        "before the first event           4 KiB           4 KiB   0.0 %\n"
        "at its highest                   4 KiB           4 KiB   0.0 %\n"
        "after the last event             4 KiB           4 KiB   0.0 %",
        "cause   events   pages   copied      time\nread         1       1      0 B   0.000 s",
        "0.00 s; besides 0.00 s to load, 0.00 s to merge, 0.00 s to check the trace, 0.00 s to"
        " digest what is left.\n"
        "Contents at the end: 0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f\n",
    ]


def test_a_replay_of_nothing() -> None:
    done = replay(
        causes=[], samples=[{}], events=0, timings=dict.fromkeys(TIMINGS, 1.0), mappings=0
    )
    report = replayed(done)
    assert "t.arrow: 0 events on i.core, pages of 4 KiB in 0 mappings\n" in report
    assert "\n0 pages broke what was shared; 0 B were copied.\n" in report
    assert "after the last event               0 B             0 B       -\n" in report
    assert "\ncause   events   pages   copied   time\n\n1.00 s; besides" in report


@pytest.mark.parametrize(
    ("column", "title"),
    [
        ("breaks", "breaks"),
        ("fills", "fills"),
        ("reuses", "reuses"),
        ("collapses", "collapses"),
        ("invalidations", "invalidations"),
        ("device_faults", "device faults"),
        ("remote", "remote"),
        ("revoked", "revoked"),
        ("written_back", "written back"),
        ("refused", "refused"),
    ],
)
def test_a_column_that_is_0_everywhere_is_left_out(column: str, title: str) -> None:
    rows: list[dict[str, Any]] = [
        {"operation": "read"},
        {"operation": "write", column: 7},
        {"operation": "fork"},
    ]
    table = replayed(replay(causes=rows)).split("\n\n")[2].splitlines()
    assert " ".join(table[0].split()) == f"cause events pages {title} copied time"
    assert [line.split()[3] for line in table[1:]] == ["0", "7", "0"]


def test_the_highest_is_the_first_of_the_highest() -> None:
    samples = [
        {"bytes": used * PAGE, "unshared_bytes": 10 * PAGE * (at + 1)}
        for at, used in enumerate((1, 5, 2, 5, 1))
    ]
    assert "\nat its highest                  20 KiB          80 KiB   75.0 %\n" in replayed(
        replay(samples=samples)
    )


def test_one_page_in_one_event() -> None:
    causes = [{"operation": "write", "events": 1, "pages": 3, "breaks": 1, "bytes_copied": 512}]
    done = replay(causes=causes, timings=dict.fromkeys(TIMINGS, 0.5))
    assert "\n1 page broke what was shared (33.3 % of the pages touched); 512 B were" in replayed(
        done
    )
    assert "\n0.50 s (2 events/s); besides" in replayed(done)


RECORDING = Recording(
    image="t.image.arrow", image_pages=12345, mappings=30, how="write-protect", looks=50,
    events=1, pages=1234, seconds=5.04, losses=["lost"], notes=["noted"],
)  # fmt: skip


def test_a_recording() -> None:
    assert recorded("t.arrow", RECORDING) == (
        "t.image.arrow: 12,345 pages in 30 mappings\n"
        "t.arrow: 1,234 written pages in 1 event, seen by write-protect in 50 looks over 5.0 s\n"
    )


def summary(**changes: Any) -> Summary:
    known: dict[str, Any] = {
        "events": 3, "pages": 1001, "page_size": PAGE, "source": "mix x, seed 1", "mappings": 2,
        "nodes": 0, "devices": 0, "seconds": 1.5,
        "operations": [("write", 2, 1000), ("device_read", 1, 1)],
    }  # fmt: skip
    return Summary(**{**known, **changes})


def test_a_summary() -> None:
    assert summarised("t.arrow", summary()) == (
        "t.arrow: 3 events, 1,001 pages of 4 KiB\n"
        "From: mix x, seed 1\n"
        "Over 1.500 s\n"
        "\n"
        "operation     events   pages\n"
        "write              2   1,000\n"
        "device_read        1       1\n"
    )
    little = summary(events=1, pages=1, page_size=None, source="", seconds=None, operations=[])
    assert (
        summarised("t.arrow", little) == "t.arrow: 1 event, 1 page\n\noperation   events   pages\n"
    )
    assert "\nOver 0.000 s\n" in summarised("t.arrow", summary(seconds=0.0))


def test_names_are_safe_for_a_terminal() -> None:
    name = f"a{NOISE}b"
    for report, named in (
        (replayed(replay(trace=name, image=name, devices=(name,))), 3),
        (recorded(name, Recording(name, 1, 1, "soft-dirty", 1, 1, 1, 1.0, [], [])), 2),
        (summarised(name, summary(source=name)), 2),
    ):
        assert "".join(report.split("\n")).isprintable()
        assert report.count("a\N{REPLACEMENT CHARACTER}[31m") == named
