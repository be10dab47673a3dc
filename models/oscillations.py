"""Weights that swing between two integers while a quantized network is trained, and how they are brought to rest.

Nagel et al., "Overcoming oscillations in quantization-aware training" (arXiv 2203.11086), algorithm 1. The gradient that passes through
rounding drives a weight to the threshold between two integers and over it, back and forth, and with a small learning rate as well: which
of the two is exported is chance. A weight that changes direction often is held at the integer that it was at most of the time.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.quant_layers import QuantConv

#: How fast the frequency and the mean of the integers forget what they have seen, a step.
MOMENTUM = 0.01
#: The threshold falls to the chosen one from this multiple of it, along half a cosine: first only the wildest weights are held.
FIRST = 4.0


class Oscillations:
    """Follows the integer weights of every quantized layer of ``model``; ``update`` after each of ``steps`` optimizer steps.

    threshold: frequency (0 to 1) of changes against the direction of the one before, of a running mean, above which a weight is held
    from the last step on. Held weights stay at their integer times the layer's scale, which is still learned.
    """

    def __init__(self, model: nn.Module, threshold: float, steps: int) -> None:
        self.layers = {path: m for path, m in model.named_modules() if isinstance(m, QuantConv)}
        self.threshold, self.steps, self.step = threshold, steps, 0
        self.state: dict[str, dict[str, Tensor]] = {path: self._start(layer) for path, layer in self.layers.items()}

    @staticmethod
    def _scale(layer: QuantConv) -> Tensor:
        scale: Tensor = layer.weight_quant.tensor_quant.scaling_impl(layer.weight)
        return scale

    def _integers(self, layer: QuantConv) -> Tensor:
        limit = 2 ** (layer.weight_bits - 1) - 1
        whole: Tensor = (layer.weight / self._scale(layer)).round().clamp(-limit, limit)
        return whole

    @torch.no_grad()
    def _start(self, layer: QuantConv) -> dict[str, Tensor]:
        whole = self._integers(layer)
        nothing = {name: torch.zeros_like(whole) for name in ("direction", "frequency")}
        return nothing | {"now": whole, "mean": whole.clone(), "held": torch.zeros_like(whole, dtype=torch.bool)}

    @property
    def share(self) -> float:
        """Share of the weights that are held."""
        held = [s["held"] for s in self.state.values()]
        return sum(int(h.sum()) for h in held) / max(1, sum(h.numel() for h in held))

    def _limit(self) -> float:
        """The threshold at the present step."""
        done = min(1.0, self.step / max(1, self.steps))
        return self.threshold * (1 + (FIRST - 1) * (1 + math.cos(math.pi * done)) / 2)

    @torch.no_grad()
    def update(self) -> None:
        """Look at the weights as the optimizer has left them; put held ones back."""
        self.step += 1
        limit = self._limit()
        for path, layer in self.layers.items():
            s = self.state[path]
            if bool(s["held"].any()):
                layer.weight.copy_(torch.where(s["held"], s["now"] * self._scale(layer), layer.weight))
            whole = torch.where(s["held"], s["now"], self._integers(layer))
            change = (whole - s["now"]).sign()
            back = (change * s["direction"] < 0).to(whole.dtype)
            s["frequency"].lerp_(back, MOMENTUM)
            s["mean"].lerp_(whole, MOMENTUM)
            s["direction"] = torch.where(change != 0, change, s["direction"])
            newly = (s["frequency"] > limit) & ~s["held"]
            s["now"] = torch.where(newly, s["mean"].round(), whole)
            s["held"] |= newly
