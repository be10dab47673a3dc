"""Dilated convolution with learnable spacings (DCLS), 1-D to 3-D, and ConvNeXt-dcls.

Papers: Hassani, Pellegrini and Masquelier, arXiv 2112.03740 (ICLR 2023); the triangle and Gaussian forms: arXiv 2306.00817.

Idea: a large kernel K is built from a few weights, and where each weight sits in the window is learned with it. Interpolation makes the
position differentiable, so a kernel of 17 × 17 costs 34 weights and 34 positions.

Equations. For every pair (o, i) of O output and I/g input channels: weights w[m], positions P[d, m] in taps from the centre (d = axis of
the kernel: 0 = first), widths SIG[d, m]. With q = P + s // 2 and u the tap's index on an axis of size s, each element has a profile per
axis:

- ``v0``:    (1 - r) [u = floor q] + r [u = floor q + 1], r = q - floor q (bilinear, not normalised)
- ``v1``:    relu(1 - |u - q|), ``max``: relu(sigma - |u - q|) with sigma = |SIG| + 1
- ``gauss``: exp(-((u - q) / sigma)² / 2) with sigma = |SIG| + 0.27

K[o, i, u] = sum_m w[m] T_m(u), T_m(u) = prod_d profile_d(u_d), which all but ``v0`` divide by sum_u T_m(u) + 1e-7. All four are
separable, so K is one contraction per axis, O(m s1 s2). Then an ordinary convolution.

How far this reference goes. Construction, initialisation, clamp, repulsive loss, optimiser groups and ConvNeXt-dcls (v0) are the papers'.
Our readings: P is (row, column) in every version; the published program swaps the axes in all versions but v0, and in these centres
non-square kernels wrongly. An even window clamps P to [-s/2, s/2 - 1], so that no element leaves it. With positions learned on some
``axes`` only, the others hold a dense grid: every tap of the grid has its own ``elements``. ConvNeXt-dcls follows ConvNeXt's names for
its layers, so that the key map of a v0 state dict is meant to be the identity; no published checkpoint was at hand to try it.

On hardware. After training K is a constant. ``round_positions_`` moves each element to an integer tap: the depthwise convolution with
offsets that are constant per channel, exactly the offset-capable depthwise unit (after a change: fine-tune after rounding). LayerNorm
must become batch norm and GELU a table; the pointwise layers map as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import DropPath, LayerNorm2d

Version = Literal["v0", "v1", "max", "gauss"]
VERSIONS: tuple[Version, ...] = ("v0", "v1", "max", "gauss")
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
WIDTH_FLOOR = {"max": 1.0, "gauss": 0.27}  # sigma = |SIG| + floor, in taps
WIDTH_START = {"max": 0.0, "gauss": 0.23}


def profile(q: Tensor, size: int, version: Version, sigma: Tensor | None = None) -> Tensor:
    """One element's weight on every tap of one axis: q (...) in taps from 0 -> (..., size). ``sigma`` as q, for max and gauss."""
    u = torch.arange(size, device=q.device, dtype=q.dtype)
    if version == "v0":
        low = q.detach().floor()
        r = (q - low).unsqueeze(-1)
        return (1 - r) * (u == low.unsqueeze(-1)) + r * (u == low.unsqueeze(-1) + 1)
    distance = (u - q.unsqueeze(-1)).abs()
    if version == "v1":
        return F.relu(1 - distance)
    if sigma is None:
        raise ValueError(f"sigma must be given for version {version!r}, not None")
    if version == "max":
        return F.relu(sigma.unsqueeze(-1) - distance)
    return torch.exp(-0.5 * (distance / sigma.unsqueeze(-1)) ** 2)


