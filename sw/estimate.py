"""First-order area of every unit, from its sizes alone.

Rules: a memory of at most 64 words or 4,096 bits is LUT RAM (a LUT6 holds 64 × 1 bits), a larger one block RAM in the aspect
ratio that takes fewest BRAM36; a convolution's product takes a share of a multiplier and the LUTs of LUT_A_PRODUCT; a depthwise one a
multiplier or, if soft, the LUTs of Booth's rows; a requantizer's product takes one DSP, two where the accumulator exceeds 26
bits; every data path bit is registered about twice. Only LUT_A_PRODUCT was fitted to synthesis: treat it as right within a factor, not
a percentage.
"""
from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from hw.lib.packing import signed_bits
from hw.params import Multiplier, RomKind
from sw.engine import ENGINE, EnginePlan, members, on_engine
from sw.folding.fold import Fold, beats, multipliers, packed, weight_range
from sw.graph import Graph, Node
from sw.ops import AveragePool, Concat, Conv, Deform, Depthwise, MaxPool, Multiply, Requant, Table, TensorType, Upsample

#: (width, depth) of a BRAM36 in simple dual-port mode.
ASPECTS = ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768))


@dataclass(frozen=True, kw_only=True)
class Area:
    """LUT6, flip-flops, DSP slices and BRAM36 (halves are BRAM18)."""

    lut: int = 0
    ff: int = 0
    dsp: int = 0
    bram36: float = 0.0

    def __add__(self, other: Area) -> Area:
        return Area(
            lut=self.lut + other.lut, ff=self.ff + other.ff, dsp=self.dsp + other.dsp, bram36=self.bram36 + other.bram36
        )

    def record(self) -> dict[str, float]:
        """Ready for JSON."""
        return dict(zip(("lut", "ff", "dsp", "bram36"), astuple(self), strict=True))


#: LUTs that a product takes besides its share of a multiplier (W4A8): measured by `warploom bench units --case core`.
LUT_A_PRODUCT: dict[Multiplier, float] = {
    "soft": 12, "inferred": 12, "packed27": 15, "packed18": 14, "dsp48e2": 8, "mult18x18d": 10,
}  # fmt: skip


