"""From head maps to boxes on the chip: the decoder behind the three heads of a CenterNet detector, and its records as boxes."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from sw.decode import Detections, decode, from_records, least_value
from sw.errors import CompileError
from sw.graph import Graph, Node, Tensor, infer, verify
from sw.ops import Array, Decode

#: Names of the node and of its records.
NODE, TENSOR = "decode", "detections"
#: Boxes a frame unless told otherwise, as in CenterNet, and the least score of one: average precision needs the long tail.
TOP_K, THRESHOLD = 100, 0.01


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes a frame, and the least score of one (0..1); the chip's register starts with that."""

    top_k: int = TOP_K
    threshold: float = THRESHOLD


def heads(graph: Graph) -> tuple[str, str, str] | None:
    """The tensors hm, wh and reg of a graph that is a CenterNet detector, with or without its decoder; None if it is none.

    They are its outputs, in this order: maps of one size, the last two of two channels, in units of a power of two.
    """
    node = decoder(graph)
    names = node.inputs if node is not None else graph.outputs
    if len(names) != 3:
        return None
    hm, wh, reg = (graph.tensors[t] for t in names)
    sizes = {(t.type.height, t.type.width) for t in (hm, wh, reg)}
    if len(sizes) > 1 or (wh.type.channels, reg.type.channels) != (2, 2) or len(set(hm.scale)) > 1:
        return None
    return (hm.name, wh.name, reg.name) if all(_frac_bits(t) is not None for t in (wh, reg)) else None


def decoder(graph: Graph) -> Node | None:
    """The node that decodes, if there is one."""
    return next((n for n in graph.nodes if isinstance(n.op, Decode)), None)


def _frac_bits(tensor: Tensor) -> int | None:
    """f where every channel counts in units of 2^-f; None where that is no whole number."""
    if len(set(tensor.scale)) > 1:
        return None
    top, bottom = tensor.scale[0].numerator, tensor.scale[0].denominator
    power = top & top - 1 == 0 and bottom & bottom - 1 == 0
    return bottom.bit_length() - top.bit_length() if power else None


def with_decoder(graph: Graph, boxes: Boxes) -> Graph:
    """The graph with its heads decoded: one output, the records of :class:`sw.ops.decode.Decode`, instead of three maps.

    The metadata ``threshold`` says from which score on. CompileError if the graph has no such heads, or no value of the heat map has
    that score.
    """
    names = heads(graph)
    if names is None:
        shapes = ", ".join(f"{t} ({graph.tensors[t].type})" for t in graph.outputs)
        raise CompileError(f"detections need the outputs hm, wh and reg of a CenterNet detector, this network has {shapes}")
    hm, wh, reg = (graph.tensors[t] for t in names)
    try:
        least = max(least_value(boxes.threshold, float(hm.scale[0])), hm.type.lowest)
        if least > hm.type.highest:
            raise ValueError(f"no value of {hm.name} reaches a score of {boxes.threshold}")
        op = Decode(top_k=boxes.top_k, least=math.ceil(least), wh_frac=_frac_bits(wh) or 0, reg_frac=_frac_bits(reg) or 0)
    except ValueError as error:
        raise CompileError(f"detections: {error}") from None
    node = Node(name=NODE, op=op, inputs=names, outputs=(TENSOR,), source=NODE)
    (kind,) = infer(node, graph.types(names))
    unit = Fraction(1, 1 << op.frac_bits)
    scale = (Fraction(1), Fraction(1), hm.scale[0], *[unit] * 4, Fraction(1))
    tensors = {**graph.tensors, TENSOR: Tensor(name=TENSOR, type=kind, scale=scale)}
    metadata = {**graph.metadata, "threshold": repr(boxes.threshold)}
    made = replace(graph.rebuilt((*graph.nodes, node), tensors=tensors), outputs=(TENSOR,), metadata=metadata)
    verify(made)
    return made


def stride(graph: Graph) -> int:
    """Input pixels an output pixel."""
    names = heads(graph)
    assert names is not None
    return graph.tensors[graph.inputs[0]].type.width // graph.tensors[names[0]].type.width


def boxes_of(graph: Graph, records: Array) -> list[Detections]:
    """The records of a graph's decoder as boxes in input pixels."""
    node = decoder(graph)
    assert node is not None and isinstance(node.op, Decode)
    scale = float(graph.tensors[node.inputs[0]].scale[0])
    return from_records(records, frac_bits=node.op.frac_bits, stride=stride(graph), scale=scale)


def host_boxes(graph: Graph, maps: Mapping[str, Array]) -> list[Detections]:
    """What the host's decoder (sw/decode.py) makes of the head maps, with the number of boxes and the threshold of the graph's decoder."""
    node = decoder(graph)
    assert node is not None and isinstance(node.op, Decode)
    scales = [float(graph.tensors[t].scale[0]) for t in node.inputs]
    hm, wh, reg = (maps[t].astype(np.int64) for t in node.inputs)
    threshold = float(graph.metadata["threshold"])
    return decode(hm, wh, reg, top_k=node.op.top_k, stride=stride(graph), threshold=threshold, scales=(scales[0], scales[1], scales[2]))


def boxes_table(graph: Graph, found: list[Detections]) -> npt.NDArray[np.float64]:
    """Boxes as numbers (N, boxes a frame, 1, 7): 1, label, score, x1, y1, x2, y2 in a row, 0 where there is none."""
    rows = np.zeros((len(found), graph.tensors[TENSOR].type.height, 1, 7))
    for n, each in enumerate(found):
        rows[n, : len(each.labels), 0] = np.column_stack([np.ones(len(each.labels)), each.labels, each.scores, each.boxes])
    return rows
