"""MetaMixer, FFNified attention and FFNet.

Paper: Yun, Lee and Ro, "MetaMixer Is All You Need", arXiv 2406.02021 (2024).

Idea: self-attention and the feed-forward network are one scheme, query-key-value, with other sub-operations; the scheme matters, not
softmax or dot products. FFNified attention takes the scheme of attention and the sub-operations of a convolutional FFN, so that a
network of pointwise and depthwise convolutions and GELU is left.

Equations. For x (N, C, H, W), MetaMixer(x) = f_v(act(f_k(q(x)))); act(f_k(q)) are the coefficients:

- self-attention: q = W_q x, f_k the products with the keys W_k x, act = softmax, f_v the sum of W_v x weighted by the coefficients
- FFN: q = x, f_k 1 × 1 C -> rC, act = GELU, f_v 1 × 1 rC -> C
- FFNified attention: q = BN(1 × 1 x), f_k and f_v k × k depthwise, act = GELU. For k = 7 each of the two is BN(dw7 x) + BN(dw3 x)

Block: x + s_1 FFNified(x), then x + s_2 Channel(x), Channel = depthwise, 1 × 1 C -> 3C, GELU, 1 × 1 -> C; the scales s only in FFNet-3, -4.
Patch merging, C -> 2C, half the side: y = BN(dw7 x) + BN(dw3 x), stride 2, each input channel feeds two outputs; y + 1 × 1 BN(y).
Super-resolution: conv3 3 -> C, n blocks without norm (k = 3, C -> 2C -> C), conv3 -> 3 s², plus the input repeated s² times, pixel shuffle.

How far this reference goes. Operators, blocks, FFNet-1 to -4, both super-resolution networks and the fused form have the authors' sizes.
The input goes to the blocks of the super-resolution network without a long skip, as the facts at hand have it. Not here: the 1-D
(time series) and the sparse 3-D variants; a key map of published checkpoints, whose names were not at hand.

On hardware. After ``fuse_`` only pointwise and depthwise (3, 7; stride 1 and 2; multiplier 2) convolutions, adds and the mean are left:
they map as they are, GELU as a table. The two dense 3 × 3 stem convolutions map as nine one-hot depthwise shifts, concatenated, and one
pointwise layer. Pixel shuffle does not map: it is a matter of addresses, left to the host.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ConvBN, DropPath, trunc_normal_init

STEM = 64
TOKEN_KERNELS = (3, 3, 7, 7)
Activation = Callable[[Tensor], Tensor]


class MetaMixer(nn.Module):
    """f_v(act(f_k(q(x)))) of any sub-operations; the shape is what they make of it."""

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.query, self.key, self.value, self.activation = query, key, value, activation

    def coefficients(self, x: Tensor) -> Tensor:
        """How much of each value: act(f_k(q(x)))."""
        return self.activation(self.key(self.query(x)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.value(self.coefficients(x)))


class SelfAttention(nn.Module):
    """The scheme with attention's sub-operations: (N, dim, H, W) both ways; ``heads`` divides dim."""

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must be positive and divide dim {dim}, not {heads!r}")
        self.heads = heads
        self.query, self.keys, self.values, self.proj = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(1, (self.heads, -1)).flatten(3) for f in (self.query, self.keys, self.values))
        coefficients = (q.transpose(2, 3) @ k * q.shape[2] ** -0.5).softmax(-1)
        return cast(Tensor, self.proj((v @ coefficients.transpose(2, 3)).reshape(x.shape)))


