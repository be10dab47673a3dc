"""Weights made to exercise the deformable units: a network whose offsets reach both ends of their range and many values between."""
from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.frozen import FrozenNetwork, Step, check, exact_conv
from models.quantizers import snap

#: Distinct offsets that every deformable layer must see.
DISTINCT = 8
_ATTEMPTS = 20


def exercise_offsets(network: FrozenNetwork, images: npt.NDArray[np.uint8], *, seed: int = 0) -> FrozenNetwork:
    """A copy of ``network`` with other offset convolutions: random 4-bit weights, bias and scale set so that on ``images`` (N, H, W, 3)
    every deformable layer sees at least DISTINCT offsets, -8 and 7 included. All other weights stay. The result passes ``check``.

    Raises ValueError if the images cannot do that: maps of a handful of pixels, or the same pixel everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    for deform in [step for step in network.steps if step.op == "deform"]:
        conv = next(step for step in network.steps if step.outputs == (deform.inputs[1],))
        x = network.codes(images)[conv.inputs[0]]
        for _ in range(_ATTEMPTS):
            changed = _with_random_offsets(network, conv, x, generator)
            offsets = torch.unique(changed.codes(images)[conv.outputs[0]])
            target = network.ranges[conv.outputs[0]]
            if len(offsets) >= DISTINCT and offsets[0] == target.low and offsets[-1] == target.high:
                network = changed
                break
        else:
            raise ValueError(f"{deform.name} sees fewer than {DISTINCT} offsets on these images; give it more varied ones")
    check(network)
    return network


def _with_random_offsets(network: FrozenNetwork, conv: Step, x: Tensor, generator: torch.Generator) -> FrozenNetwork:
    """Random weights for ``conv``; its range is mapped so that a twentieth of the pixels lies beyond either end."""
    name, target = conv.name, network.ranges[conv.outputs[0]]
    weight = torch.randint(-7, 8, network.integers[f"{name}.weight"].shape, generator=generator, dtype=torch.int8)
    acc = exact_conv(x, weight.double(), stride=1, pad=0, groups=1).flatten()
    low, middle, high = (float(acc.quantile(q)) for q in (0.05, 0.5, 0.95))
    reach = max(min(high - middle, middle - low), 1.0)
    factor = (target.largest + 1) / reach  # codes an accumulator step
    scale = torch.tensor([factor * 2.0 ** (network.ranges[conv.inputs[0]].exponent - target.exponent)])
    m, k = snap(scale)
    bias = torch.tensor([-round(middle)], dtype=torch.int32)
    changed = {f"{name}.weight": weight, f"{name}.bias": bias, f"{name}.m": m.int(), f"{name}.k": k.int()}
    return dataclasses.replace(network, integers=network.integers | changed)
