"""Devices: a small file of numbers each. A new device is one module and its line here."""
from . import lfe5u_85f, xczu3eg
from .device import Device

DEVICES: dict[str, Device] = {d.name: d for d in (xczu3eg.DEVICE, lfe5u_85f.DEVICE)}

__all__ = ["DEVICES", "Device"]
