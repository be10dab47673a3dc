"""DSCLoRA on SPAN: convolutional low-rank adaptation with distillation, free of charge at inference.

Papers: Chai et al., "Distillation-Supervised Convolutional Low-Rank Adaptation for Efficient Image Super-Resolution", arXiv 2504.11271
(CVPR workshops 2025); Wan et al., "Swift Parameter-free Attention Network" (SPAN), arXiv 2311.12770 (CVPR workshops 2024).

Idea: SPAN's attention is an odd function of its own features and needs no parameters. A trained SPAN is frozen, each 3 × 3 kernel gets a
low-rank update that learns from the images, from a teacher's output and from how the teacher's pixels resemble each other, and the
update is added into the kernel at the end.

Equations. Image (N, 3, H, W) in 0..1, scale s, width F:

- SPAN: x = 255 (image - mean); conv_1 3 -> F; six SPAB; conv_2; 1 × 1 of [conv_1, conv_2, block 1, block 6's o1], 4F -> F; 3 × 3
  F -> 3 s^2; pixel shuffle. The output is in pixel units
- SPAB: o1 = silu(c1 x), o2 = silu(c2 o1), o3 = c3 o2; out = (o3 + x) * (sigma(o3) - 1/2)
- Conv3XC, in training: W3 W2 W1 with W1 1 × 1 Ci -> 2 Ci, W2 3 × 3 2 Ci -> 2 Co, W3 1 × 1 -> Co on the padded x, plus a 1 × 1 skip;
  merged: W = W3 W2 W1 + skip at the centre, b = W3 (sum of W2's taps b1 + b2) + b3 + b_skip, exact at the border too
- ConvLoRA: W + view(B A) alpha / r, A (r k, Ci k), B (Co k, r k) starting at 0, viewed row by row as (Co, Ci, k, k); rank <= r k
- loss: lambda_1 |y - target| + lambda_2 |y - teacher| + lambda_3 L_AD, L_AD the mean over the features of |A_T - A_S|, A = F^T F of
  features (N, C, H W) with every pixel of norm 1

How far this reference goes. Networks, block, merging and adaptation are the papers'; DSCF is SPAN with plain 3 × 3 kernels and F = 26,
DSCLoRA has r = 2, alpha = 4 in the blocks and r = 8, alpha = 16 in conv_2 and the last 3 × 3. The published total in training counts the
merged kernels beside their parts; here they are made when needed. Block 6 hands on o1 after SiLU, as in the published network, where it
is overwritten in place; ``early`` takes it before. Not published, so ours: lambda = (1, 1, 1), absolute errors for the first two terms,
and conv_2 as the last of the seven features. Names follow the published ones as far as known, without their ``eval_conv``; no checkpoint
was at hand to try it.

On hardware. The best fit of the zoo: no normalization, updates merged offline, SiLU and sigma - 1/2 are tables, the rest is add,
multiply, concatenate, 1 × 1 and depth to space. Dense 3 × 3 kernels go by their taps, or by basis filters and a pointwise layer.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

MEAN = (0.4488, 0.4371, 0.4040)


class Conv3XC(nn.Module):
    """A 3 × 3 convolution in three stages and a skip, (N, inputs, H, W) -> (N, outputs, H, W); one kernel in eval mode."""

    def __init__(self, inputs: int, outputs: int, gain: int = 2) -> None:
        super().__init__()
        if gain < 1:
            raise ValueError(f"gain must be positive, not {gain!r}")
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, gain * inputs, 1), nn.Conv2d(gain * inputs, gain * outputs, 3), nn.Conv2d(gain * outputs, outputs, 1),
        )  # fmt: skip

    def kernel(self) -> tuple[Tensor, Tensor]:
        """W (outputs, inputs, 3, 3) and b (outputs)."""
        (w1, b1), (w2, b2), (w3, b3) = ((cast(nn.Conv2d, m).weight, cast(Tensor, m.bias)) for m in self.conv)
        w = torch.einsum("ab,bchw,cd->adhw", w3[..., 0, 0], w2, w1[..., 0, 0])
        b = w3[..., 0, 0] @ (w2.sum((2, 3)) @ b1 + b2) + b3
        skip = cast(Tensor, self.sk.bias)
        return w + F.pad(self.sk.weight, (1, 1, 1, 1)), b + skip

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The plain convolution."""
        layer = nn.Conv2d(self.sk.in_channels, self.sk.out_channels, 3, padding=1).to(self.sk.weight)
        w, b = self.kernel()
        layer.weight.copy_(w)
        cast(Tensor, layer.bias).copy_(b)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return cast(Tensor, self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x))
        return F.conv2d(x, *self.kernel(), padding=1)


