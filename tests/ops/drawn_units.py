# amaranth: UnusedElaboratable=no
"""A draw of each unit: its operator, maps, lanes, and the latency where it is known."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.lib.join import Join
from hw.lib.regroup import Regroup
from hw.params import LineBuffer, Multiplier, RomKind, Window
from hw.units.decode import DecodeUnit
from hw.units.depthwise import DepthwiseUnit
from sim.run import Case
from sw import ops
from sw.engine import lanes
from sw.ops import Array, Op, TensorType
from tests.ops.drawing import Draw, Drawn, bias, drawn, fitting, frames, kind, weights, window


def of(w: Window) -> dict[str, Any]:
    """The window's share of the coverage."""
    return {"kernel": w.kernel[0] if w.kernel[0] == w.kernel[1] else "other", "stride": w.stride[0], "dilation": w.dilation[0]}


def first_window(x: TensorType, w: Window, groups: int) -> int:
    """Cycles until a stage that reads a word a cycle, none before it has come, reads the last of the first window."""
    now = -1
    for i in range(w.kernel[0]):
        for j in range(w.kernel[1]):
            row, col = i * w.dilation[0] - w.pad[0], j * w.dilation[1] - w.pad[1]
            inside = 0 <= row < x.height and 0 <= col < x.width
            now = max(now + 1, (row * x.width + col) * groups if inside else 0)
    return now


def conv(draw: Draw) -> Drawn:
    w = draw(st.sampled_from([Window(), Window(stride=(2, 2)), window(draw, (3, 5))]))
    x, outputs = fitting(draw, w), draw(st.integers(1, 6))
    op = ops.Conv(weights=weights(draw, outputs, *w.kernel, x.channels), bias=bias(draw, outputs), window=w)
    simd, pe = draw(st.integers(1, x.channels)), draw(st.integers(1, outputs))
    kinds = draw.pick(get_args(Multiplier)), draw.pick(get_args(RomKind), 2)
    found = drawn(draw, op, (x,), simd, pe, multiplier=kinds[0], memory=kinds[1], stride=w.stride[0], pe="1" if pe == 1 else "more")
    return replace(found, parameters=found.parameters | dict(zip(("multiplier", "memory"), kinds, strict=True)))