class RepVGGDW(nn.Module):
    """BN(dw7 x) + BN(dw3 x): (N, inputs, H, W) -> (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉); outputs a multiple of inputs."""

    def __init__(self, inputs: int, outputs: int | None = None, stride: int = 1) -> None:
        super().__init__()
        outputs = inputs if outputs is None else outputs
        if outputs < inputs or outputs % inputs:
            raise ValueError(f"outputs must be a multiple of inputs {inputs}, not {outputs!r}")
        self.conv = ConvBN(inputs, outputs, 7, stride=stride, padding=3, groups=inputs)
        self.conv1 = ConvBN(inputs, outputs, 3, stride=stride, padding=1, groups=inputs)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)) + cast(Tensor, self.conv1(x))

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The one biased 7 × 7 depthwise convolution that this is in eval mode."""
        conv, small = self.conv.fused(), self.conv1.fused()
        conv.weight += F.pad(small.weight, [2] * 4)
        cast(Tensor, conv.bias).add_(cast(Tensor, small.bias))
        return conv


def depthwise(dim: int, kernel: int, norm: bool = True) -> nn.Module:
    """Depthwise k_f or v_f of side ``kernel``: 3 plain with bias; 7 as RepVGGDW, or plain where ``norm`` is False."""
    if kernel not in (3, 7):
        raise ValueError(f"kernel must be 3 or 7, not {kernel!r}")
    return RepVGGDW(dim) if norm and kernel == 7 else nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)


class FFNifiedAttention(MetaMixer):
    """Depthwise(GELU(depthwise(BN(1 × 1 x)))): (N, dim, H, W) both ways."""

    def __init__(self, dim: int, kernel: int = 7, *, norm: bool = True) -> None:
        query = ConvBN(dim, dim) if norm else nn.Conv2d(dim, dim, 1)
        super().__init__(query, depthwise(dim, kernel, norm), depthwise(dim, kernel, norm))


class ChannelMixer(MetaMixer):
    """An FFN whose query is a depthwise convolution: (N, dim, H, W) both ways, ``expansion`` times as wide between."""

    def __init__(self, dim: int, kernel: int = 7, expansion: int = 3, *, norm: bool = True) -> None:
        if expansion < 1:
            raise ValueError(f"expansion must be positive, not {expansion!r}")
        query = ConvBN(dim, dim, 3, padding=1, groups=dim) if norm and kernel == 3 else depthwise(dim, kernel, norm)
        super().__init__(query, nn.Conv2d(dim, expansion * dim, 1), nn.Conv2d(expansion * dim, dim, 1))


class Block(nn.Module):
    """A token and a channel mixer, both residual: (N, dim, H, W) both ways. ``scale``: start of the layer scales, None for none."""

    def __init__(self, token: nn.Module, channel: nn.Module, dim: int, *, scale: float | None = None, drop: float = 0.0) -> None:
        super().__init__()
        self.token, self.channel, self.drop_path = token, channel, DropPath(drop)
        start = None if scale is None else torch.full((dim, 1, 1), scale)
        self.scale1 = None if start is None else nn.Parameter(start)
        self.scale2 = None if start is None else nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        for mixer, scale in ((self.token, self.scale1), (self.channel, self.scale2)):
            y = mixer(x)
            x = x + self.drop_path(y if scale is None else y * scale)
        return x


class PointResidual(nn.Module):
    """x + 1 × 1 BN(x), no bias: (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn, self.pw = nn.BatchNorm2d(dim), nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.pw(self.bn(x)))

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The one pointwise convolution that this is in eval mode: W diag(s) + I."""
        bn, weight = self.bn, self.pw.weight
        scale = bn.weight * (cast(Tensor, bn.running_var) + bn.eps).rsqrt()
        shift = bn.bias - cast(Tensor, bn.running_mean) * scale
        conv = nn.Conv2d(len(scale), len(scale), 1, device=weight.device, dtype=weight.dtype)
        eye = torch.eye(len(scale), device=weight.device, dtype=weight.dtype)
        conv.weight.copy_((weight[:, :, 0, 0] * scale + eye)[:, :, None, None])
        cast(Tensor, conv.bias).copy_(weight[:, :, 0, 0] @ shift)
        return conv


class FFNet(nn.Module):
    """(N, 3, H, W) -> (N, classes), any size. ``dims``: each a multiple of the one before; ``kernel``: of the channel mixers.

    ``scale``: start of the layer scales, None for none; ``drop``: stochastic depth of the last block.
    """

    def __init__(
        self, dims: Sequence[int], depths: Sequence[int], kernel: int = 7, *, token_kernels: Sequence[int] = TOKEN_KERNELS,
        expansion: int = 3, scale: float | None = None, classes: int = 1000, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(token_kernels):
            raise ValueError(f"depths and token_kernels must be as many as dims {tuple(dims)}, not {depths!r} and {token_kernels!r}")
        if any(b % a for a, b in pairwise(dims)):
            raise ValueError(f"dims must each be a multiple of the one before, not {tuple(dims)!r}")
        self.stem = nn.Sequential(
            ConvBN(3, STEM, 3, stride=2, padding=1), nn.GELU(), ConvBN(STEM, dims[0], 3, stride=2, padding=1),
        )
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for i, (dim, depth, token) in enumerate(zip(dims, depths, token_kernels, strict=True)):
            merge = [RepVGGDW(dims[i - 1], dim, 2), PointResidual(dim)] if i else []
            blocks = [
                Block(FFNifiedAttention(dim, token), ChannelMixer(dim, kernel, expansion), dim, scale=scale, drop=next(rates))
                for _ in range(depth)
            ]
            self.stages.append(nn.Sequential(*merge, *blocks))
        self.norm, self.head = nn.BatchNorm2d(dims[-1]), nn.Linear(dims[-1], classes)
        self.apply(trunc_normal_init)

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps of all stages, for detection and segmentation."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(self.features(x)[-1]).mean((2, 3))))


class FFNetSR(nn.Module):
    """Super-resolution: (N, 3, H, W) -> (N, 3, scale H, scale W), any size."""

    def __init__(self, depth: int = 36, *, dim: int = 96, scale: int = 2) -> None:
        super().__init__()
        if scale < 1 or depth < 1:
            raise ValueError(f"depth and scale must be positive, not {depth!r} and {scale!r}")
        self.scale = scale
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.Sequential(
            *(Block(FFNifiedAttention(dim, 3, norm=False), ChannelMixer(dim, 3, 2, norm=False), dim) for _ in range(depth))
        )
        self.tail = nn.Conv2d(dim, 3 * scale * scale, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.body(self.head(x))) + x.repeat_interleave(self.scale**2, 1)
        return F.pixel_shuffle(y, self.scale)


def fuse_(model: nn.Module) -> nn.Module:
    """Replace every batch norm but the head's by the weights of its convolution, in place; eval only."""
    for name, child in list(model.named_children()):
        if isinstance(child, ConvBN | RepVGGDW | PointResidual):
            setattr(model, name, child.fused())
        else:
            fuse_(child)
    return model.eval()


