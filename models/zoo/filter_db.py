"""CNN Filter DB: what the 3 × 3 filters of a trained network tell.

Paper: Gavrikov and Keuper, arXiv 2203.15331 (CVPR 2022).

Idea: every 3 × 3 filter is a point in R^9. The principal components of a layer's filters show whether it uses the space as random numbers
would, or wastes it; the distributions of their coefficients show how far two groups of networks are apart.

Equations. Layer w (Co, Ci, 3, 3), n = Co Ci filters f in R^9, as rows:

- scaling: f / max |f|, zero rows stay; PCA: centred SVD, coefficients c_i of component i, its share of the variance a_i, i = 1..9
- shift of groups p and q: D = sum_i a_i (KL(p_i || q_i) + KL(q_i || p_i)), p_i and q_i histograms of c_i, 70 bins on the common range,
  empty ones set to the float32 epsilon, then normalized; natural logarithm
- sparsity: share of the filters with max |f| < eps max |w|, eps = 0.01. "Clean" values leave those filters out
- variance entropy: H = -sum r_i log10 r_i, r the shares of the variances; 0 <= H <= log10 9
- random threshold: T_H(n) = L / (1 + exp(-k (log2 n - x_0))) + b; a ratio H / T_H(n) of 1 or more is what random weights have
- orthogonality: 1 - sum |V V^T - I| / (Co (Co - 1)), V the rows of w as (Co, 9 Ci), each of norm 1, zero rows stay
- the same view lowers a dense layer: w = sum_r u_r v_r with at most 9 shared filters v_r, so that it is a depthwise convolution of
  multiplier R and a pointwise one (``BasisConv2d``)

How far this reference goes. The measures are the paper's; its data set of 1.4 billion filters is not here, nor is its example of a
torchvision network. PCA for the shift is fitted on both groups together unless a basis is given. T_H is fitted for layers and negative for
n <= 2, which is refused. With one output channel, orthogonality is 1. The basis of ``BasisConv2d`` is the SVD without centring (ours):
cut off, a centred one needs the mean as one more filter.

On hardware. Nothing of the analysis runs there: it tells the host which layers to prune or to narrow. ``BasisConv2d`` maps as it is, at
the price of R feature maps for every one; a layer of low entropy needs few.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

BINS = 70
T_H = {"L": 1.2618047, "k": 0.88767525, "x0": 2.30436435, "b": -0.31050834}


def filters(weights: nn.Module | Iterable[Tensor]) -> Tensor:
    """All 3 × 3 filters as rows (n, 9): of a network's nn.Conv2d layers, or of weights (Co, Ci, 3, 3)."""
    if isinstance(weights, nn.Module):
        weights = [w for _, w in layers(weights)]
    rows = [_rows(w) for w in weights]
    if not rows:
        raise ValueError("weights must hold at least one 3 × 3 convolution")
    return torch.cat(rows)


