"""Compare PyTorch, golden and Verilog value by value at every tensor, and name the first difference."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sw import golden
from sw.detections import TENSOR, boxes_of, boxes_table, decoder, host_boxes
from sw.errors import WarploomError
from sw.graph import Graph, Node
from sw.ops import Array, Deform, narrowest
from sw.runtime.accelerator import Accelerator, Progress

#: Distinct offsets, both ends of the range among them, that a deformable layer must see for its comparison to prove anything.
DISTINCT_OFFSETS = 8
#: Frames that golden computes at once.
FRAMES = 4
_SAME = "are the frozen network and the ONNX file of the same run?"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: a tensor of ``left`` against the same tensor of ``right``."""

    tensor: str
    node: str
    left: str
    right: str
    shape: tuple[int, ...]
    values: int
    mismatches: int


@dataclass(kw_only=True)
class Verification:
    """What was compared, what was not and why, and the first difference; ``cycles``: first beat in and last beat out of each image;
    ``slowest``: see sw.runtime.accelerator.Result."""

    images: int
    rows: list[Row] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    first_mismatch: dict[str, Any] | None = None
    offsets: dict[str, dict[str, Any]] = field(default_factory=dict)
    cycles: list[tuple[int, int]] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def mismatches(self) -> int:
        """Values that differ, over all comparisons."""
        return sum(r.mismatches for r in self.rows)

    def record(self) -> dict[str, Any]:
        """The result, ready for JSON."""
        return {
            "images": self.images,
            "tensors_compared": len({r.tensor for r in self.rows}),
            "tensors_removed": len(self.removed),
            "values_compared": sum(r.values for r in self.rows),
            "mismatches": self.mismatches,
            "first_mismatch": self.first_mismatch,
            "offsets": self.offsets,
            "offsets_prove": all(o["proves"] for o in self.offsets.values()),
            "removed": [{"tensor": t, "reason": why} for t, why in self.removed.items()],
            "tensors": [asdict(r) for r in self.rows],
        }


