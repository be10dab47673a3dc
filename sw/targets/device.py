"""What the compiler knows of a device."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hw.params import Multiplier


@dataclass(frozen=True, kw_only=True)
class Device:
    """Resources: LUTs (of ``lut_inputs``), flip-flops, multiplier slices, and block memories in units of 36 kbit.

    ``multiplier``: the kind that uses the slices best. ``memory_bytes``: what external memory can be relied on for, bytes a cycle
    at ``clock_hz`` (0: there is none); ``memory_bits``: width of a port to it. ``placed``: open tools place and route it. ``fill``: share
    of each resource, in that order, that a search for the fastest takes; the rest is for what estimates miss, and for routing.
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
    fill: tuple[float, float, float, float] = (0.85, 0.85, 0.85, 0.85)

    @property
    def family(self) -> Literal["xcup", "ecp5"]:
        """Yosys' name of the family."""
        return "ecp5" if self.lut_inputs == 4 else "xcup"

    @property
    def filled(self) -> Device:
        """As much of the device as a search for the fastest takes."""
        luts, flip_flops, multipliers, bram36 = self.fill
        return replace(
            self, luts=int(self.luts * luts), flip_flops=int(self.flip_flops * flip_flops),
            multipliers=max(int(self.multipliers * multipliers), 1), bram36=self.bram36 * bram36,
        )  # fmt: skip
