"""Who could share memory with whom, and memory of which kind?

With paths as arguments: the owners in these images, of any format that gpudedup reads. Without:
three processes, each with a dump that is made here. All images are scanned as one population: a
page counts as shared whichever two of them hold it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import gpudedup as gd
from gpudedup.schema import MAPPING, dump_schema

PAGE_SIZE = 4096
MIB = 1 << 20


def noise(pages: int, seed: int) -> bytes:
    """Return pages of which no two are equal; the same ones for the same seed."""
    return np.random.default_rng(seed).bytes(pages * PAGE_SIZE)


def write_dump(path: Path, owner: str, *memory: tuple[str, str, bytes]) -> None:
    """Write a process: its mappings by kind, name and bytes. ``own_dump.py`` does it slowly."""
    known = {"owner": owner, "domain": "", "start": 0, "flags": ""}
    named = [{**known, "kind": kind, "name": name} for kind, name, _ in memory]
    pages = np.array([len(data) // PAGE_SIZE for *_, data in memory])
    n, data = int(pages.sum()), pa.py_buffer(b"".join(data for *_, data in memory))
    codes = np.repeat(np.arange(len(pages), dtype=np.int32), pages)
    index = np.concatenate([np.arange(count, dtype=np.uint64) for count in pages])
    content = pa.FixedSizeBinaryArray.from_buffers(pa.binary(PAGE_SIZE), n, [None, data])
    mapping = pa.DictionaryArray.from_arrays(codes, pa.array(named, MAPPING))
    frame, node, flags = pa.nulls(n, pa.uint64()), pa.nulls(n, pa.int16()), np.zeros(n, np.uint32)
    schema = dump_schema(PAGE_SIZE)
    with pa.ipc.new_file(path, schema) as file:
        file.write(pa.record_batch([mapping, index, frame, node, flags, content], schema=schema))


def processes(folder: Path) -> list[Path]:
    """Write three processes: one library in all, one table in two, own data in two."""
    library, table = noise(400, 1), noise(700, 2)
    web, mail, job = paths = [folder / name for name in ("web", "mail", "job")]
    own = {"web": table + noise(900, 3) + bytes(MIB), "mail": table + noise(500, 4)}
    write_dump(web, "web[1]", ("file", "libssl.so", library), ("anon", "[heap]", own["web"]))
    write_dump(mail, "mail[2]", ("file", "libssl.so", library), ("anon", "[heap]", own["mail"]))
    write_dump(job, "job[3]", ("file", "libssl.so", library), ("anon", "its copy", library))
    return paths


def report(scan: gd.Scan) -> None:
    """Print who shares with whom, then how much of each owner's memory that is."""
    words = {name: pc.binary_join(scan.contents[name], " + ") for name in ("kinds", "owners")}
    extra = pc.subtract(scan.contents["frames"], pa.scalar(1, pa.uint64()))
    groups = pa.table({**words, "extra": extra}).group_by(["kinds", "owners"])
    found = groups.aggregate([("extra", "count"), ("extra", "sum")])
    print("contents     saves  kinds        held by")
    for group in found.sort_by([("extra_sum", "descending"), ("owners", "ascending")]).to_pylist():
        saves = f"{group['extra_sum'] * scan.population.page_size / MIB:.1f} MiB"
        print(f"{group['extra_count']:8,}{saves:>10}  {group['kinds']:13}{group['owners']}")
    print("\nframes    zero  shared  unique  owner")
    for one in scan.by("owner"):
        shared = one.shared_contents + one.sharing_frames
        counts = (one.frames, one.zero_frames, shared, one.unique_frames)
        print(f"{counts[0]:6,}", *(f"{count:7,}" for count in counts[1:]), f" {one.key}")
    split = scan.sharing("owner")
    print(f"\n{split.between:,} frames to save between owners, {split.within:,} within one owner")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        report(gd.scan(sys.argv[1:] or processes(Path(made))))
