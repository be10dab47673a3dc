"""What the cells of Yosys' netlists cost."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sw.estimate import Area

#: LUTs that a cell takes. Carry and wide-multiplexer cells are free; an inverter that Yosys leaves is a LUT.
LUTS: Mapping[str, int] = {
    **{f"LUT{k}": 1 for k in range(1, 7)}, "LUT6_2": 1, "INV": 1, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8,
    "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8,
    "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM64X8SW": 8, "RAM32X16DR8": 8,
    "CCU2C": 2, "TRELLIS_DPR16X4": 6,
}  # fmt: skip
FLIP_FLOPS = re.compile(r"FD[RSCP]E(_1)?|TRELLIS_FF|LD[CP]E")
DSPS = frozenset({"DSP48E2", "MULT18X18D", "ALU54B"})
#: Block memories in units of 36 kbit.
BLOCKS: Mapping[str, float] = {"RAMB36E2": 1.0, "RAMB18E2": 0.5, "DP16KD": 0.5, "PDPW16KD": 0.5}
#: Cells that cost nothing here: carries, wide multiplexers, buffers, notes.
FREE = re.compile(r"CARRY[48]|MUXF[789]|XORCY|MUXCY|BUFG|IBUF|OBUF|GND|VCC|PFUMX|L6MUX21|\$scopeinfo")


def area_of(cells: Iterable[str]) -> Area:
    """Sum over cell types; ValueError for one that is not known, rather than a count that is too low."""
    lut, ff, dsp, bram = 0, 0, 0, 0.0
    for kind in cells:
        if kind in LUTS:
            lut += LUTS[kind]
        elif FLIP_FLOPS.fullmatch(kind):
            ff += 1
        elif kind in DSPS:
            dsp += kind != "ALU54B"
        elif kind in BLOCKS:
            bram += BLOCKS[kind]
        elif not FREE.fullmatch(kind):
            raise ValueError(f"cell must be one whose cost is known, not {kind!r}")
    return Area(lut=lut, ff=ff, dsp=dsp, bram36=bram)