def verify(
    graph: Graph,
    images: Array,
    torch_tensors: Mapping[str, npt.NDArray[np.float64]] | None,
    accelerator: Accelerator | None,
    progress: Progress | None = None,
) -> Verification:
    """Compare on ``images`` (N, H, W, C).

    ``torch_tensors``: every activation tensor of the frozen network by the file's names, real values (N, C, H, W);
    ``accelerator``: the Verilog. Either may be left out. Boxes from a decoder in the graph are compared with the host's (sw/decode.py) to
    the last bit of every coordinate and score. WarploomError if PyTorch has a tensor that no pass accounts for.
    """
    want = _golden(graph, images)
    result = Verification(images=len(images), offsets=offset_histograms(graph, want))
    order = {t: k for k, n in enumerate(graph.nodes) for t in n.outputs}
    differences: list[tuple[int, Row, npt.NDArray[Any], npt.NDArray[Any]]] = []

    def compare(tensor: str, name: str, left: str, right: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
        node = graph.producer(tensor)
        bad = a != b
        count = int(bad.sum())
        where = node.name if node else "image"
        row = Row(tensor=name, node=where, left=left, right=right, shape=a.shape[1:], values=a.size, mismatches=count)
        result.rows.append(row)
        if count:
            differences.append((order.get(tensor, -1), row, a, b))

    if torch_tensors is not None:
        _account(graph, torch_tensors, result)
        for name, real in torch_tensors.items():
            if name in graph.origins:
                origin = graph.origins[name]
                integers = origin.recover(want[origin.tensor].astype(np.int64))
                compare(origin.tensor, name, "torch", "golden", to_integers(graph, name, real), integers)
    if accelerator is not None:
        tensors = [t for n in graph.nodes for t in n.outputs]
        ran = accelerator.run(images, keep=tensors, progress=progress)
        got, result.cycles, result.slowest = ran.tensors, ran.cycles, ran.slowest
        for tensor in tensors:
            compare(tensor, tensor, "golden", "rtl", want[tensor], got[tensor])
    if decoder(graph) is not None:
        records, maker = (want, "golden") if accelerator is None else (got, "rtl")
        found = (boxes_table(graph, x) for x in (host_boxes(graph, want), boxes_of(graph, records[TENSOR])))
        compare(TENSOR, TENSOR, "host", maker, *found)
    if differences:
        _, row, a, b = min(differences, key=lambda d: d[0])
        result.first_mismatch = locate(graph, row, a, b, want)
    return result


def _golden(graph: Graph, images: Array) -> dict[str, Array]:
    """Golden's tensors, some frames at once, each in the narrowest type that holds it: large networks have many."""
    parts: dict[str, list[Array]] = {}
    for k in range(0, len(images), FRAMES):
        for name, values in golden.run(graph, images[k : k + FRAMES]).items():
            kind = graph.tensors[name].type
            if values.min() < kind.lowest or values.max() > kind.highest:
                raise WarploomError(f"golden's tensor {name!r} leaves {kind.lowest}..{kind.highest}: the compiler's types are wrong")
            parts.setdefault(name, []).append(values.astype(narrowest(kind.bits)))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _account(graph: Graph, torch_tensors: Mapping[str, Any], result: Verification) -> None:
    """Every PyTorch tensor is mapped or removed, and every mapped tensor is there."""
    for name in torch_tensors:
        if name in graph.removed:
            result.removed[name] = graph.removed[name]
        elif name not in graph.origins:
            raise WarploomError(f"PyTorch has a tensor {name!r} that the compiled model does not know; {_SAME}")
    missing = [n for n in graph.origins if n not in torch_tensors]
    if missing:
        raise WarploomError(f"PyTorch lacks the tensors {', '.join(missing[:5])} of the compiled model; {_SAME}")


def to_integers(graph: Graph, name: str, real: npt.NDArray[np.float64]) -> Array:
    """PyTorch's real values (N, C, H, W) of the file's tensor ``name`` as integers (N, H, W, C) of its scale.

    WarploomError if a value is not a whole number of units: then the network was not evaluated exactly.
    """
    units = np.moveaxis(real, 1, 3) / graph.tensors[graph.origins[name].tensor].scale_array()
    whole = np.rint(units)
    if not np.array_equal(units, whole):
        worst = float(np.abs(units - whole).max())
        raise WarploomError(f"PyTorch's tensor {name!r} is not whole in units of its scale (off by {worst:.2g}); evaluate it exactly")
    result: Array = whole.astype(np.int64)
    return result


def locate(graph: Graph, row: Row, a: npt.NDArray[Any], b: npt.NDArray[Any], want: Mapping[str, Array]) -> dict[str, Any]:
    """The first difference of a comparison: place, both values, and the inputs around it (golden's)."""
    image, y, x, channel = (int(v) for v in np.argwhere(a != b)[0])
    found = {
        "node": row.node,
        "tensor": row.tensor,
        "image": image,
        "row": y,
        "column": x,
        "channel": channel,
        row.left: a[image, y, x, channel].item(),
        row.right: b[image, y, x, channel].item(),
    }
    node = graph.producer(row.tensor) or next((n for n in graph.nodes if n.name == row.node), None)
    if node is not None:
        height, width = a.shape[1:3]
        found["op"] = node.op.name
        found["inputs"] = {t: _around(want[t][image], y, x, channel, height, width) for t in node.inputs}
    return found


def _around(value: Array, y: int, x: int, channel: int, height: int, width: int) -> list[list[list[int]]]:
    """3×3 pixels, at most 4 channels, around the place in an input that corresponds to (y, x) of a height×width output."""
    row, column = y * value.shape[0] // height, x * value.shape[1] // width
    first = min(channel, value.shape[2] - 1) // 4 * 4
    part = value[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, first : first + 4]
    result: list[list[list[int]]] = part.tolist()
    return result


def offset_histograms(graph: Graph, tensors: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """For every deformable layer: how often each offset code occurs, and whether that proves anything."""
    result = {}
    for node in graph.nodes:
        if isinstance(node.op, Deform):
            result[node.name] = _histogram(node, tensors[node.inputs[1]])
    return result


def _histogram(node: Node, offsets: Array) -> dict[str, Any]:
    assert isinstance(node.op, Deform)
    codes, counts = np.unique(offsets, return_counts=True)
    low, high = int(codes[0]) == node.op.low, int(codes[-1]) == node.op.high
    return {
        "steps_per_pixel": 1 << node.op.frac_bits,
        "low": node.op.low,
        "high": node.op.high,
        "distinct": len(codes),
        "proves": bool(low and high and len(codes) >= DISTINCT_OFFSETS),
        "histogram": [{"code": int(c), "count": int(n)} for c, n in zip(codes, counts, strict=True)],
    }
