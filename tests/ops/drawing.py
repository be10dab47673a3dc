"""Cases drawn at random: maps, windows, weights, and the unit that the compiler would build."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hw.params import Multiplier, RomKind, Window
from sim.run import Case
from sw.builders import BUILDERS
from sw.engine import lanes
from sw.folding.fold import Fold
from sw.ops import Array, TensorType

#: Frames of a case.
FRAMES = 4


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
