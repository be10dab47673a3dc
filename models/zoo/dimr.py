"""DiMR: diffusion at several resolutions at once, with time-dependent layer norm.

Paper: Liu, Zeng, He, Yu, Wang, Chen and Chen, "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and
Time-Dependent Layer Normalization", arXiv 2406.09416 (NeurIPS 2024).

Idea: a transformer works at low resolution only and hands all that it computed to a ConvNeXt branch that predicts the noise at full
resolution. Time enters through the norms: their scales move between two learned vectors, at 4 d parameters where adaLN-Zero has 6 d².

Equations. tau = 2 n / 1000 - 1 for step n of 1..1000; s = sigmoid((w + 1) * tau + b), all vectors of d, w = b = 0 at first:

- theta(t) = s * p0 + (1 - s) * p1; p0 = p1 = 1 for scales, 0 for shifts at first
- TD-RMSNorm(x) = x / (|x| / sqrt d + 1e-8) * scale(t) in blocks; TD-LayerNorm(x) = LN(x) * scale(t) + shift(t), eps 1e-5, elsewhere
- GLU-MLP(x) = w2 (GELU(w0 x) * w1 x) of the normed x, hidden 2 d. Transformer block: x + attention(norm x), x + MLP.
  ConvNeXt block: x + dw7×7(x), no norm before it, then x + MLP
- branch r: patches of the noisy latent + positions (+ what comes from below), 2 ⌊n / 2⌋ + 1 blocks with long skips, linear on
  [x, skip] before each of the later half; TD-LN, 3 × 3 convolution -> noise at its resolution. The transformer reads a class token too
- from below: the branch's input and every block's output side by side (2 ⌊n / 2⌋ + 2 maps) -> TD-LN -> linear to d r² -> sub-pixels,
  (row, column) major -> TD-LN
- loss: sum of c_r mean (e_r - noise_r)², noise_r = s times the mean of s × s values, of unit variance; c = 1/4, 1

How far this reference goes. Network, loss and the two-resolution variants XL and G are the authors'; the three-resolution ones' sizes were
not at hand, but `DiMR` takes any number of branches. Time may be one number for a whole batch. Sampling (DPM-Solver, guidance) and the
dropping of labels (class ``classes`` stands for none) belong to training. Names of layers are ours; no key map is here.

On hardware. The convolutional branch maps: depthwise 7 × 7, pointwise, the gate's product, sub-pixel shuffle; a norm's scale is constant
within a step, so it is a table of requantizations per step, but its division by data must become batch norm, with retraining. The
transformer branch does not map.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import Attention


class TimeDependent(nn.Module):
    """theta(t): tau (B,) -> (B, dim), tau () -> (dim,). ``start``: of p0 and p1."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.p0, self.p1 = (nn.Parameter(torch.full((dim,), start)) for _ in range(2))
        self.w, self.b = (nn.Parameter(torch.zeros(dim)) for _ in range(2))

    def forward(self, tau: Tensor) -> Tensor:
        s = ((self.w + 1) * tau[..., None] + self.b).sigmoid()
        return s * self.p0 + (1 - s) * self.p1


def _over(theta: Tensor, x: Tensor) -> Tensor:
    """theta (dim,) or (B, dim) so that it multiplies x (B, ..., dim)."""
    return theta if theta.ndim == 1 else theta.view(len(theta), *[1] * (x.ndim - 2), -1)


class TDRMSNorm(nn.Module):
    """Root-mean-square norm with a time-dependent scale: (B, ..., dim) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeDependent(dim, 1.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        size = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return cast(Tensor, x / (size + 1e-8) * _over(self.scale(tau), x))


class TDLayerNorm(nn.Module):
    """Layer norm with time-dependent scale and shift: (B, ..., dim) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale, self.shift = TimeDependent(dim, 1.0), TimeDependent(dim, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], eps=1e-5)
        return y * _over(self.scale(tau), x) + _over(self.shift(tau), x)


