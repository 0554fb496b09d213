"""Run every benchmark that needs no GPU with its defaults; ``make bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "startup", "read_ceiling", "peers", "file", "ksmd", "scale", "mm", "mm_devices", "layouts",
    "merge", "replay", "host_cost",
)  # fmt: skip


def main() -> None:
    """Run all scripts, one after another, and name at the end those that failed."""
    failed = []
    for script in SCRIPTS:
        print(f"\n=== {script} ===", flush=True)
        path = Path(__file__).with_name(f"{script}.py")
        if subprocess.run([sys.executable, path], check=False).returncode:
            failed.append(script)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
