"""Frequency dynamic convolution (FDConv) and ResNet-50 built from it.

Paper: Chen, Gu, Fu, Yan and others, "Frequency Dynamic Convolution for Dense Image Prediction", arXiv 2503.18783 (CVPR 2025).

Idea: a dynamic convolution whose kernels are disjoint groups of the frequencies of one weight, so that many kernels cost no more
parameters than one. Attention mixes them per sample, modulates the result element by element, and reweights frequency bands in space.

Equations. Input x (B, I, H, W), weight W (O, I, k, k), m = min(O, I) // 2:

- FDW: M (O k, I k) is W with axes (O, k, I, k); P = rfft2(M) / m is the parameter, (1, O k, I k // 2 + 1, 2). Its indices, sorted by
  |frequency|, are cut into n equal groups; W_dyn = irfft2(m n a_g P) with a_g (B, n) the attention of the index's group
- KSM, global: z = StarReLU(BN(fc(GAP x))), StarReLU(z) = s relu(z)² + b; heads: channel (I), filter (O), spatial (k²) as
  2 sigmoid(logit / t), kernel (n) as 2 sigmoid(logit / T) / n; local: 2 sigmoid(Conv1d(LN(GAP x))), (B, O, I, k, k)
- W_b = W_dyn * spatial * channel * filter * local, one kernel a sample
- FBM (k = 3): bands of x by max(|fy|, |fx|) at 1/4, 1/8, 1/16; sum_i 2 sigmoid(conv3_i(x)) * band_i + lowest band

At zero logits all factors are 1 and FDConv is the convolution by W.

How far this reference goes. Operator and ResNet-50 (all 1 × 1 and 3 × 3 convolutions of its bottlenecks, n = 64) are the authors'. Ours:
the band masks are exact at every size (the program resizes masks of 64 × 64), parameter ratio and reduction are 1, all heads
start near zero logits, kernel attention is the default sigmoid (no tanh, no softmax), and channels for which FDConv is inactive
(min(I, O) <= 16 or another k) are refused instead of passed on to a plain convolution. Names are ours; ``key_map`` gives those of the
authors' operator in MMDetection's ResNet, but no published checkpoint was at hand to try it, and where frequencies tie at the border of
two groups their order may be another there. In training a batch needs two samples, as its BN does.

On hardware. Kernels per sample do not map. With attention frozen (``frozen``), one static convolution: pointwise, or shifts and pointwise
for 3 × 3. The FFT of FBM does not map; a pyramid of depthwise low-passes with a table for the gate would be another operator.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ResNet, plain_conv

EDGES = (1 / 4, 1 / 8, 1 / 16)  # cycles a pixel: 0.5 / k, k = 2, 4, 8


def _wide(x: Tensor) -> Tensor:
    """At least single precision: there are no half-precision transforms."""
    return x if x.dtype == torch.float64 else x.float()


class StarReLU(nn.Module):
    """s relu(x)² + b."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x).square() + self.bias


