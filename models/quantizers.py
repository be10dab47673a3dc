"""The project's quantizers (DESIGN.md 3) as Brevitas layers: power-of-two activation scales, weight scales m * 2^-k with m odd.

An activation's quantizer is Brevitas' proxy around ``PowerOfTwo``; a weight's is Brevitas' integer quantizer with ``SnappedScale``. Layers
get and give plain tensors; each knows the quantizers before and behind it, so that a bias finds its scale and every scale its floor.
"""
from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.scaling import IntScaling
from brevitas.quant import Int24Bias
from brevitas.quant.base import IntQuant, NarrowIntQuant, UintQuant
from brevitas.quant.solver.act import ActQuantSolver
from brevitas.quant.solver.weight import WeightQuantSolver
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from models.ops.deform import SQUARE, SquareDeform, deform_conv
from models.ops.fake_quantize import fake_quantize, fake_quantize_channels
from models.ops.pointwise import by_products

#: An integer bias stays below this.
BIAS_LIMIT = 2**22
#: A weight step is never less than this part of an output step times input step: finer ones only widen accumulators.
FINEST_LOG2 = -20
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


def quantizer_of(slot: nn.Module) -> PowerOfTwo:
    """The quantizer inside a Brevitas activation layer."""
    quantizer = slot.act_quant.fused_activation_quant_proxy.tensor_quant  # type: ignore[union-attr]
    assert isinstance(quantizer, PowerOfTwo)
    return quantizer


class LeanIdentity(qnn.QuantIdentity):
    """Brevitas' layer without its way through a dozen modules: the quantizer's value."""

    def forward(self, x: Tensor) -> Tensor:
        return quantizer_of(self).value(x)


class LeanReLU(qnn.QuantReLU):
    """The same with a ReLU, which the quantizer's lower end is."""

    def __init__(self, act_quant: type[Unsigned8]) -> None:
        super().__init__(act_quant=act_quant)
        quantizer_of(self).relu = True

    def forward(self, x: Tensor) -> Tensor:
        return quantizer_of(self).value(x)


class _Placed:
    """Between which quantizers a layer stands; set once by ``place``, in a tuple so that PyTorch does not own them twice."""

    neighbours: tuple[nn.Module, nn.Module]
    #: Compute with the float weights and bias.
    bypass = False

    def place(self, before: nn.Module, behind: nn.Module) -> None:
        self.neighbours = (before, behind)

    @property
    def input_quantizer(self) -> PowerOfTwo:
        return quantizer_of(self.neighbours[0])

    @property
    def output_quantizer(self) -> PowerOfTwo:
        return quantizer_of(self.neighbours[1])


class QuantConv(_Placed, qnn.QuantConv2d):
    """Convolution with quantized weights of ``weight_bits`` and a bias of 24 bits at accumulator scale."""

    weight_bits: int

    @torch.no_grad()
    def raise_floor(self) -> None:
        """Keep |bias| below BIAS_LIMIT steps and the weights' steps above FINEST."""
        before, behind = self.input_quantizer.scale, self.output_quantizer.scale
        floor: Tensor = self.weight_quant.tensor_quant.scaling_impl.floor
        finest = 2.0**FINEST_LOG2 * behind / before
        if self.bias is None:
            floor.fill_(finest)
            return
        floor.copy_((self.bias.abs() / (before * (BIAS_LIMIT - 512))).clamp(min=finest).view_as(floor))

    def parameters_quantized(self, x: Tensor) -> tuple[IntQuantTensor, IntQuantTensor]:
        """Weight and bias as Brevitas' quantized tensors; of x only the rank matters."""
        self.raise_floor()
        quantizer = self.input_quantizer
        signs = (torch.tensor(0.0), torch.tensor(float(quantizer.bits)), quantizer.signed, self.training)
        weight = self.weight_quant(self.weight)
        return weight, self.bias_quant(self.bias, IntQuantTensor(x, torch.tensor(quantizer.scale), *signs), weight)

    def values_quantized(self) -> tuple[Tensor, Tensor | None]:
        """What ``parameters_quantized`` holds, without Brevitas' way there, which took a third of a training step."""
        self.raise_floor()
        scale = self.weight_quant.tensor_quant.scaling_impl(self.weight)
        weight = fake_quantize_channels(self.weight, scale, 2 ** (self.weight_bits - 1) - 1)
        if self.bias is None:
            return weight, None
        step = scale.view(-1, 1) * self.input_quantizer.scale
        return weight, fake_quantize_channels(self.bias.view(-1, 1), step, 2**23 - 1).view(-1)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (self.weight, self.bias) if self.bypass else self.values_quantized()
        cheap = by_products(self, x, weight, bias)
        y: Tensor = self._conv_forward(x, weight, bias) if cheap is None else cheap
        return y


class QuantDeform(QuantConv):
    """Deformable depthwise convolution with quantized weights, and a bias where a batch norm was folded in. ``taps``: its offsets' kind."""

    taps = SQUARE

    def forward(self, x: Tensor, o: Tensor) -> Tensor:  # type: ignore[override]
        weight, bias = (self.weight, self.bias) if self.bypass else self.values_quantized()
        y = deform_conv(x, o, weight, groups=self.groups, taps=self.taps)
        return y if bias is None else y + bias.view(1, -1, 1, 1)


def quant_conv(conv: nn.Conv2d, bits: int) -> QuantConv:
    """``conv`` with quantizers and a bias, 0 if it has none."""
    quantized = QuantConv(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups=conv.groups, bias=True,
        weight_quant=weight_quantizer(bits), bias_quant=Int24Bias,
    )  # fmt: skip
    quantized.weight_bits = bits
    with torch.no_grad():
        quantized.weight.copy_(conv.weight)
        quantized.bias.copy_(conv.bias if conv.bias is not None else torch.zeros_like(quantized.bias))
    return quantized


def quant_deform(conv: SquareDeform, bits: int) -> QuantDeform:
    """``conv`` with quantizers."""
    c = conv.channels
    kind = {"weight_quant": weight_quantizer(bits)} | ({} if conv.bias is None else {"bias_quant": Int24Bias})
    quantized = QuantDeform(c, c, 3, padding=1, groups=c, bias=conv.bias is not None, **kind)
    quantized.taps, quantized.weight_bits = conv.taps, bits
    with torch.no_grad():
        quantized.weight.copy_(conv.weight)
        if conv.bias is not None:
            quantized.bias.copy_(conv.bias)
    return quantized


@torch.no_grad()
def start_scales(layer: QuantConv | QuantDeform, candidates: int = 40) -> None:
    """Give each output channel's weights the scale of least squared error; one (almost) without weights gets a scale that lets it learn."""
    weight = layer.weight.flatten(1)
    high = 2 ** (layer.weight_bits - 1) - 1
    largest = weight.abs().amax(1, keepdim=True)
    largest = largest.clamp(min=float(largest.max()) * 2**-8 or 2**-4)
    best, error = largest / high, torch.full_like(largest, float("inf"))
    for step in range(candidates):
        scale = largest / high * (1 - 0.6 * step / candidates)
        found = ((weight / scale).round().clamp(-high, high) * scale - weight).square().sum(1, keepdim=True)
        best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    scaling = layer.weight_quant.tensor_quant.scaling_impl
    scaling.log2.copy_(best.log2().view_as(scaling.log2))
