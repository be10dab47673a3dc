"""Which registers move into block RAM, and which must not."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sw.synth.outreg import absorbed

Change = Callable[[dict[str, Any]], None]


def module() -> dict[str, Any]:
    """A block RAM whose two bits (10, 11) are read by registers (20, 21) enabled by bit 5; clock 2."""
    ram = {f"DOB{k}": [10 + k] if k < 2 else [90 + k] for k in range(18)}
    parameters = {"DATA_WIDTH_B": f"{18:032b}", "REGMODE_B": "NOREG", "CLKBMUX": "CLKB"}
    wires: dict[str, Any] = {**ram, "CLKB": [2], "OCEB": ["1"], "RSTB": ["0"]}
    cells = {"ram": {"type": "DP16KD", "parameters": parameters, "connections": wires, "port_directions": {p: "output" for p in ram}}}
    for k in range(2):
        cells[f"ff{k}"] = {
            "type": "TRELLIS_FF",
            "parameters": {"CEMUX": "CE", "CLKMUX": "CLK", "LSRMUX": "LSR", "GSR": "DISABLED", "REGSET": "RESET"},
            "connections": {"CLK": [2], "CE": [5], "LSR": ["0"], "DI": [10 + k], "Q": [20 + k]},
            "port_directions": {"CLK": "input", "CE": "input", "LSR": "input", "DI": "input", "Q": "output"},
        }
    return {"ports": {"clk": {"direction": "input", "bits": [2]}, "o": {"direction": "output", "bits": [20, 21]}}, "cells": cells}


def test_a_row_of_plain_registers_moves() -> None:
    before = module()
    after = absorbed(before)
    assert before == module(), "the netlist that came is not changed"
    (ram,) = after["cells"].values()
    assert ram["parameters"]["REGMODE_B"] == "OUTREG" and ram["parameters"]["OCEBMUX"] == "OCEB" and ram["connections"]["OCEB"] == [5]
    assert ram["connections"]["DOB0"] == [20] and ram["connections"]["DOB1"] == [21]


def test_registers_that_are_always_enabled_move() -> None:
    free = module()
    for k in range(2):
        free["cells"][f"ff{k}"]["parameters"]["CEMUX"] = "1 "
        del free["cells"][f"ff{k}"]["connections"]["CE"]
    assert absorbed(free)["cells"]["ram"]["connections"]["OCEB"] == ["1"]


def test_an_inverted_enable_stays_inverted() -> None:
    inverted = module()
    for k in range(2):
        inverted["cells"][f"ff{k}"]["parameters"]["CEMUX"] = "INV"
    ram = absorbed(inverted)["cells"]["ram"]
    assert ram["connections"]["OCEB"] == [5] and ram["parameters"]["OCEBMUX"] == "INV"


def _ff(key: str, value: Any, part: str = "connections") -> Change:
    return lambda m: m["cells"]["ff1"][part].update({key: value})


@pytest.mark.parametrize("change", [
    _ff("CE", [6]), _ff("CLK", [3]), _ff("LSR", [7]), _ff("REGSET", "SET", "parameters"), _ff("CEMUX", "INV", "parameters"),
    lambda m: m["ports"]["o"]["bits"].append(10),
    lambda m: m["cells"].update({"lut": {"type": "LUT4", "connections": {"A": [11]}, "port_directions": {"A": "input"}}}),
    lambda m: m["cells"]["ram"]["parameters"].update({"DATA_WIDTH_B": f"{36:032b}"}),
    lambda m: m["cells"]["ram"]["connections"].update({"RSTB": [8]}),
    lambda m: m["cells"]["ff1"].update({"type": "LUT4"}),
], ids=["enable", "clock", "reset", "set", "one inverted", "port", "second reader", "36 bits", "memory reset", "no register"])  # fmt: skip
def test_others_stay(change: Change) -> None:
    other = module()
    change(other)
    assert absorbed(other) == other


def multiplier(**parameters: str) -> dict[str, Any]:
    """The same registers behind a multiplier; most of its outputs nobody reads."""
    found = module()
    outs = {f"P{k}": [10 + k] if k < 2 else [90 + k] for k in range(36)}
    directions = dict.fromkeys(outs, "output")
    found["cells"]["ram"] = {"type": "MULT18X18D", "parameters": parameters, "connections": outs, "port_directions": directions}
    return found


def test_registers_move_into_a_multiplier() -> None:
    (slice_,) = absorbed(multiplier(REG_PIPELINE_CLK="NONE"))["cells"].values()
    assert slice_["parameters"]["REG_OUTPUT_CLK"] == "CLK0" and slice_["parameters"]["REG_OUTPUT_CE"] == "CE0"
    assert [slice_["connections"][p] for p in ("P0", "P1", "CLK0", "CE0", "RST0")] == [[20], [21], [2], [5], ["0"]]
    assert slice_["port_directions"]["CE0"] == "input"


def test_multipliers_that_have_registers_stay() -> None:
    other = multiplier(REG_INPUTA_CLK="CLK0")
    assert absorbed(other) == other


def test_an_enable_that_a_multiplier_cannot_invert_stays() -> None:
    inverted = multiplier()
    for k in range(2):
        inverted["cells"][f"ff{k}"]["parameters"]["CEMUX"] = "INV"
    assert absorbed(inverted) == inverted
