"""Registers behind block RAM of an ECP5 moved into it: its data comes 5.8 ns after the clock, from its own output register 0.6 ns.

Yosys makes no use of those registers. A netlist is Yosys' JSON of a module: cells with parameters and connections, bits as numbers.
"""
from __future__ import annotations

import copy
from typing import Any

Cell = dict[str, Any]
#: A register's parameters that tell how it is clocked; all that stand behind one memory must agree.
CLOCKED = ("CEMUX", "CLKMUX", "LSRMUX")


def absorbed(module: dict[str, Any]) -> dict[str, Any]:
    """``module`` with every row of plain registers, if it alone reads port B of a block RAM, in that port's output register.

    The registers must share clock and enable, and have no reset (what they hold at the start is 0 in both). Computes the same, cycle by
    cycle. Other ports and partly registered ones stay as they are.
    """
    module = copy.deepcopy(module)
    cells: dict[str, Cell] = module["cells"]
    readers = _readers(module)
    for cell in [c for c in cells.values() if c["type"] == "DP16KD" and _plain(c)]:
        behind = [(port, bit, readers.get(bit, [])) for port, bit in _outputs(cell)]
        if any(len(names) != 1 for _, _, names in behind if names):
            continue
        names = {port: names[0] for port, _, names in behind if names}
        if names and (enable := _enable(cell, [cells.get(name, {}) for name in names.values()])) is not None:
            for port, name in names.items():
                cell["connections"][port] = cells.pop(name)["connections"]["Q"]
            inverted, bit = enable
            cell["parameters"] |= {"REGMODE_B": "OUTREG", "OCEBMUX": "INV" if inverted else "OCEB"}
            cell["connections"]["OCEB"] = [bit]
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
    """Whether a memory's port B reads without register or reset, by the clock as it is, and at most 18 bits (36 take the outputs of port A,
    whose registers have a clock of their own)."""
    parameters = cell["parameters"]
    narrow = int(parameters["DATA_WIDTH_B"], 2) <= 18
    return narrow and parameters["REGMODE_B"] == "NOREG" and parameters["CLKBMUX"] == "CLKB" and cell["connections"]["RSTB"] == ["0"]


def _outputs(cell: Cell) -> list[tuple[str, Any]]:
    """(port, bit) of all that port B gives."""
    names = [f"DOB{k}" for k in range(18)]
    return [(name, cell["connections"][name][0]) for name in names if cell["connections"].get(name)]


def _enable(memory: Cell, registers: list[Cell]) -> tuple[bool, Any] | None:
    """(whether inverted, the bit that enables all of ``registers``, "1" if nothing does); None unless they are alike, plain, and clocked
    like the memory."""
    if any(r.get("type") != "TRELLIS_FF" for r in registers):
        return None
    wires = [r["connections"] for r in registers]
    kinds = {tuple(str(r["parameters"].get(k, "")).strip() for k in CLOCKED) for r in registers}
    enables, clocks = {tuple(w.get("CE", ["1"])) for w in wires}, {tuple(w["CLK"]) for w in wires}
    (ce, clk, lsr), *others = kinds
    plain = not others and clk == "CLK" and lsr == "LSR" and ce in ("CE", "INV", "1") and len(enables) == 1
    quiet = all(w.get("LSR", ["0"]) == ["0"] and r["parameters"].get("REGSET") == "RESET" for w, r in zip(wires, registers, strict=True))
    if not plain or not quiet or clocks != {tuple(memory["connections"]["CLKB"])}:
        return None
    return (False, "1") if ce == "1" else (ce == "INV", enables.pop()[0])