def memory(width: int, depth: int, kind: RomKind = "auto") -> Area:
    """A memory of ``depth`` words."""
    if kind == "lut" or (kind == "auto" and (depth <= 64 or width * depth <= 4096)):
        return Area(lut=-(-depth // 64) * width)
    blocks = min(-(-width // w) * -(-depth // d) for w, d in ASPECTS)
    small = min(-(-width // (w // 2 or 1)) * -(-depth // d) for w, d in ASPECTS[1:]) / 2
    return Area(bram36=min(float(blocks), small))


def area(node: Node, types: list[TensorType], out: TensorType, fold: Fold) -> Area:
    """The unit of ``node``."""
    op, x = node.op, types[0]
    groups_in, groups_out = beats(x.channels, fold.lanes_in), beats(out.channels, fold.lanes_out)
    word = fold.lanes_in * x.bits
    pipeline = Area(lut=60, ff=60 + 2 * (word + fold.lanes_out * out.bits))
    if isinstance(op, Conv):
        bits = _weight_bits(op)
        products = fold.lanes_in * fold.lanes_out
        vector = op.window.taps * groups_in
        result = memory(products * bits, vector * groups_out, fold.memory) + memory(word, 2 * vector)
        result += Area(lut=round(products * LUT_A_PRODUCT[fold.multiplier]), ff=2 * round(products * LUT_A_PRODUCT[fold.multiplier]))
        if fold.multiplier == "soft":
            result += Area(lut=products * bits * x.bits // 2)
        # Accumulators, and the register that hands them out one after the other.
        result += Area(lut=2 * fold.lanes_out * out.bits, ff=2 * fold.lanes_out * out.bits, dsp=multipliers(node, x, fold))
        return result + pipeline + (_ring(op.window.kernel[0], x, fold) if op.window.taps > 1 else Area())
    if isinstance(op, Depthwise):
        bits = _weight_bits(op)
        macs = _macs(fold, bits, x.bits, out.bits)
        weights = memory(fold.lanes_out * fold.taps * bits, op.window.taps // fold.taps * groups_out)
        return pipeline + macs + _ring(op.window.kernel[0], x, fold) + weights
    if isinstance(op, Deform):
        bits, wide = _weight_bits(op), x.bits + 2 * op.frac_bits
        bilinear = 3 * op.frac_bits * wide
        macs = _macs(fold, bits, wide, out.bits) + Area(lut=fold.lanes_out * bilinear, ff=fold.lanes_out * 4 * wide)
        ring, row_words = Area(), -(-x.width // op.banks) * groups_in
        for _ in range(op.banks**2):
            ring += memory(word, op.ring(x).rows(op.banks) // op.banks * row_words)
        return pipeline + macs + ring + memory(fold.lanes_out * bits, op.weights.shape[0] ** 2 * groups_out)
    if isinstance(op, Requant):
        constants = memory(fold.lanes_out * 22, groups_out)
        dsp = fold.lanes_out * (2 if x.bits > 26 else 1)
        lut, ff = (25, 20) if fold.multiplier == "dsp48e2" else (60, 45)
        return pipeline + constants + Area(lut=fold.lanes_out * lut, ff=fold.lanes_out * ff, dsp=dsp)
    if isinstance(op, Multiply):
        return pipeline + Area(lut=fold.lanes_out * types[0].bits * types[1].bits)
    if isinstance(op, Table):
        rom = memory(out.bits, 1 << x.bits)
        return pipeline + Area(lut=rom.lut * fold.lanes_out, bram36=rom.bram36 * fold.lanes_out)
    if isinstance(op, MaxPool | AveragePool):
        return pipeline + _ring(op.window.kernel[0], x, fold) + Area(lut=fold.lanes_out * x.bits)
    if isinstance(op, Upsample):
        return pipeline + memory(word, x.width * groups_in)
    return pipeline + Area(lut=word if isinstance(op, Concat) else 0)


def engine(graph: Graph, plan: EnginePlan) -> Area:
    """The shared engine: core, pools in front and behind, slabs of weights, requantizers."""
    layers = members(graph, plan)
    products, rows, front, behind, convs = plan.pe * plan.simd, 0, 0, 0, []
    for name, (conv, after) in layers.items():
        x, y, place = graph.tensors[conv.inputs[0]].type, graph.tensors[after.outputs[0]].type, plan.places[name]
        rows = max(rows, beats(x.channels, plan.simd))
        front += place.tile * place.in_slots * beats(x.channels, plan.simd)
        behind += place.tile * place.out_slots * beats(y.channels, plan.simd)
        convs.append(conv)
    lanes = Fold(lanes_in=plan.simd, lanes_out=plan.pe, multiplier=plan.multiplier)
    worst = min(packed(c, TensorType(height=1, width=1, channels=1, bits=8, signed=False), lanes) for c in convs)
    luts = round(products * LUT_A_PRODUCT[plan.multiplier]) + 2 * 24 * plan.pe
    core = Area(lut=luts, ff=2 * products * 8, dsp=-(-plan.pe // worst) * plan.simd)
    pools = memory(8 * plan.simd, front) + memory(8 * plan.simd, behind) + memory(products * 4, 2 * rows)
    # Each stream: its counters and its share of the multiplexer in front; a register behind.
    streams = Area(lut=len(layers) * (40 + 3 * plan.simd), ff=len(layers) * (40 + 8 * plan.simd))
    return core + pools + streams + Area(lut=400 + 260 * plan.lanes, ff=500 + 24 * plan.pe, dsp=plan.lanes)


def _weight_bits(op: Any) -> int:
    return signed_bits(weight_range(op))


def _ring(rows: int, x: TensorType, fold: Fold) -> Area:
    return memory(fold.lanes_in * x.bits, rows * x.width * beats(x.channels, fold.lanes_in))


def network(
    graph: Graph, folds: dict[str, Fold], fifos: list[tuple[int, int]], plan: EnginePlan | None = None
) -> tuple[Area, dict[str, Area]]:
    """(total with the FIFOs of the given (width, depth), area of each node)."""
    shared = on_engine(graph, plan)
    alone = [n for n in graph.nodes if n.name not in shared]
    nodes = {n.name: area(n, graph.types(n.inputs), graph.tensors[n.outputs[0]].type, folds[n.name]) for n in alone}
    if plan and shared:
        nodes[ENGINE] = engine(graph, plan)
    total = Area()
    for part in nodes.values():
        total += part
    for width, depth in fifos:
        total += memory(width, depth) + Area(lut=20, ff=20)
    return total, nodes


def _macs(fold: Fold, bits: int, x_bits: int, out_bits: int) -> Area:
    """Products by taps and their sums; hw/lib/mac.py, or hw/lib/taps_mac.py with several taps a cycle."""
    lanes, products = fold.lanes_out, fold.lanes_out * fold.taps
    if fold.taps == 1 and fold.multiplier == "soft":
        rows = -(-bits // 2)
        return Area(lut=lanes * (rows * (x_bits + 2) + (rows - 1) * (x_bits + 4) + out_bits), ff=lanes * (rows * (x_bits + 3) + out_bits))
    if fold.taps == 1 and fold.multiplier == "dsp48e2":
        return Area(dsp=lanes)
    return Area(lut=lanes * fold.taps * out_bits, ff=products * (x_bits + bits) + lanes * out_bits, dsp=products)
