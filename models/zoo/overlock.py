"""OverLoCK and the context-mixing dynamic convolution, ContMix.

Paper: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", arXiv 2502.20087
(CVPR 2025).

Idea: a quick first pass looks over the whole image and hands its coarse result, the context, to a second pass that looks closely. There
every pixel computes the kernel it is filtered with from its affinity to 49 regions of the context, so that a convolution becomes
global in what it knows and stays local in what it gathers.

Equations. ContMix, G = 2 heads groups, kernels of sides S = 5 and K, map L = H W:

- Q = BN(1 × 1 q), C -> C/2, times (C / G)^-1/2; R = BN(1 × 1 of ctx averaged over 7 × 7 regions), -> (C/2, 49)
- A_g = Q_g' R_g (L, 49) for each group; 1 × 1 over the regions, 49 -> S² + K², shared by the groups; split; add the learned bias of
  (dy, dx); softmax over the taps: kernels w1 (G, L, S²), w2 (G, L, K²)
- the first half of x's channels gathered with w1, the second with w2, in windows clamped inside the map (start = min(max(i - K // 2, 0),
  H - K)); 1 × 1 and BN; add DRB(x), BN; squeeze-excitation; times SiLU(BN(1 × 1 x)); BN, 1 × 1

Maps smaller than K are enlarged bilinearly before and averaged back after. Dynamic block: z = [x, ctx], z + dw3 z; q, ctx = LN z split;
x = GRN(1 × 1 GELU(BN(dw3 LN z))); s(z) + ContMix; plus dw3; s(z) + MLP(LN z), MLP = 1 × 1, GELU, plus dw3, GRN, 1 × 1; s(z) = a z + b.
RepConv block: x + dw3 x; s(x) + (LN, DRB_K, BN, squeeze-excitation, MLP). Base-Net: stages 1 to 3 of RepConv blocks; Overview-Net: stage 4
on it, whose map is the context; Focus-Net: dynamic blocks on stage 3 (where ctx <- a ctx + b ctx_0 before every block but the first) and
on a strided convolution of both.

How far this reference goes. Operator, blocks, nets and the four variants have the authors' sizes; MACs count the gathering and the layer
scales, which the published figures (2.6, 5.5, 9.7, 16.7 G) do not. Windows are gathered row by row in PyTorch: correct for any size,
slow beside a neighbourhood-attention kernel. ``ContMixBlock`` takes x itself as context. Published checkpoints need a key map, which is
not here.

On hardware. RepConv blocks as those of UniRepLKNet: merged DRB, pointwise, add as they are; GELU a table; GRN and squeeze-excitation a
mean, pointwise, tables and a product; LN -> batch norm. ContMix does not map: its kernels are other numbers at every pixel and come out of
a softmax; the unit with offsets moves taps, it carries no weights per pixel.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import GRN, ConvBN, DilatedReparam, DropPath, LayerNorm2d, SqueezeExcite, trunc_normal_init

REGIONS = 7
#: (size, dilation) of the branches beside each large kernel.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
}


def window_starts(length: int, kernel: int, device: torch.device | None = None) -> Tensor:
    """Where each pixel's window starts: centred, but inside 0..length."""
    return (torch.arange(length, device=device) - kernel // 2).clamp(0, length - kernel)


def gather_windows(x: Tensor, w: Tensor, kernel: int) -> Tensor:
    """x (N, G, c, H, W), w (N, G, H, W, kernel²) -> (N, G, c, H, W): each pixel's clamped window, weighted and summed."""
    height, width = x.shape[-2:]
    if min(height, width) < kernel or tuple(w.shape[2:]) != (height, width, kernel * kernel):
        raise ValueError(f"w must be (N, G, {height}, {width}, {kernel}²) and the map no smaller than {kernel}, not {tuple(w.shape)!r}")
    rows, columns = (window_starts(n, kernel, x.device) for n in (height, width))
    columns = columns[:, None] + torch.arange(kernel, device=x.device)
    out = x.new_zeros(())
    for k in range(kernel):
        taps = x[..., rows + k, :][..., columns]  # (N, G, c, H, W, kernel)
        out = out + torch.einsum("ngchwk,nghwk->ngchw", taps, w[..., k * kernel : (k + 1) * kernel])
    return out


def position_bias(table: Tensor, height: int, width: int, kernel: int) -> Tensor:
    """table (G, 2 kernel - 1, 2 kernel - 1), by (dy, dx) + kernel - 1 -> (G, H, W, kernel²): the bias of each tap of each window."""
    place = []
    for n in (height, width):
        start = window_starts(n, kernel, table.device)
        pixel = torch.arange(n, device=table.device)
        place.append((start - pixel)[:, None] + torch.arange(kernel, device=table.device) + kernel - 1)
    return table[:, place[0][:, None, :, None], place[1][None, :, None, :]].flatten(3)


class LayerScale(nn.Module):
    """a x + b per channel, a = 1 and b = 0 at the start: (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim, 1, 1)), nn.Parameter(torch.zeros(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class ResidualDW(nn.Module):
    """x + dw3(x): (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.conv(x))


def reparam(dim: int, kernel: int) -> nn.Sequential:
    """DRB and BN."""
    if kernel not in BRANCHES:
        raise ValueError(f"kernel must be one of {sorted(BRANCHES)}, not {kernel!r}")
    return nn.Sequential(DilatedReparam(dim, kernel, BRANCHES[kernel]), nn.BatchNorm2d(dim))


def squeeze(dim: int) -> SqueezeExcite:
    """Squeeze-excitation with an eighth of the channels between, at least 16."""
    return SqueezeExcite(dim, max(16, dim // 8), nn.GELU)


def mlp(dim: int, hidden: int) -> nn.Sequential:
    """1 × 1, GELU, x + dw3 x, GRN, 1 × 1."""
    return nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), ResidualDW(hidden), GRN(hidden), nn.Conv2d(hidden, dim, 1))


class ContMix(nn.Module):
    """query and x (N, dim, H, W), ctx (N, ctx_dim, H, W) -> (N, outputs, H, W); 4 heads divide dim. ``kernel``: K, ``small``: S.

    ``value``: x goes through BN(1 × 1) before it is gathered.
    """

    def __init__(
        self, dim: int, ctx_dim: int | None = None, outputs: int | None = None, *, kernel: int = 7, small: int = 5, heads: int = 2,
        value: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % (4 * heads):
            raise ValueError(f"heads must be positive and 4 heads divide dim {dim}, not {heads!r}")
        if small < 1 or small % 2 == 0 or small > kernel:
            raise ValueError(f"small must be odd and at most kernel {kernel}, not {small!r}")
        self.kernel, self.small, self.groups = kernel, small, 2 * heads
        self.scale = (dim // self.groups) ** -0.5
        self.weight_query = ConvBN(dim, dim // 2)
        self.weight_key = ConvBN(dim if ctx_dim is None else ctx_dim, dim // 2)
        self.weight_proj = nn.Conv2d(REGIONS**2, small**2 + kernel**2, 1)
        self.rpb1, self.rpb2 = (nn.Parameter(torch.zeros(self.groups, 2 * k - 1, 2 * k - 1)) for k in (small, kernel))
        self.value: nn.Module = ConvBN(dim, dim) if value else nn.Identity()
        self.fusion = ConvBN(dim, dim)
        self.lepe, self.se = reparam(dim, kernel), squeeze(dim)
        self.gate = nn.Sequential(ConvBN(dim, dim), nn.SiLU())
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, dim if outputs is None else outputs, 1))

    def kernels(self, query: Tensor, ctx: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of weights that sum to 1: (N, G, H, W, S²) and (N, G, H, W, K²)."""
        height, width = query.shape[-2:]
        q = (self.weight_query(query) * self.scale).reshape(len(query), self.groups, -1, height * width)
        regions = self.weight_key(F.adaptive_avg_pool2d(ctx, REGIONS)).reshape(len(ctx), self.groups, -1, REGIONS**2)
        affinity = torch.einsum("ngcr,ngcl->nrgl", regions, q)
        taps = cast(Tensor, self.weight_proj(affinity)).permute(0, 2, 3, 1).reshape(len(q), self.groups, height, width, -1)
        first, second = taps[..., : self.small**2], taps[..., self.small**2 :]
        first = first + position_bias(self.rpb1, height, width, self.small)
        second = second + position_bias(self.rpb2, height, width, self.kernel)
        return first.softmax(-1), second.softmax(-1)

    def mix(self, query: Tensor, ctx: Tensor, x: Tensor) -> Tensor:
        """The gathering alone: (N, dim, H, W)."""
        size = (x.shape[-2], x.shape[-1])
        if min(size) < self.kernel:
            larger = [self.kernel * s // min(size) for s in size]
            query, ctx, x = (F.interpolate(t, larger, mode="bilinear", align_corners=False) for t in (query, ctx, x))
        halves = [half.reshape(len(x), self.groups, -1, *x.shape[2:]) for half in x.chunk(2, 1)]
        first, second = self.kernels(query, ctx)
        out = torch.cat((gather_windows(halves[0], first, self.small), gather_windows(halves[1], second, self.kernel)), 1).flatten(1, 2)
        return out if min(size) >= self.kernel else F.adaptive_avg_pool2d(out, size)

    def forward(self, query: Tensor, ctx: Tensor, x: Tensor) -> Tensor:
        mixed = self.fusion(self.mix(query, ctx, self.value(x))) + self.lepe(x)
        return cast(Tensor, self.proj(self.gate(x) * self.se(mixed)))


class ContMixBlock(nn.Module):
    """Plug-and-play, x its own context: (N, dim, H, W) both ways, any size."""

    def __init__(self, dim: int, *, kernel: int = 7, small: int = 5, heads: int = 2, expansion: int = 4, drop: float = 0.0) -> None:
        super().__init__()
        self.dwconv1, self.norm1 = ResidualDW(dim), LayerNorm2d(dim)
        self.mixer = ContMix(dim, kernel=kernel, small=small, heads=heads, value=True)
        self.dwconv2, self.norm2 = ResidualDW(dim), LayerNorm2d(dim)
        self.mlp, self.ls1, self.ls2, self.drop_path = mlp(dim, expansion * dim), LayerScale(dim), LayerScale(dim), DropPath(drop)
        for table in (self.mixer.rpb1, self.mixer.rpb2):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv1(x)
        y = self.norm1(x)
        x = self.dwconv2(self.ls1(x) + self.drop_path(self.mixer(y, y, y)))
        return cast(Tensor, self.ls2(x) + self.drop_path(self.mlp(self.norm2(x))))


class RepConvBlock(nn.Module):
    """(N, dim, H, W) both ways. ``scale``: with layer scale."""

    def __init__(self, dim: int, kernel: int, expansion: int = 4, *, scale: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.dwconv = ResidualDW(dim)
        self.proj = nn.Sequential(LayerNorm2d(dim), reparam(dim, kernel), squeeze(dim), mlp(dim, expansion * dim), DropPath(drop))
        self.ls: nn.Module = LayerScale(dim) if scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        return cast(Tensor, self.ls(x)) + cast(Tensor, self.proj(x))


class DynamicConvBlock(nn.Module):
    """x (N, dim, H, W), ctx and ctx_0 (N, ctx_dim, H, W) -> the next x and ctx. ``first``: ctx is taken as it comes."""

    def __init__(
        self, dim: int, ctx_dim: int, *, kernel: int, heads: int, expansion: int = 3, first: bool = False, drop: float = 0.0,
    ) -> None:
        super().__init__()
        both = dim + ctx_dim
        self.sizes = (dim, ctx_dim)
        self.x_scale = None if first else LayerScale(ctx_dim)
        self.h_scale = None if first else LayerScale(ctx_dim)
        self.dwconv1, self.norm1 = ResidualDW(both), LayerNorm2d(both)
        self.fusion = nn.Sequential(
            nn.Conv2d(both, both, 3, padding=1, groups=both), nn.BatchNorm2d(both), nn.GELU(), nn.Conv2d(both, dim, 1), GRN(dim),
        )  # fmt: skip
        self.mixer = ContMix(dim, ctx_dim, both, kernel=kernel, heads=heads)
        self.dwconv2, self.norm2 = ResidualDW(both), LayerNorm2d(both)
        self.mlp, self.ls1, self.ls2, self.drop_path = mlp(both, expansion * dim), LayerScale(both), LayerScale(both), DropPath(drop)

    def forward(self, x: Tensor, ctx: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        if self.x_scale is not None and self.h_scale is not None:
            ctx = self.x_scale(ctx) + self.h_scale(start)
        z = self.dwconv1(torch.cat((x, ctx), 1))
        y = self.norm1(z)
        query, key = y.split(self.sizes, 1)
        z = self.dwconv2(self.ls1(z) + self.drop_path(self.mixer(query, key, self.fusion(y))))
        z = self.ls2(z) + self.drop_path(self.mlp(self.norm2(z)))
        x, ctx = z.split(self.sizes, 1)
        return x, ctx


def stem(dim: int) -> nn.Sequential:
    """Four 3 × 3 convolutions with BN, a quarter of the side: (N, 3, H, W) -> (N, dim, H / 4, W / 4)."""
    half = dim // 2
    return nn.Sequential(
        ConvBN(3, half, 3, stride=2, padding=1), nn.GELU(), ConvBN(half, half, 3, padding=1), nn.GELU(),
        ConvBN(half, dim, 3, stride=2, padding=1), nn.GELU(), ConvBN(dim, dim, 3, padding=1),
    )  # fmt: skip


class OverLoCK(nn.Module):
    """(N, 3, H, W) -> (N, classes), in training {"main", "aux"} of such. Any size.

    ``depths``: of the four stages of Base- and Overview-Net; ``focus``: of the two of Focus-Net; ``heads``: there. ``aux`` False: no
    second head. ``drop``: stochastic depth of the last block of either pass.
    """

    def __init__(
        self, dims: Sequence[int], depths: Sequence[int], focus: Sequence[int], heads: Sequence[int], *,
        kernels: Sequence[int] = (17, 15, 13, 7), expansion: int = 4, focus_expansion: int = 3, classes: int = 1000, aux: bool = True,
        projection: int = 1024, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(kernels) == 4 or not len(focus) == len(heads) == 2:
            raise ValueError(f"dims, depths and kernels must be four, focus and heads two, not {dims!r}, {depths!r}, {focus!r}, {heads!r}")
        last = dims[3]
        ctx = last // 4
        base_rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        focus_rates = iter(torch.linspace(0, drop, sum(focus), device="cpu").tolist())
        self.patch = nn.ModuleList([stem(dims[0]), *(ConvBN(a, b, 3, stride=2, padding=1) for a, b in pairwise(dims))])
        self.stages = nn.ModuleList(
            nn.Sequential(*(RepConvBlock(c, k, expansion, scale=i > 1, drop=next(base_rates)) for _ in range(depth)))
            for i, (c, k, depth) in enumerate(zip(dims, kernels, depths, strict=True))
        )
        self.high_level_proj = nn.Conv2d(last, ctx, 1)
        self.focus = nn.ModuleList(
            nn.ModuleList(
                DynamicConvBlock(
                    dims[i + 2], ctx, kernel=kernels[i + 2], heads=heads[i], expansion=focus_expansion, first=i == n == 0,
                    drop=next(focus_rates),
                )
                for n in range(focus[i])
            )
            for i in range(2)
        )  # fmt: skip
        self.x_down, self.ctx_down = ConvBN(dims[2], last, 3, stride=2, padding=1), ConvBN(ctx, ctx, 3, stride=2, padding=1)
        self.head = nn.Sequential(
            ConvBN(last + ctx, projection), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(projection, classes, 1), nn.Flatten(),
        )  # fmt: skip
        self.aux_head = nn.Sequential(
            nn.BatchNorm2d(last), nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, classes, 1), nn.Flatten(),
        ) if aux else None  # fmt: skip
        self.apply(trunc_normal_init)

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps at strides 4, 8, 16, 32 (the last two of Focus-Net, the last with its context) and the overview."""
        maps = []
        for patch, stage in zip(self.patch, self.stages, strict=True):
            x = stage(patch(x))
            maps.append(x)
        x, overview = maps[2], maps[3]
        coarse = self.high_level_proj(overview)
        ctx = start = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
        for block in cast(nn.ModuleList, self.focus[0]):
            x, ctx = block(x, ctx, start)
        maps[2] = x
        x, ctx = self.x_down(x), self.ctx_down(ctx)
        for block in cast(nn.ModuleList, self.focus[1]):
            x, ctx = block(x, ctx, coarse)
        maps[3] = torch.cat((x, ctx), 1)
        return maps, overview

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        maps, overview = self.features(x)
        main: Tensor = self.head(maps[3])
        return {"main": main, "aux": self.aux_head(overview)} if self.training and self.aux_head is not None else main


def merge_(model: nn.Module) -> nn.Module:
    """Replace every dilated reparam block by its one convolution and drop the auxiliary head, in place; eval only."""
    for name, child in list(model.named_children()):
        if isinstance(child, DilatedReparam):
            setattr(model, name, child.merged())
        elif name == "aux_head":
            setattr(model, name, None)
        else:
            merge_(child)
    return model.eval()


def bench() -> BenchCase:
    """A ContMix block beside a RepConv block of the same kernel."""
    return BenchCase(
        name="ContMix block against RepConv block, kernel 7, 64 channels, 14×14",
        ours=ContMixBlock(64),
        baseline=RepConvBlock(64, 7),
        inputs=(torch.randn(4, 64, 14, 14),),
    )


SYSTEM = System(
    name="overlock",
    title="OverLoCK, ContMix",
    paper="arXiv 2502.20087 (CVPR 2025)",
    year=2025,
    kind="network",
    variants={
        "overlock_xt": partial(OverLoCK, (56, 112, 256, 336), (2, 2, 3, 2), (6, 2), (4, 6)),
        "overlock_t": partial(OverLoCK, (64, 128, 256, 512), (4, 4, 6, 2), (12, 2), (4, 8)),
        "overlock_s": partial(OverLoCK, (64, 128, 320, 512), (6, 6, 8, 3), (16, 3), (8, 16)),
        "overlock_b": partial(OverLoCK, (80, 160, 384, 576), (8, 8, 10, 4), (20, 4), (6, 9)),
        "contmix_block": ContMixBlock,
    },
    checked=(
        "parameters of XT, T, S, B to the digit, in training and merged", "MACs to the digits measured with gathering and layer scales",
        "merged = unmerged", "kernels are rows that sum to 1; a constant map stays", "zero affinity is a mean over the clamped window",
        "windows and position bias pixel by pixel", "cost of the kernels linear in pixels", "gradcheck",
    ),
    lowering=(
        Lowering(part="merged DRB, pointwise, residual depthwise", verdict="as is", note="depthwise 13 to 17 and 3, pointwise, add"),
        Lowering(part="LayerNorm, GELU, SiLU", verdict="after a change", note="batch norm, folded; tables; retrain"),
        Lowering(part="GRN, squeeze-excitation", verdict="after a change", note="means, pointwise, tables of root, reciprocal, sigmoid"),
        Lowering(part="ContMix", verdict="no", note="kernels per pixel out of a softmax; offsets move taps, they carry no weights"),
    ),
    demo="models.zoo.demos.overlock:demo",
    bench=bench,
)
