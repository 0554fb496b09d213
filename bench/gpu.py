"""How close does the offload engine come to the GPU's own limits?

For a machine with a GPU, CuPy and what gpudedup needs; no network, and nothing installed
(``PYTHONPATH=. python3 bench/gpu.py``). In this order: every kernel is compiled and launched, and
what it takes compared with the table of the compile gate; the card's own ceilings, the kernels and
whole scans are measured, beside the CPU engine on the same bytes; then the variants of kernels; the
``gpu`` tests are run; then compute-sanitizer. What each step found is in ``gpu.jsonl`` in the
output folder as soon as the step ends. A wrong result is dumped there, and the run goes on. What
does not fit into the budget is left out, and named. Device and host each hold ``--size`` bytes of
pages up to twice.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_measures import Step, measurements
from gpu_variants import sweeps
from harness import RESULTS, arguments, show, write

from gpudedup.devices.cuda import CudaDevice, open_devices
from gpudedup.errors import UnsupportedHereError
from gpudedup.kernels import KERNELS, layouts, variants
from gpudedup.measuring.device import Wrong
from gpudedup.measuring.launches import Bench
from gpudedup.measuring.populations import PAGE_SIZE
from gpudedup.measuring.rounds import Comparison

SIZE = 8 << 30
GROUPED = 16 << 20
"""Digests to group."""

BUDGET = 600
"""Seconds."""

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "kernels" / "resources.json"

GPU_TESTS = (
    "tests/engines/test_engines.py", "tests/kernels/test_gpu.py", "tests/mm/test_device.py",
    "tests/mm/test_device_exclusive.py",
)  # fmt: skip
"""Named one by one: other test modules import what a GPU machine may lack."""

SANITIZERS = {
    "memcheck": ("digest", "group", "the_others", "page_table", "tail"),
    "racecheck": ("digest",),
    "synccheck": ("digest", "group", "the_others"),
    "initcheck": ("digest", "group", "page_table"),
}
"""Tools of compute-sanitizer, and programs of ``tests/kernels/sanitized.py``."""

PLANTED = "tail"
"""The program with a fault, which a tool must find."""

GOALS = [
    ("digest", f"digest {PAGE_SIZE} {layouts(PAGE_SIZE)[0]} / read", 0.95, 0.88),
    ("scan of resident pages, mix", "scan, kernels / read", 0.65, 0.55),
    ("streamed, random", "streamed scan / upload", 0.95, 0.80),
    ("grouping", "time of grouping / time of digest, per page", 0.20, 0.35),
]
"""Comparison, ratio, target, floor; of grouping less is better."""


@dataclass
class Run:
    """The steps so far, written down as they end.

    :param output: folder of the results
    :param budget: seconds for all steps
    """

    output: Path
    budget: float
    comparisons: list[Comparison] = field(default_factory=list)
    wrong: int = 0
    left_out: list[str] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the clock."""
        self.output.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()

    @property
    def left(self) -> float:
        """Return the seconds left."""
        return self.budget - (time.monotonic() - self._started)

    def do(self, step: Step) -> None:
        """Run a step if there is time, and write down what came of it, errors too."""
        if self.left < step.seconds:
            self.left_out.append(step.name)
            self._note(step.name, {"left out": f"{self.left:.0f} s left, of about {step.seconds}"})
            return
        started = time.monotonic()
        record: dict[str, Any] = {}
        try:
            found = step.run()
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
            self.wrong += 1
        else:
            record |= self._take(step.name, found)
        self._note(step.name, record | {"took_s": round(time.monotonic() - started, 1)})

    def do_all(self, steps: Iterator[Step]) -> None:
        """Run steps until there are no more, or the next cannot be prepared."""
        try:
            for step in steps:
                self.do(step)
        except Exception as error:
            self.wrong += 1
            self._note("preparing the next step", {"error": f"{type(error).__name__}: {error}"})

    def _take(self, name: str, found: object) -> dict[str, Any]:
        if not isinstance(found, (list, Comparison)):
            self.others[name] = found
            return {"found": found}
        record: dict[str, Any] = {}
        for each in found if isinstance(found, list) else [found]:
            if isinstance(each, Wrong):
                self.wrong += 1
                record[each.what] = self._dump(name, each)
            else:
                show(each)
                self.comparisons.append(each)
                record[each.case["what"]] = {"ratios": each.ratios, "seconds": each.seconds}
        return record

    def _dump(self, name: str, wrong: Wrong) -> str:
        path = self.output / f"wrong-{re.sub('[^a-z]+', '-', name)}{wrong.what}.npz"
        np.savez(path, rows=wrong.rows, found=wrong.found, right=wrong.right,
                 digests=wrong.digests, classes=wrong.classes)  # fmt: skip
        return f"WRONG in {len(wrong.rows)} rows, the first {wrong.rows[:5].tolist()}: {path.name}"

    def _note(self, name: str, record: dict[str, Any]) -> None:
        line = json.dumps({"step": name} | record)
        with (self.output / "gpu.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line if "ratios" not in line else f"{name}: {record['took_s']} s", flush=True)


def smoke(device: CudaDevice) -> dict[str, Any]:
    """Compile every kernel, launch it, and compare what it takes with the table of the gate."""
    columns, *rows = _table()
    wanted = {
        (row["kernel"], row["page_size"], row["layout"]): row["registers"]
        for row in (dict(zip(columns, values, strict=True)) for values in rows)
        if row["arch"] == device.capability
    }
    stream = device.stream()
    differ: dict[str, dict[str, int | None]] = {}
    for name, kernel in KERNELS.items():
        sizes = (512, PAGE_SIZE, 64 << 10) if kernel.by_page_size else (0,)
        for size, layout in ((s, each) for s in sizes for each in (layouts(s) if s else ("",))):
            registers, spilled = device.resources(name, size, layout)
            if name != "read_words":
                device.launch(
                    name, 1, kernel.nothing(), stream, page_size=size, layout=layout
                )  # fmt: skip
                device.finish(device.record(stream))
            for switches in variants(kernel.file, size, layout):
                if local := device.resources(name, size, layout, switches)[1]:
                    differ[f"{name} {size} {layout} {switches}"] = {"local bytes": local}
            known = wanted.get((name, size, layout))
            if spilled or registers != known:
                differ[f"{name} {size} {layout}".strip()] = {
                    "registers": registers, "in the table": known, "local bytes": spilled,
                }  # fmt: skip
    return {"capability": device.capability, "not as in the table": differ}


def _table() -> list[list[Any]]:
    held = json.loads(TABLE.read_text())
    return [held["columns"], *held["rows"]]


def checks(run: Run) -> Iterator[Step]:
    """Yield the ``gpu`` tests, and the kernels under each tool of compute-sanitizer."""
    plain = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *GPU_TESTS]
    yield Step("tests", 20, partial(_outcome, run, plain))
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        run.left_out.append("compute-sanitizer, which is not installed")
        return
    for tool, programs in SANITIZERS.items():
        for program in programs:
            command = [
                sanitizer, "--tool", tool, "--error-exitcode", "9",
                sys.executable, "-m", "tests.kernels.sanitized", program, "--gpu",
            ]  # fmt: skip
            yield Step(f"{tool} {program}", 10, partial(_outcome, run, command))