def layers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and weights of the 3 × 3 convolutions."""
    return [(n, m.weight.detach()) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def _rows(weight: Tensor) -> Tensor:
    if weight.ndim != 4 or weight.shape[-2:] != (3, 3):
        raise ValueError(f"weight must be (Co, Ci, 3, 3), not {tuple(weight.shape)!r}")
    return weight.detach().reshape(-1, 9)


def scaled(rows: Tensor) -> Tensor:
    """Every row divided by its largest magnitude; zero rows stay."""
    peak = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(peak == 0, 1, peak)


@dataclass(frozen=True, eq=False)
class PCA:
    """mean (9), components (9, 9) as orthonormal rows, variances (9) in falling order."""

    mean: Tensor
    components: Tensor
    variances: Tensor

    @property
    def ratio(self) -> Tensor:
        """Share of the variance of each component; zeros where there is none."""
        whole = self.variances.sum()
        return self.variances / torch.where(whole == 0, 1, whole)

    def coefficients(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.components.mT


def pca(rows: Tensor) -> PCA:
    """Principal components of (n, d), n at least 1, in double precision."""
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows must be (n, d) with n at least 1, not {tuple(rows.shape)!r}")
    rows = rows.double()
    mean = rows.mean(0)
    _, s, components = torch.linalg.svd(rows - mean, full_matrices=len(rows) < rows.shape[1])
    variances = torch.zeros(rows.shape[1], dtype=rows.dtype, device=rows.device)
    variances[: len(s)] = s.square() / max(len(rows) - 1, 1)
    return PCA(mean, components, variances)


def shift(p: Tensor, q: Tensor, basis: PCA | None = None, bins: int = BINS) -> float:
    """D between two groups of filters (n, 9) and (m, 9), which are scaled here."""
    if bins < 2:
        raise ValueError(f"bins must be at least 2, not {bins!r}")
    p, q = scaled(p).double(), scaled(q).double()
    basis = pca(torch.cat((p, q))) if basis is None else basis
    total = 0.0
    for share, a, b in zip(basis.ratio.tolist(), basis.coefficients(p).T, basis.coefficients(q).T, strict=True):
        if share == 0:
            continue
        both = torch.cat((a, b))
        low, high = float(both.min()), float(both.max())
        one, two = (_histogram(x, low, high, bins) for x in (a, b))
        total += share * float(((one - two) * (one / two).log()).sum())  # both directions at once
    return total


def _histogram(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    width = (high - low) or 1.0
    at = ((x - low) / width * bins).long().clamp(0, bins - 1)
    shares = torch.bincount(at, minlength=bins).double() / len(x)
    shares = torch.where(shares == 0, torch.finfo(torch.float32).eps, shares)
    return shares / shares.sum()


def sparse(weight: Tensor, eps: float = 0.01) -> Tensor:
    """Which filters (Co Ci) of (Co, Ci, 3, 3) are negligible; all where the weight is zero."""
    peaks = _rows(weight).abs().amax(1)
    return (peaks < eps * peaks.max()) | (peaks == 0)


def sparsity(weight: Tensor, eps: float = 0.01) -> float:
    """Share of negligible filters."""
    return float(sparse(weight, eps).double().mean())


def variance_entropy(rows: Tensor) -> float:
    """H of filters (n, 9); 0 where all are alike or none are left."""
    if not len(rows):
        return 0.0
    found = pca(rows)
    r = found.ratio[found.variances > 1e-24 * (1 + found.mean.square().sum())]  # rounding is not variance
    return max(0.0, -float((r * r.log10()).sum()))


def random_threshold(n: int) -> float:
    """T_H(n), the variance entropy below which n filters are told from random ones."""
    if n < 3:
        raise ValueError(f"n must be at least 3, where the threshold is positive, not {n!r}")
    return T_H["L"] / (1 + math.exp(-T_H["k"] * (math.log2(n) - T_H["x0"]))) + T_H["b"]


def entropy_ratio(rows: Tensor) -> float:
    """H / T_H(n); NaN for less than three filters."""
    return variance_entropy(rows) / random_threshold(len(rows)) if len(rows) >= 3 else math.nan


def orthogonality(weight: Tensor) -> float:
    """How orthogonal the filters of different outputs are: 1 if all are, towards 0 if all are parallel."""
    v = F.normalize(_rows(weight).reshape(len(weight), -1).double(), dim=1)
    n = len(v)
    if n == 1:
        return 1.0
    off = (v @ v.mT - torch.eye(n, dtype=v.dtype, device=v.device)).abs().sum()
    return 1 - float(off) / (n * (n - 1))


@dataclass(frozen=True)
class LayerQuality:
    """The measures of one layer; ``clean`` ones without its negligible filters."""

    name: str
    filters: int
    sparsity: float
    entropy: float
    ratio: float
    clean_entropy: float
    clean_ratio: float
    orthogonality: float


def quality(name: str, weight: Tensor, eps: float = 0.01) -> LayerQuality:
    """All measures of one layer."""
    rows = _rows(weight)
    clean = rows[~sparse(weight, eps)]
    return LayerQuality(
        name, len(rows), sparsity(weight, eps), variance_entropy(rows), entropy_ratio(rows), variance_entropy(clean),
        entropy_ratio(clean), orthogonality(weight),
    )  # fmt: skip


def analyse(model: nn.Module, eps: float = 0.01) -> list[LayerQuality]:
    """All measures of all 3 × 3 convolutions of a network."""
    return [quality(name, weight, eps) for name, weight in layers(model)]


class BasisConv2d(nn.Module):
    """A dense 3 × 3 convolution of at most ``rank`` <= 9 distinct filters: (N, inputs, H, W) -> (N, outputs, H', W').

    ``basis`` (rank, 3, 3), the same for all channels, as a depthwise convolution; then ``mix``, 1 × 1, inputs rank -> outputs.
    """

    def __init__(self, inputs: int, outputs: int, rank: int = 9, *, stride: int = 1, padding: int = 1, bias: bool = True) -> None:
        super().__init__()
        if not 1 <= rank <= 9:
            raise ValueError(f"rank must be in 1..9, not {rank!r}")
        self.inputs, self.stride, self.padding = inputs, stride, padding
        self.basis = nn.Parameter(torch.randn(rank, 3, 3) / 3)
        self.mix = nn.Conv2d(inputs * rank, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        depthwise = self.basis.unsqueeze(1).repeat(self.inputs, 1, 1, 1)
        return cast(Tensor, self.mix(F.conv2d(x, depthwise, None, self.stride, self.padding, groups=self.inputs)))

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, rank: int = 9) -> BasisConv2d:
        """The best of that rank for a dense convolution with zero padding; exact where its filters span no more."""
        plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        if not plain or conv.stride[0] != conv.stride[1] or conv.padding[0] != conv.padding[1]:
            raise ValueError(f"conv must be dense, square and padded with zeros, not {conv!r}")
        rows = _rows(conv.weight)
        u, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
        padding = cast(tuple[int, int], conv.padding)
        layer = cls(conv.in_channels, conv.out_channels, rank, stride=conv.stride[0], padding=padding[0], bias=conv.bias is not None)
        kept = min(rank, len(s))
        layer = layer.to(conv.weight)
        basis = torch.zeros(rank, 9, dtype=v.dtype, device=v.device)
        shares = torch.zeros(len(rows), rank, dtype=v.dtype, device=v.device)
        basis[:kept], shares[:, :kept] = v[:kept], (u * s)[:, :kept]
        layer.basis.copy_(basis.view(rank, 3, 3))
        layer.mix.weight.copy_(shares.view(conv.out_channels, conv.in_channels * rank, 1, 1))
        if conv.bias is not None and layer.mix.bias is not None:
            layer.mix.bias.copy_(conv.bias)
        return layer

    @torch.no_grad()
    def dense(self) -> Tensor:
        """The kernel (outputs, inputs, 3, 3) that this is."""
        shares = self.mix.weight.view(-1, self.inputs, len(self.basis))
        return torch.einsum("oir,rhw->oihw", shares, self.basis)


def bench() -> BenchCase:
    """A dense convolution by its nine basis filters beside itself."""
    conv = nn.Conv2d(32, 32, 3, padding=1)
    return BenchCase(
        name="basis conv, rank 9, against conv 3×3, 32 channels, 28×28", ours=BasisConv2d.from_conv(conv), baseline=conv,
        inputs=(torch.randn(4, 32, 28, 28),),
    )  # fmt: skip


SYSTEM = System(
    name="filter_db",
    title="CNN Filter DB: analyses of 3×3 filters",
    paper="arXiv 2203.15331 (CVPR 2022)",
    year=2022,
    kind="method",
    variants={"basis_conv2d": BasisConv2d},
    checked=(
        "random threshold to the digits", "entropy, ratio and sparsity of random, rank-2, constant and zero layers",
        "invariance to scale and order", "D is symmetric with zero diagonal", "orthonormal components", "orthogonality of known layers",
        "dense layers by nine basis filters", "error of a cut basis",
    ),
    lowering=(
        Lowering(part="measures", verdict="no", note="run on the host; they choose what to prune and how many bits a layer needs"),
        Lowering(part="BasisConv2d", verdict="as is", note="depthwise of multiplier R, then pointwise; R maps for every input"),
    ),
    demo="models.zoo.demos.filter_db:demo",
    bench=bench,
)
