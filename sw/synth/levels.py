"""LUT levels of the longest path between registers, over Yosys' JSON netlist of the xcup family.

Yosys' own ``ltp`` counts every carry bit as a step. Here a LUT (also one used as memory, read through its address) counts 1, carry and
wide-multiplexer cells 0. Paths start at registers, block RAMs, pipelined DSPs and inputs, and end at the same and at
outputs; a DSP without registers on its way is passed at 0.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sw.synth.cells import LUTS

#: A bit of the netlist: a net's number, or "0", "1", "x" for constants.
Bit = int | str
LOGIC = re.compile(r"LUT[1-6]|LUT6_2|INV|MUXF[789]|BUFG|IBUF|OBUF")
SHIFTER = re.compile(r"SRLC?(16|32)E")
MEMORY = re.compile(r"RAM\d+(X\d+(S|D|SW|DR8)|M\d*)")
ADDRESS = re.compile(r"A\d*|ADDR[A-H]?|DPRA\d*|ADDR")


@dataclass(frozen=True, kw_only=True)
class LongestPath:
    """``levels`` LUTs between ``start`` and ``end``; ``nets``: what lies on the way, first to last."""

    levels: int
    start: str
    end: str
    nets: tuple[str, ...]


def register(cell: Mapping[str, Any], name: str) -> bool:
    """Whether a DSP48E2 has this register (the vendor's default is one)."""
    value = cell["parameters"].get(name, "1")
    return int(str(value), 2) > 0


def dsp_passes(cell: Mapping[str, Any], pin: str, out: str) -> bool:
    """Whether a DSP48E2 leads combinationally from an input pin to an output: no register of its own on the way."""
    if out in ("ACOUT", "BCOUT"):
        return pin in (out[0], f"{out[0]}CIN") and not register(cell, f"{out[0]}REG")
    if register(cell, "PREG"):
        return False
    multiplies = cell["parameters"].get("USE_MULT", "MULTIPLY") != "NONE"
    if pin in ("A", "ACIN", "B", "BCIN"):
        return not register(cell, f"{pin[0]}REG") and not (multiplies and register(cell, "MREG"))
    if pin == "D":
        return not (register(cell, "DREG") or register(cell, "ADREG") or register(cell, "MREG"))
    return pin in ("PCIN", "CARRYCASCIN", "MULTSIGNIN") or (pin == "C" and not register(cell, "CREG"))


def arcs(cell: Mapping[str, Any]) -> Iterator[tuple[Bit, list[Bit]]]:
    """Combinational arcs of a cell: each output bit with the input bits that it depends on. None for registers."""
    kind, pins, way = cell["type"], cell["connections"], cell["port_directions"]
    ins = [p for p in pins if way[p] == "input"]
    outs = [p for p in pins if way[p] == "output"]
    if kind in ("CARRY4", "CARRY8"):
        chain = [*pins.get("CI", []), *pins.get("CYINIT", []), *pins.get("CI_TOP", [])]
        for k in range(len(pins["S"])):
            yield from ((pins[o][k], [*chain, *pins["S"][: k + 1], *pins["DI"][: k + (o == "CO")]]) for o in outs)
        return
    if LOGIC.fullmatch(kind):
        through = ins
    elif MEMORY.fullmatch(kind) or SHIFTER.fullmatch(kind):
        through = [p for p in ins if ADDRESS.fullmatch(p)]
        outs = [p for p in outs if not p.startswith("Q31")]
    elif kind == "DSP48E2":
        for out in outs:
            feeding = [b for p in ins if dsp_passes(cell, p, out) for b in pins[p]]
            yield from ((bit, feeding) for bit in pins[out])
        return
    else:
        return
    feeding = [b for p in through for b in pins[p]]
    yield from ((bit, feeding) for p in outs for bit in pins[p])


def longest_path(module: Mapping[str, Any]) -> LongestPath:
    """The longest path of one flat module. ValueError if it has a combinational loop."""
    names = {bit: net for net, entry in module["netnames"].items() for bit in entry["bits"]}
    cost: dict[Bit, int] = {}
    feeds: dict[Bit, list[Bit]] = {}
    for cell in module["cells"].values():
        step = int(cell["type"] in LUTS)
        for bit, feeding in arcs(cell):
            cost[bit], feeds[bit] = step, [b for b in feeding if not isinstance(b, str)]
    arrival, before = _arrivals(cost, feeds)
    last = max(arrival, key=lambda bit: arrival[bit], default=None)
    if last is None:
        return LongestPath(levels=0, start="", end="", nets=())
    way = [last]
    while way[-1] in before:
        way.append(before[way[-1]])
    nets = tuple(str(names.get(bit, bit)) for bit in reversed(way))
    readers = [
        f"{name}.{pin}"
        for name, cell in module["cells"].items()
        for pin, bits in cell["connections"].items()
        if last in bits and cell["port_directions"][pin] == "input"
    ]
    return LongestPath(levels=arrival[last], start=nets[0], end=(readers or [nets[-1]])[0], nets=nets)


def _arrivals(cost: Mapping[Bit, int], feeds: Mapping[Bit, list[Bit]]) -> tuple[dict[Bit, int], dict[Bit, Bit]]:
    """LUTs up to each bit, and the bit before it on the longest way; an explicit stack, as chains are deeper than Python's."""
    arrival: dict[Bit, int] = {}
    before: dict[Bit, Bit] = {}
    open_: set[Bit] = set()
    for root in cost:
        stack = [root]
        while stack:
            bit = stack[-1]
            if bit in arrival:
                stack.pop()
                continue
            missing = [b for b in feeds.get(bit, ()) if b not in arrival]
            if missing and bit in open_:
                raise ValueError(f"netlist must have no combinational loop, but net {bit} lies on one")
            if missing:
                open_.add(bit)
                stack.extend(missing)
                continue
            best = max(feeds.get(bit, ()), key=lambda b: arrival[b], default=None)
            arrival[bit] = cost.get(bit, 0) + (arrival[best] if best is not None else 0)
            if best is not None:
                before[bit] = best
            stack.pop()
    return arrival, before
