"""Devices: a small file of numbers each. A new device is one module and its line here."""
from sw.errors import CompileError

from . import lfe5u_85f, xczu3eg
from .device import Device

DEVICES: dict[str, Device] = {d.name: d for d in (xczu3eg.DEVICE, lfe5u_85f.DEVICE)}



def target_of(name: str) -> Device:
    """A device by name; CompileError names those there are."""
    if name not in DEVICES:
        raise CompileError(f"device must be one of {', '.join(sorted(DEVICES))}, not {name!r}")
    return DEVICES[name]


__all__ = ["DEVICES", "Device", "target_of"]
