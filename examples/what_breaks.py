"""How much of what a merge frees do stores take back, and how does that depend on the policy?

Four guests of two tenants, and a file of their host; one trace of stores; several policies. For
each: the memory that the merge frees, the pages that stores break out of sharing, what they copy,
and what is still saved after the last event.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

import gpudedup as gd
from gpudedup.schema import trace_schema

PART = 500
EVENTS = 2000
MIB = 1 << 20

POLICIES = {
    "KSM's defaults": gd.MergePolicy(),
    "zero pages need no frame": gd.MergePolicy(use_zero_pages=True),
    "at most 2 pages a frame": gd.MergePolicy(max_page_sharing=2),
    "only within a tenant": gd.MergePolicy(within_domain=True),
    "files too": gd.MergePolicy(kinds=("anon", "guest", "file")),
}


def make_host() -> gd.MemoryManager:
    """Return the memory before the merge: of each guest a system, its own data, and zero pages."""
    rng = np.random.default_rng(5)
    mm = gd.MemoryManager(page_size=4096)
    system, *own = rng.integers(0, 256, (5, PART, 4096), dtype=np.uint8)
    for number, data in enumerate(own):
        tenant = "red" if number < 2 else "blue"
        guest = mm.create("memory", kind="guest", pages=3 * PART, owner=tenant, domain=tenant)
        mm.write(guest, range(3 * PART), np.concatenate([system, data, np.zeros_like(data)]))
    disk = mm.create("system.img", kind="file", pages=PART, owner="host")
    mm.file_write(disk, range(PART), system)
    return mm


def make_trace() -> pa.Table:
    """Return stores to pages of all guests, most of them to few pages."""
    rng = np.random.default_rng(6)
    page = (3 * PART * rng.random(EVENTS) ** 3).astype(int)
    rows = [
        {"operation": "write", "mapping": event % 4, "index": int(page[event]), "count": 1}
        | {"seed": event}
        for event in range(EVENTS)
    ]
    return pa.Table.from_pylist(rows, trace_schema(4096))


def main() -> None:
    """Replay the trace under each policy."""
    trace, contents = make_trace(), set()
    print(f"{'policy':26}{'freed':>10}{'breaks':>8}{'copied':>10}{'still saved':>13}")
    for name, policy in POLICIES.items():
        done = gd.replay(make_host(), trace, policy=policy, samples=1)
        start, end = done.samples.to_pylist()
        saved = [row["unshared_bytes"] - row["bytes"] for row in (start, end)]
        sizes = [f"{size / MIB:.1f} MiB" for size in (*saved, done.totals["bytes_copied"])]
        breaks = done.totals["breaks"]
        print(f"{name:26}{sizes[0]:>10}{breaks:8,}{sizes[2]:>10}{sizes[1]:>13}")
        contents.add(done.digest)
    # Sharing changes no byte: whatever the policy, the same events leave the same contents.
    assert len(contents) == 1


if __name__ == "__main__":
    main()