class MLP(nn.Module):
    """w2 (GELU(w0 y) * w1 y) with y = TD-RMSNorm(x): (B, ..., dim) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = TDRMSNorm(dim)
        self.w0, self.w1, self.w2 = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        y = self.norm(x, tau)
        return cast(Tensor, self.w2(F.gelu(self.w0(y)) * self.w1(y)))


class TransformerBlock(nn.Module):
    """Attention and MLP over tokens (B, N, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = TDRMSNorm(dim), Attention(dim, heads, qkv_bias=False), MLP(dim)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x, tau))
        return x + cast(Tensor, self.mlp(x, tau))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 × 7 and MLP, each with its own residual, on (B, H, W, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw, self.mlp = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), MLP(dim)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        x = x + self.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + cast(Tensor, self.mlp(x, tau))


class Upsample(nn.Module):
    """From the branch below: (B, h, w, low) -> (B, r h, r w, dim)."""

    def __init__(self, low: int, dim: int, r: int) -> None:
        super().__init__()
        self.r, self.dim = r, dim
        self.norm1, self.linear, self.norm2 = TDLayerNorm(low), nn.Linear(low, dim * r * r), TDLayerNorm(dim)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        b, height, width, _ = x.shape
        y = self.linear(self.norm1(x, tau)).reshape(b, height, width, self.r, self.r, self.dim)
        y = y.transpose(2, 3).reshape(b, height * self.r, width * self.r, self.dim)
        return cast(Tensor, self.norm2(y, tau))


