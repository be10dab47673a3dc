"""Dynamic Spectrum Mixer: tokens mixed in the domain of the cosine transform, by filters that depend on the image.

Paper: Hu and Yu, "Dynamic Spectrum Mixer for Visual Recognition", arXiv 2309.06721 (2023).

Idea: multiplying cosine coefficients mixes all tokens at log-linear cost; a small layer looks at the image and says how much of each
band passes, so that the filter selects bands by content.

Equations. x (N, C, H, W). DCT-II, orthonormal: D_n[k, i] = s_k cos(pi (2i + 1) k / 2n), s_0 = sqrt(1/n), else sqrt(2/n), and
X = D_H x D_W' for every channel. Mixer: Y = D_H' (X * G(x)) D_W with either

- filters: G = sum_k alpha_k(x) W_k, W_k (C, h, w) resized bilinearly to (H, W), alpha = softmax(FC gelu(FC mean x)), K weights an image
- bands: G = 2 sigmoid(FC gelu(FC log e)) of the band that a frequency lies in; e_b the mean square of band b over channels and the
  frequencies (u, v) with b <= B (u / H + v / W) / 2 < b + 1

Block: x + 1 × 1 Mixer(LN x), then x + MLP(LN x), C -> 4C -> C with GELU. As matrix products a mixer costs 2 C H W (H + W)
multiply-accumulates, by FFT of the order of C H W log(H W).

How far this reference goes. Only the abstract was at hand: cosine transform, log-linear cost, weights generated from the image as a
selector of bands, hierarchical backbone are the paper's. Our reading, all of it: both forms of G, their start (W = 1 and gates 1, so
that a fresh mixer is the identity), bands, block, stem, heads and the sizes of the three variants. Neither the published accuracies
nor the published sizes can be checked against it.

On hardware. The transform is a fixed matrix over a spatial axis and does not map, but for the 8 × 8 block transform, a depthwise bank of
stride 8 and multiplier 64. LN, MLP and 1 × 1 map as anywhere; gates are an element-wise product. A software reference.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import DropPath, LayerNorm2d, full_precision, trunc_normal_init

Method = Literal["matrix", "fft"]
Select = Literal["filters", "bands"]
WIDTHS = (64, 128, 256, 512)


def dct_matrix(n: int, like: Tensor) -> Tensor:
    """D_n (n, n): row k is the cosine of frequency k; device and dtype of ``like``."""
    k, i = torch.arange(n, device=like.device)[:, None], torch.arange(n, device=like.device)[None]
    angle = (k * (2 * i + 1) % (4 * n)).to(like.dtype) * (math.pi / (2 * n))  # reduced exactly, as integers
    return angle.cos() * (math.sqrt(2 / n) - (math.sqrt(2 / n) - math.sqrt(1 / n)) * (k == 0).to(like.dtype))


def _dct_fft(x: Tensor) -> Tensor:
    """DCT-II over the last axis by one FFT of the same length (Makhoul): evens up, odds down."""
    n = x.shape[-1]
    spectrum = torch.fft.fft(torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), -1))
    angle = torch.arange(n, device=x.device).to(x.dtype) * (math.pi / (2 * n))
    scaled = spectrum.real * angle.cos() + spectrum.imag * angle.sin()
    return torch.cat((scaled[..., :1] * math.sqrt(1 / n), scaled[..., 1:] * math.sqrt(2 / n)), -1)


def _idct_fft(x: Tensor) -> Tensor:
    """The inverse of ``_dct_fft``."""
    n = x.shape[-1]
    x = torch.cat((x[..., :1] * math.sqrt(n), x[..., 1:] * math.sqrt(n / 2)), -1)
    mirrored = F.pad(x[..., 1:].flip(-1), (1, 0))
    angle = torch.arange(n, device=x.device).to(x.dtype) * (math.pi / (2 * n))
    real, imaginary = x * angle.cos() + mirrored * angle.sin(), x * angle.sin() - mirrored * angle.cos()
    v = torch.fft.ifft(torch.complex(real, imaginary)).real
    half = (n + 1) // 2
    return torch.stack((v[..., :half], F.pad(v[..., half:].flip(-1), (0, 2 * half - n))), -1).flatten(-2)[..., :n]


def dct2(x: Tensor, method: Method = "matrix") -> Tensor:
    """Orthonormal DCT-II over the last two axes of (..., H, W)."""
    if method == "fft":
        return _dct_fft(_dct_fft(x).transpose(-1, -2)).transpose(-1, -2)
    return dct_matrix(x.shape[-2], x) @ x @ dct_matrix(x.shape[-1], x).T


def idct2(x: Tensor, method: Method = "matrix") -> Tensor:
    """The inverse of ``dct2``."""
    if method == "fft":
        return _idct_fft(_idct_fft(x).transpose(-1, -2)).transpose(-1, -2)
    return dct_matrix(x.shape[-2], x).T @ x @ dct_matrix(x.shape[-1], x)


def bands(height: int, width: int, count: int, device: torch.device | None = None) -> Tensor:
    """(height, width): the index of the diagonal band, 0..count-1, that each frequency lies in."""
    u, v = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]
    return (u * width + v * height) * count // (2 * height * width)


class DynamicSpectrumMixer(nn.Module):
    """(N, dim, H, W) both ways, any size; a fresh one is the identity.

    ``select``: "filters" mixes ``count`` learned ones of ``size`` (h, w), "bands" gates ``count`` bands. ``dynamic`` False: the plain
    spectral filter, with one weight of ``size`` for all images. ``hidden``: units between the two FCs. ``method``: of the transform.
    """

    def __init__(
        self, dim: int, count: int = 4, *, size: tuple[int, int] = (14, 14), select: Select = "filters", dynamic: bool = True,
        hidden: int | None = None, method: Method = "matrix",
    ) -> None:
        super().__init__()
        if dim < 1 or count < 1:
            raise ValueError(f"dim and count must be positive, not {dim!r} and {count!r}")
        if select not in ("filters", "bands") or (select == "bands" and not dynamic):
            raise ValueError(f"select must be 'filters', or 'bands' where dynamic, not {select!r}")
        if method not in ("matrix", "fft"):
            raise ValueError(f"method must be 'matrix' or 'fft', not {method!r}")
        if min(size) < 1:
            raise ValueError(f"size must be positive, not {size!r}")
        self.count, self.select, self.dynamic, self.method = count if dynamic else 1, select, dynamic, method
        if select == "filters":
            self.filters = nn.Parameter(torch.ones(self.count, dim, *size))
        if dynamic:
            inputs = dim if select == "filters" else count
            middle = max(4, inputs // 4) if hidden is None else hidden
            self.generate = nn.Sequential(nn.Linear(inputs, middle), nn.GELU(), nn.Linear(middle, count))
        if select == "bands":
            self.open_()

    def open_(self) -> None:
        """Start of the gates: all 1, whatever the image."""
        nn.init.zeros_(cast(Tensor, self.generate[2].weight))
        nn.init.zeros_(cast(Tensor, self.generate[2].bias))

    def weights(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """G, which broadcasts over (N, dim, H, W)."""
        size = (spectrum.shape[-2], spectrum.shape[-1])
        if self.select == "bands":
            index = bands(*size, self.count, x.device)
            member = F.one_hot(index, self.count).to(spectrum.dtype)  # (H, W, B)
            energy = torch.einsum("nhw,hwb->nb", spectrum.square().mean(1), member) / member.sum((0, 1)).clamp(min=1)
            gates = 2 * self.generate((energy + 1e-6).log()).sigmoid()
            return cast(Tensor, gates)[:, index][:, None]
        filters: Tensor = self.filters
        if tuple(filters.shape[2:]) != size:
            filters = F.interpolate(filters, size, mode="bilinear", align_corners=True)
        if not self.dynamic:
            return filters
        return torch.einsum("nk,kchw->nchw", self.generate(x.mean((2, 3))).softmax(1), filters)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        with full_precision(x):  # coefficients span too wide a range for half precision
            spectrum = dct2(wide, self.method)
            return idct2(spectrum * self.weights(wide, spectrum), self.method).to(x.dtype)


class Block(nn.Module):
    """x + 1 × 1 Mixer(LN x), then x + MLP(LN x): (N, dim, H, W) both ways. Other arguments as those of the mixer."""

    def __init__(
        self, dim: int, count: int = 4, *, size: tuple[int, int] = (14, 14), select: Select = "filters", dynamic: bool = True,
        hidden: int | None = None, method: Method = "matrix", expansion: int = 4, drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.mixer = DynamicSpectrumMixer(dim, count, size=size, select=select, dynamic=dynamic, hidden=hidden, method=method)
        self.pw = nn.Conv2d(dim, dim, 1)
        self.mlp = nn.Sequential(nn.Conv2d(dim, expansion * dim, 1), nn.GELU(), nn.Conv2d(expansion * dim, dim, 1))
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.pw(self.mixer(self.norm1(x))))
        return x + cast(Tensor, self.drop_path(self.mlp(self.norm2(x))))


class DSM(nn.Module):
    """(N, 3, H, W), sides multiples of 32 -> (N, classes). ``sizes``: side of the filters of each stage; the rest as the mixer."""

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int] = WIDTHS, *, sizes: Sequence[int] = (14, 14, 14, 7), count: int = 4,
        select: Select = "filters", dynamic: bool = True, method: Method = "matrix", classes: int = 1000, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(sizes):
            raise ValueError(f"dims and sizes must be as many as depths {tuple(depths)}, not {tuple(dims)!r} and {tuple(sizes)!r}")
        self.reduction = 2 ** (len(dims) + 1)
        self.steps = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0]))])
        for a, b in pairwise(dims):
            self.steps.append(nn.Sequential(LayerNorm2d(a), nn.Conv2d(a, b, 2, 2)))
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(Block(d, count, size=(side, side), select=select, dynamic=dynamic, method=method, drop=next(rates)) for _ in range(depth))
            )
            for depth, d, side in zip(depths, dims, sizes, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % self.reduction or x.shape[-1] % self.reduction:
            raise ValueError(f"x must have sides that are multiples of {self.reduction}, not {tuple(x.shape[-2:])!r}")
        for step, stage in zip(self.steps, self.stages, strict=True):
            x = stage(step(x))
        return cast(Tensor, self.head(self.norm(x.mean((2, 3)))))


def _initialise(module: nn.Module) -> None:
    trunc_normal_init(module)
    if isinstance(module, DynamicSpectrumMixer) and module.select == "bands":  # called after its children
        module.open_()


def bench() -> BenchCase:
    """The dynamic mixer beside the plain spectral filter, both with the matrix transform."""
    return BenchCase(
        name="dynamic spectrum mixer against a fixed spectral filter, 64 channels, 28×28",
        ours=DynamicSpectrumMixer(64),
        baseline=DynamicSpectrumMixer(64, dynamic=False),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


SYSTEM = System(
    name="dsm",
    title="Dynamic Spectrum Mixer (our reading of an abstract)",
    paper="arXiv 2309.06721 (2023)",
    year=2023,
    kind="network",
    variants={
        "dsm_t": partial(DSM, (2, 2, 6, 2)),
        "dsm_s": partial(DSM, (3, 4, 12, 3)),
        "dsm_b": partial(DSM, (3, 4, 16, 3), (96, 192, 384, 768)),
        "dynamic_spectrum_mixer": DynamicSpectrumMixer,
    },
    checked=(
        "D'D = I, Parseval, FFT = matrix", "all-pass is the identity; low-pass keeps the mean; the first coefficient is sqrt(HW) mean",
        "reflection flips odd coefficients", "linear for fixed weights, not for dynamic ones", "2CHW(H+W) multiply-accumulates",
        "parameters against their closed form (the published sizes are unknown)", "gradcheck",
    ),
    lowering=(
        Lowering(part="cosine transform of a map", verdict="no", note="a fixed matrix over a spatial axis"),
        Lowering(part="8×8 block transform", verdict="as is", note="a depthwise 8×8 bank, stride 8, multiplier 64"),
        Lowering(part="gates", verdict="as is", note="element-wise product"),
        Lowering(part="LayerNorm, GELU", verdict="after a change", note="batch norm, folded, and a table; retrain"),
    ),
    demo="models.zoo.demos.dsm:demo",
    bench=bench,
)