def depthwise(draw: Draw) -> Drawn:
    w = window(draw)
    x = fitting(draw, w)
    op = ops.Depthwise(weights=weights(draw, *w.kernel, x.channels), bias=bias(draw, x.channels), window=w)
    (out,) = op.infer(x)
    count, (name, taps) = draw(st.integers(1, x.channels)), draw.pick([("1", 1), ("K", w.kernel[1]), ("K·K", w.taps)], 6)
    arguments: dict[str, Any] = {
        "height": x.height, "width": x.width, "channels": x.channels, "window": w, "weights": op.weights.tolist(),
        "bias": op.bias.tolist(), "i": lanes(x, count), "o": lanes(out, count),
    }  # fmt: skip
    multiplier: Multiplier = draw.pick(["inferred", "dsp48e2", "mult18x18d", "soft"]) if taps == 1 else "inferred"
    lines: LineBuffer = "paged" if taps == 1 and draw.turn % 2 else "ring"
    try:
        unit = DepthwiseUnit(**arguments, taps=taps, multiplier=multiplier, lines=lines)
    except ValueError as error:  # the only reasons that are left
        assert (taps > 1 and "pad must leave" in str(error)) or (lines == "paged" and "no paged line buffer" in str(error))
        name, taps, lines = "1", 1, "ring"
        unit = DepthwiseUnit(**arguments, multiplier=multiplier)
    known = taps == 1 and lines == "ring"
    latency = first_window(x, w, -(-x.channels // count)) + (7 if multiplier in ("dsp48e2", "soft") else 8) if known else None
    found = drawn(draw, op, (x,), count, unit=unit, latency=latency, **of(w), taps=name)
    return replace(found, parameters=found.parameters | {"multiplier": multiplier, "lines": lines})


def deform(draw: Draw) -> Drawn:
    x, frac_bits, free = kind(draw), draw.pick(range(5)), draw.pick([False, True], 5)
    size = draw(st.sampled_from([3, 3, 5]))
    low, high = (n << frac_bits for n in (-draw(st.integers(0, 4)), draw(st.integers(0, 4))))
    base, upsample = None if free else draw(st.sampled_from([None, 0])), draw.pick([1, 2, 1, 4])
    op = ops.Deform(
        weights=weights(draw, size, size, x.channels), bias=bias(draw, x.channels), frac_bits=frac_bits, low=low, high=high,
        free=free, base=base, upsample=upsample,
    )  # fmt: skip
    large = replace(x, height=x.height * upsample, width=x.width * upsample)
    offset = replace(large, channels=op.offsets, bits=4 + frac_bits, signed=True)  # wider than low..high: it saturates
    return drawn(draw, op, (x, offset), draw(st.integers(1, x.channels)), kernel=size, frac_bits=frac_bits, free=free, upsample=upsample)


def requant(draw: Draw) -> Drawn:
    x = replace(kind(draw), bits=draw(st.integers(8, 24)), signed=True)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    multiplier = rng.integers(1 << 14, 1 << 15, x.channels) * 2 + 1
    op = ops.Requant(
        multiplier=multiplier, shift=rng.integers(x.bits, x.bits + 12, x.channels), low=-100, high=127, bits=8, signed=True,
        rounding=draw(st.sampled_from(["half_up", "half_even", "floor"])),
    )  # fmt: skip
    return drawn(draw, op, (x,), draw(st.integers(1, x.channels)), rounding=op.rounding)


def pool(draw: Draw) -> Drawn:
    w = window(draw)
    x = fitting(draw, w)
    op: Op = draw.pick([ops.MaxPool(window=w), ops.AveragePool(window=w)], 6)
    count = draw(st.integers(1, x.channels))
    latency = first_window(x, w, -(-x.channels // count)) + 5
    return drawn(draw, op, (x,), count, latency=latency, **of(w))


def global_average_pool(draw: Draw) -> Drawn:
    x = kind(draw)
    count = draw(st.integers(1, x.channels))
    last = (x.pixels - 1) * -(-x.channels // count)  # the first channel's last beat
    return drawn(draw, ops.GlobalAveragePool(), (x,), count, latency=last + 1)


def upsample(draw: Draw) -> Drawn:
    x, factor = kind(draw), draw(st.integers(2, 4))
    return drawn(draw, ops.Upsample(factor=factor), (x,), draw(st.integers(1, x.channels)), factor=factor)


def split(draw: Draw) -> Drawn:
    count = draw(st.integers(1, 3))
    sizes = tuple(count * n for n in draw(st.lists(st.integers(1, 3), min_size=2, max_size=4)))
    return drawn(draw, ops.Split(sizes=sizes), (kind(draw, channels=sum(sizes)),), count, latency=1, parts=len(sizes))


def concat(draw: Draw) -> Drawn:
    count, interleave, x = draw(st.integers(1, 3)), draw(st.booleans()), kind(draw)
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    types = tuple(replace(x, channels=count * (sizes[0] if interleave else n)) for n in sizes)
    op = ops.Concat(interleave=interleave)
    return drawn(draw, op, types, count, latency=2 if interleave else 1, parts=len(types), interleave=interleave)


def shuffle(draw: Draw) -> Drawn:
    groups = draw(st.integers(2, 4))
    x = kind(draw, channels=groups * draw(st.integers(1, 4)))
    return drawn(draw, ops.Shuffle(groups=groups), (x,), draw(st.integers(1, x.channels)), shuffled=groups)


def arithmetic(draw: Draw) -> Drawn:
    a = kind(draw)
    count = draw(st.integers(1, a.channels))
    if draw.pick([True, False]):
        return drawn(draw, ops.Add(), (a, a), count, latency=1)
    b = kind(draw, height=a.height, width=a.width, channels=a.channels)
    return drawn(draw, ops.Multiply(), (a, b), count, latency=3)


def table(draw: Draw) -> Drawn:
    x = kind(draw)
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(-128, 128, 1 << x.bits)
    return drawn(draw, ops.Table(values=values, low=x.lowest, bits=8, signed=True), (x,), draw(st.integers(1, x.channels)), latency=1)


def image(draw: Draw) -> Drawn:
    order, pad = draw.pick(["rgb", "bgr"], 3), draw(st.tuples(*[st.integers(0, 3)] * 4))
    x = kind(draw, channels=3)
    count = 3 if order == "bgr" else draw.pick([3, 1, 2])
    return drawn(draw, ops.Image(order=order, pad=pad), (x,), count, order=order, padded=any(pad))


def decode(draw: Draw) -> Drawn:
    hm = kind(draw)
    wh, reg = (kind(draw, height=hm.height, width=hm.width, channels=2) for _ in range(2))
    op = ops.Decode(
        top_k=draw(st.integers(1, 12)), least=draw(st.integers(hm.lowest, hm.highest)), wh_frac=draw(st.integers(-1, 6)),
        reg_frac=draw(st.integers(-1, 6)),
    )  # fmt: skip
    (out,) = op.infer(hm, wh, reg)
    unit = DecodeUnit(
        height=hm.height, width=hm.width, channels=hm.channels, top_k=op.top_k, cells=draw(st.integers(1, 8)), least=op.least,
        wh_frac=op.wh_frac, reg_frac=op.reg_frac, i=lanes(hm, 1), wh=lanes(wh, 2), reg=lanes(reg, 2), o=lanes(out, 8),
    )  # fmt: skip
    return drawn(draw, op, (hm, wh, reg), 1, unit=unit, top_k=op.top_k)


class Moves:
    """Golden of the parts that know no frames: copies of the input, or the inputs side by side."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (np.concatenate(inputs, axis=-1),) * self.outputs


def part(draw: Draw) -> Drawn:
    """FIFO, fork, join, gearbox."""
    which, x = draw.pick(["fifo", "fork", "join", "regroup"]), kind(draw, height=3)
    word = lanes(x, x.channels)
    n = draw(st.integers(1, 4))
    outputs, inputs, latency, parameters = 1, 1, 0, {"signed": x.signed}
    unit: Any
    if which == "fifo":
        style, depth = draw(st.sampled_from(["auto", "registers", "lut", "block"])), draw(st.integers(1, 20))
        unit, parameters["kind"], latency = Fifo(word, depth, style), style, 1 if depth < 3 or style == "registers" else 2
    elif which == "fork":
        unit, outputs = Fork(word, n), n
    elif which == "join":
        unit, inputs = Join(word, n), n
    else:
        i, o = draw(st.integers(1, x.channels)), draw(st.integers(1, x.channels))
        # From wide to narrow a register slice adds a cycle.
        unit, latency = Regroup(channels=x.channels, i=lanes(x, i), o_lanes=o, pixels=x.pixels), -(-min(o, x.channels) // i) + (i % o == 0)
        parameters |= {"wider": o > i}
    maps = frames(draw, *(replace(x, height=x.height) for _ in range(inputs)))
    interval = None if which == "regroup" else x.pixels
    case = Case(name=f"{which} {x} {parameters} {n}", unit=unit, op=Moves(outputs), inputs=maps, interval=interval, latency=latency)  # type: ignore[arg-type]
    return Drawn(unit=which, case=case, parameters=parameters)


UNITS: tuple[Callable[[Draw], Drawn], ...] = (
    conv, depthwise, deform, requant, pool, global_average_pool, upsample, split, concat, shuffle, arithmetic, table, image, decode, part,
)  # fmt: skip