class FourierDisjointWeight(nn.Module):
    """FDW: attention (B, groups) -> kernels (B, outputs, inputs, k, k). ``group``: of each frequency, 0 the lowest."""

    group: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.shape = (outputs, kernel, inputs, kernel)
        rows, columns = outputs * kernel, inputs * kernel
        count = rows * (columns // 2 + 1)
        if groups < 1 or count % groups:
            raise ValueError(f"groups must divide the {count} frequencies of the weight, not {groups!r}")
        self.groups, self.scale = groups, min(inputs, outputs) // 2
        weight = torch.empty(outputs, inputs, kernel, kernel)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.dft = nn.Parameter(torch.empty(1, rows, columns // 2 + 1, 2))
        self.set_weight(weight)
        distance = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)[None])
        rank = distance.flatten().argsort(stable=True).argsort()
        self.register_buffer("group", (rank // (count // groups)).view(rows, -1), persistent=False)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Start from the weight of an ordinary convolution (outputs, inputs, k, k)."""
        outputs, kernel, inputs, _ = self.shape
        spectrum = torch.fft.rfft2(weight.transpose(1, 2).reshape(outputs * kernel, inputs * kernel))
        self.dft.copy_(torch.view_as_real(spectrum)[None] / self.scale)

    def forward(self, attention: Tensor) -> Tensor:
        outputs, kernel, inputs, _ = self.shape
        scale = (self.scale * self.groups * _wide(attention))[:, self.group]
        spectrum = torch.view_as_complex(_wide(self.dft)[0].contiguous()) * scale
        matrix = torch.fft.irfft2(spectrum, s=(outputs * kernel, inputs * kernel))
        return cast(Tensor, matrix.view(-1, *self.shape).transpose(2, 3))


class GlobalModulation(nn.Module):
    """KSM-global: x (B, inputs, H, W) -> factors channel (B, I), filter (B, O), spatial (B, k²) or None, kernel (B, groups)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, temperature: float, kernel_temperature: float) -> None:
        super().__init__()
        hidden = max(inputs // 16, 16)
        self.fc, self.bn, self.relu = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), StarReLU()
        self.channel, self.filter = nn.Conv2d(hidden, inputs, 1), nn.Conv2d(hidden, outputs, 1)
        self.spatial = nn.Conv2d(hidden, kernel * kernel, 1) if kernel > 1 else None
        self.kernel = nn.Conv2d(hidden, groups, 1) if groups > 1 else None
        self.temperature, self.kernel_temperature = temperature, kernel_temperature
        for head in (self.channel, self.filter, self.spatial, self.kernel):
            if head is not None:
                nn.init.normal_(head.weight, std=1e-6)
                nn.init.zeros_(cast(Tensor, head.bias))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        z = self.relu(self.bn(self.fc(x.mean((2, 3), keepdim=True))))

        def factor(head: nn.Module, temperature: float) -> Tensor:
            return 2 * (cast(Tensor, head(z)).flatten(1) / temperature).sigmoid()

        spatial = None if self.spatial is None else factor(self.spatial, self.temperature)
        kernel = z.new_ones(len(z), 1)
        if self.kernel is not None:
            kernel = factor(self.kernel, self.kernel_temperature) / self.kernel.out_channels
        return factor(self.channel, self.temperature), factor(self.filter, self.temperature), spatial, kernel


class LocalModulation(nn.Module):
    """KSM-local: x (B, inputs, H, W) -> (B, outputs, inputs, k, k), from a Conv1d along the channels of the pooled map."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        taps = round(math.log2(inputs) / 2 + 0.5) // 2 * 2 + 1
        self.shape = (outputs, kernel, kernel)
        self.norm = nn.LayerNorm(inputs)
        self.conv = nn.Conv1d(1, outputs * kernel * kernel, taps, padding=taps // 2, bias=False)
        nn.init.normal_(self.conv.weight, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv(self.norm(x.mean((2, 3))).unsqueeze(1))  # (B, O k k, I)
        return 2 * cast(Tensor, logits).view(len(x), *self.shape, -1).movedim(-1, 2).sigmoid()


class FrequencyBandModulation(nn.Module):
    """FBM: (B, channels, H, W) both ways; a gate a band and pixel, the lowest band untouched."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(channels, 1, 3, padding=1) for _ in EDGES)
        for gate in self.gates:
            nn.init.normal_(cast(Tensor, gate.weight), std=1e-6)
            nn.init.zeros_(cast(Tensor, gate.bias))

    def forward(self, x: Tensor) -> Tensor:
        size, wide = x.shape[-2:], _wide(x)
        spectrum = torch.fft.rfft2(wide, norm="ortho")
        fy = torch.fft.fftfreq(size[0], device=x.device).abs()[:, None]
        frequency = torch.maximum(fy, torch.fft.rfftfreq(size[1], device=x.device)[None])
        out, above = torch.zeros_like(wide), wide
        for edge, gate in zip(EDGES, self.gates, strict=True):
            low = torch.fft.irfft2(spectrum * (frequency < edge), s=size, norm="ortho")
            out = out + 2 * gate(x).sigmoid() * (above - low)
            above = low
        return (out + above).to(x.dtype)


class FDConv(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H', W') as nn.Conv2d of padding k // 2. ``kernel`` 1 or 3; min(inputs, outputs) > 16.

    ``groups``: kernel_num n, a divisor of the weight's frequencies; ``bands``: FBM before a 3 × 3; ``direct``: which of two equal
    forms applies the channel and filter factors: True to the kernels, False to input and output, None the cheaper.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 4, bias: bool = False,
        bands: bool = True, temperature: float = 1.0, kernel_temperature: float = 1.0, direct: bool | None = None,
    ) -> None:
        super().__init__()
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 1 or 3, not {kernel!r}")
        if min(inputs, outputs) <= 16:
            raise ValueError(f"inputs and outputs must be above 16, not {inputs!r} and {outputs!r}")
        self.stride, self.padding, self.direct = stride, kernel // 2, direct
        self.fdw = FourierDisjointWeight(inputs, outputs, kernel, groups)
        self.modulation = GlobalModulation(inputs, outputs, kernel, groups, temperature, kernel_temperature)
        self.local = LocalModulation(inputs, outputs, kernel)
        self.fbm = FrequencyBandModulation(inputs) if bands and kernel == 3 else None
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each sample the kernel without channel and filter factors (B, O, I, k, k), and these factors (B, I) and (B, O)."""
        channel, filters, spatial, attention = self.modulation(x)
        weight = cast(Tensor, self.fdw(attention)) * self.local(x)
        if spatial is not None:
            weight = weight * spatial.view(len(x), 1, 1, *weight.shape[3:])
        return weight, channel, filters

    def forward(self, x: Tensor) -> Tensor:
        weight, channel, filters = self.kernels(x)
        b, outputs, inputs, k, _ = weight.shape
        if self.fbm is not None:
            x = self.fbm(x)
        direct = self.direct
        if direct is None:
            direct = outputs * inputs * k * k < (inputs + outputs) * x.shape[2] * x.shape[3]
        if direct:
            weight = weight * channel.view(b, 1, inputs, 1, 1) * filters.view(b, outputs, 1, 1, 1)
        else:
            x = x * channel.view(b, inputs, 1, 1)
        stacked = x.reshape(1, b * inputs, *x.shape[2:])  # one group a sample
        y = F.conv2d(stacked, weight.reshape(b * outputs, inputs, k, k).to(x.dtype), None, self.stride, self.padding, groups=b)
        y = y.view(b, outputs, *y.shape[2:])
        if not direct:
            y = y * filters.view(b, outputs, 1, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    @torch.no_grad()
    def frozen(self, x: Tensor) -> nn.Conv2d:
        """The static convolution by the mean kernel of the samples x (eval mode); ValueError with FBM, which is no convolution."""
        if self.fbm is not None:
            raise ValueError("bands must be False: band modulation cannot be folded into a kernel")
        weight, channel, filters = self.kernels(x)
        mean = (weight * channel[:, None, :, None, None] * filters[:, :, None, None, None]).mean(0)
        conv = nn.Conv2d(mean.shape[1], mean.shape[0], mean.shape[2], self.stride, self.padding, bias=self.bias is not None).to(mean)
        conv.weight.copy_(mean)
        if self.bias is not None and conv.bias is not None:
            conv.bias.copy_(self.bias)
        return conv


class FDResNet(ResNet):
    """Backbone: (N, 3, H, W) -> (N, 2048 for four stages, H / 32, W / 32), without classifier.

    ``sizes``: kernel sizes of bottleneck convolutions that are FDConv, () for the plain ResNet; ``groups``: kernel_num.
    """

    def __init__(self, depths: Sequence[int] = (3, 4, 6, 3), *, sizes: Sequence[int] = (1, 3), groups: int = 64, dim: int = 64) -> None:
        if not set(sizes) <= {1, 3}:
            raise ValueError(f"sizes must be among 1 and 3, not {tuple(sizes)!r}")

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
            if kernel in sizes:
                return FDConv(inputs, outputs, kernel, stride=stride, groups=groups)
            return plain_conv(inputs, outputs, kernel, stride)

        super().__init__(depths, conv=conv, dim=dim)


RENAMED = {
    "fdw.dft": "dft_weight", "local": "KSM_Local", "fbm.gates": "FBM.freq_weight_conv_list", "modulation": "KSM_Global",
    **{f"modulation.{name}": f"KSM_Global.{name}_fc" for name in ("channel", "filter", "spatial", "kernel")},
}  # fmt: skip


def key_map(model: nn.Module, depths: Sequence[int] = (3, 4, 6, 3)) -> dict[str, str]:
    """Names in the authors' state dict -> names here, for an `FDConv` or an `FDResNet` of ``depths``."""
    places = {"stem.0": "conv1", "stem.1": "bn1"}
    for stage, depth in enumerate(depths):
        for k in range(depth):
            ours, theirs = f"blocks.{sum(depths[:stage]) + k}", f"layer{stage + 1}.{k}"
            places[f"{ours}.skip"] = f"{theirs}.downsample"
            for index, name in enumerate(("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3")):
                places[f"{ours}.body.{index}"] = f"{theirs}.{name}"

    def theirs_of(key: str) -> str:
        place = next((p for p in places if key.startswith(f"{p}.")), "")
        inner = key[len(place) + 1 :] if place else key
        part = max((p for p in RENAMED if inner == p or inner.startswith(f"{p}.")), key=len, default="")
        return ".".join(filter(None, (places.get(place, ""), RENAMED.get(part, "") + inner[len(part) :])))

    return {theirs_of(key): key for key in model.state_dict()}


def bench() -> BenchCase:
    """FDConv beside the convolution that it replaces."""
    return BenchCase(
        name="FDConv 3×3 of 64 groups against conv 3×3, 64 channels, 28×28",
        ours=FDConv(64, 64, 3, groups=64),
        baseline=nn.Conv2d(64, 64, 3, padding=1, bias=False),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


SYSTEM = System(
    name="fdconv",
    title="Frequency dynamic convolution",
    paper="arXiv 2503.18783 (CVPR 2025)",
    year=2025,
    kind="operator",
    variants={
        "resnet50_fdconv": FDResNet,
        "resnet50_fdconv_3x3": partial(FDResNet, sizes=(3,)),
        "resnet50_backbone": partial(FDResNet, sizes=()),
        "fdconv": FDConv,
    },
    checked=(
        "parameters of ResNet-50 with and without, and by part, to the digit", "zero logits = the plain convolution",
        "groups disjoint and exhaustive; parameters independent of their number", "one group's attention changes one band",
        "bands sum to the input", "both forms agree", "frozen = one static convolution", "gradcheck",
    ),
    lowering=(
        Lowering(part="kernels per sample", verdict="no", note="weights depend on the input"),
        Lowering(part="frozen attention, 1×1", verdict="after a change", note="one static pointwise layer"),
        Lowering(part="frozen attention, 3×3", verdict="after a change", note="one static convolution: shifts and pointwise"),
        Lowering(part="channel and filter factors", verdict="after a change", note="mean, pointwise, table, broadcast multiply"),
        Lowering(part="band modulation", verdict="no", note="Fourier transform; a depthwise pyramid would be another operator"),
    ),
    demo="models.zoo.demos.fdconv:demo",
    bench=bench,
)