def _outcome(run: Run, command: list[str]) -> str:
    """Run a program within the budget; return how it ended."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=max(1, run.left), check=False
        )
    except subprocess.TimeoutExpired:
        return "not over when the budget was"
    text = done.stdout + done.stderr
    lines = re.findall(r"^(?:=+ )?\d+ (?:passed|failed).*|^=+ ERROR.*", text, re.M)
    if (done.returncode != 0) != (PLANTED in command):
        run.wrong += 1
        lines += ["WRONG", text[-2000:]]
    return f"exit code {done.returncode}: {' | '.join(lines)}"


def goals(found: list[Comparison]) -> str:
    """Return one line per goal, with its verdict."""
    lines = []
    for what, name, target, floor in GOALS:
        about = [c.ratios for c in found if c.case["what"].startswith(what)]
        values = [ratios[name] for ratios in about if name in ratios]
        if not values:
            lines.append(f"{what}: not measured")
            continue
        sign = 1 if target > floor else -1
        reached = [sign * values[0] >= sign * limit for limit in (target, floor)]
        verdict = "reached" if reached[0] else "above the floor" if reached[1] else "MISSED"
        lines.append(f"{what}: {name} {values[0]:.2f} (target {target}, floor {floor}): {verdict}")
    return "\n".join(lines)


def driver() -> str:
    """Return name, driver and memory of each card by nvidia-smi, a line each; empty without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(
        [tool, *query], capture_output=True, text=True, check=False
    ).stdout.strip()


def main() -> None:
    """Check, measure, test; print, and write the results."""
    parser = arguments(__doc__, size=SIZE, rounds=5)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    try:
        (device,) = open_devices()
    except UnsupportedHereError as error:
        print(f"no GPU to measure: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    run = Run(chosen.output, chosen.budget)
    run.do(Step("smoke", 0, partial(smoke, device)))
    bench = Bench(device, chosen.size, GROUPED, chosen.rounds)
    run.do_all(measurements(bench))
    run.do_all(sweeps(bench))
    run.do_all(checks(run))
    print("\n" + goals(run.comparisons))
    if run.left_out:
        print("left out: " + "; ".join(run.left_out))
    write(
        "gpu", (__doc__ or "").splitlines()[0], run.comparisons, folder=chosen.output,
        gpu=driver() or device.name, **run.others, left_out=run.left_out,
    )  # fmt: skip
    if run.wrong:
        sys.exit(f"WRONG or failed: {run.wrong} steps")


if __name__ == "__main__":
    main()