class ConvLoRA(nn.Module):
    """A frozen convolution with a low-rank update of its kernel. eval() adds the update into it, train() takes it out again.

    ``train_bias``: the bias learns too.
    """

    def __init__(self, conv: nn.Conv2d, r: int, alpha: float = 1.0, *, train_bias: bool = False) -> None:
        super().__init__()
        if r < 1:
            raise ValueError(f"r must be positive, not {r!r}")
        if conv.groups != 1 or conv.kernel_size[0] != conv.kernel_size[1]:
            raise ValueError(f"conv must be dense and square, not {conv!r}")
        k = conv.kernel_size[0]
        self.conv, self.scaling, self.merged = conv, alpha / r, False
        self.lora_A = nn.Parameter(torch.empty(r * k, conv.in_channels * k).to(conv.weight))
        self.lora_B = nn.Parameter(torch.zeros(conv.out_channels * k, r * k).to(conv.weight))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        conv.requires_grad_(False)
        if train_bias and conv.bias is not None:
            conv.bias.requires_grad_(True)
        self.register_load_state_dict_post_hook(_settle)  # type: ignore[no-untyped-call]
        self.train(conv.training)

    def update(self) -> Tensor:
        """The update of the kernel (Co, Ci, k, k)."""
        return (self.lora_B @ self.lora_A).view(self.conv.weight.shape) * self.scaling

    def train(self, mode: bool = True) -> ConvLoRA:
        super().train(mode)
        if self.merged == mode:  # merged in training, or apart in evaluation
            with torch.no_grad():
                self.conv.weight += -self.update() if mode else self.update()
            self.merged = not mode
        return self

    def get_extra_state(self) -> Any:
        """Whether the kernel of this state dict contains the update."""
        return torch.tensor(self.merged)

    def set_extra_state(self, state: Any) -> None:
        self.merged = bool(state)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return cast(Tensor, self.conv(x))
        found: Tensor = self.conv._conv_forward(x, self.conv.weight + self.update(), self.conv.bias)
        return found


def _settle(layer: ConvLoRA, keys: Any) -> None:
    """After loading: merged or not as the mode asks."""
    layer.train(layer.training)


