# amaranth: UnusedElaboratable=no
"""Every unit over parameters drawn at random: golden equality with stalls and at full rate, throughput and latency.

Hypothesis draws from fixed seeds, the same cases in every run; one Verilator build carries them all, the smallest of each unit also run in
the Amaranth simulator. A few of each in `make test`, many under the slow mark, where what must be covered is asserted. Either
run writes the table of what was covered to build/coverage/units.md.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.lib.join import Join
from hw.lib.regroup import Regroup
from hw.params import Multiplier, RomKind, Window
from hw.units.decode import DecodeUnit
from hw.units.depthwise import DepthwiseUnit
from sim.run import Case
from sw import ops
from sw.builders import BUILDERS
from sw.cache import ROOT
from sw.engine import lanes
from sw.folding.fold import Fold
from sw.ops import Array, Op, TensorType

FRAMES = 4
#: What the slow run must cover, of every unit that has the parameter.
WANTED: dict[str, set[Any]] = {
    "kernel": {3, 5, 7, 9}, "stride": {1, 2}, "dilation": {1, 2}, "signed": {True, False}, "taps": {"1", "K", "K·K"},
    "frac_bits": {0, 1, 2, 3, 4}, "free": {True, False}, "upsample": {1, 2, 4},
    "whole beats": {True, False}, "groups": {"1", "2-3", "4 or more"},
}  # fmt: skip
#: What a unit does not have: sums are signed, lanes divide the channels, the sizes drawn for the deformable unit.
EXCEPT: dict[tuple[str, str], set[Any]] = {
    ("requant", "signed"): {False}, ("split", "whole beats"): {False}, ("concat", "whole beats"): {False},
    ("decode", "whole beats"): {False}, ("deform", "kernel"): {7, 9},
    ("split", "groups"): {"1"}, ("concat", "groups"): {"4 or more"}, ("image", "groups"): {"4 or more"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A case and the parameters that the coverage counts."""

    unit: str
    case: Case
    parameters: dict[str, Any]