def bench() -> BenchCase:
    """FFNified attention beside self-attention."""
    return BenchCase(
        name="FFNified attention 7×7 (as trained) against self-attention, 64 channels, 28×28",
        ours=FFNifiedAttention(64),
        baseline=SelfAttention(64, 4),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "ffnet_1": partial(FFNet, (80, 160, 320, 640), (2, 2, 8, 2), 3),
    "ffnet_2": partial(FFNet, (88, 176, 352, 704), (3, 3, 15, 3), 7),
    "ffnet_3": partial(FFNet, (96, 192, 384, 768), (4, 4, 22, 5), 7, scale=1e-6),
    "ffnet_4": partial(FFNet, (128, 256, 512, 1024), (4, 4, 27, 3), 7, scale=1e-6),
    "ffnet_sr_light": partial(FFNetSR, 36),
    "ffnet_sr": partial(FFNetSR, 48),
    "ffnified_attention": FFNifiedAttention,
}
SYSTEM = System(
    name="metamixer",
    title="MetaMixer, FFNified attention, FFNet",
    paper="arXiv 2406.02021 (2024)",
    year=2024,
    kind="network",
    variants=VARIANTS,
    checked=(
        "parameters of FFNet-1 to -4 to the digit, plain and fused, and of both super-resolution networks",
        "MACs of the fused networks to the published digits at 256 and 384", "fused = unfused",
        "attention and the FFN are instances of the scheme", "fused networks hold only pointwise, depthwise and the stem", "gradcheck",
    ),
    lowering=(
        Lowering(part="FFNified attention, channel mixer, patch merging", verdict="as is", note="after fuse_: pointwise, depthwise, add"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="stem", verdict="after a change", note="dense 3×3, stride 2: nine one-hot depthwise shifts and a pointwise layer"),
        Lowering(part="head", verdict="as is", note="its batch norm folds into the linear layer, after the mean"),
        Lowering(part="pixel shuffle of FFNet_sr", verdict="no", note="addresses only; on the host"),
    ),
    demo="models.zoo.demos.metamixer:demo",
    bench=bench,
)
