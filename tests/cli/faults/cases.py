"""The commands that are run, and the files that they work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gpudedup as gd
from tests.images.cores import core, load, prpsinfo
from tests.merged.common import write_dump

OLD = b"what was there before"


@dataclass(frozen=True, slots=True)
class Case:
    """A command, run in a folder with the inputs in ``in`` and an empty folder ``out``.

    :param words: what follows ``gpudedup``; ``PID`` stands for that of the target
    :param old: files of ``out`` that are there before, relative to it
    :param is_live: whether it needs a target
    """

    name: str
    words: str
    old: tuple[str, ...] = ()
    is_live: bool = False

    def arguments(self, pid: int = 0) -> list[str]:
        return [str(pid) if word == "PID" else word for word in self.words.split()]


MIX = "--mix write-heavy --events 60"

CASES = {
    case.name: case
    for case in (
        Case("info", "info --json"),
        Case("scan", "scan in/a.arrow in/b.arrow in/m.arrow --json"),
        Case("scan raw", "scan in/r.mem --page-size 512 --no-verify --json"),
        Case("scan core", "scan in/c.core --threads 1 --json"),
        Case("scan to tables", "scan in/a.arrow -o out/s.arrow --json"),
        Case(
            "scan over tables", "scan in/a.arrow -o out/s.parquet --json --force",
            ("s.parquet", "s.contents.parquet"),
        ),
        Case("verify", "verify in/m.arrow --json"),
        Case("generate", "generate -o out/g.arrow --size 64K --owners 2"),
        Case("generate raw", "generate -o out/g.mem --size 64K --format raw --force", ("g.mem",)),
        Case("import", "import in/r.mem in/c.core in/page.arrow -o out/i.arrow"),
        Case("import over", "import in/m.arrow -o out/i.arrow --force", ("i.arrow",)),
        Case("merge", "merge in/a.arrow in/b.arrow -o out/m.arrow"),
        Case("merge over", "merge in/m.arrow in/a.arrow -o out/m.arrow --force", ("m.arrow",)),
        Case("restore", "restore in/m.arrow -o out/r.arrow"),
        Case("restore over", "restore in/m.arrow --input 1 -o out/r.arrow --force", ("r.arrow",)),
        Case("restore raw", "restore in/m.arrow --raw -o out/new"),
        Case(
            "restore raw over", "restore in/m.arrow --raw -o out --force",
            ("a_1_.raw", "a[1].raw", "a[1].raw.maps", "b[2].raw", "other"),
        ),
        Case("restore list", "restore in/m.arrow --list"),
        Case("trace generate", f"trace generate -o out/t.arrow --image in/a.arrow {MIX}"),
        Case(
            "trace generate over",
            f"trace generate -o out/t.arrow --image in/a.arrow {MIX} --force", ("t.arrow",),
        ),
        Case("trace info", "trace info in/t.arrow --json"),
        Case("replay", "replay in/a.arrow in/t.arrow --verify --json --device-engine cpu"),
        Case(
            "replay over table",
            "replay in/a.arrow in/t.arrow --json --device-engine cpu"
            " -o out/s.parquet --force",
            ("s.parquet",),
        ),
        Case("capture", "capture -p PID -o out/c.arrow", is_live=True),
        Case("capture stopped", "capture --stop -p PID -o out/c.arrow", is_live=True),
        Case(
            "capture over", "capture --stop -p PID -o out/c.arrow --force", ("c.arrow",),
            is_live=True,
        ),
        Case(
            "record",
            "trace record -p PID -o out/t.arrow --duration 0.2 --method write-protect",
            is_live=True,
        ),
        Case(
            "record over",
            "trace record -p PID -o out/t.arrow --duration 0.1 --interval 0.1 --force",
            ("t.arrow", "t.image.arrow"), is_live=True,
        ),
    )
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Make the files that commands read."""
    folder.mkdir()
    letters = [0, 1, 2, 3, 1, 2, 0, 5] * 4
    write_dump(folder / "a.arrow", letters)
    write_dump(folder / "b.arrow", [*letters[:11], 7, 8, 9])
    gd.merge_images([folder / "a.arrow", folder / "b.arrow"], folder / "m.arrow", backend="cpu")
    gd.generate(gd.Recipe(pages=16), str(folder / "page.arrow"))
    gd.generate(gd.Recipe(pages=16, seed=2), str(folder / "r.mem"), format="raw")
    loads = [load(4096, 0x10000, 5 * 4096), load(6 * 4096, 0x80000, 3 * 4096, 4 * 4096)]
    (folder / "c.core").write_bytes(core(loads, prpsinfo(b"one", 7, 8), 9 * 4096))
    gd.generate_trace(folder / "a.arrow", folder / "t.arrow", gd.Mix("write-heavy", 60))
