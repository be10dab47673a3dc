"""Layers of the fake-quantized network on Brevitas': convolutions with quantized weights and biases, and the places of activations.

Layers get and give plain tensors; each knows the quantizers before and behind it, so that a bias finds its scale and every scale its floor.
"""
from __future__ import annotations

import brevitas.nn as qnn
import torch
from brevitas.quant import Int24Bias
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from models.ops.deform import SQUARE, SquareDeform, deform_conv
from models.ops.fake_quantize import fake_quantize_channels
from models.ops.pointwise import by_products
from models.quantizers import PowerOfTwo, Unsigned8, weight_quantizer

#: An integer bias stays below this.
BIAS_LIMIT = 2**22
#: A weight step is never less than this part of an output step times input step: finer ones only widen accumulators.
FINEST_LOG2 = -20


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