class Dcls(nn.Module):
    """Convolution over ``len(size)`` axes whose kernel has ``elements`` weights at learned positions.

    ``size``: window (s1, ...) in taps; ``axes``: the axes on which positions are learned (default all; the rest are dense grids);
    ``positions``: a parameter P to share between layers. Input (B, I, ...), output as the plain convolution of that window.
    """

    def __init__(
        self, inputs: int, outputs: int, elements: int, size: Sequence[int], *,
        version: Version = "gauss", axes: Sequence[int] | None = None,
        stride: int = 1, padding: int | Sequence[int] = 0, groups: int = 1, bias: bool = True, positions: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.size, self.version, self.stride, self.groups = tuple(size), version, stride, groups
        self.padding = padding if isinstance(padding, int) else tuple(padding)
        self.axes = tuple(range(len(self.size))) if axes is None else tuple(axes)
        self._check(inputs, outputs, elements)
        fixed = [d for d in range(len(self.size)) if d not in self.axes]
        cells = math.prod(self.size[d] for d in fixed)
        pairs = (outputs, inputs // groups, elements * cells)
        self.weight = nn.Parameter(torch.empty(pairs))
        self.P = nn.Parameter(torch.empty(len(self.axes), *pairs)) if positions is None else positions
        if tuple(self.P.shape) != (len(self.axes), *pairs):
            raise ValueError(f"positions must have the shape {(len(self.axes), *pairs)}, not {tuple(self.P.shape)}")
        self.SIG = nn.Parameter(torch.empty_like(self.P)) if version in WIDTH_FLOOR else None
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        # On a dense axis the grid is constant: element j sits on the cell j // elements.
        stride_of = {d: elements * math.prod(self.size[e] for e in fixed if e > d) for d in fixed}
        for d in fixed:
            cell = torch.arange(pairs[2]) // stride_of[d] % self.size[d]
            self.register_buffer(f"grid{d}", F.one_hot(cell, self.size[d]).float(), persistent=False)
        self.reset_parameters(own_positions=positions is None)

    def _check(self, inputs: int, outputs: int, elements: int) -> None:
        if self.version not in VERSIONS:
            raise ValueError(f"version must be one of {VERSIONS}, not {self.version!r}")
        if len(self.size) not in CONVOLUTIONS or min(self.size) < 1:
            raise ValueError(f"size must be one to three positive numbers, not {self.size!r}")
        if not self.axes or len(set(self.axes)) != len(self.axes) or not set(self.axes) <= set(range(len(self.size))):
            raise ValueError(f"axes must be distinct axes of the kernel, not {self.axes!r}")
        if elements < 1:
            raise ValueError(f"elements must be at least 1, not {elements!r}")
        if self.groups < 1 or inputs % self.groups or outputs % self.groups:
            raise ValueError(f"groups must divide inputs {inputs} and outputs {outputs}, not {self.groups!r}")

    def reset_parameters(self, own_positions: bool = True) -> None:
        """Weights as nn.Conv2d; P ~ N(0, 0.5), clamped into the window; SIG a constant of the version."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if own_positions:
            nn.init.normal_(self.P, 0.0, 0.5)
            self.clamp_positions_()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, WIDTH_START[self.version])
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def clamp_positions_(self) -> None:
        """Keep every element inside the window; call after each optimiser step."""
        for row, d in enumerate(self.axes):
            self.P[row].clamp_(-(self.size[d] // 2), (self.size[d] - 1) // 2)

    @torch.no_grad()
    def round_positions_(self) -> None:
        """Move every element to the nearest tap, the form that the offset depthwise unit computes (with v0 or v1)."""
        self.P.round_()
        self.clamp_positions_()

    def kernel(self) -> Tensor:
        """The dense kernel K, (O, I/g, s1, ...)."""
        profiles: list[Tensor] = []
        for d, s in enumerate(self.size):
            if d not in self.axes:
                grid = cast(Tensor, getattr(self, f"grid{d}")).to(self.weight.dtype)
                profiles.append(grid.expand(*self.weight.shape, s))
                continue
            row = self.axes.index(d)
            sigma = None if self.SIG is None else self.SIG[row].abs() + WIDTH_FLOOR[self.version]
            profiles.append(profile(self.P[row] + s // 2, s, self.version, sigma))
        weight: Tensor = self.weight
        if self.version != "v0":
            total = profiles[0].sum(-1)
            for p in profiles[1:]:
                total = total * p.sum(-1)  # the sum of a product of axes is the product of the sums
            weight = weight / (total + 1e-7)
        last = ["oimx->oix", "oimx,oimy->oixy", "oimx,oimy,oimz->oixyz"][len(profiles) - 1]
        return torch.einsum(last, profiles[0] * weight.unsqueeze(-1), *profiles[1:])

    def forward(self, x: Tensor) -> Tensor:
        return CONVOLUTIONS[len(self.size)](x, self.kernel(), self.bias, self.stride, self.padding, 1, self.groups)


def _sized(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(values) != axes:
        raise ValueError(f"size must have {axes} entries, not {size!r}")
    return values


def dcls1d(inputs: int, outputs: int, elements: int, size: int | Sequence[int], **options: Any) -> Dcls:
    """Dcls1d: (B, I, L)."""
    return Dcls(inputs, outputs, elements, _sized(size, 1), **options)


def dcls2d(inputs: int, outputs: int, elements: int, size: int | Sequence[int], **options: Any) -> Dcls:
    """Dcls2d: (B, I, H, W), positions on both axes. Options as `Dcls`."""
    return Dcls(inputs, outputs, elements, _sized(size, 2), **options)


def dcls3d(inputs: int, outputs: int, elements: int, size: int | Sequence[int], **options: Any) -> Dcls:
    """Dcls3d: (B, I, D, H, W)."""
    return Dcls(inputs, outputs, elements, _sized(size, 3), **options)


def dcls2_1d(inputs: int, outputs: int, elements: int, size: int | Sequence[int], *, axis: int = 0, **options: Any) -> Dcls:
    """Dcls2_1d: a 2-D kernel whose positions are learned along ``axis`` only."""
    return Dcls(inputs, outputs, elements, _sized(size, 2), axes=(axis,), **options)


def dcls3_1d(inputs: int, outputs: int, elements: int, size: int | Sequence[int], *, axis: int = 0, **options: Any) -> Dcls:
    """Dcls3_1d: a 3-D kernel whose positions are learned along ``axis`` only."""
    return Dcls(inputs, outputs, elements, _sized(size, 3), axes=(axis,), **options)


def dcls2d_k1d(inputs: int, outputs: int, elements: int, size: int, *, axis: int = 1, version: Version = "v1", **options: Any) -> Dcls:
    """Dcls2dK1d: a 1-D kernel along ``axis`` for a 2-D convolution; v1 unless said otherwise."""
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 or 1, not {axis!r}")
    return Dcls(inputs, outputs, elements, (size, 1) if axis == 0 else (1, size), axes=(axis,), version=version, **options)


def repulsive_loss(positions: Tensor) -> Tensor:
    """Mean of relu(1 - distance) over the pairs of elements of each kernel; P (ndim, O, I/g, m) with m >= 2 -> ()."""
    m = positions.shape[-1]
    if m < 2:
        raise ValueError(f"positions must hold at least 2 elements, not {m!r}")
    first, second = torch.triu_indices(m, m, 1, device=positions.device)
    squared = (positions[..., first] - positions[..., second]).square().sum(0)
    return F.relu(1 - (squared + 1e-12).sqrt()).mean()  # the root's slope at 0 is infinite without the small term


def clamp_positions_(model: nn.Module) -> None:
    """`Dcls.clamp_positions_` for every DCLS layer of a model."""
    for module in model.modules():
        if isinstance(module, Dcls):
            module.clamp_positions_()


def unique_positions(model: nn.Module) -> Iterable[nn.Parameter]:
    """Every P of a model once, in order: for the optimiser and the repulsive loss."""
    return {id(m.P): m.P for m in model.modules() if isinstance(m, Dcls)}.values()


def parameter_groups(model: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of the recipe: positions learn five times as fast and have no weight decay; shared P appears once."""
    positions = list(unique_positions(model))
    own = {id(p) for p in positions}
    rest = [p for p in model.parameters() if id(p) not in own]
    return [{"params": rest, "lr": rate, "weight_decay": decay}, {"params": positions, "lr": 5 * rate, "weight_decay": 0.0}]


class Block(nn.Module):
    """ConvNeXt block: ``dwconv`` -> LayerNorm -> C → 4C → C with GELU -> scale ``gamma`` -> residual. (B, C, H, W) both ways."""

    def __init__(self, dim: int, dwconv: nn.Module, drop: float) -> None:
        super().__init__()
        self.dwconv = dwconv
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + cast(Tensor, self.drop_path(y.permute(0, 3, 1, 2)))


class ConvNeXtDcls(nn.Module):
    """ConvNeXt with DCLS depthwise layers, positions shared by the blocks of a stage. (B, 3, H, W), sides multiples of 32 -> (B, classes).

    ``elements`` None gives the plain ConvNeXt with depthwise kernels of ``size``, the paper's baseline (size 7).
    """

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int], *, elements: int | None = 34, size: int = 17, version: Version = "v0",
        classes: int = 1000, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims):
            raise ValueError(f"depths must be as many as dims {tuple(dims)}, not {tuple(depths)!r}")
        if size % 2 == 0:
            raise ValueError(f"size must be odd, not {size!r}")
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0]))])
        for a, b in pairwise(dims):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(a), nn.Conv2d(a, b, 2, 2)))
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for depth, dim in zip(depths, dims, strict=True):
            shared: nn.Parameter | None = None
            blocks: list[Block] = []
            for _ in range(depth):
                if elements is None:
                    layer: nn.Module = nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim)
                else:
                    layer = Dcls(dim, dim, elements, (size, size), version=version, padding=size // 2, groups=dim, positions=shared)
                    shared = layer.P
                blocks.append(Block(dim, layer, next(rates)))
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 32 or x.shape[-2] % 32:
            raise ValueError(f"x must have a height and width that are multiples of 32, not {tuple(x.shape[-2:])!r}")
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return cast(Tensor, self.head(self.norm(x.mean((2, 3)))))


def _bench() -> BenchCase:
    torch.manual_seed(0)
    ours = dcls2d(96, 96, 34, 17, version="v0", padding=8, groups=96)
    baseline = nn.Conv2d(96, 96, 7, padding=3, groups=96)
    x = torch.randn(2, 96, 28, 28)
    return BenchCase(name="depthwise 17×17 of 34 elements against depthwise 7×7", ours=ours, baseline=baseline, inputs=(x,))


SYSTEM = System(
    name="dcls",
    title="Dilated convolution with learnable spacings",
    paper="arXiv 2112.03740, ICLR 2023; arXiv 2306.00817",
    year=2023,
    kind="operator",
    variants={
        "convnext_t_dcls": partial(ConvNeXtDcls, (3, 3, 9, 3), (96, 192, 384, 768)),
        "convnext_s_dcls": partial(ConvNeXtDcls, (3, 3, 27, 3), (96, 192, 384, 768)),
        "convnext_b_dcls": partial(ConvNeXtDcls, (3, 3, 27, 3), (128, 256, 512, 1024)),
        "dcls1d": dcls1d,
        "dcls2d": dcls2d,
        "dcls3d": dcls3d,
        "dcls2_1d": dcls2_1d,
        "dcls3_1d": dcls3_1d,
        "dcls2d_k1d": dcls2d_k1d,
    },
    checked=(
        "parameters and MACs of ConvNeXt-T/S/B-dcls",
        "regular grid of integer positions = dilated convolution; m = s² = ordinary convolution",
        "sum of kernel = sum of weights in all four versions",
        "at most 2^n taps an element (v0, v1)",
        "P + 1 moves the kernel one tap",
        "gradient of P = the bilinear slope; gradcheck",
    ),
    lowering=(
        Lowering(part="depthwise kernel after training", verdict="after a change", note="round positions: offset depthwise unit"),
        Lowering(part="pointwise layers", verdict="as is", note="pointwise unit"),
        Lowering(part="LayerNorm, GELU", verdict="after a change", note="batch norm; a table"),
    ),
    demo="models.zoo.demos.dcls:demo",
    bench=_bench,
)
