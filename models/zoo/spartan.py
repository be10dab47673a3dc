"""SpaRTAN: spatial mixing over several receptive fields and channel mixing by the dominant channel of each pixel.

Paper: Pay, Baskaran, Loo, Wong and See, arXiv 2507.10999 (IJCNN 2025).

Idea: two depthwise (in early stages dense) branches, plain and dilated, weighted by squeeze-excitation, mix space. Channels are mixed by
adding, at every pixel, the gated value of its strongest channel to all others, then turning channel pairs by learned complex numbers.

Equations. x (N, C, H, W); block: x + s_1 SMixer(GN x), then x + s_2 CMixer(GN x); GN is a group norm of one group, s per channel:

- SMixer: h = PW(C -> C/2); h + g (h - mean h), g per channel; A = SE(GELU(BN(conv3 h))); B = SE(GELU(BN(conv3(conv3 h)))), both with
  dilation 2; PW([A, B]), C -> C
- CMixer, E = eC: i(p) = argmax_c x_c(p); t = GELU(PW_t x), v = PW_v x; f_c(p) = v_c t_c + v_i(p) t_i(p), i < C <= E;
  (f_2j + i f_2j+1) w_j with a learned complex w_j; SE(GELU(BN(conv3 .))); PW, E -> C

Early stages (the first half): SMixer's convolutions dense, CMixer's depthwise. Later: SMixer's depthwise, CMixer's in C groups of e
channels. Two strided 3 × 3 convolutions before, a strided 2 × 2 with BN and SiLU between stages, mean and linear layer behind.

How far this reference goes. Operators, block and the one published configuration are the paper's: 3,820,296 parameters. Which layers
have a bias is our reading: pointwise ones do, all others do not (another assignment fits the same count). Names are ours: published
checkpoints need a key map, which is not here. The multiply-accumulates of the abstract (1.0 G) are those of 256 × 256.

On hardware. Depthwise 3 × 3 (with dilation 2: 5 × 5), pointwise and the turning of pairs (2 × 2 pointwise) map as they are, GELU, SiLU
and squeeze-excitation's sigmoid through tables. Dense 3 × 3 of early stages are nine shifts and a pointwise layer. The argmax with gather
and a group norm over the whole map do not map; the latter could become a calibrated affine with retraining.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ConvBN, DropPath, SqueezeExcite

EPS = 1e-6  # of every norm


def _conv_bn(
    inputs: int, outputs: int, kernel: int, act: type[nn.Module], *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """ConvBN and ``act``; odd kernels keep the size at stride 1."""
    layer = ConvBN(
        inputs, outputs, kernel, stride=stride, padding=dilation * (kernel // 2) if kernel % 2 else 0, dilation=dilation, groups=groups
    )
    cast(nn.BatchNorm2d, layer[1]).eps = EPS
    return nn.Sequential(layer, act())


class SMixer(nn.Module):
    """Spatial mixer, (N, dim, H, W) both ways. ``dense``: convolutions over all channels instead of depthwise."""

    def __init__(self, dim: int, dense: bool) -> None:
        super().__init__()
        if dim < 8 or dim % 8:
            raise ValueError(f"dim must be a positive multiple of 8, not {dim!r}")
        half = dim // 2
        groups = 1 if dense else half
        self.reduce, self.g = nn.Conv2d(dim, half, 1), nn.Parameter(torch.full((half,), 1e-5))
        self.a = nn.Sequential(_conv_bn(half, half, 3, nn.GELU, groups=groups), SqueezeExcite(half, half // 4))
        self.b = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=2, dilation=2, groups=groups, bias=False),
            _conv_bn(half, half, 3, nn.GELU, dilation=2, groups=groups), SqueezeExcite(half, half // 4),
        )  # fmt: skip
        self.project = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.reduce(x)
        h = h + self.g.view(-1, 1, 1) * (h - h.mean((2, 3), keepdim=True))
        return cast(Tensor, self.project(torch.cat((self.a(h), self.b(h)), 1)))


class CMixer(nn.Module):
    """Channel mixer, (N, dim, H, W) both ways; ``ratio`` e times wider inside. ``depthwise``: the convolution has e dim groups, else dim.

    ``gather`` False leaves the dominant channel's value out, for comparison.
    """

    def __init__(self, dim: int, ratio: int, depthwise: bool, gather: bool = True) -> None:
        super().__init__()
        wide = dim * ratio
        if dim < 4 or dim % 4 or ratio < 1:
            raise ValueError(f"dim and ratio must be a positive multiple of 4 and positive, not {dim!r} and {ratio!r}")
        self.gather = gather
        self.t, self.v = nn.Conv2d(dim, wide, 1), nn.Conv2d(dim, wide, 1)
        self.turn = nn.Parameter(torch.randn(wide // 2, 2))  # real and imaginary part
        self.conv = _conv_bn(wide, wide, 3, nn.GELU, groups=wide if depthwise else dim)
        self.se, self.project = SqueezeExcite(wide, dim // 4), nn.Conv2d(wide, dim, 1)

    def mix(self, x: Tensor) -> Tensor:
        """f: (N, dim, H, W) -> (N, e dim, H, W)."""
        gated: Tensor = F.gelu(self.t(x)) * self.v(x)
        if not self.gather:
            return gated
        return gated + gated.gather(1, x.argmax(1, keepdim=True))

    def rotate(self, f: Tensor) -> Tensor:
        """Every pair of channels times its complex number."""
        re, im = f.reshape(len(f), -1, 2, *f.shape[2:]).unbind(2)
        a, b = self.turn.view(-1, 2, 1, 1).unbind(1)
        return torch.stack((a * re - b * im, a * im + b * re), 2).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.project(self.se(self.conv(self.rotate(self.mix(x))))))


class Block(nn.Module):
    """Both mixers with their norms and scales, (N, dim, H, W) both ways; a fresh one is almost the identity."""

    def __init__(self, dim: int, ratio: int, early: bool, drop: float = 0.0, scale: float = 1e-5) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim, eps=EPS), nn.GroupNorm(1, dim, eps=EPS)
        self.smixer, self.cmixer = SMixer(dim, early), CMixer(dim, ratio, early)
        self.s1, self.s2 = (nn.Parameter(torch.full((dim,), scale)) for _ in range(2))
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.s1.view(-1, 1, 1) * self.smixer(self.norm1(x)))
        return x + cast(Tensor, self.drop_path(self.s2.view(-1, 1, 1) * self.cmixer(self.norm2(x))))


class SpaRTAN(nn.Module):
    """(N, inputs, H, W), sides above 28 with four stages -> (N, classes). ``drop``: stochastic depth of the last block."""

    def __init__(
        self, dims: Sequence[int], depths: Sequence[int], ratios: Sequence[int], *, classes: int = 1000, inputs: int = 3,
        drop: float = 0.0, scale: float = 1e-5,
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(ratios):
            raise ValueError(f"depths and ratios must be as many as dims {tuple(dims)}, not {tuple(depths)!r} and {tuple(ratios)!r}")
        if any(d < 8 or d % 8 for d in dims):
            raise ValueError(f"dims must be positive multiples of 8, not {tuple(dims)!r}")
        self.above = 2 ** (len(dims) + 1) - 4  # the stem rounds up, steps between stages round down
        first = dims[0]
        self.stem = nn.Sequential(
            _conv_bn(inputs, first // 2, 3, nn.GELU, stride=2), _conv_bn(first // 2, first, 3, nn.GELU, stride=2)
        )
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        stages: list[nn.Module] = []
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios, strict=True)):
            step = [_conv_bn(dims[i - 1], dim, 2, nn.SiLU, stride=2)] if i else []
            stages.append(nn.Sequential(*step, *(Block(dim, ratio, i < len(dims) // 2, next(rates), scale) for _ in range(depth))))
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(dims[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) <= self.above:
            raise ValueError(f"x must have sides above {self.above}, not {tuple(x.shape[-2:])!r}")
        return cast(Tensor, self.head(self.stages(self.stem(x)).mean((2, 3))))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def bench() -> BenchCase:
    """CMixer beside the two pointwise layers that it stands for."""
    return BenchCase(
        name="CMixer against PW 32→128→32, 28×28",
        ours=CMixer(32, 4, True),
        baseline=nn.Sequential(nn.Conv2d(32, 128, 1), nn.GELU(), nn.Conv2d(128, 32, 1)),
        inputs=(torch.randn(4, 32, 28, 28),),
    )


SYSTEM = System(
    name="spartan",
    title="SpaRTAN",
    paper="arXiv 2507.10999 (IJCNN 2025)",
    year=2025,
    kind="network",
    variants={"spartan": partial(SpaRTAN, (32, 64, 128, 256), (3, 3, 12, 2), (4, 4, 2, 2)), "smixer": SMixer, "cmixer": CMixer},
    checked=(
        "parameters to the digit", "MACs at 224 and 256", "a turn of 1 changes nothing, of modulus 1 keeps norms",
        "g = 0 leaves h", "the gather pixel by pixel", "no gradient through the argmax", "gradcheck",
    ),
    lowering=(
        Lowering(part="depthwise 3×3 (dilation 2: 5×5), pointwise, turning", verdict="as is", note="turning is a 2×2 pointwise layer"),
        Lowering(part="GELU, SiLU, squeeze-excitation", verdict="after a change", note="tables; mean and product per channel"),
        Lowering(part="dense 3×3 of early stages", verdict="after a change", note="nine one-hot depthwise shifts and pointwise"),
        Lowering(part="GroupNorm over the map", verdict="no", note="statistics of the image at hand; a calibrated affine needs retraining"),
        Lowering(part="argmax and gather", verdict="no", note="a channel index per pixel"),
    ),
    demo="models.zoo.demos.spartan:demo",
    bench=bench,
)
