"""The command ``gpudedup``: reads arguments, calls the library, prints. No logic lives here.

Imports at the top of these modules are light: ``--help`` must not wait for Arrow or numba.
"""

from __future__ import annotations

from gpudedup.cli.main import main as main
