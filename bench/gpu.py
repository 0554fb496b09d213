"""How close does the offload engine come to the GPU's own limits?

On a machine with a GPU, CuPy and what gpudedup needs, without network: runs the ``gpu`` tests, also
under compute-sanitizer, then measures the card's own ceilings, the kernels, and whole scans of
resident and of streamed pages, beside the CPU engine on the same bytes. Device and host each hold
``--size`` bytes of pages up to twice. From a checkout that is not installed:
``PYTHONPATH=. python3 bench/gpu.py``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_measures import Bench, measure
from harness import PAGE_SIZE, Comparison, arguments, write

from gpudedup.devices.cuda import open_devices
from gpudedup.errors import UnsupportedHereError
from gpudedup.kernels import layouts

SIZE = 8 << 30
GROUPED = 16 << 20
"""Digests to group."""

TEST_SECONDS = 150
GPU_TESTS = (
    "tests/engines/test_engines.py", "tests/kernels/test_gpu.py", "tests/mm/test_device.py",
    "tests/mm/test_device_exclusive.py",
)  # fmt: skip
"""Named one by one: other test modules import what a GPU machine may lack."""

GOALS = [
    ("digest", f"digest {PAGE_SIZE} {layouts(PAGE_SIZE)[0]} / read", 0.95, 0.88),
    ("scan of resident pages, mix", "scan, kernels / read", 0.65, 0.55),
    ("streamed, random", "streamed scan / upload", 0.95, 0.80),
]
"""Comparison, ratio, target, floor; :func:`goals` has the rule for grouping."""


def tests() -> dict[str, str]:
    """Run the ``gpu`` tests, plainly and under compute-sanitizer; return each run's outcome."""
    root = Path(__file__).parent.parent
    plain = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *GPU_TESTS]
    some = [*plain, "-x", "-k", "collisions or aliases or group or compare"]
    runs = {"tests": [*plain]}
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer:
            runs[tool] = [sanitizer, "--tool", tool, "--error-exitcode", "9", *some]
    ended = {} if sanitizer else {"compute-sanitizer": "not installed"}
    for name, command in runs.items():
        try:
            done = subprocess.run(
                command, cwd=root, capture_output=True, text=True, timeout=TEST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            ended[name] = f"not over after {TEST_SECONDS} s"
        else:
            lines = re.findall(r"^(?:=+ )?\d+ (?:passed|failed).*|^=+ ERROR.*", done.stdout, re.M)
            ended[name] = f"exit code {done.returncode}: {' | '.join(lines) or done.stdout[-300:]}"
        print(f"{name}: {ended[name]}", flush=True)
    return ended


def goals(found: list[Comparison]) -> str:
    """Return one line per goal, with its verdict."""
    lines = []
    for what, name, target, floor in GOALS:
        value = next(c.ratios[name] for c in found if c.case["what"] == what)
        verdict = (
            "reached" if value >= target else "above the floor" if value >= floor else "MISSED"
        )
        lines.append(f"{what}: {name} {value:.2f} (target {target}, floor {floor}): {verdict}")
    (grouped,) = (c for c in found if c.case["what"].startswith("grouping"))
    (share,) = grouped.ratios.values()
    verdict = _verdict(share <= 0.20, share <= 0.35)
    lines.append(f"grouping / digest time {share:.2f} (target 0.20, floor 0.35): {verdict}")
    return "\n".join(lines)


def _verdict(target: bool, floor: bool) -> str:
    return "reached" if target else "above the floor" if floor else "MISSED"


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
    """Test, measure, print, and write the results."""
    parser = arguments(__doc__, size=SIZE, rounds=5)
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    chosen = parser.parse_args()
    try:
        (device,) = open_devices()
    except UnsupportedHereError as error:
        print(f"no GPU to measure: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    ended = {} if chosen.no_tests else tests()
    found = measure(Bench(device, chosen.size, GROUPED, chosen.rounds))
    print("\n" + goals(found))
    write("gpu", (__doc__ or "").splitlines()[0], found, gpu=driver() or device.name, tests=ended)


if __name__ == "__main__":
    main()
