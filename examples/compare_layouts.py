"""What does the bookkeeping of sharing cost when it is laid out in another way?

The same trace on real bytes in three layouts: ``frame`` (the frame lists who shares it), ``tagged``
(each page has a descriptor, nothing lists who shares) and ``inode`` (a tree for each node, shared
pages in a hidden mapping). Every look-up and every step of a walk is counted.
"""

from __future__ import annotations

import gpudedup as gd

PAGES = 256
NODES = 2

Event = gd.LayoutEvent


def make_trace() -> list[gd.LayoutEvent]:
    """Return a parent that is filled, merged and forked, replicas, and stores that break."""
    # Page k is written with content seed + k, so the two halves of the parent are equal.
    half = PAGES // 2
    trace = [Event("create", mapping=1, count=PAGES)]
    trace += [Event("write", 1, index=at, count=half, seed=1) for at in (0, half)]
    trace += [Event("merge")]
    trace += [Event("fork", 1, index=child) for child in range(2, 6)]
    trace += [Event("replicate", 1, count=half, node=1)]
    trace += [Event("read", child, count=PAGES, node=child % NODES) for child in range(1, 6)]
    trace += [Event("write", child, index=8 * child, count=8, seed=1000) for child in range(1, 6)]
    trace += [Event("migrate", 1, index=half, count=16, node=1)]
    return [*trace, *(Event("drop", child) for child in range(2, 6))]


def main() -> None:
    """Run the trace in all layouts, and print what each took, in all and for each operation."""
    # Raises InvariantError if two layouts read different bytes.
    costs = gd.compare_layouts(make_trace(), nodes=NODES).to_pylist()
    print(f"{'':18}" + "".join(f"{row['layout']:>16}" for row in costs))
    for name in ("lookups", "walks", "copies", "frames_peak", "metadata_bytes_peak"):
        print(f"{name:18}" + "".join(f"{row[name]:16,}" for row in costs))
    print("\nlook-ups + steps of each operation")
    for kinds in zip(*(row["operations"] for row in costs), strict=True):
        each = (f"{kind['lookups']:,} + {kind['walks']:,}" for kind in kinds)
        print(f"{kinds[0]['operation']:18}" + "".join(f"{text:>16}" for text in each))


if __name__ == "__main__":
    main()
