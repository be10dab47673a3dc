# amaranth: UnusedElaboratable=no
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hw.params import Lanes, Window
from hw.units.depthwise import DepthwiseUnit
from sim.run import Case
from sw.ops.base import Array, TensorType
from sw.ops.depthwise import Depthwise

SAME = Window(kernel=(3, 3), pad=(1, 1, 1, 1))


def depthwise(channels: int, window: Window, weight_bits: int = 4) -> Depthwise:
    rng = np.random.default_rng(channels)
    top = (1 << weight_bits - 1) - 1
    weights = rng.integers(-top, top + 1, (*window.kernel, channels))
    weights[..., 0], weights[..., -1] = top, -top
    return Depthwise(weights=weights, bias=rng.integers(-(1 << 12), 1 << 12, channels), window=window)


def unit(op: Depthwise, height: int, width: int, i: Lanes, **changes: Any) -> DepthwiseUnit:
    channels = op.weights.shape[2]
    (out,) = op.infer(TensorType(height=height, width=width, channels=channels, bits=i.bits, signed=i.signed))
    arguments = {
        "height": height, "width": width, "channels": channels, "window": op.window,
        "weights": op.weights.tolist(), "bias": op.bias.tolist(), "i": i, "o": Lanes(lanes=i.lanes, bits=out.bits, signed=True),
    }  # fmt: skip
    return DepthwiseUnit(**(arguments | changes))


def frames(height: int, width: int, channels: int, i: Lanes, count: int = 4) -> Array:
    """Frames of extremes, then random ones."""
    x: Array = np.random.default_rng(7).integers(i.lowest, i.highest + 1, (count, height, width, channels))
    x[0] = np.random.default_rng(8).choice([i.lowest, i.highest], x[0].shape)
    return x


def case(
    height: int, width: int, channels: int, window: Window, *, lanes: int, bits: int = 8, signed: bool = False, taps: int = 1,
    pysim: bool = False,
) -> Case:  # fmt: skip
    i = Lanes(lanes=lanes, bits=bits, signed=signed)
    op = depthwise(channels, window)
    name = f"{height}x{width}x{channels} by {lanes} {window.kernel} stride {window.stride} {taps} taps"
    return Case(name=name, unit=unit(op, height, width, i, taps=taps), op=op, inputs=(frames(height, width, channels, i),), pysim=pysim)


@pytest.mark.rtl
def test_units(check_units: Callable[..., None]) -> None:
    check_units([
        case(4, 5, 3, SAME, lanes=2, pysim=True),
        case(8, 8, 4, SAME, lanes=4, signed=True),
        case(7, 6, 5, Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), lanes=5),
        case(8, 8, 4, Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), lanes=1, bits=4),
        case(9, 7, 3, Window(kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2)), lanes=2, signed=True),
        case(6, 6, 7, Window(kernel=(3, 3)), lanes=3),
        case(6, 9, 2, Window(kernel=(2, 3), stride=(2, 1), pad=(0, 1, 0, 1)), lanes=1),
        case(5, 5, 6, Window(), lanes=4, signed=True),
        case(6, 6, 6, Window(stride=(2, 2)), lanes=4),
        case(1, 1, 2, SAME, lanes=1),
        case(6, 7, 9, Window(kernel=(5, 5), pad=(2, 2, 2, 2)), lanes=8),
    ])  # fmt: skip


def square(k: int, *, stride: int = 1, dilation: int = 1) -> Window:
    return Window(kernel=(k, k), stride=(stride, stride), dilation=(dilation, dilation), pad=(k // 2 * dilation,) * 4)


@pytest.mark.rtl
def test_several_taps_a_cycle(check_units: Callable[..., None]) -> None:
    check_units([
        case(4, 5, 3, SAME, lanes=2, taps=9, pysim=True),
        case(5, 4, 3, SAME, lanes=1, taps=3, pysim=True, signed=True),
        case(8, 8, 1, SAME, lanes=1, taps=9),  # one group: the weights are constants
        case(8, 8, 4, square(3, stride=2), lanes=1, taps=9, bits=4),
        case(8, 7, 5, square(3, stride=2), lanes=3, taps=3),
        case(9, 8, 2, square(5), lanes=1, taps=25, signed=True),
        case(6, 7, 3, square(5, dilation=2), lanes=2, taps=5),
        case(10, 9, 1, square(9, stride=2), lanes=1, taps=9),
        case(6, 6, 2, Window(kernel=(2, 3), pad=(0, 1, 0, 1)), lanes=2, taps=6),
    ])  # fmt: skip


def test_all_taps_at_once_takes_a_beat_a_cycle() -> None:
    """The second figure's depthwise layer: 9 multiplications a cycle at one channel a beat."""
    for stride in (1, 2):
        wide = unit(depthwise(32, square(3, stride=stride)), 16, 16, Lanes(lanes=1, bits=8, signed=False), taps=9)
        assert (wide.frame_cycles, wide.multipliers) == (16 * 16 * 32, 9)
    row = unit(depthwise(32, SAME), 16, 16, Lanes(lanes=1, bits=8, signed=False), taps=3)
    assert (row.frame_cycles, row.multipliers) == (16 * 16 * 32 * 3, 3)


def test_says_what_it_takes() -> None:
    x = Lanes(lanes=4, bits=8, signed=False)
    assert unit(depthwise(10, SAME), 6, 5, x).frame_cycles == 6 * 5 * 9 * 3
    assert unit(depthwise(10, SAME), 6, 5, x).multipliers == 4
    assert unit(depthwise(10, Window(stride=(2, 2))), 6, 6, x).frame_cycles == 6 * 6 * 3  # bound by its input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": 2}, "taps must be 1, 3 or 9"),
        ({"taps": 9, "o": Lanes(lanes=1, bits=20, signed=True)}, "o must be signed and have 2 lanes"),
        ({"taps": 9, "o": Lanes(lanes=2, bits=3, signed=True)}, "bias must fit 3 bits"),
        ({"bias": [0]}, "bias must have 4 entries, not 1"),
        ({"weights": [[[1] * 4]]}, "weights must be"),
        ({"weights": [[[1] * 3] * 3] * 3}, "weights must be"),
        ({"o": Lanes(lanes=1, bits=20, signed=True)}, "o must be signed and have 2 lanes"),
        ({"o": Lanes(lanes=2, bits=3, signed=True)}, "bias must fit 3 bits"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit(depthwise(4, SAME), 4, 4, Lanes(lanes=2, bits=8, signed=False), **changes)
