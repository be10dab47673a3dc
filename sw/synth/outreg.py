"""Registers behind block RAM and multipliers of an ECP5 moved into them: data of a memory comes 5.8 ns after the clock, from its own
output register 0.6 ns; a multiplier takes 3.9 ns, besides the way to the register behind it.

Yosys makes no use of those registers. A netlist is Yosys' JSON of a module: cells with parameters and connections, bits as numbers.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

Cell = dict[str, Any]
#: A register's parameters that tell how it is clocked; all that stand behind one memory must agree.
CLOCKED = ("CEMUX", "CLKMUX", "LSRMUX")


#: Outputs of a cell that its register holds.
OUTPUTS = {"DP16KD": [f"DOB{k}" for k in range(18)], "MULT18X18D": [f"P{k}" for k in range(36)]}


def absorbed(module: dict[str, Any]) -> dict[str, Any]:
    """``module`` with every row of plain registers, if it alone reads port B of a block RAM or a multiplier without registers, in that
    cell's output register.

    The registers must share clock and enable, and have no reset (what they hold at the start is 0 in both). Computes the same, cycle by
    cycle. Other ports and partly registered ones stay as they are.
    """
    module = copy.deepcopy(module)
    cells: dict[str, Cell] = module["cells"]
    readers = _readers(module)
    for cell in [c for c in cells.values() if c["type"] in OUTPUTS and _plain(c)]:
        behind = [(port, bit, readers.get(bit, [])) for port, bit in _outputs(cell)]
        if any(len(names) != 1 for _, _, names in behind if names):
            continue
        names = {port: names[0] for port, _, names in behind if names}
        registers = [cells.get(name, {}) for name in names.values()]
        if not names or (shared := _shared(registers)) is None or not _clock(cell, shared):
            continue
        for port, name in names.items():
            cell["connections"][port] = cells.pop(name)["connections"]["Q"]
    return module


def _readers(module: dict[str, Any]) -> dict[Any, list[str]]:
    """What reads each bit: names of registers for their data inputs; anything else by a name that is no cell's."""
    found: dict[Any, list[str]] = {}
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                data = cell["type"] == "TRELLIS_FF" and port == "DI"
                for bit in bits:
                    found.setdefault(bit, []).append(name if data else "")
    for port in module["ports"].values():
        for bit in port["bits"]:
            found.setdefault(bit, []).append("")
    return found


def _plain(cell: Cell) -> bool:
    """Whether a multiplier has no registers; a memory's port B reads without register or reset, by the clock as it is, and at most 18 bits
    (36 take the outputs of port A, whose registers have a clock of their own)."""
    parameters = cell["parameters"]
    if cell["type"] == "MULT18X18D":
        return not any(name.startswith("REG_") and value.strip() != "NONE" for name, value in parameters.items())
    narrow = int(parameters["DATA_WIDTH_B"], 2) <= 18
    return narrow and parameters["REGMODE_B"] == "NOREG" and parameters["CLKBMUX"] == "CLKB" and cell["connections"]["RSTB"] == ["0"]


def _outputs(cell: Cell) -> list[tuple[str, Any]]:
    """(port, bit) of all outputs that are connected."""
    return [(name, cell["connections"][name][0]) for name in OUTPUTS[cell["type"]] if cell["connections"].get(name)]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The clock's bit, the bit that enables, "1" if nothing does, and whether that one is inverted."""

    clock: Any
    enable: Any
    inverted: bool


def _shared(registers: list[Cell]) -> Shared | None:
    """What clocks all of ``registers``; None unless they are alike and plain."""
    if any(r.get("type") != "TRELLIS_FF" for r in registers):
        return None
    wires = [r["connections"] for r in registers]
    kinds = {tuple(str(r["parameters"].get(k, "")).strip() for k in CLOCKED) for r in registers}
    enables, clocks = {tuple(w.get("CE", ["1"])) for w in wires}, {tuple(w["CLK"]) for w in wires}
    (ce, clk, lsr), *others = kinds
    plain = not others and clk == "CLK" and lsr == "LSR" and ce in ("CE", "INV", "1") and len(enables) == len(clocks) == 1
    quiet = all(w.get("LSR", ["0"]) == ["0"] and r["parameters"].get("REGSET") == "RESET" for w, r in zip(wires, registers, strict=True))
    if not plain or not quiet:
        return None
    return Shared(clock=clocks.pop()[0], enable="1" if ce == "1" else enables.pop()[0], inverted=ce == "INV")


def _clock(cell: Cell, shared: Shared) -> bool:
    """Turn on the output register of a memory or a multiplier; False if it cannot be clocked so."""
    wires, parameters = cell["connections"], cell["parameters"]
    if cell["type"] == "DP16KD":
        if wires["CLKB"] != [shared.clock]:
            return False
        parameters |= {"REGMODE_B": "OUTREG", "OCEBMUX": "INV" if shared.inverted else "OCEB"}
        wires["OCEB"] = [shared.enable]
        return True
    if shared.inverted:
        return False
    parameters |= {"REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE0"}
    wires |= {"CLK0": [shared.clock], "CE0": [shared.enable], "RST0": ["0"]}
    cell["port_directions"] |= dict.fromkeys(("CLK0", "CE0", "RST0"), "input")
    return True
