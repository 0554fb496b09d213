"""Choose the devices that a memory manager mirrors its page tables on."""

from __future__ import annotations

from collections.abc import Sequence

from gpudedup.arguments import MAX_DEVICES, as_number
from gpudedup.devices.base import Device
from gpudedup.errors import UnsupportedHereError, UsageError


def choose_devices(engine: str | Sequence[Device], devices: int | None) -> list[Device]:
    """Return the devices of a manager.

    :param engine: ``cuda``; ``cpu``: :class:`gpudedup.devices.host.HostDevice`; ``auto``: ``cuda``
        where usable, else ``cpu``; or the devices themselves
    :param devices: number of devices; None: those given, else 0
    :raises UsageError: if the number is out of range, or not that of the devices given
    :raises UnsupportedHereError: if ``cuda`` cannot be used
    """
    devices = None if devices is None else as_number(devices, "devices")
    if not isinstance(engine, str):
        given = list(engine)
        if devices not in (None, len(given)) or len(given) > MAX_DEVICES:
            raise UsageError(f"{len(given)} devices given, not {devices}, at most {MAX_DEVICES}")
        return given
    count = devices or 0
    if not 0 <= count <= MAX_DEVICES:
        raise UsageError(f"{count} devices: not from 0 to {MAX_DEVICES}")
    if engine not in ("auto", "cuda", "cpu"):
        raise UsageError(f"device engine {engine!r}: not auto, cuda or cpu")
    if not count:
        return []
    if engine != "cpu":
        from gpudedup.devices.cuda import open_devices

        try:
            return list(open_devices(range(count)))
        except UnsupportedHereError:
            if engine == "cuda":
                raise
    from gpudedup.devices.host import HostDevice

    return [HostDevice(number) for number in range(count)]
