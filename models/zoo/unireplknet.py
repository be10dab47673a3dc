"""UniRepLKNet and the Dilated Reparam Block.

Paper: Ding, Zhang, Ge, Zhao, Song, Yue and Shan, arXiv 2311.15599 (CVPR 2024).

Idea: a few very large kernels see wide without depth, 3 × 3 kernels add depth. The large kernel trains beside small dilated ones, which
learn sparse patterns, and all of them merge into the one large kernel before the network is used.

Equations. x (N, C, H, W):

- DRB_K(x) = BN(DW_K(x)) + sum_i BN_i(DW_{k_i, dilation r_i}(x)), pairs (k_i, r_i) by K in ``BRANCHES``, r_i (k_i - 1) + 1 <= K
- merge: s = gamma / sqrt(var + eps), W' = s W, b' = beta - s mu; a dilated kernel with r - 1 zeros between its taps is an ordinary one
  of size r (k - 1) + 1; centred in K × K, kernels and biases are summed
- block: y = SE(BN(DW(x))), SE with C / 4 channels between; z = BN(W_2 GRN(GELU(W_1 y + b_1))), C -> 4C -> C, W_2 without bias;
  x + gamma z. DW is DRB_K for K >= 7, a plain K × K for K in {3, 5}; for K = 0 neither DW nor its BN is there
- the whole block merged: BN into DW; gamma, the last BN and GRN's bias into W_2: W_2' = gamma s W_2,
  b_2' = gamma (s (W_2 b_GRN - mu) + beta)

Stem conv 3 × 3 stride 2 twice (LN, GELU between, LN after), conv 3 × 3 stride 2 + LN between stages, mean, LN, linear.

How far this reference goes. Operator, block, both merges and the nine variants are the paper's, with 1000 classes. Other modalities are
thin adapters: one input channel for a spectrogram (``inputs=1``), and ``mosaic``, which lays 16 frames out as a 4 × 4 picture (the
published video code reshapes without the permutation, which mixes the frames; this one does what the paper says). Adapters for
point clouds and time series are not here. ``from_published`` is the key map for published state dicts, written from their key names;
no checkpoint was at hand to try it.

On hardware. Merged, depthwise 13 × 13 and 3 × 3, pointwise and add map as they are. GELU becomes a table; squeeze-excitation and GRN a
mean or a sum of squares, tables (sigmoid, square root, reciprocal) and a product with a value per channel. LayerNorm of the stem and
between stages becomes batch norm with retraining; the dense strided 3 × 3 there are nine shifts and a pointwise layer.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import GRN, DilatedReparam, DropPath, LayerNorm2d, SqueezeExcite, trunc_normal_init

#: (size, dilation) of the parallel branches by large kernel.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def drb(channels: int, kernel: int) -> DilatedReparam:
    """The Dilated Reparam Block with the paper's branches."""
    if kernel not in BRANCHES:
        raise ValueError(f"kernel must be one of {sorted(BRANCHES)}, not {kernel!r}")
    return DilatedReparam(channels, kernel, BRANCHES[kernel])


class Block(nn.Module):
    """UniRepLKNet block, (N, dim, H, W) both ways. ``kernel``: 0, 3, 5 or a large one of ``BRANCHES``; ``scale``: gamma's start."""

    def __init__(self, dim: int, kernel: int, drop: float = 0.0, scale: float = 1e-6) -> None:
        super().__init__()
        if dim < 4 or dim % 4:
            raise ValueError(f"dim must be a positive multiple of 4, not {dim!r}")
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        if kernel == 0:
            self.dwconv: nn.Module = nn.Identity()
            self.norm = nn.Identity()
        elif kernel in (3, 5):
            self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        else:
            self.dwconv = drb(dim, kernel)
        self.se = SqueezeExcite(dim, dim // 4)
        self.pwconv1, self.grn = nn.Conv2d(dim, 4 * dim, 1), GRN(4 * dim)
        self.pwconv2, self.norm2 = nn.Conv2d(4 * dim, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.full((dim,), scale))
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grn(F.gelu(self.pwconv1(self.se(self.norm(self.dwconv(x))))))
        y = self.norm2(self.pwconv2(y))
        if self.gamma is not None:
            y = self.gamma.view(-1, 1, 1) * y
        return x + cast(Tensor, self.drop_path(y))

    @torch.no_grad()
    def merge_(self) -> Block:
        """One depthwise convolution and two pointwise ones, in place; eval mode. A second call does nothing."""
        self.eval()
        if self.gamma is None:
            return self
        if isinstance(self.dwconv, DilatedReparam):
            self.dwconv = self.dwconv.merged()
        if isinstance(self.dwconv, nn.Conv2d) and isinstance(self.norm, nn.BatchNorm2d):
            self.dwconv, self.norm = torch.nn.utils.fuse_conv_bn_eval(self.dwconv, self.norm), nn.Identity()
        assert isinstance(self.norm2, nn.BatchNorm2d)
        first = self.pwconv2.weight.flatten(1) @ self.grn.bias
        last = torch.nn.utils.fuse_conv_bn_eval(self.pwconv2, self.norm2)
        assert last.bias is not None
        scale = self.norm2.weight * (cast(Tensor, self.norm2.running_var) + self.norm2.eps).rsqrt()
        last.bias.add_(scale * first).mul_(self.gamma)
        last.weight.mul_(self.gamma.view(-1, 1, 1, 1))
        self.pwconv2, self.norm2 = last, nn.Identity()  # type: ignore[assignment]
        self.grn.bias, self.gamma = None, None  # type: ignore[assignment]
        return self


class UniRepLKNet(nn.Module):
    """(N, inputs, H, W), any H and W -> (N, classes). ``dim``: width C of stage 1; stage i has 2^i C.

    ``kernels``: the kernels of each stage, repeated over its depth. ``drop``: stochastic depth of the last block.
    """

    def __init__(
        self, dim: int, depths: Sequence[int], kernels: Sequence[Sequence[int]], *, classes: int = 1000, inputs: int = 3,
        drop: float = 0.0, scale: float = 1e-6,
    ) -> None:
        super().__init__()
        if len(depths) != len(kernels) or not all(kernels):
            raise ValueError(f"kernels must be a sequence for each of depths {tuple(depths)}, not {tuple(kernels)!r}")
        if inputs < 1:
            raise ValueError(f"inputs must be positive, not {inputs!r}")
        dims = [dim * 2**i for i in range(len(depths))]
        stem = (
            nn.Conv2d(inputs, dim // 2, 3, 2, 1), LayerNorm2d(dim // 2), nn.GELU(), nn.Conv2d(dim // 2, dim, 3, 2, 1), LayerNorm2d(dim)
        )
        self.downsample_layers = nn.ModuleList([nn.Sequential(*stem)])
        self.downsample_layers += [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), LayerNorm2d(b)) for a, b in pairwise(dims)]
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(d, sizes[i % len(sizes)], next(rates), scale) for i in range(depth)))
            for depth, d, sizes in zip(depths, dims, kernels, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], classes)
        self.apply(trunc_normal_init)

    def forward(self, x: Tensor) -> Tensor:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return cast(Tensor, self.head(self.norm(x.mean((2, 3)))))