@dataclass(frozen=True, kw_only=True)
class BranchSpec:
    """One resolution: maps of ``side`` × ``side`` from patches of ``patch``; ``depth``: n, of which 2 ⌊n / 2⌋ + 1 blocks."""

    kind: Literal["transformer", "conv"]
    dim: int
    depth: int
    side: int
    patch: int = 1
    heads: int = 1

    @property
    def width(self) -> int:
        """Channels of all its maps side by side."""
        return (2 * (self.depth // 2) + 2) * self.dim


class Branch(nn.Module):
    """(noisy latent, maps from below, tau, classes) -> noise (B, channels, side, side) and all maps (B, side, side, width)."""

    def __init__(self, spec: BranchSpec, below: BranchSpec | None, channels: int, size: int, classes: int) -> None:
        super().__init__()
        if spec.kind not in ("transformer", "conv"):
            raise ValueError(f"spec must be of kind 'transformer' or 'conv', not {spec.kind!r}")
        if size % (spec.side * spec.patch) or (below is not None and spec.side % below.side):
            raise ValueError(f"spec must have a side {spec.side} × patch {spec.patch} that divides {size} and a multiple of the side below")
        dim, half = spec.dim, spec.depth // 2
        self.spec, self.outer, self.shrink = spec, half, size // (spec.side * spec.patch)
        self.patch = nn.Conv2d(channels, dim, spec.patch, spec.patch)
        self.position = nn.Embedding(spec.side**2, dim)
        self.label = nn.Embedding(classes + 1, dim) if spec.kind == "transformer" else None
        self.upsample = None if below is None else Upsample(below.width, dim, spec.side // below.side)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, spec.heads) if spec.kind == "transformer" else ConvNeXtBlock(dim) for _ in range(2 * half + 1)
        )
        self.skips = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(half))
        self.norm, self.out = TDLayerNorm(dim), nn.Conv2d(dim, channels, 3, padding=1)
        self.apply(_initialise)

    def forward(self, x: Tensor, below: Tensor | None, tau: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        side, dim = self.spec.side, self.spec.dim
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        y = self.patch(x).permute(0, 2, 3, 1) + self.position.weight.view(side, side, dim)
        if self.upsample is not None:
            y = y + self.upsample(below, tau)
        if self.label is not None:
            y = torch.cat((self.label(label)[:, None], y.flatten(1, 2)), 1)
        kept = [y]
        for i, block in enumerate(self.blocks):
            if i > self.outer:  # the outermost pairs first in, last out
                y = self.skips[i - self.outer - 1](torch.cat((y, kept[2 * self.outer - i + 1]), -1))
            y = block(y, tau)
            kept.append(y)
        if self.label is not None:
            kept = [m[:, 1:].unflatten(1, (side, side)) for m in kept]
        noise = self.out(self.norm(kept[-1], tau).permute(0, 3, 1, 2))
        return noise, torch.cat(kept, -1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class DiMR(nn.Module):
    """Latent (B, channels, size, size), step n of 1..1000 (B,) or (), classes (B,) -> noise of every branch, from the lowest.

    ``block_grad``: branches do not train those below them.
    """

    def __init__(
        self, specs: Sequence[BranchSpec], *, size: int = 32, channels: int = 4, classes: int = 1000, block_grad: bool = False,
    ) -> None:
        super().__init__()
        if not specs or specs[-1].side != size:
            raise ValueError(f"specs must end with a branch of side {size}, not {tuple(s.side for s in specs)!r}")
        self.size, self.channels, self.block_grad = size, channels, block_grad
        below = (None, *specs[:-1])
        self.branches = nn.ModuleList(Branch(s, low, channels, size, classes) for s, low in zip(specs, below, strict=True))

    def forward(self, x: Tensor, step: Tensor, label: Tensor) -> list[Tensor]:
        if tuple(x.shape[1:]) != (self.channels, self.size, self.size):
            raise ValueError(f"x must be (B, {self.channels}, {self.size}, {self.size}), not {tuple(x.shape)!r}")
        if step.ndim > 1 or (step.ndim == 1 and len(step) != len(x)):
            raise ValueError(f"step must be () or ({len(x)},), not {tuple(step.shape)!r}")
        tau, maps, found = step.to(x.dtype) / 500 - 1, None, []
        for branch in self.branches:
            noise, maps = branch(x, maps, tau, label)
            found.append(noise)
            if self.block_grad:
                maps = maps.detach()
        return found


def coarse(noise: Tensor, side: int) -> Tensor:
    """Noise (B, C, H, W) at a lower resolution, of unit variance again: sums of s × s values over s."""
    s = noise.shape[-1] // side
    return s * F.avg_pool2d(noise, s)


def loss(outputs: Sequence[Tensor], noise: Tensor, weights: Sequence[float] = (0.25, 1.0)) -> Tensor:
    """Sum over branches of weight times mean squared error of the predicted noise."""
    if len(weights) != len(outputs):
        raise ValueError(f"weights must be as many as the {len(outputs)} outputs, not {tuple(weights)!r}")
    parts = [c * F.mse_loss(e, coarse(noise, e.shape[-1])) for c, e in zip(weights, outputs, strict=True)]
    return torch.stack(parts).sum()


def bench() -> BenchCase:
    """TD-LayerNorm at one time a sample beside layer norm, both before the linear layer that follows them between two branches."""

    class At(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = TDLayerNorm(256), nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            t = torch.linspace(-1, 1, len(x), device=x.device, dtype=x.dtype)
            return cast(Tensor, self.linear(self.norm(x, t)))

    plain = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256))
    return BenchCase(
        name="TD-LayerNorm against layer norm, with a linear layer, 8×1024×256", ours=At(), baseline=plain,
        inputs=(torch.randn(8, 1024, 256),),
    )


def _two(dim: int, depth: int, conv_dim: int, conv_depth: int) -> tuple[BranchSpec, BranchSpec]:
    low = BranchSpec(kind="transformer", dim=dim, depth=depth, side=16, patch=2, heads=16)
    return low, BranchSpec(kind="conv", dim=conv_dim, depth=conv_depth, side=32)


SYSTEM = System(
    name="dimr",
    title="DiMR, time-dependent layer norm",
    paper="arXiv 2406.09416 (NeurIPS 2024)",
    year=2024,
    kind="network",
    variants={"dimr_xl_2r": partial(DiMR, _two(960, 39, 480, 20)), "dimr_g_2r": partial(DiMR, _two(1152, 57, 576, 29))},
    checked=(
        "parameters of XL and G to the digit, and of XL's pieces", "MACs to the published digits, with and without attention's products",
        "w = -1, b = 0 is independent of time; at first TD-RMSNorm is RMSNorm", "far times give p0 and p1",
        "one time for a batch is the same time for each sample", "block_grad detaches", "sub-pixels and long skips by hand", "gradcheck",
    ),
    lowering=(
        Lowering(part="convolutional branch", verdict="as is", note="depthwise 7×7, pointwise, gate's product, sub-pixel shuffle"),
        Lowering(part="time-dependent scales", verdict="as is", note="constant within a step: a table of requantizations per step"),
        Lowering(part="RMS and layer norm's division", verdict="after a change", note="batch norm, with retraining"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="transformer branch", verdict="no", note="softmax and products of activations"),
    ),
    demo="models.zoo.demos.dimr:demo",
    bench=bench,
)
