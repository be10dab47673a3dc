"""What the compiler knows of a device."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hw.params import Multiplier


@dataclass(frozen=True, kw_only=True)
class Device:
    """Resources: LUTs (of ``lut_inputs``), flip-flops, multiplier slices, and block memories in units of 36 kbit.

    ``multiplier``: the kind that uses the slices best. ``memory_bytes``: what external memory can be relied on for, bytes a cycle
    at ``clock_hz`` (0: there is none); ``memory_bits``: width of a port to it. ``placed``: open tools place and route it.
    """

    name: str
    luts: int
    lut_inputs: int
    flip_flops: int
    multipliers: int
    bram36: float
    clock_hz: float
    note: str
    multiplier: Multiplier = "packed27"
    memory_bytes: float = 0.0
    memory_bits: int = 128
    placed: bool = False

    @property
    def family(self) -> Literal["xcup", "ecp5"]:
        """Yosys' name of the family."""
        return "ecp5" if self.lut_inputs == 4 else "xcup"