class SPAB(nn.Module):
    """(N, F, H, W) -> the output and o1, for the last block. ``reparam``: Conv3XC instead of plain 3 × 3 convolutions."""

    def __init__(self, channels: int, *, reparam: bool = True, early: bool = False) -> None:
        super().__init__()
        self.early = early
        self.c1_r, self.c2_r, self.c3_r = (_conv(channels, channels, reparam) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.c1_r(x)
        o1 = F.silu(first)
        o3: Tensor = self.c3_r(F.silu(self.c2_r(o1)))
        return (o3 + x) * (o3.sigmoid() - 0.5), first if self.early else o1


def _conv(inputs: int, outputs: int, reparam: bool) -> nn.Module:
    return Conv3XC(inputs, outputs) if reparam else nn.Conv2d(inputs, outputs, 3, padding=1)


class SPAN(nn.Module):
    """(N, 3, H, W) in 0..1 -> (N, 3, scale H, scale W) in pixel units; with ``features`` also the seven maps that are distilled."""

    mean: Tensor

    def __init__(self, width: int = 48, scale: int = 4, *, reparam: bool = True, early: bool = False) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be positive, not {scale!r}")
        self.conv_1, self.conv_2 = _conv(3, width, reparam), _conv(width, width, reparam)
        for i in range(1, 7):
            setattr(self, f"block_{i}", SPAB(width, reparam=reparam, early=early))
        self.conv_cat = nn.Conv2d(4 * width, width, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    @property
    def blocks(self) -> list[SPAB]:
        return [cast(SPAB, getattr(self, f"block_{i}")) for i in range(1, 7)]

    @overload
    def forward(self, image: Tensor, features: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, features: Literal[True]) -> tuple[Tensor, list[Tensor]]: ...

    def forward(self, image: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (N, 3, H, W), not {tuple(image.shape)!r}")
        start = y = self.conv_1((image - self.mean.to(image.dtype)) * 255)
        o1, kept = y, []
        for block in self.blocks:
            y, o1 = block(y)
            kept.append(y)
        kept.append(self.conv_2(y))
        out: Tensor = self.upsampler(self.conv_cat(torch.cat((start, kept[-1], kept[0], o1), 1)))
        return (out, kept) if features else out


def deploy_(model: nn.Module) -> nn.Module:
    """Replace every Conv3XC and ConvLoRA inside ``model`` by the plain convolution that it is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv3XC):
                setattr(module, name, child.merged())
            elif isinstance(child, ConvLoRA):
                setattr(module, name, child.eval().conv)
    return model


def adapt_(model: SPAN, *, r: int = 2, alpha: float = 4, outer_r: int = 8, outer_alpha: float = 16) -> SPAN:
    """Freeze ``model`` and put ConvLoRA on the plain 3 × 3 convolutions of its blocks (SConvLB), on conv_2 and on the last one."""
    wanted: list[tuple[nn.Module, str, int, float]] = [(b, f"c{i}_r", r, alpha) for b in model.blocks for i in (1, 2, 3)]
    wanted += [(model, "conv_2", outer_r, outer_alpha), (model.upsampler, "0", outer_r, outer_alpha)]
    for parent, name, *_ in wanted:
        if not isinstance(getattr(parent, name), nn.Conv2d):
            raise ValueError(f"model must have plain convolutions (deploy_ makes them), not {type(getattr(parent, name)).__name__}")
    model.requires_grad_(False)
    for parent, name, rank, size in wanted:
        setattr(parent, name, ConvLoRA(getattr(parent, name), rank, size))
    return model


def affinity(features: Tensor) -> Tensor:
    """Cosines between all pixels, (N, C, H, W) -> (N, H W, H W)."""
    flat = F.normalize(features.flatten(2), dim=1)
    return flat.mT @ flat


class DistillationLoss(nn.Module):
    """lambda_1 |y - target| + lambda_2 |y - teacher's y| + lambda_3 times the mean difference of the affinities."""

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        if len(weights) != 3:
            raise ValueError(f"weights must be three, not {tuple(weights)!r}")
        self.weights = tuple(weights)

    def forward(
        self, student: tuple[Tensor, Sequence[Tensor]], teacher: tuple[Tensor, Sequence[Tensor]], target: Tensor
    ) -> Tensor:
        (y, mine), (wanted, theirs) = student, teacher
        if len(mine) != len(theirs):
            raise ValueError(f"teacher must have {len(mine)} features as the student, not {len(theirs)}")
        differences = [(affinity(a) - affinity(b.detach())).abs().mean() for a, b in zip(mine, theirs, strict=True)]
        terms = (F.l1_loss(y, target), F.l1_loss(y, wanted.detach()), torch.stack(differences).mean())
        return sum((weight * term for weight, term in zip(self.weights, terms, strict=True)), start=y.new_zeros(()))


def dsclora(width: int = 26, scale: int = 4) -> SPAN:
    """DSCF with its updates apart, as it is trained."""
    return adapt_(SPAN(width, scale, reparam=False))


class _First(nn.Module):
    """The block as one tensor to one tensor, for the benchmark."""

    def __init__(self, block: SPAB) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.block(x)
        return cast(Tensor, y)


def bench() -> BenchCase:
    """A merged SPAB beside its three convolutions without attention."""
    convs = [nn.Conv2d(26, 26, 3, padding=1) for _ in range(3)]
    return BenchCase(
        name="SPAB against its three convolutions, 26 channels, 48×48",
        ours=_First(SPAB(26, reparam=False)),
        baseline=nn.Sequential(convs[0], nn.SiLU(), convs[1], nn.SiLU(), convs[2]),
        inputs=(torch.randn(2, 26, 48, 48),),
    )


SYSTEM = System(
    name="dsclora",
    title="DSCLoRA, SPAN",
    paper="arXiv 2504.11271 (CVPR workshops 2025)",
    year=2025,
    kind="method",
    variants={
        **{f"span_{width}_x{scale}": partial(SPAN, width, scale) for width in (48, 52) for scale in (2, 4)},
        "span_28_x4": partial(SPAN, 28, 4),
        "dscf_x4": partial(SPAN, 26, 4, reparam=False),
        "dsclora_x4": dsclora,
        "conv3xc": Conv3XC,
    },
    checked=(
        "parameters of six networks merged, of two in training, trainable ones of DSCLoRA to the digit", "MACs at 256 × 256",
        "merged Conv3XC, at the border too", "adding and removing updates", "a fresh update changes nothing", "rank of an update",
        "size and cost unchanged after merging", "affinity: diagonal and scaling of pixels", "gradcheck",
    ),
    lowering=(
        Lowering(part="3×3 convolutions", verdict="after a change", note="by taps, or basis filters depthwise and pointwise (filter_db)"),
        Lowering(part="SiLU, σ − ½", verdict="after a change", note="tables"),
        Lowering(part="attention, 1×1, concatenation, pixel shuffle", verdict="as is", note="add, multiply, pointwise, depth to space"),
        Lowering(part="Conv3XC, ConvLoRA", verdict="as is", note="merged offline"),
    ),
    demo="models.zoo.demos.dsclora:demo",
    bench=bench,
)