class Draw:
    """Draws of one case; ``turn`` counts the cases of a unit, so that what must be covered can take turns."""

    def __init__(self, data: Any, turn: int) -> None:
        self.data, self.turn = data, turn

    def __call__(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def pick(self, options: Sequence[Any], every: int = 1) -> Any:
        """The next of ``options``, each for ``every`` turns."""
        return options[self.turn // every % len(options)]


def kind(draw: Draw, *, height: int | None = None, width: int | None = None, channels: int | None = None, bits: int = 8) -> TensorType:
    """A map of activations of 2 to ``bits`` bits."""
    size = st.integers(1, 7)
    return TensorType(
        height=height or draw(size), width=width or draw(size), channels=channels or draw(st.integers(1, 9)),
        bits=draw(st.integers(2, bits)), signed=draw(st.booleans()),
    )  # fmt: skip


def frames(draw: Draw, *types: TensorType) -> tuple[Array, ...]:
    """Extremes in the first frame, then random ones."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    maps = [rng.integers(t.lowest, t.highest + 1, (FRAMES, *t.shape)) for t in types]
    for x, t in zip(maps, types, strict=True):
        x[0] = rng.choice([t.lowest, t.highest], t.shape)
    return tuple(maps)


def window(draw: Draw, kernels: tuple[int, ...] = (3, 5, 7, 9)) -> Window:
    """A square window, or now and then one of two sizes; padded to keep the size, or at random."""
    kernel = draw.pick([*((k, k) for k in kernels), (2, 3), (3, 1)])
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (2, 2)])) if max(kernel) < 7 else (1, 1)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    same = (reach[0] // 2, reach[1] // 2, (reach[0] + 1) // 2, (reach[1] + 1) // 2)
    pad = draw(st.one_of(st.just(same), st.tuples(*(st.integers(0, reach[k % 2] // 2) for k in range(4)))))
    return Window(kernel=kernel, stride=stride, dilation=dilation, pad=pad)


def fitting(draw: Draw, w: Window) -> TensorType:
    """A map on which the window fits."""
    least = [(k - 1) * d + 1 - a - b for k, d, a, b in zip(w.kernel, w.dilation, w.pad[:2], w.pad[2:], strict=True)]
    height, width = (draw(st.integers(max(n, 1), max(n, 1) + 5)) for n in least)
    return kind(draw, height=height, width=width)


def shape(x: TensorType, count: int) -> dict[str, Any]:
    """What every unit with channel groups has to cover."""
    groups = -(-x.channels // count)
    return {
        "signed": x.signed, "whole beats": x.channels % count == 0,
        "groups": "1" if groups == 1 else "2-3" if groups < 4 else "4 or more",
    }  # fmt: skip


def drawn(
    draw: Draw, op: Any, types: tuple[TensorType, ...], i: int, o: int | None = None, *, latency: int | None = None, unit: Any = None,
    multiplier: Multiplier = "inferred", memory: RomKind = "auto", **parameters: Any,
) -> Drawn:  # fmt: skip
    """The case of ``op`` as the compiler builds its unit, or of ``unit``."""
    (out, *_) = op.infer(*types)
    fold = Fold(lanes_in=i, lanes_out=o or i, multiplier=multiplier, memory=memory)
    unit = unit or BUILDERS[type(op)](op, types, lanes(types[0], i), lanes(out, o or i), fold)
    name = f"{op.name} {' and '.join(map(str, types))} by {i} {o or i} {parameters}"
    case = Case(name=name, unit=unit, op=op, inputs=frames(draw, *types), latency=latency)
    return Drawn(unit=op.name, case=case, parameters=shape(types[0], i) | parameters)


def weights(draw: Draw, *size: int) -> Array:
    """Weights of 2 to 8 bits, the most negative included."""
    bits = draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    return rng.integers(-(1 << bits - 1), 1 << bits - 1, size)


def bias(draw: Draw, count: int) -> Array:
    return np.random.default_rng(draw(st.integers(0, 99))).integers(-(1 << 12), 1 << 12, count)


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
    try:
        unit = DepthwiseUnit(**arguments, taps=taps, multiplier=multiplier)
    except ValueError as error:  # the only reason that is left
        assert taps > 1 and "pad must leave" in str(error)
        name, taps = "1", 1
        unit = DepthwiseUnit(**arguments)
    latency = first_window(x, w, -(-x.channels // count)) + (7 if multiplier in ("dsp48e2", "soft") else 8) if taps == 1 else None
    found = drawn(draw, op, (x,), count, unit=unit, latency=latency, **of(w), taps=name)
    return replace(found, parameters=found.parameters | {"multiplier": multiplier})


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


def some(make: Callable[[Draw], Drawn], count: int) -> list[Drawn]:
    """``count`` cases of one unit, the same in every run; the first is the simplest that there is."""
    return [_one(make, turn) for turn in range(count)]


def _one(make: Callable[[Draw], Drawn], turn: int) -> Drawn:
    found: list[Drawn] = []

    @seed(turn)
    @settings(max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(data: Any) -> None:
        found.append(make(Draw(data, turn)))

    collect()  # Hypothesis begins with the simplest example
    return found[-1 if turn else 0]


def examples(count: int, more: dict[str, int]) -> Iterator[Drawn]:
    """``count`` of each unit, other numbers of those named."""
    for make in UNITS:
        yield from some(make, more.get(make.__name__, count))


def covered(found: list[Drawn]) -> dict[str, dict[str, Counter[Any]]]:
    """How often each value of each parameter of each unit occurred."""
    result: dict[str, dict[str, Counter[Any]]] = {}
    for one in found:
        for name, value in one.parameters.items():
            result.setdefault(one.unit, {}).setdefault(name, Counter())[value] += 1
    return result


def report(found: list[Drawn], name: str) -> None:
    """Write the table."""
    lines = [f"# Parameters covered by {len(found)} drawn units ({name})", "", "| unit | parameter | value: cases |", "| --- | --- | --- |"]
    for unit, parameters in sorted(covered(found).items()):
        for parameter, values in sorted(parameters.items()):
            counts = ", ".join(f"{value}: {count}" for value, count in sorted(values.items(), key=lambda item: str(item[0])))
            lines.append(f"| {unit} | {parameter} | {counts} |")
    path = ROOT / "build" / "coverage" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def check(found: list[Drawn], check_units: Any) -> None:
    """The smallest case of each unit also in the Amaranth simulator (but a join, which has no clock)."""
    smallest: dict[str, Drawn] = {}
    for one in found:
        if one.unit == "join":
            continue
        best = smallest.get(one.unit)
        if best is None or one.case.frame_cycles < best.case.frame_cycles:
            smallest[one.unit] = one
    chosen = {id(one) for one in smallest.values()}
    check_units([replace_pysim(one.case) if id(one) in chosen else one.case for one in found])


def replace_pysim(case: Case) -> Case:
    return Case(
        name=case.name, unit=case.unit, op=case.op, inputs=case.inputs, pysim=True, interval=case.interval, latency=case.latency
    )


@pytest.mark.rtl
def test_units_drawn_at_random(check_units: Any) -> None:
    found = list(examples(2, {"depthwise": 4, "part": 4}))
    report(found, "units")
    check(found, check_units)


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_units_drawn_at_random(part: int, check_units: Any) -> None:
    """Four builds share them; all must together cover what is wanted."""
    found = list(examples(16, {"depthwise": 40, "deform": 24, "pool": 24}))
    report(found, "units_slow")
    seen = covered(found)
    for unit, parameters in seen.items():
        for name, values in parameters.items():
            missing = WANTED.get(name, set()) - set(values) - EXCEPT.get((unit, name), set())
            assert not missing, f"{unit}: no case has {name} in {missing}"
    check(found[part::4], check_units)
