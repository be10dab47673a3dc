# amaranth: UnusedElaboratable=no
"""Area, levels and frequency of tiny designs whose figures are known."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from sw.synth import area, levels, netlist, synthesize, timing
from sw.synth.cells import area_of
from sw.synth.levels import longest_path
from sw.synth.tools import ToolError, yosys
from sw.targets import DEVICES


class Function(wiring.Component):
    """``o`` is a registered function of the registered inputs ``a``."""

    def __init__(self, width: int, out: int, function: Callable[[Module, Signal], Any]) -> None:
        self.function = function
        super().__init__({"a": In(width), "o": Out(out)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal.like(self.a, reset_less=True)
        result = Signal.like(self.o, reset_less=True)
        m.d.sync += [held.eq(self.a), result.eq(self.function(m, held))]
        m.d.comb += self.o.eq(result)
        return m


def ram(depth: int, width: int, domain: str) -> Callable[[Module, Signal], Any]:
    def build(m: Module, a: Signal) -> Any:
        m.submodules.memory = memory = Memory(shape=width, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port(domain=domain)
        m.d.comb += [write.addr.eq(a[:10]), read.addr.eq(a[10:20]), write.data.eq(a[20:]), write.en.eq(1)]
        return read.data

    return build


XOR6 = Function(6, 1, lambda m, a: a.xor())
XOR12 = Function(12, 1, lambda m, a: a.xor())
ADDER = Function(16, 8, lambda m, a: a[:8] + a[8:])
PRODUCT = Function(32, 32, lambda m, a: a[:16].as_signed() * a[16:].as_signed())


def test_parity_of_six_bits_is_one_lut_and_of_twelve_two_levels() -> None:
    found = area(XOR6)
    assert (found.lut, found.ff, found.dsp, found.bram36) == (1, 7, 0, 0)
    assert levels(XOR6).levels == 1
    path = levels(XOR12)
    assert path.levels == 2 and path.start.startswith("held") and len(path.nets) == 3


def test_adder_is_a_lut_a_bit_and_carries_are_free() -> None:
    assert (area(ADDER).lut, levels(ADDER).levels) == (8, 1)
    assert area(ADDER, "ecp5").lut == 8


def test_multiplier_is_one_slice_on_both() -> None:
    assert (area(PRODUCT).dsp, area(PRODUCT, "ecp5").dsp) == (1, 1)
    assert area(PRODUCT).lut == 0 and levels(PRODUCT).levels == 0


def test_a_bare_multiplier_is_passed() -> None:
    around = Function(36, 1, lambda m, a: ((a[:16] ^ a[20:36]).as_signed() * a[16:32].as_signed())[20] ^ a[0])
    assert levels(around).levels == 2, "one LUT before, one behind"


def test_memories_count_as_what_they_are() -> None:
    assert area(Function(36, 16, ram(512, 16, "sync"))).bram36 == 0.5
    small = Function(26, 6, ram(32, 6, "comb"))
    assert area(small).lut >= 4, "RAM32M takes four LUTs"
    assert "RAM32M" in netlist(small, "xcup")
    assert levels(small).levels == 1


def test_synthesize_gives_all_and_is_cached() -> None:
    steps: list[str] = []
    first = synthesize(XOR6, XOR6, step=steps.append)
    assert first == synthesize(Function(6, 1, lambda m, a: a.xor()), XOR6), "the same content comes from the cache"
    assert first.fmax_ecp5 is not None and 150 < first.fmax_ecp5 < 1000
    assert steps == ["Yosys, xcup", "Yosys and nextpnr, ecp5"]


def test_what_does_not_fit_has_no_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "lfe5u-85f", replace(DEVICES["lfe5u-85f"], multipliers=0))
    assert timing(PRODUCT) is None


def cell(kind: str, ins: dict[str, list[int]], outs: dict[str, list[int]], **parameters: str) -> dict[str, Any]:
    ways = {**dict.fromkeys(ins, "input"), **dict.fromkeys(outs, "output")}
    return {"type": kind, "connections": {**ins, **outs}, "port_directions": ways, "parameters": parameters}


def module(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"cells": {f"c{k}": c for k, c in enumerate(cells)}, "netnames": {}}


def test_only_a_register_on_the_way_ends_a_path_in_a_dsp() -> None:
    def through(**registers: str) -> int:
        off = dict.fromkeys(("AREG", "BREG", "CREG", "MREG", "PREG"), "0")
        before, behind = cell("LUT1", {"I0": [1]}, {"O": [2]}), cell("LUT1", {"I0": [3]}, {"O": [4]})
        return longest_path(module(before, cell("DSP48E2", {"A": [2]}, {"P": [3]}, **off | registers), behind)).levels

    assert through() == 2
    assert [through(**{name: "1"}) for name in ("AREG", "MREG", "PREG")] == [1, 1, 1]
    assert [through(**{name: "1"}) for name in ("BREG", "CREG")] == [2, 2]


def test_carries_lead_upwards_only() -> None:
    last = cell("LUT1", {"I0": [5]}, {"O": [6]})
    first = cell("LUT1", {"I0": [1]}, {"O": [2]})

    def through(bit: int) -> int:
        selects = [9, 9]
        selects[bit] = 2
        carry = cell("CARRY4", {"CI": [9], "S": selects, "DI": [9, 9]}, {"O": [5, 7], "CO": [8, 8]})
        return longest_path(module(first, carry, last)).levels

    assert through(0) == 2 and through(1) == 1


def test_a_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="no combinational loop"):
        longest_path(module(cell("LUT1", {"I0": [2]}, {"O": [1]}), cell("LUT1", {"I0": [1]}, {"O": [2]})))


def test_unknown_cells_are_refused() -> None:
    assert area_of(["LUT6", "RAMB18E2", "FDRE", "CARRY4", "RAM64M8"]).lut == 9
    with pytest.raises(ValueError, match="whose cost is known, not 'URAM288'"):
        area_of(["URAM288"])


def test_a_failing_tool_says_why(tmp_path: Any) -> None:
    with pytest.raises(ToolError, match="nowhere"):
        yosys(["read_verilog nowhere.v"], tmp_path)
