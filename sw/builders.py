# amaranth: UnusedElaboratable=no
"""How every operator becomes a unit."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hw.lib.deform_memory import DeformMemoryUnit
from hw.params import Lanes
from hw.units.add import AddUnit
from hw.units.average_pool import AveragePoolUnit
from hw.units.base import Unit
from hw.units.concat import ConcatUnit
from hw.units.conv import ConvUnit
from hw.units.decode import DecodeUnit
from hw.units.deform import DeformUnit
from hw.units.depthwise import DepthwiseUnit
from hw.units.global_average_pool import GlobalAveragePoolUnit
from hw.units.image import ImageUnit
from hw.units.max_pool import MaxPoolUnit
from hw.units.multiply import MultiplyUnit
from hw.units.requant import RequantUnit
from hw.units.shuffle import ShuffleUnit
from hw.units.split import SplitUnit
from hw.units.table import TableUnit
from hw.units.upsample import UpsampleUnit
from sw.engine import lanes
from sw.folding.fold import Fold
from sw.ops import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Decode,
    Deform,
    Depthwise,
    GlobalAveragePool,
    Image,
    MaxPool,
    Multiply,
    Op,
    Requant,
    Shuffle,
    Split,
    Table,
    TensorType,
    Upsample,
)


def _conv(op: Any, x: TensorType, i: Lanes, o: Lanes, fold: Fold) -> Unit:
    return ConvUnit(
        height=x.height,
        width=x.width,
        in_channels=x.channels,
        out_channels=len(op.weights),
        window=op.window,
        weights=op.weights.tolist(),
        bias=op.bias.tolist(),
        i=i,
        o=o,
        multiplier=fold.multiplier,
        memory=fold.memory,
    )


def _depthwise(op: Any, x: TensorType, i: Lanes, o: Lanes, fold: Fold) -> Unit:
    return DepthwiseUnit(
        height=x.height,
        width=x.width,
        channels=x.channels,
        window=op.window,
        weights=op.weights.tolist(),
        bias=op.bias.tolist(),
        i=i,
        o=o,
        taps=fold.taps,
        multiplier=fold.multiplier,
        lines=fold.lines,
        memory=fold.memory,
    )


def _requant(op: Any, x: TensorType, i: Lanes, o: Lanes, fold: Fold) -> Unit:
    return RequantUnit(
        height=x.height,
        width=x.width,
        channels=x.channels,
        multiplier=op.multiplier.tolist(),
        shift=op.shift.tolist(),
        low=op.low,
        high=op.high,
        rounding=op.rounding,
        i=i,
        o=o,
        multiplier_bits=18 if fold.multiplier in ("packed18", "mult18x18d") else None,
        slices=fold.multiplier in ("dsp48e2", "mult18x18d"),
    )


def _deform(op: Any, types: Sequence[TensorType], i: Lanes, o: Lanes, fold: Fold) -> Unit:
    x, offset = types
    if fold.place == "memory":
        return DeformMemoryUnit(
            height=x.height, width=x.width, channels=x.channels, weights=op.weights.tolist(), bias=op.bias.tolist(), frac_bits=op.frac_bits,
            low=op.low, high=op.high, base=op.base, free=op.free, i=i, offset=lanes(offset, 1 + op.free), o=o, data_bits=fold.data_bits,
        )  # fmt: skip
    return DeformUnit(
        height=x.height,
        width=x.width,
        channels=x.channels,
        weights=op.weights.tolist(),
        bias=op.bias.tolist(),
        frac_bits=op.frac_bits,
        low=op.low,
        high=op.high,
        base=op.base,
        free=op.free,
        upsample=op.upsample,
        i=i,
        offset=lanes(offset, 1 + op.free),
        o=o,
        multiplier=fold.multiplier,
    )


def _decode(op: Any, types: Sequence[TensorType], i: Lanes, fold: Fold) -> Unit:
    x, wh, reg = types
    (out,) = op.infer(*types)
    return DecodeUnit(
        height=x.height, width=x.width, channels=x.channels, top_k=op.top_k, cells=max(fold.cells, 1), least=op.least, wh_frac=op.wh_frac,
        reg_frac=op.reg_frac, i=i, wh=lanes(wh, 2), reg=lanes(reg, 2), o=lanes(out, out.channels),
    )  # fmt: skip


#: How each operator becomes a unit: (operator, input types, input beats, output beats, fold) -> unit.
BUILDERS: dict[type[Op], Callable[[Any, Sequence[TensorType], Lanes, Lanes, Fold], Unit]] = {
    Conv: lambda op, t, i, o, f: _conv(op, t[0], i, o, f),
    Depthwise: lambda op, t, i, o, f: _depthwise(op, t[0], i, o, f),
    Deform: lambda op, t, i, o, f: _deform(op, t, i, o, f),
    Requant: lambda op, t, i, o, f: _requant(op, t[0], i, o, f),
    MaxPool: lambda op, t, i, o, f: MaxPoolUnit(
        height=t[0].height, width=t[0].width, channels=t[0].channels, window=op.window, i=i, lines=f.lines
    ),
    Upsample: lambda op, t, i, o, f: UpsampleUnit(height=t[0].height, width=t[0].width, channels=t[0].channels, factor=op.factor, i=i),
    Split: lambda op, t, i, o, f: SplitUnit(height=t[0].height, width=t[0].width, sizes=op.sizes, i=i),
    Concat: lambda op, t, i, o, f: ConcatUnit(
        height=t[0].height, width=t[0].width, sizes=tuple(x.channels for x in t), interleave=op.interleave, i=i
    ),
    Add: lambda op, t, i, o, f: AddUnit(height=t[0].height, width=t[0].width, channels=t[0].channels, i=i),
    Multiply: lambda op, t, i, o, f: MultiplyUnit(
        height=t[0].height, width=t[0].width, channels=t[0].channels, a=i, b=lanes(t[1], i.lanes)
    ),
    AveragePool: lambda op, t, i, o, f: AveragePoolUnit(
        height=t[0].height, width=t[0].width, channels=t[0].channels, window=op.window, i=i, o=o
    ),
    GlobalAveragePool: lambda op, t, i, o, f: GlobalAveragePoolUnit(height=t[0].height, width=t[0].width, channels=t[0].channels, i=i, o=o),
    Table: lambda op, t, i, o, f: TableUnit(
        height=t[0].height, width=t[0].width, channels=t[0].channels, values=op.values.tolist(), i=i, o=o
    ),
    Image: lambda op, t, i, o, f: ImageUnit(height=t[0].height, width=t[0].width, channels=t[0].channels, order=op.order, pad=op.pad, i=i),
    Decode: lambda op, t, i, o, f: _decode(op, t, i, f),
    Shuffle: lambda op, t, i, o, f: ShuffleUnit(height=t[0].height, width=t[0].width, channels=t[0].channels, groups=op.groups, i=i),
}
