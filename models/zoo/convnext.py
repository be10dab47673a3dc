"""ConvNeXt: a convolutional network with the design of a Swin transformer.

Paper: Liu, Mao, Wu, Feichtenhofer, Darrell and Xie, arXiv 2201.03545 (CVPR 2022).

Idea: a ResNet is moved step by step to a transformer's design: patch stem, depthwise 7 × 7 before an inverted bottleneck, one norm and
one activation a block, a norm and a 2 × 2 convolution between stages. What is left needs no attention.

Equations. Block, x (N, C, H, W), every pixel of the middle part by itself:

- y = dw(x), depthwise 7 × 7 with bias; y = LN(y) over C (eps 1e-6)
- y = W2 GELU(W1 y + b1) + b2, C -> 4C -> C; block(x) = x + drop path(gamma * y), gamma (C) starts at 1e-6

Network: 4 × 4 convolution of stride 4 and LN; four stages, before each but the first LN and a 2 × 2 convolution of stride 2; mean over
the map, LN, linear. Isotropic: 16 × 16 convolution of stride 16, blocks of one width without gamma, the same head.

How far this reference goes. Blocks, networks and all eight variants are the paper's. Layers are named so that the key map of a state
dict is meant to be the identity; no published checkpoint was at hand to try it. ``norm="batch"`` and the variant ``convnext_tiny_bn``
are ours: the form that hardware takes, not trained on ImageNet here.

On hardware. Depthwise, pointwise and add map as they are; stem and steps between stages are space-to-depth and a pointwise layer
(``as_pointwise``); gamma folds into the second pointwise layer and a batch norm into its neighbour (``fold_``). GELU becomes a table.
LayerNorm divides by data and becomes batch norm, with retraining.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import DropPath, LayerNorm2d, trunc_normal_init

Norm = Literal["layer", "batch"]


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind not in ("layer", "batch"):
        raise ValueError(f"norm must be 'layer' or 'batch', not {kind!r}")
    return LayerNorm2d(channels) if kind == "layer" else nn.BatchNorm2d(channels)


class Block(nn.Module):
    """ConvNeXt block: (N, dim, H, W) both ways. ``layer_scale``: start of gamma, 0 for none; ``kernel``: odd."""

    def __init__(self, dim: int, *, drop: float = 0.0, layer_scale: float = 1e-6, kernel: int = 7, norm: Norm = "layer") -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, not {kernel!r}")
        self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = _norm(norm, dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        if self.gamma is not None:
            y = self.gamma * y
        return x + cast(Tensor, self.drop_path(y.permute(0, 3, 1, 2)))


class ConvNeXtTrunk(nn.Module):
    """The four stages: (N, 3, H, W), sides of at least 32 -> maps of strides 4, 8, 16, 32."""

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int], *, drop: float = 0.0, layer_scale: float = 1e-6, kernel: int = 7,
        norm: Norm = "layer",
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not dims:
            raise ValueError(f"depths must be as many as dims {tuple(dims)}, not {tuple(depths)!r}")
        self.dims, self.least = tuple(dims), 2 ** (len(dims) + 1)
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), _norm(norm, dims[0]))])
        for a, b in pairwise(dims):
            self.downsample_layers.append(nn.Sequential(_norm(norm, a), nn.Conv2d(a, b, 2, 2)))
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, drop=next(rates), layer_scale=layer_scale, kernel=kernel, norm=norm) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.apply(trunc_normal_init)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What every stage returns."""
        if min(x.shape[-2:]) < self.least:
            raise ValueError(f"x must have sides of at least {self.least}, not {tuple(x.shape[-2:])!r}")
        found = []
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.maps(x)


class Head(nn.Module):
    """Mixed into a network with ``norm`` and ``head``: map (N, C, H, W) -> scores (N, classes)."""

    norm: nn.Module
    head: nn.Linear

    def _add_head(self, dim: int, classes: int, scale: float) -> None:
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)
        trunc_normal_init(self.head)
        self.head.weight.data.mul_(scale)

    def scores(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(x.mean((-2, -1)))))


class ConvNeXt(ConvNeXtTrunk, Head):
    """(N, 3, H, W) -> (N, classes). ``drop``: stochastic depth of the last block; ``head_scale`` of the head's first weights."""

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int], *, classes: int = 1000, drop: float = 0.0, layer_scale: float = 1e-6,
        kernel: int = 7, norm: Norm = "layer", head_scale: float = 1.0,
    ) -> None:
        super().__init__(depths, dims, drop=drop, layer_scale=layer_scale, kernel=kernel, norm=norm)
        self._add_head(dims[-1], classes, head_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.maps(x)[-1])


