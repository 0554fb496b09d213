"""A disk that is easily full."""

from __future__ import annotations

from ..images.conftest import small_disk as small_disk
