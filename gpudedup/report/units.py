"""Format numbers and names for people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: int) -> str:
    """Return bytes in the largest binary unit that keeps it at 1 or more: ``13.9 MiB``."""
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    value = count / (1 << 10 * power)
    if power and value >= 1023.95:  # would be printed as 1024.0
        power, value = power + 1, value / 1024
    exact = power == 0 or value == int(value)
    return f"{value:.0f} {_UNITS[power]}" if exact else f"{value:.1f} {_UNITS[power]}"


def share(part: int, whole: int) -> str:
    """Return a percentage; more than nothing never reads 0, less than all never 100."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if part and percent < 0.05:
        return "<0.1 %"
    if part < whole and percent >= 99.95:
        return ">99.9 %"
    return f"{percent:.1f} %"


def plural(count: int, noun: str) -> str:
    """Return ``1 page``, ``2,000 pages``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def printable(text: str, width: int | None = None) -> str:
    """Return the last ``width`` characters, safe for a terminal: names of images hold anything."""
    safe = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if width is None or len(safe) <= width:
        return safe
    return "\N{HORIZONTAL ELLIPSIS}" + safe[1 - width :]