def merge_(model: nn.Module) -> nn.Module:
    """Merge every block of ``model`` in place, for use."""
    for module in model.modules():
        if isinstance(module, Block):
            module.merge_()
    return model.eval()


def mosaic(video: Tensor) -> Tensor:
    """16 frames as one picture, row by row: (N, C, 16, H, W) -> (N, C, 4H, 4W)."""
    if video.ndim != 5 or video.shape[2] != 16:
        raise ValueError(f"video must be (N, C, 16, H, W), not {tuple(video.shape)!r}")
    n, c, _, h, w = video.shape
    return video.reshape(n, c, 4, 4, h, w).permute(0, 1, 2, 4, 3, 5).reshape(n, c, 4 * h, 4 * w)


#: Pieces of published key names and ours.
KEYS = (
    (r"\.dwconv\.lk_origin\.", ".dwconv.main.0."), (r"\.dwconv\.origin_bn\.", ".dwconv.main.1."),
    (r"\.dil_conv_(k\d+_\d+)\.", r".branches.\1.0."), (r"\.dil_bn_(k\d+_\d+)\.", r".branches.\1.1."),
    (r"\.pwconv1\.1\.", ".pwconv1."), (r"\.act\.1\.gamma$", ".grn.weight"), (r"\.act\.1\.beta$", ".grn.bias"),
    (r"\.pwconv2\.0\.", ".pwconv2."), (r"\.pwconv2\.2\.", ".norm2."),
)  # fmt: skip


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict (unmerged) under our names: linear weights become 1 × 1 kernels, GRN's parameters vectors."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for old, new in KEYS:
            key = re.sub(old, new, key)
        if key.endswith((".pwconv1.weight", ".pwconv2.weight")):
            value = value[..., None, None]
        found[key] = value.flatten() if ".grn." in key else value
    return found


def bench() -> BenchCase:
    """The Dilated Reparam Block beside the merged convolution, which computes the same."""
    ours = drb(32, 13).eval()
    return BenchCase(name="DRB 13×13 against itself merged, 32 channels, 28×28", ours=ours, baseline=ours.merged(),
                     inputs=(torch.randn(4, 32, 28, 28),))


SMALL = ((3,), (13,), (13,), (13,))
LARGE = ((3,), (13,), (13, 3, 3), (13,))
CONFIGS: dict[str, tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "a": (40, (2, 2, 6, 2), SMALL),
    "f": (48, (2, 2, 6, 2), SMALL),
    "p": (64, (2, 2, 6, 2), SMALL),
    "n": (80, (2, 2, 8, 2), SMALL),
    "t": (80, (3, 3, 18, 3), ((3,), (13,), (13, 3), (13,))),
    "s": (96, (3, 3, 27, 3), LARGE),
    "b": (128, (3, 3, 27, 3), LARGE),
    "l": (192, (3, 3, 27, 3), LARGE),
    "xl": (256, (3, 3, 27, 3), LARGE),
}
SYSTEM = System(
    name="unireplknet",
    title="UniRepLKNet, Dilated Reparam Block",
    paper="arXiv 2311.15599 (CVPR 2024)",
    year=2024,
    kind="network",
    variants={**{f"unireplknet_{name}": partial(UniRepLKNet, *config) for name, config in CONFIGS.items()}, "dilated_reparam": drb},
    checked=(
        "parameters of nine variants to the digit, training and merged", "MACs to the published digits", "merged = unmerged, K = 5..17",
        "a merged kernel is its dilated ones stuffed with zeros", "mosaic keeps every frame whole", "gradcheck of the block",
    ),
    lowering=(
        Lowering(part="merged depthwise 13×13 and 3×3, pointwise, add", verdict="as is", note="after merge_()"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="squeeze-excitation, GRN", verdict="after a change", note="mean or square sum, tables, product per channel"),
        Lowering(part="LayerNorm of stem and steps", verdict="after a change", note="batch norm; retrain"),
        Lowering(part="dense strided 3×3", verdict="after a change", note="nine one-hot depthwise shifts, concatenation, pointwise"),
    ),
    demo="models.zoo.demos.unireplknet:demo",
    bench=bench,
)
