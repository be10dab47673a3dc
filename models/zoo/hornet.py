"""HorNet and the recursive gated convolution g^nConv.

Paper: Rao, Zhao, Tang, Zhou, Lim and Lu, arXiv 2207.14284 (NeurIPS 2022).

Idea: gated convolution multiplies a feature by a depthwise-filtered one, as self-attention does once. Repeated on growing widths, it
gives interactions of order n at about the price of the first.

Equations. d_k = C / 2^(n-1-k) for k = 0..n-1, so that d_{n-1} = C. For x (N, C, H, W):

- [p_0 | q] = phi_in(x), 1 × 1, C -> 2C: p_0 has d_0 channels, q has sum d_k = 2C (1 - 2^-n)
- [q_0 .. q_{n-1}] = s f(q), f a 7 × 7 depthwise convolution or the global-local filter, s = 1/3
- p_1 = p_0 * q_0, and p_{k+1} = g_k(p_k) * q_k with g_k 1 × 1, d_{k-1} -> d_k, for k = 1..n-1
- g^nConv(x) = phi_out(p_n), 1 × 1, C -> C

Global-local filter of c channels: layer norm; one half through a 3 × 3 depthwise convolution, the other through
irfft2(rfft2(x) * K) with a learned complex K (c/2, h, w/2 + 1); the halves interleaved; layer norm.
Block: x + gamma_1 g^nConv(LN x), then x + gamma_2 MLP(LN x), C -> 4C -> C with GELU.

How far this reference goes. Operator, block, stem, head and all eight ImageNet variants (and the two of 384 pixels) are the paper's;
the -L models here have 1000 classes (the published 209 M to 216 M are those of a head of 10,450 classes, ImageNet-22k). Layers are named
so that the key map of a state dict is meant to be the identity; no published checkpoint was at hand to try it. K is resized bilinearly
to maps of another size, as published; only C that n divides is taken.

On hardware. With the 7 × 7 filter, pointwise, depthwise, split and multiply map as they are, with a requantization after each product
(the range grows with the order). LayerNorm becomes batch norm and GELU a table, with retraining. The global-local filter does not map:
it is a Fourier transform.
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
from models.zoo.layers import DropPath, LayerNorm2d

Filter = Literal["7x7", "gf"]
ORDERS = (2, 3, 4, 5)
DEPTHS = (2, 3, 18, 2)


class GlobalLocalFilter(nn.Module):
    """Half of the channels 3 × 3 depthwise, half filtered in the frequency domain: (N, c, H, W) both ways, c even.

    ``height``, ``width``: size of the complex weight; a map of (H, W) has H × (W // 2 + 1) frequencies.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even and positive, not {channels!r}")
        half = channels // 2
        self.dw = nn.Conv2d(half, half, 3, padding=1, bias=False, groups=half)
        self.complex_weight = nn.Parameter(torch.randn(half, height, width, 2) * 0.02)
        self.pre_norm, self.post_norm = LayerNorm2d(channels), LayerNorm2d(channels)
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def _resized(self, height: int, width: int) -> Tensor:
        """The complex weight for a spectrum of that size."""
        weight: Tensor = self.complex_weight
        if tuple(weight.shape[1:3]) != (height, width):
            moved = F.interpolate(weight.permute(3, 0, 1, 2), (height, width), mode="bilinear", align_corners=True)
            weight = moved.permute(1, 2, 3, 0)
        return torch.view_as_complex(weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        local, other = self.pre_norm(x).chunk(2, 1)
        if other.dtype != torch.float64:
            other = other.float()  # no half-precision transforms
        spectrum = torch.fft.rfft2(other, norm="ortho")
        spectrum = spectrum * self._resized(spectrum.shape[-2], spectrum.shape[-1])
        other = torch.fft.irfft2(spectrum, s=size, norm="ortho")
        local = self.dw(local)
        joined = torch.stack((local, other.to(local.dtype)), 2).flatten(1, 2)  # a0, b0, a1, b1, ...
        return cast(Tensor, self.post_norm(joined))


class GnConv(nn.Module):
    """g^nConv: (N, dim, H, W) both ways.

    ``order``: n, at least 1; 2^(n-1) must divide ``dim``. ``spectrum``: None for the 7 × 7 depthwise filter, else (h, w) of the
    global-local filter's weight. ``scale``: s.
    """

    def __init__(self, dim: int, order: int = 5, *, spectrum: tuple[int, int] | None = None, scale: float = 1 / 3) -> None:
        super().__init__()
        if order < 1:
            raise ValueError(f"order must be at least 1, not {order!r}")
        if dim < 1 or dim % 2 ** (order - 1):
            raise ValueError(f"dim must be a multiple of {2 ** (order - 1)}, which order {order} needs, not {dim!r}")
        self.dims = [dim // 2 ** (order - 1 - k) for k in range(order)]
        self.scale, total = scale, sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        if spectrum is None:
            self.dwconv: nn.Module = nn.Conv2d(total, total, 7, padding=3, groups=total)
        else:
            self.dwconv = GlobalLocalFilter(total, *spectrum)
        self.proj_out = nn.Conv2d(dim, dim, 1)
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(self.dims))

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.proj_in(x).split((self.dims[0], sum(self.dims)), 1)
        first, *rest = (self.dwconv(q) * self.scale).split(self.dims, 1)
        p = p * first
        for g, gate in zip(self.pws, rest, strict=True):
            p = g(p) * gate
        return cast(Tensor, self.proj_out(p))


class Block(nn.Module):
    """HorNet block: (N, dim, H, W) both ways. Layer scales start at 1e-6, so that a fresh block is almost the identity."""

    def __init__(self, dim: int, order: int, spectrum: tuple[int, int] | None, drop: float) -> None:
        super().__init__()
        self.norm1, self.gnconv = LayerNorm2d(dim), GnConv(dim, order, spectrum=spectrum)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), 1e-6)) for _ in range(2))
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma1.view(-1, 1, 1) * self.gnconv(self.norm1(x)))
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm2(x.permute(0, 2, 3, 1)))))
        return x + cast(Tensor, self.drop_path((self.gamma2 * y).permute(0, 3, 1, 2)))


