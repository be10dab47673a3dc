"""Synthesized netlists in place of units, so that what Yosys made of a unit is held against golden too."""
from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.lib import wiring

from sw.cache import cached_build
from sw.errors import WarploomError
from sw.synth import netlist
from sw.synth.measure import TOP, Family
from sw.synth.tools import versions, yosys

#: Yosys' models of each family's cells; of multiplier slices and ECP5's block RAM it has none: those are ours.
CELLS: dict[Family, str] = {"xcup": "xilinx/cells_sim.v", "ecp5": "ecp5/cells_sim.v"}
MODELS = tuple(Path(__file__).parent / "verilator" / name for name in ("dsp.v", "ram.v"))


class NetlistUnit(wiring.Component):  # type: ignore[misc]
    """``unit`` as its netlist for ``family``: the same ports and ``frame_cycles``. ``text`` is the Verilog of module ``name``."""

    def __init__(self, unit: Any, family: Family, name: str) -> None:
        self.unit, self.name = unit, name
        self.text = re.sub(rf"\b{TOP}\b", name, behaviour(netlist(unit, family), family))
        self.frame_cycles: int = unit.frame_cycles
        super().__init__(unit.signature)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        ports: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for path, member, value in self.signature.flatten(self):
            side = "i" if member.flow == wiring.In else "o"
            ports[f"{side}_{'__'.join(map(str, path))}"] = Value.cast(value)
        m.submodules.netlist = Instance(self.name, **ports)
        return m


def behaviour(text: str, family: Family) -> str:
    """A netlist over a family's cells with the cells' models written in: one module of plain Verilog."""
    spec = find_spec("pyosys")
    if spec is None or spec.origin is None:
        raise WarploomError("the package pyosys is not installed; run `make setup`")
    cells = Path(spec.origin).parent / "share" / CELLS[family]
    script = (
        f"read_verilog -nooverwrite {cells}", *(f"read_verilog -overwrite {p.name}" for p in MODELS), "read_verilog netlist.v",
        f"hierarchy -top {TOP}", "proc", "flatten", f"hierarchy -check -top {TOP}", "opt_clean", f"write_verilog -noattr {TOP}.v",
    )  # fmt: skip

    def build(folder: Path) -> None:
        (folder / "netlist.v").write_text(text)
        for path in MODELS:
            shutil.copyfile(path, folder / path.name)
        yosys(script, folder)

    return (cached_build(["behaviour", versions(), *script[1:], *(p.read_bytes() for p in MODELS), text], build) / f"{TOP}.v").read_text()
