"""The project's quantizers (DESIGN.md 3): power-of-two activation scales, weight scales m * 2^-k with m odd.

An activation's quantizer is Brevitas' proxy around ``PowerOfTwo``; a weight's is Brevitas' integer quantizer with ``SnappedScale``.
"""
from __future__ import annotations

from typing import Any

import torch
from brevitas import config
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.scaling import IntScaling
from brevitas.quant.base import IntQuant, NarrowIntQuant, UintQuant
from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver
from torch import Tensor, nn

from models.ops.fake_quantize import fake_quantize

#: Brevitas makes every quantizer anew when a state is loaded, unless told not to. The new ones would forget what is no part of the state
#: (ranges that are learned, a bypass), and an optimizer would go on with the scales of the old ones.
config.REINIT_ON_STATE_DICT_LOAD = False
#: The bits of m.
SCALE_BITS = 16


def snap(scale: Tensor) -> tuple[Tensor, Tensor]:
    """(m, k), float32 and int32, of the scale m * 2^-k next to ``scale`` > 0 with m odd and 2^15 < m < 2^16.

    Such an m has 16 bits exactly, so no product with an accumulator below 2^(s-1) is a tie when it is shifted right by s.
    """
    mantissa, exponent = torch.frexp(scale.float())
    m = 2 * (mantissa * 2 ** (SCALE_BITS - 1)).floor() + 1
    return m, SCALE_BITS - exponent


class _Snap(torch.autograd.Function):
    """The snapped scale; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        m, k = snap(scale)
        return torch.ldexp(m, -k)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class SnappedScale(nn.Module):
    """A learned scale per output channel, (OC, 1, 1, 1), not below ``floor``, snapped to m * 2^-k."""

    floor: Tensor

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.log2 = nn.Parameter(torch.full((out_channels, 1, 1, 1), -6.0))
        self.register_buffer("floor", torch.zeros(out_channels, 1, 1, 1))

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        snapped: Tensor = _Snap.apply(torch.maximum(torch.exp2(self.log2), self.floor))  # type: ignore[no-untyped-call]
        return snapped


class PowerOfTwo(nn.Module):
    """Fake quantization to ``bits`` with scale 2^-exponent, half to even: x to (value, scale, zero point, bit width), Brevitas' order.

    ``low`` and ``high`` narrow the integers' range. While ``observed`` is a list, values pass unchanged and a sample of them is kept in it.
    While ``free`` holds a parameter, the scale is 2 to that, learned and no power of two (``models.qat.FreeRanges``). With ``bypass``
    nothing is rounded; ``clamps`` says that the range is part of the network all the same (an offset's). ``relu``: a ReLU comes first.
    """

    exponent: Tensor

    def __init__(self, bit_width: int, signed: bool, start_exponent: int = 0, low: int | None = None, high: int | None = None) -> None:
        super().__init__()
        self.low = low if low is not None else -(2 ** (bit_width - 1)) if signed else 0
        self.high = high if high is not None else 2 ** (bit_width - signed) - 1
        self.bits, self.signed = bit_width, signed
        self.register_buffer("exponent", torch.tensor(start_exponent))
        self.observed: list[Tensor] | None = None
        self.free: list[nn.Parameter] = []
        self.bypass = self.clamps = self.relu = False

    @property
    def scale(self) -> float:
        return float(self.free[0].detach().exp2()) if self.free else float(2.0 ** -int(self.exponent))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value(x), torch.tensor(self.scale), torch.tensor(0.0), torch.tensor(float(self.bits))

    def value(self, x: Tensor) -> Tensor:
        """The fake-quantized x."""
        if self.relu and (self.observed is not None or self.bypass or self.free):
            x = torch.relu(x)
        if self.observed is not None:
            flat = x.detach().flatten()
            self.observed += [flat[:: max(1, len(flat) // 8192)], flat.aminmax().min.view(1), flat.aminmax().max.view(1)]
            return x
        if self.bypass:
            return x.clamp(self.low * self.scale, self.high * self.scale) if self.clamps else x
        if self.free:
            share = (x.numel() * self.high) ** -0.5  # LSQ's weight of the scale's gradient (Esser et al., arXiv 1902.08153)
            return torch._fake_quantize_learnable_per_tensor_affine(x, self.free[0].exp2(), torch.zeros(1), self.low, self.high, share)
        return fake_quantize(x, self.scale, self.low, self.high, relu=self.relu)

    def calibrate(self) -> None:
        """Choose the exponent with the least squared error over what was observed, and quantize from now on."""
        if not self.observed:
            raise ValueError("a quantizer must see values before it is calibrated; this one saw none")
        values = torch.cat(self.observed).double()
        self.observed = None
        largest = float(values.abs().max()) or 1.0  # a layer that is 0 everywhere gets a scale that its neighbours can live with
        top = int(torch.tensor(self.high / largest).log2().floor())
        errors = {}
        for exponent in range(top, top + 5):
            codes = (values * 2.0**exponent).round().clamp(self.low, self.high)
            errors[exponent] = float((codes * 2.0**-exponent - values).square().sum())
        self.exponent.fill_(min(errors, key=lambda e: (errors[e], e)))


class Weight4(NarrowIntQuant, WeightQuantSolver):
    """Signed, narrow, 4 bits: -7..7."""

    bit_width = 4
    scaling_impl = SnappedScale
    int_scaling_impl = IntScaling
    tensor_clamp_impl = TensorClamp


def weight_quantizer(bits: int) -> type[Weight4]:
    """Signed, narrow, 2 to 8 bits: -(2^(bits-1) - 1) .. 2^(bits-1) - 1."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits of weights must be in 2..8, not {bits!r}")
    return type(f"Weight{bits}", (Weight4,), {"bit_width": bits})


class Unsigned8(UintQuant, ActQuantSolver):
    """After a ReLU."""

    bit_width = 8
    tensor_quant = PowerOfTwo


class Signed8(IntQuant, ActQuantSolver):
    """Where no ReLU is."""

    bit_width = 8
    tensor_quant = PowerOfTwo


def activation_quantizer(bits: int, *, signed: bool) -> type[Unsigned8] | type[Signed8]:
    """An activation of 2 to 8 bits."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits of activations must be in 2..8, not {bits!r}")
    return type(f"{'S' if signed else 'Uns'}igned{bits}", (Signed8 if signed else Unsigned8,), {"bit_width": bits})


class Signed16(Signed8):
    """Outputs of the heads."""

    bit_width = 16


class Image8(Unsigned8):
    """Raw bytes / 256: nothing to learn."""

    start_exponent = 8


def offset_quantizer(frac_bits: int, low: int = -8, high: int = 7) -> type[Signed8]:
    """o in [low, high], at most [-8, 7], with ``frac_bits`` fraction bits."""
    one = 2**frac_bits
    settings: dict[str, Any] = {"bit_width": 4 + frac_bits, "start_exponent": frac_bits, "low": low * one, "high": high * one}
    settings |= {"min_val": float(low), "max_val": float(high)}  # of Brevitas' own Hardtanh, which the quantizer's range replaces
    return type("Offset", (Signed8,), settings)