class IsotropicConvNeXt(Head):
    """(N, 3, H, W), sides of at least 16 -> (N, classes): ``depth`` blocks of one width ``dim`` at stride 16, as in a ViT."""

    def __init__(self, depth: int, dim: int, *, classes: int = 1000, drop: float = 0.0, layer_scale: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 16, 16)
        rates = torch.linspace(0, drop, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(*(Block(dim, drop=rate, layer_scale=layer_scale) for rate in rates))
        self.apply(trunc_normal_init)
        self._add_head(dim, classes, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < 16:
            raise ValueError(f"x must have sides of at least 16, not {tuple(x.shape[-2:])!r}")
        return self.scores(self.blocks(self.stem(x)))


@torch.no_grad()
def as_pointwise(conv: nn.Conv2d) -> nn.Sequential:
    """A p × p convolution of stride p as space-to-depth and a 1 × 1 convolution, for sides that p divides."""
    p = conv.kernel_size[0]
    if conv.kernel_size != conv.stride or conv.kernel_size != (p, p) or conv.padding != (0, 0) or conv.groups != 1:
        raise ValueError(f"conv must have stride = kernel, no padding and one group, not {conv}")
    point = nn.Conv2d(conv.in_channels * p * p, conv.out_channels, 1).to(conv.weight)
    point.weight.copy_(conv.weight.reshape(point.weight.shape))
    cast(Tensor, point.bias).copy_(cast(Tensor, conv.bias))
    return nn.Sequential(nn.PixelUnshuffle(p), point)


def _affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode."""
    scale = bn.weight * (cast(Tensor, bn.running_var) + bn.eps).rsqrt()
    return scale, bn.bias - cast(Tensor, bn.running_mean) * scale


@torch.no_grad()
def fold_(model: nn.Module) -> nn.Module:
    """Fold every gamma, and every batch norm beside a convolution, into the weights, in place; eval only. Layer norms stay."""
    for module in list(model.modules()):
        if isinstance(module, Block):
            if module.gamma is not None:
                module.pwconv2.weight.mul_(module.gamma[:, None])
                module.pwconv2.bias.mul_(module.gamma)
                module.gamma = None
            if isinstance(module.norm, nn.BatchNorm2d):
                module.dwconv = nn.utils.fuse_conv_bn_eval(module.dwconv.eval(), module.norm.eval())
                module.norm = nn.Identity()
        elif isinstance(module, nn.Sequential) and len(module) == 2:
            first, second = module
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[0], module[1] = nn.utils.fuse_conv_bn_eval(first.eval(), second.eval()), nn.Identity()
            elif isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.Conv2d):
                scale, shift = _affine(first)
                cast(Tensor, second.bias).add_(torch.einsum("oihw,i->o", second.weight, shift))
                second.weight.mul_(scale[:, None, None])
                module[0] = nn.Identity()
    return model.eval()


def bench() -> BenchCase:
    """A block beside a dense 3 × 3 convolution of the same width."""
    return BenchCase(
        name="ConvNeXt block against conv 3×3, 96 channels, 28×28",
        ours=Block(96),
        baseline=nn.Conv2d(96, 96, 3, padding=1),
        inputs=(torch.randn(4, 96, 28, 28),),
    )


CONFIGS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
ISOTROPIC = {"small": (18, 384), "base": (18, 768), "large": (36, 1024)}
SYSTEM = System(
    name="convnext",
    title="ConvNeXt",
    paper="arXiv 2201.03545 (CVPR 2022)",
    year=2022,
    kind="network",
    variants={
        **{f"convnext_{name}": partial(ConvNeXt, *config) for name, config in CONFIGS.items()},
        **{f"convnext_isotropic_{name}": partial(IsotropicConvNeXt, *config) for name, config in ISOTROPIC.items()},
        "convnext_tiny_bn": partial(ConvNeXt, *CONFIGS["tiny"], norm="batch"),
        "convnext_block": Block,
    },
    checked=(
        "parameters of eight variants to the digit, and of T's pieces", "MACs at 224 and 384 to the published digits",
        "linear on NHWC is 1 × 1 on NCHW", "gamma 0 is the identity, gamma folds, batch norm folds",
        "patch convolution is space-to-depth and 1 × 1", "translation inside the map", "gradcheck",
    ),
    lowering=(
        Lowering(part="depthwise 7×7, pointwise, add", verdict="as is", note="gamma folds into the second pointwise layer"),
        Lowering(part="stem and steps between stages", verdict="as is", note="space-to-depth and a pointwise layer, exact"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="LayerNorm", verdict="after a change", note="batch norm, folded into its neighbour; retrain (convnext_tiny_bn)"),
    ),
    demo="models.zoo.demos.convnext:demo",
    bench=bench,
)