class HorNet(nn.Module):
    """(N, 3, H, W), sides multiples of 32 -> (N, classes). ``dim``: width C of the first stage; stage i has 2^i C.

    ``spectra``: per stage None or (h, w) of the global-local filter; ``drop``: stochastic depth of the last block.
    """

    def __init__(
        self, dim: int, *, depths: Sequence[int] = DEPTHS, orders: Sequence[int] = ORDERS,
        spectra: Sequence[tuple[int, int] | None] = (None,) * 4, classes: int = 1000, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(depths) == len(orders) == len(spectra):
            raise ValueError(f"orders and spectra must be as many as depths {tuple(depths)}, not {tuple(orders)!r} and {tuple(spectra)!r}")
        dims = [dim * 2**i for i in range(len(depths))]
        self.reduction = 2 ** (len(dims) + 1)
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dim, 4, 4), LayerNorm2d(dim))])
        for a, b in pairwise(dims):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(a), nn.Conv2d(a, b, 2, 2)))
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(d, n, spectrum, next(rates)) for _ in range(depth)))
            for depth, d, n, spectrum in zip(depths, dims, orders, spectra, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % self.reduction or x.shape[-1] % self.reduction:
            raise ValueError(f"x must have sides that are multiples of {self.reduction}, not {tuple(x.shape[-2:])!r}")
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return cast(Tensor, self.head(self.norm(x.mean((-2, -1)))))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def bench() -> BenchCase:
    """g^5Conv beside a dense 3 × 3 convolution of the same width."""
    return BenchCase(
        name="g^5Conv against conv 3×3, 64 channels, 28×28",
        ours=GnConv(64, 5),
        baseline=nn.Conv2d(64, 64, 3, padding=1),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


WIDTHS = {"tiny": 64, "small": 96, "base": 128, "large": 192}
GF_224 = (None, None, (14, 8), (7, 4))
GF_384 = (None, None, (24, 13), (12, 7))
SYSTEM = System(
    name="hornet",
    title="HorNet, g^nConv",
    paper="arXiv 2207.14284 (NeurIPS 2022)",
    year=2022,
    kind="network",
    variants={
        **{f"hornet_{name}_7x7": partial(HorNet, dim) for name, dim in WIDTHS.items()},
        **{f"hornet_{name}_gf": partial(HorNet, dim, spectra=GF_224) for name, dim in WIDTHS.items()},
        **{f"hornet_{name}_gf_384": partial(HorNet, WIDTHS[name], spectra=GF_384) for name in ("base", "large")},
        "gnconv": GnConv,
    },
    checked=(
        "parameters of ten variants to the digit", "MACs to the published digits", "closed form of g^nConv's parameters, n = 1..5",
        "n = 1 is gated convolution", "without biases f(a x) = a^(n+1) f(x)", "fresh blocks are almost the identity",
        "translation inside the map", "gradcheck",
    ),
    lowering=(
        Lowering(part="g^nConv with 7×7", verdict="as is", note="pointwise, depthwise, split, multiply; requantize after each product"),
        Lowering(part="LayerNorm", verdict="after a change", note="batch norm, folded into the next pointwise layer; retrain"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="global-local filter", verdict="no", note="it is a Fourier transform over the whole map"),
    ),
    demo="models.zoo.demos.hornet:demo",
    bench=bench,
)
