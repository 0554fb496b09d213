"""How long until the command line answers?

``gpudedup --help``; ``info``; and a scan of a small dump, in fresh processes: the first ever, with
numba's cache empty, and later ones. Beside them a bare ``python -c pass``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import harness

import gpudedup as gd

COMMAND = str(Path(sys.executable).with_name("gpudedup"))


def main() -> None:
    """Measure."""
    options = harness.arguments(__doc__, rounds=9).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder, "small.arrow"))
        gd.generate(gd.Recipe(pages=256), dump)
        size = Path(dump).stat().st_size

        def process(*words: str, cache: str) -> Callable[[], object]:
            environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder, cache))}
            return lambda: subprocess.run(words, check=True, capture_output=True, env=environment)

        first = []
        for at in range(3):
            started = time.perf_counter()
            process(COMMAND, "scan", dump, cache=f"fresh{at}")()
            first.append(time.perf_counter() - started)
        result = harness.interleave(
            {
                "python -c pass": process(sys.executable, "-c", "pass", cache="kept"),
                "gpudedup --help": process(COMMAND, "--help", cache="kept"),
                "gpudedup info": process(COMMAND, "info", cache="kept"),
                "gpudedup scan, code cached": process(COMMAND, "scan", dump, cache="kept"),
            },
            size=size,
            rounds=options.rounds,
        )
    result.seconds["gpudedup scan, first ever"] = first
    for name, samples in result.seconds.items():
        print(f"  {name:34} {median(samples):6.2f} s")
    harness.write("startup", __doc__ or "", [result])


if __name__ == "__main__":
    main()
