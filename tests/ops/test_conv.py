# amaranth: UnusedElaboratable=no
"""Dense and pointwise convolution: hardware against golden."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.lib.fifo import Fifo
from hw.lib.matvec import MatVec
from hw.params import Lanes, Window
from hw.testing import run_streams
from hw.units.conv import ConvUnit
from sim.run import Case
from sw.ops import Conv, TensorType

POINT = Window()
SAME3 = Window(kernel=(3, 3), pad=(1, 1, 1, 1))


def case(
    name: str,
    shape: tuple[int, int, int],
    outputs: int,
    fold: tuple[int, int],
    window: Window = POINT,
    *,
    bits: tuple[int, int] = (8, 4),
    signed: bool = False,
    pysim: bool = False,
) -> Case:
    """``fold`` is (SIMD, PE), ``bits`` of activations and weights; extreme frames and rows reach the accumulator's bounds."""
    rng = np.random.default_rng(len(name))
    height, width, channels = shape
    kind = TensorType(height=height, width=width, channels=channels, bits=bits[0], signed=signed)
    lowest, highest = -(1 << bits[1] - 1), (1 << bits[1] - 1) - 1
    weights = rng.integers(lowest, highest + 1, (outputs, *window.kernel, channels))
    weights[0] = lowest
    weights[-1] = highest
    bias = rng.integers(-1000, 1000, outputs)
    x = rng.integers(kind.lowest, kind.highest + 1, (4, *shape))
    x[0], x[1] = kind.lowest, kind.highest
    op = Conv(weights=weights, bias=bias, window=window)
    (out,) = op.infer(kind)
    unit = ConvUnit(
        height=height, width=width, in_channels=channels, out_channels=outputs, window=window, weights=weights.tolist(), bias=bias.tolist(),
        i=Lanes(lanes=fold[0], bits=bits[0], signed=signed), o=Lanes(lanes=fold[1], bits=out.bits, signed=True),
    )  # fmt: skip
    return Case(name=name, unit=unit, op=op, inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("point_folded", (2, 3, 8), 8, (2, 4)),
        case("point_partly_filled", (2, 2, 7), 5, (4, 2), signed=True, pysim=True),
        case("point_one_fold", (2, 3, 6), 4, (3, 4)),
        case("point_one_cycle", (2, 3, 4), 3, (4, 3), signed=True),
        case("point_serial", (1, 2, 3), 4, (1, 1)),
        case("point_one_pixel", (1, 1, 16), 12, (16, 2)),
        case("point_one_beat", (3, 2, 5), 6, (8, 1)),
        case("point_two_bits", (1, 3, 9), 4, (9, 2), bits=(2, 2)),
        case("point_strided", (4, 5, 4), 2, (2, 2), Window(stride=(2, 2))),
    ])  # fmt: skip


@pytest.mark.rtl
def test_windowed_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("same", (3, 4, 4), 4, (2, 2), SAME3),
        case("same_partly_filled", (3, 3, 3), 3, (2, 2), SAME3, signed=True, pysim=True),
        case("stem", (6, 6, 3), 4, (3, 4), Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), bits=(8, 8)),
        case("stem_folded", (6, 8, 3), 4, (1, 2), Window(kernel=(3, 3), stride=(2, 2), pad=(0, 0, 1, 1))),
        case("valid", (4, 5, 2), 3, (2, 1), Window(kernel=(2, 3))),
        case("dilated", (5, 5, 2), 2, (2, 2), Window(kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2))),
        case("one_pixel", (1, 1, 2), 2, (1, 2), SAME3),
        case("patches", (4, 4, 3), 6, (3, 2), Window(kernel=(2, 2), stride=(2, 2))),
    ])  # fmt: skip


@pytest.mark.parametrize("simd", [1, 2, 5])
@pytest.mark.parametrize("outputs", [1, 2])
def test_latency_is_as_stated(simd: int, outputs: int) -> None:
    i, o = Lanes(lanes=simd, bits=4, signed=False), Lanes(lanes=1, bits=12, signed=True)
    unit = MatVec(weights=[[[1] * simd]] * outputs, bias=[7] * outputs, i=i, o=o)
    register = run_streams(Fifo(i, 1), {"i": [[3] * simd]}, {"o": [[3] * simd]}, p_in=1, p_out=1)  # latency 1
    cycles = run_streams(unit, {"i": [[3] * simd]}, {"o": [[7 + 3 * simd]] * outputs}, p_in=1, p_out=1)
    assert cycles - register == unit.latency - 1 + 2 * (outputs - 1), "a kept vector costs one cycle more, each further fold another"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": [0]}, "must have 2 rows, not 2 and 1"),
        ({"in_channels": 3}, r"weights must be \(OC, 1, 1, 3\)"),
        ({"o": Lanes(lanes=1, bits=8, signed=False)}, "o must be signed"),
        ({"bias": [0, 200]}, "hold the bias 0..200"),
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "height": 1, "width": 1, "in_channels": 1, "out_channels": 2, "window": POINT, "weights": [[[[1]]], [[[2]]]], "bias": [0, 0],
        "i": Lanes(lanes=1, bits=4, signed=False), "o": Lanes(lanes=1, bits=8, signed=True),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ConvUnit(**{**good, **change})
