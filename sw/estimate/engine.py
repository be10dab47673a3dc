"""The shared engine (hw/engine.py) as a structure: core, pools in front and behind, slabs of weights, requantizers."""
from __future__ import annotations

from hw.lib.finisher import PARAMETERS
from hw.lib.slab import parameter_depth, parameter_place, slab_depth
from hw.lib.spool import BLOCK, STAGED
from sw.engine import BYTE, EnginePlan, members, row_bits, weights_of
from sw.estimate.area import Structure, ram
from sw.estimate.parts import register
from sw.estimate.units import accumulators, dot
from sw.folding.fold import Fold, beats, packed
from sw.graph import Graph
from sw.ops import TensorType
from sw.ops.base import weight_range

#: Bits of an accumulator.
ACCUMULATOR = 24


def engine(graph: Graph, plan: EnginePlan) -> Structure:
    """The engine of ``plan``; each stream has its counters and its share of the multiplexer in front, and a register behind."""
    layers = members(graph, plan)
    products, rows, front, behind, convs = plan.pe * plan.simd, 0, 0, 0, []
    for name, (conv, after) in layers.items():
        convs.append(conv)
        x, y, place = graph.tensors[conv.inputs[0]].type, graph.tensors[after.outputs[0]].type, plan.places[name]
        rows = max(rows, beats(x.channels, plan.simd))
        if plan.store == "memory":
            continue
        front += place.tile * place.in_slots * beats(x.channels, plan.simd)
        behind += place.tile * place.out_slots * beats(y.channels, plan.simd)
    lanes = Fold(lanes_in=plan.simd, lanes_out=plan.pe, multiplier=plan.multiplier)
    pixel = TensorType(height=1, width=1, channels=1, bits=8, signed=False)
    least = weight_range(min(convs, key=lambda c: packed(c, pixel, lanes)).op)
    core = dot(least, BYTE, pixel.bits, plan.simd, plan.pe, plan.multiplier).parts
    sums = accumulators(plan.pe, ACCUMULATOR) + register(ACCUMULATOR * plan.pe, 1) + register(4 * products + 8 * plan.simd)
    count = len(layers) + len(plan.queues)
    if plan.store == "memory":
        front = behind = count * STAGED * BLOCK * plan.simd // plan.stream
    row = row_bits(plan.pe, plan.simd, weights_of(convs), plan.multiplier)
    pools = ram(8 * plan.stream, front) + ram(8 * plan.stream, behind) + slabs(plan, row, rows)
    streams = Structure(count * (40 + 3 * plan.stream), count * (40 + 8 * plan.stream))
    whole = core + sums + pools + streams + Structure(400 + 260 * plan.lanes, 500, plan.lanes)
    return whole + spool(plan, count + len(layers)) if plan.store == "memory" else whole


def slabs(plan: EnginePlan, row: int, rows: int) -> Structure:
    """hw.lib.slab.SlabLoader: a memory for every word of the bus that a row of weights of ``row`` bits takes; the parameters."""
    words = -(-plan.pe * PARAMETERS // plan.data_bits)
    total = ram(plan.data_bits, parameter_depth(words), parameter_place(words))
    for first in range(0, row, plan.data_bits):
        total += ram(min(plan.data_bits, row - first), slab_depth(rows))
    return total


def spool(plan: EnginePlan, queues: int) -> Structure:
    """What carries blocks to memory and back (hw/lib/spool.py): rings, counters, the queue before the port to write."""
    rings = ram(plan.data_bits, plan.operands) + ram(plan.data_bits, plan.results)
    counters = Structure()
    for _ in range(9):
        counters += ram(16, queues)
    return rings + counters + ram(plan.data_bits, 2 * BLOCK) + Structure(700, 1100)
