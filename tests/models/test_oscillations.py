"""Weights that swing between two integers come to rest at the one where they were most of the time; others go on."""
from __future__ import annotations

import pytest
import torch

from models.oscillations import MOMENTUM, Oscillations
from models.quant_layers import QuantConv, quant_conv


class One(torch.nn.Module):
    """A layer of four weights with scale 1 (less what snapping adds) and weights of 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: QuantConv = quant_conv(torch.nn.Conv2d(4, 1, 1), 4)
        with torch.no_grad():
            self.layer.weight_quant.tensor_quant.scaling_impl.log2.fill_(0.0)
            self.layer.weight.zero_()

    def put(self, *values: float) -> None:
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(values).view(1, 4, 1, 1))

    def now(self) -> list[float]:
        return [round(float(w), 3) for w in self.layer.weight.detach().flatten()]


@pytest.mark.parametrize("phase", range(4))
def test_a_swinging_weight_is_held_where_it_was_mostly(phase: int) -> None:
    """Weight 0 is at 2 in three steps of four, weight 1 at 3; weight 2 only rises, weight 3 leaps once and returns.

    When the threshold is passed they are mostly there in some phases of the swing, and just not there in others.
    """
    model = One()
    model.put(2.0, 3.0, -7.0, 0.0)
    watch = Oscillations(model, 0.05 + 0.003 * phase, 400)
    for step in range(400):
        swing = step % 4 == 3
        model.put(2.6 if swing else 2.4, 2.4 if swing else 2.6, -7.0 + step / 40, 1.0 if step == 10 else 0.0)
        watch.update()
    assert model.now()[:2] == [2.0, 3.0], "held at the integer itself, whatever the optimizer does"
    assert model.now()[2:] == pytest.approx([2.975, 0.0])
    assert watch.share == 0.5


def test_held_weights_follow_their_scale() -> None:
    model = One()
    watch = Oscillations(model, 0.001, 10)
    for step in range(4):
        model.put(0.6 * (step % 2), 0.0, 0.0, 0.0)
        watch.update()
    assert watch.share == 0.25
    with torch.no_grad():
        model.layer.weight_quant.tensor_quant.scaling_impl.log2.fill_(-1.0)
    held = float(watch.state["layer"]["now"].flatten()[0])
    model.put(5.0, 0.2, 0.0, 0.0)
    watch.update()
    assert model.now() == [round(held * 0.5, 3), 0.2, 0.0, 0.0]


def test_the_threshold_falls() -> None:
    """One turn in 50 is not enough at first, and is at the end."""
    model = One()
    watch = Oscillations(model, 0.35 * MOMENTUM, 300)
    shares = []
    for step in range(300):
        model.put(float(step // 50 % 2), 0.0, 0.0, 0.0)
        watch.update()
        shares.append(watch.share)
    assert shares[110] == 0 and shares[-1] == 0.25
