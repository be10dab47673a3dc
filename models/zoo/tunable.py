"""Tunable convolutions and the parametric multi-loss.

Paper: Maggioni, Tanay, Babiloni, McDonagh and Leonardis, arXiv 2304.00898 (CVPR 2023).

Idea: the kernel of a layer is a blend of P kernels, weighted by parameters omega that a user sets at inference, sample by sample. The
network is trained with random omega on the blend of P losses with the same weights, so that each parameter comes to mean one objective.

Equations. omega (B, P), of one sample omega in R^P; x (B, Ci, H, W):

- a = omega ("linear") or a = M omega + c, M (P E, P) learned ("mlp", expand E); K = P or P E coefficients
- k(omega) = sum_p a_p k_p and b(omega) = sum_p a_p b_p with k_p (Co, Ci / g, k, k), p = 1..K
- y_i = k(omega_i) * x_i + b(omega_i); all samples at once as one convolution of B g groups. Linear layers and bare scales alike
- parametric multi-loss: L(omega) = sum_p omega_p L_p, omega drawn anew for each sample and step, from the simplex or the box
- fixed omega: k(omega) is an ordinary kernel, and the network an ordinary network (``fix_``)

How far this reference goes. The layers, the loss and a NAFNet-32 of them are the paper's; every tunable layer has its own M and c, as the
published parameter count shows, the layer scales too; layer norms are not tunable. EDSR (16 blocks of 64, residual scale 0.1, scale 1) is
built from its paper's description, without a published figure to check. Each k_p starts as nn.Conv2d does and M as nn.Linear does. The
style transfer network and SwinIR of the paper are not here.

On hardware. With omega fixed it is an integer convolution like any other: mixed and quantized anew on the host when omega changes. Of
NAFNet, pointwise, depthwise, the gate's product, the pooled attention and the pixel shuffle map as they are; layer norm has to become
batch norm, with retraining. Omega that differs between the samples of a batch does not map.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import LayerNorm2d

Mode = Literal["linear", "mlp"]


class Tunable(nn.Module):
    """What tunable layers share: omega (B, P) or (P) for all samples -> coefficients a (B, K)."""

    def __init__(self, params: int, mode: Mode, expand: int) -> None:
        super().__init__()
        if params < 1:
            raise ValueError(f"params must be positive, not {params!r}")
        if mode not in ("linear", "mlp"):
            raise ValueError(f"mode must be 'linear' or 'mlp', not {mode!r}")
        if expand < 1 or (mode == "linear" and expand != 1):
            raise ValueError(f"expand must be 1 in linear mode and positive in mlp mode, not {expand!r}")
        self.params, self.count = params, params * expand
        self.affine = nn.Linear(params, self.count) if mode == "mlp" else None

    def coefficients(self, omega: Tensor | None, batch: int) -> Tensor:
        if omega is None or omega.shape[-1] != self.params or omega.shape[:-1] not in ((), (batch,)):
            shape = None if omega is None else tuple(omega.shape)
            raise ValueError(f"omega must be ({self.params},) or ({batch}, {self.params}), not {shape!r}")
        omega = omega.expand(batch, -1)
        return omega if self.affine is None else cast(Tensor, self.affine(omega))

    def merged(self, omega: Tensor) -> nn.Module:
        """The plain layer that this is at omega (P)."""
        raise NotImplementedError


def mix(a: Tensor, bank: Tensor) -> Tensor:
    """sum_p a_p bank_p: (B, K) and (K, ...) -> (B, ...)."""
    return (a.to(bank.dtype) @ bank.flatten(1)).reshape(len(a), *bank.shape[1:])


class TunableConv2d(Tunable):
    """x (B, inputs, H, W), omega -> (B, outputs, H', W'); stride, padding, groups and bias as nn.Conv2d."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, params: int = 2, mode: Mode = "mlp", expand: int = 1,
        stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = True,
    ) -> None:
        super().__init__(params, mode, expand)
        if groups < 1 or inputs % groups or outputs % groups:
            raise ValueError(f"groups must divide {inputs} and {outputs}, not {groups!r}")
        self.stride, self.padding, self.groups = stride, padding, groups
        self.weight = nn.Parameter(torch.empty(self.count, outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(self.count, outputs)) if bias else None
        for k in self.weight:
            nn.init.kaiming_uniform_(k, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(inputs // groups * kernel**2)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, omega: Tensor | None) -> Tensor:
        a = self.coefficients(omega, len(x))
        weight = mix(a, self.weight).flatten(0, 1)
        bias = None if self.bias is None else mix(a, self.bias).flatten()
        y = F.conv2d(x.reshape(1, -1, *x.shape[-2:]), weight, bias, self.stride, self.padding, groups=len(x) * self.groups)
        return y.view(len(x), -1, *y.shape[-2:])

    @torch.no_grad()
    def merged(self, omega: Tensor) -> nn.Conv2d:
        a, (_, outputs, inputs, kernel, _) = self.coefficients(omega, 1), self.weight.shape
        layer = nn.Conv2d(inputs * self.groups, outputs, kernel, self.stride, self.padding, groups=self.groups, bias=self.bias is not None)
        layer = layer.to(self.weight)
        layer.weight.copy_(mix(a, self.weight)[0])
        if self.bias is not None and layer.bias is not None:
            layer.bias.copy_(mix(a, self.bias)[0])
        return layer


class TunableLinear(Tunable):
    """x (B, ..., inputs), omega -> (B, ..., outputs)."""

    def __init__(
        self, inputs: int, outputs: int, *, params: int = 2, mode: Mode = "mlp", expand: int = 1, bias: bool = True
    ) -> None:
        super().__init__(params, mode, expand)
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(self.count, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(self.count, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, omega: Tensor | None) -> Tensor:
        a = self.coefficients(omega, len(x))
        y = x.reshape(len(x), -1, x.shape[-1]) @ mix(a, self.weight).mT
        if self.bias is not None:
            y = y + mix(a, self.bias)[:, None]
        return y.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def merged(self, omega: Tensor) -> nn.Linear:
        a, (_, outputs, inputs) = self.coefficients(omega, 1), self.weight.shape
        layer = nn.Linear(inputs, outputs, bias=self.bias is not None).to(self.weight)
        layer.weight.copy_(mix(a, self.weight)[0])
        if self.bias is not None:
            layer.bias.copy_(mix(a, self.bias)[0])
        return layer


class TunableScale(Tunable):
    """x (B, channels, H, W), omega -> x times a number for each channel, at first ``value`` times the sum of the coefficients."""

    def __init__(self, channels: int, value: float = 0.0, *, params: int = 2, mode: Mode = "mlp", expand: int = 1) -> None:
        super().__init__(params, mode, expand)
        self.scale = nn.Parameter(torch.full((self.count, channels, 1, 1), value))

    def forward(self, x: Tensor, omega: Tensor | None) -> Tensor:
        return x * mix(self.coefficients(omega, len(x)), self.scale)

    @torch.no_grad()
    def merged(self, omega: Tensor) -> nn.Conv2d:
        """A 1 × 1 depthwise convolution."""
        channels = self.scale.shape[1]
        layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False).to(self.scale)
        layer.weight.copy_(mix(self.coefficients(omega, 1), self.scale)[0][:, None])
        return layer


class Fixed(nn.Module):
    """A plain layer in the place of a tunable one; omega is ignored."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, omega: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.layer(x))


def fix_(model: nn.Module, omega: Tensor) -> nn.Module:
    """Replace every tunable layer inside ``model`` by the plain one that it is at omega (P)."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Tunable):
                setattr(module, name, Fixed(child.merged(omega)))
    return model


class ParametricMultiLoss(nn.Module):
    """L(omega) = mean over the samples of sum_p omega_p L_p. Each loss takes (prediction, its target) and gives (B)."""

    def __init__(self, losses: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.losses = list(losses)

    def forward(self, prediction: Tensor, targets: Sequence[Tensor], omega: Tensor) -> Tensor:
        if len(targets) != len(self.losses):
            raise ValueError(f"targets must be {len(self.losses)}, one for each loss, not {len(targets)}")
        if omega.shape[-1] != len(self.losses) or omega.shape[:-1] not in ((), (len(prediction),)):
            raise ValueError(f"omega must be ({len(prediction)}, {len(self.losses)}), not {tuple(omega.shape)!r}")
        values = torch.stack([loss(prediction, target) for loss, target in zip(self.losses, targets, strict=True)], 1)
        return (omega * values).sum(1).mean()


def draw_omega(
    batch: int, params: int, *, kind: Literal["simplex", "box"] = "simplex", generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """(batch, params), uniform on the simplex (non-negative, sum 1) or in the box 0..1."""
    if kind not in ("simplex", "box"):
        raise ValueError(f"kind must be 'simplex' or 'box', not {kind!r}")
    numbers = torch.rand(batch, params, generator=generator, device=device)
    if kind == "box":
        return numbers
    waits = -(1 - numbers).log()
    return waits / waits.sum(1, keepdim=True)


class NAFBlock(nn.Module):
    """x + beta conv(SCA(gate(dw(conv(LN x))))), then x + gamma conv(gate(conv(LN x))): (B, c, H, W) both ways; gate (u, v) = u v."""

    def __init__(self, c: int, params: int, mode: Mode, expand: int) -> None:
        super().__init__()
        conv = partial(TunableConv2d, params=params, mode=mode, expand=expand)
        self.norm1, self.norm2 = LayerNorm2d(c), LayerNorm2d(c)
        self.conv1, self.conv2 = conv(c, 2 * c, 1), conv(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sca, self.conv3 = conv(c, c, 1), conv(c, c, 1)
        self.conv4, self.conv5 = conv(c, 2 * c, 1), conv(c, c, 1)
        self.beta, self.gamma = (TunableScale(c, params=params, mode=mode, expand=expand) for _ in range(2))

    def forward(self, x: Tensor, omega: Tensor | None) -> Tensor:
        u, v = self.conv2(self.conv1(self.norm1(x), omega), omega).chunk(2, 1)
        y = u * v
        y = y * self.sca(y.mean((2, 3), keepdim=True), omega)
        x = x + self.beta(self.conv3(y, omega), omega)
        u, v = self.conv4(self.norm2(x), omega).chunk(2, 1)
        return x + cast(Tensor, self.gamma(self.conv5(u * v, omega), omega))


class NAFNet(nn.Module):
    """(B, channels, H, W), omega (B, P) or (P) -> the same shape; sides are padded to multiples of 2^len(encoder)."""

    def __init__(
        self, width: int = 32, *, encoder: Sequence[int] = (2, 2, 4, 8), middle: int = 12, decoder: Sequence[int] = (2, 2, 2, 2),
        channels: int = 3, params: int = 2, mode: Mode = "mlp", expand: int = 1,
    ) -> None:
        super().__init__()
        if len(encoder) != len(decoder):
            raise ValueError(f"decoder must have as many stages as encoder {tuple(encoder)}, not {tuple(decoder)!r}")
        conv = partial(TunableConv2d, params=params, mode=mode, expand=expand)

        def stage(c: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList(NAFBlock(c, params, mode, expand) for _ in range(depth))

        widths = [width * 2**i for i in range(len(encoder) + 1)]
        self.reduction = 2 ** len(encoder)
        self.intro, self.ending = conv(channels, width, 3, padding=1), conv(width, channels, 3, padding=1)
        self.encoders = nn.ModuleList(stage(c, depth) for c, depth in zip(widths, encoder, strict=False))
        self.downs = nn.ModuleList(conv(c, 2 * c, 2, stride=2) for c in widths[:-1])
        self.middle = stage(widths[-1], middle)
        self.ups = nn.ModuleList(conv(c, 2 * c, 1, bias=False) for c in reversed(widths[1:]))
        self.decoders = nn.ModuleList(stage(c, depth) for c, depth in zip(reversed(widths[:-1]), decoder, strict=True))

    def forward(self, x: Tensor, omega: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.reduction, 0, -height % self.reduction))
        y, kept = self.intro(padded, omega), []
        for blocks, down in zip(self.encoders, self.downs, strict=True):
            for block in cast(nn.ModuleList, blocks):
                y = block(y, omega)
            kept.append(y)
            y = down(y, omega)
        for block in self.middle:
            y = block(y, omega)
        for blocks, up in zip(self.decoders, self.ups, strict=True):
            y = F.pixel_shuffle(up(y, omega), 2) + kept.pop()
            for block in cast(nn.ModuleList, blocks):
                y = block(y, omega)
        whole: Tensor = self.ending(y, omega) + padded
        return whole[..., :height, :width]


class EDSR(nn.Module):
    """Residual blocks x + 0.1 conv(relu(conv x)) between two convolutions, image to image of the same size (arXiv 1707.02921)."""

    def __init__(
        self, width: int = 64, depth: int = 16, *, channels: int = 3, residual: float = 0.1, params: int = 2, mode: Mode = "mlp",
        expand: int = 1,
    ) -> None:
        super().__init__()
        conv = partial(TunableConv2d, kernel=3, padding=1, params=params, mode=mode, expand=expand)
        self.residual = residual
        self.head, self.tail, self.last = conv(channels, width), conv(width, channels), conv(width, width)
        self.first = nn.ModuleList(conv(width, width) for _ in range(depth))
        self.second = nn.ModuleList(conv(width, width) for _ in range(depth))

    def forward(self, x: Tensor, omega: Tensor | None = None) -> Tensor:
        start = y = self.head(x, omega)
        for first, second in zip(self.first, self.second, strict=True):
            y = y + self.residual * second(F.relu(first(y, omega)), omega)
        return cast(Tensor, self.tail(start + self.last(y, omega), omega))


class _Held(nn.Module):
    """A tunable layer at one omega a sample, for the benchmark."""

    def __init__(self, layer: Tunable, omega: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("omega", omega)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x, self.omega))


def bench() -> BenchCase:
    """A tunable 3 × 3 convolution with another omega for every sample beside a plain one."""
    return BenchCase(
        name="tunable conv 3×3 (P = 2, mlp) against conv 3×3, 64 channels, 28×28",
        ours=_Held(TunableConv2d(64, 64, 3, padding=1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8]])),
        baseline=nn.Conv2d(64, 64, 3, padding=1),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


SYSTEM = System(
    name="tunable",
    title="Tunable convolutions, parametric multi-loss",
    paper="arXiv 2304.00898 (CVPR 2023)",
    year=2023,
    kind="operator",
    variants={
        "tunable_nafnet_32": NAFNet,
        "tunable_nafnet_32_p1_linear": partial(NAFNet, params=1, mode="linear"),
        "tunable_edsr": EDSR,
        "tunable_conv2d": TunableConv2d,
        "tunable_linear": TunableLinear,
    },
    checked=(
        "parameters of NAFNet-32, P = 1 and 2, to the digit", "overhead of P |k| MACs a layer", "one-hot omega picks that kernel",
        "P = 1 is a plain convolution", "linearity in omega", "mixed batches equal single samples",
        "fixed layers and network equal tunable ones", "gradcheck",
    ),
    lowering=(
        Lowering(part="tunable layers, omega fixed", verdict="as is", note="a plain convolution; mixed and quantized on the host"),
        Lowering(part="omega per sample", verdict="no", note="weights would change inside a batch"),
        Lowering(part="NAFNet's gates, pooled attention, shuffle", verdict="as is", note="multiply, mean and pointwise, depth to space"),
        Lowering(part="LayerNorm", verdict="after a change", note="batch norm, folded; retrain"),
    ),
    demo="models.zoo.demos.tunable:demo",
    bench=bench,
)
