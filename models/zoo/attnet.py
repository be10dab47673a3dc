"""Attentive convolution (ATConv), AttNet, and ATConv in place of attention in SiT.

Paper: "Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional Efficiency", 2025.

Idea: what attention has over convolution is that its weights depend on the image (adaptive routing) and that tokens compete (lateral
inhibition). ATConv takes both and stays a depthwise convolution: one k × k kernel a channel and image, from which a share of its own
mean is subtracted.

Equations. x (B, C, H, W), k odd, s = sigmoid(alpha_c), alpha (C) starts at 0:

- t = Wk x (1 × 1), flattened in raster order and averaged over k² bins of HW (one-dimensional, overlapping where k² does not divide HW)
- K0 = Wg GELU(t) + bg, Wg (k², k²) shared by all channels, as (B, C, k, k); K = K0 - s mean(K0)
- y = Wo (dw(Wv x; K)), each sample's and channel's own kernel, zero padding; 3 (C² + C) + k⁴ + k² + C parameters

Block: x + gamma_1 ATConv(LN x), then x + gamma_2 GLU(LN x); GLU of h = int(2 int(C e) / 3): (a, v) = fc1 x, C -> 2h;
fc2(RMS(GELU(dw3 a) * v)). Network: two strided convolutions, four stages with strided convolutions between, mean, LN, linear.
SiT: adaLN-Zero blocks over tokens (B, 256, C); ATConv there has linear layers and GELU by tanh, and no position embedding is needed.

How far this reference goes. Operator, block, seven AttNets and SiT with and without ATConv (S, B, L, XL at patch 2; hybrid) are the
paper's; the published comments on the sizes of XXS and S include layer scale, their variants here do not, as configured. MACs equal the
published digits if the mean of a kernel counts k² a channel (our reading; it decides the last digit of T2 and T4). Names of layers are
ours: published checkpoints need a key map, which is not here. SiT is the network only: transport, sampling and the dropping of classes
(index ``classes`` stands for none) belong to its training.

On hardware. 1 × 1, the GLU's depthwise 3 × 3, its product and the BN of the stem map as they are, GELU as a table. The dynamic depthwise
layer needs weights written per image (9 C bytes and a scale), generated on the host from pooled sums, and a frame of buffer for Wv x.
Layer and RMS norm become batch norm, with retraining.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import Attention, ConvBN, DropPath, LayerNorm2d, trunc_normal_init


class _Attentive(nn.Module):
    """What the forms of ATConv on maps and on tokens share: the kernel's generator and its use."""

    def __init__(self, dim: int, kernel: int, tanh: bool) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be positive, not {dim!r}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, not {kernel!r}")
        self.kernel, self.approximate = kernel, "tanh" if tanh else "none"
        self.wg = nn.Linear(kernel**2, kernel**2)
        self.alpha = nn.Parameter(torch.zeros(dim))

    def kernels(self, t: Tensor) -> Tensor:
        """Context t (B, C, L) in raster order -> K (B, C, k, k)."""
        bins = F.adaptive_avg_pool1d(t, self.kernel**2)
        k0 = self.wg(F.gelu(bins, approximate=self.approximate))
        k = k0 - self.alpha.sigmoid()[:, None] * k0.mean(-1, keepdim=True)
        return cast(Tensor, k.unflatten(-1, (self.kernel, self.kernel)))

    def apply_kernels(self, v: Tensor, k: Tensor) -> Tensor:
        """v (B, C, H, W) with each sample's and channel's own kernel: the batch becomes groups of one convolution."""
        b, c, height, width = v.shape
        weight = k.reshape(b * c, 1, self.kernel, self.kernel).to(v.dtype)
        y = F.conv2d(v.reshape(1, b * c, height, width), weight, padding=self.kernel // 2, groups=b * c)
        return y.reshape(b, c, height, width)


class ATConv(_Attentive):
    """Attentive convolution: (B, dim, H, W) both ways, any size. alpha is meant to have no weight decay."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__(dim, kernel, False)
        self.wk, self.wv, self.wo = (nn.Conv2d(dim, dim, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernels(self.wk(x).flatten(2))
        return cast(Tensor, self.wo(self.apply_kernels(self.wv(x), k)))


class TokenATConv(_Attentive):
    """ATConv of tokens (B, N, dim) that lie row by row on a square map of N = H²."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__(dim, kernel, True)
        self.wk, self.wv, self.wo = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1]:
            raise ValueError(f"x must have a square number of tokens, not {x.shape[1]}")
        k = self.kernels(self.wk(x).transpose(1, 2))
        y = self.apply_kernels(self.wv(x).transpose(1, 2).unflatten(2, (side, side)), k)
        return cast(Tensor, self.wo(y.flatten(2).transpose(1, 2)))


class RMSNorm2d(nn.Module):
    """x / sqrt(mean x² + eps) * weight over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt() * self.weight.view(-1, 1, 1)


class GLU(nn.Module):
    """fc2(norm(GELU(dw a) * v)), (a, v) = fc1 x: (B, dim, H, W) both ways; ``rms``: with RMS norm."""

    def __init__(self, dim: int, expand: float, rms: bool = False) -> None:
        super().__init__()
        hidden = int(2 * int(dim * expand) / 3)
        if hidden < 1:
            raise ValueError(f"expand must leave a hidden channel of {dim}, not {expand!r}")
        self.fc1, self.fc2 = nn.Conv2d(dim, 2 * hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = RMSNorm2d(hidden) if rms else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, v = self.fc1(x).chunk(2, 1)
        return cast(Tensor, self.fc2(self.norm(F.gelu(self.dw(a)) * v)))


class Block(nn.Module):
    """AttNet block: (B, dim, H, W) both ways. ``layer_scale``: gamma, from 1e-6; ``mixer``: another one than ATConv."""

    def __init__(
        self, dim: int, expand: float = 4, *, kernel: int = 3, layer_scale: bool = False, rms: bool = False, drop: float = 0.0,
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.mixer = ATConv(dim, kernel) if mixer is None else mixer
        self.glu, self.drop_path = GLU(dim, expand, rms), DropPath(drop)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim, 1, 1), 1e-6)) if layer_scale else None for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm1(x))
        x = x + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        y = self.glu(self.norm2(x))
        return x + cast(Tensor, self.drop_path(y if self.gamma2 is None else self.gamma2 * y))


class AttNet(nn.Module):
    """(B, 3, H, W) -> (B, classes), any size. ``drop``: stochastic depth of the last block."""

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int], *, expand: Sequence[float] = (8, 8, 4, 4), kernel: int = 3, classes: int = 1000,
        layer_scale: bool = False, rms: bool = False, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(depths) == len(dims) == len(expand):
            raise ValueError(f"depths and expand must be as many as dims {tuple(dims)}, not {tuple(depths)!r} and {tuple(expand)!r}")
        half = dims[0] // 2
        down = partial(ConvBN, kernel=3, stride=2, padding=1)
        layers: list[nn.Module] = [down(3, half), nn.GELU(), down(half, dims[0])]
        rates = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        for i, (depth, dim, e) in enumerate(zip(depths, dims, expand, strict=True)):
            if i:
                layers.append(down(dims[i - 1], dim))
            layers += [Block(dim, e, kernel=kernel, layer_scale=layer_scale, rms=rms, drop=next(rates)) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], classes)
        self.apply(trunc_normal_init)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(self.layers(x).mean((2, 3)))))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not to decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("alpha")}


class SiTBlock(nn.Module):
    """adaLN-Zero block: tokens (B, N, dim) and condition (B, dim) -> (B, N, dim); a fresh one is the identity."""

    def __init__(self, dim: int, heads: int, attentive: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mixer: nn.Module = TokenATConv(dim) if attentive else Attention(dim, heads)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.ada = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(F.silu(c))[:, None].chunk(6, 2)
        x = x + gate1 * self.mixer(self.norm(x) * (1 + scale1) + shift1)
        y = F.gelu(self.fc1(self.norm(x) * (1 + scale2) + shift2), approximate="tanh")
        return cast(Tensor, x + gate2 * self.fc2(y))


def _waves(position: Tensor, size: int) -> Tensor:
    """position (...) -> (..., size): cosines, then sines, of frequencies 1 to 1 / 10000."""
    half = size // 2
    rate = torch.exp(-torch.arange(half, device=position.device) / half * 9.210340371976184)
    angle = position[..., None].float() * rate
    return torch.cat((angle.cos(), angle.sin()), -1)


class SiT(nn.Module):
    """Scalable interpolant transformer: latent (B, 4, side, side), time (B,) in 0..1, class (B,) up to ``classes`` -> velocity.

    ``mixer``: "attention", "atconv" (no position embedding) or "hybrid" (every second block ATConv). Patches are 2 × 2.
    """

    def __init__(
        self, depth: int, dim: int, heads: int, *, mixer: Literal["attention", "atconv", "hybrid"] = "attention", side: int = 32,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        if mixer not in ("attention", "atconv", "hybrid"):
            raise ValueError(f"mixer must be 'attention', 'atconv' or 'hybrid', not {mixer!r}")
        if side % 2 or dim % 4:
            raise ValueError(f"side must be even and dim a multiple of 4, not {side!r} and {dim!r}")
        self.side, self.positions = side, mixer != "atconv"
        self.patch = nn.Conv2d(4, dim, 2, 2)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes + 1, dim)
        blocks = (SiTBlock(dim, heads, mixer == "atconv" or (mixer == "hybrid" and i % 2 == 1)) for i in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ada, self.out = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * 2 * 8)
        for layer in (self.ada, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        place = torch.arange(side // 2)
        across = torch.cat([_waves(p, dim // 2) for p in torch.meshgrid(place, place, indexing="xy")], -1)
        self.register_buffer("place", across.flatten(0, 1), persistent=False)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (4, self.side, self.side):
            raise ValueError(f"x must be (B, 4, {self.side}, {self.side}), not {tuple(x.shape)!r}")
        c = self.time(_waves(time, 256).to(x.dtype)) + self.label(label)
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        if self.positions:
            tokens = tokens + cast(Tensor, self.place).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.ada(F.silu(c))[:, None].chunk(2, 2)
        y = self.out(self.norm(tokens) * (1 + scale) + shift).transpose(1, 2)  # channels as (row, column, 8)
        y = y.reshape(len(x), 2, 2, 8, self.side // 2, self.side // 2)
        y = torch.einsum("bpqchw->bchpwq", y).reshape(len(x), 8, self.side, self.side)
        return y[:, :4]  # the other half, a variance, is learned by no loss


def bench() -> BenchCase:
    """ATConv beside attention over as many tokens."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.attention(x.flatten(2).transpose(1, 2)))

    return BenchCase(
        name="ATConv against attention, 64 channels, 28×28",
        ours=ATConv(64),
        baseline=Plain(),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


WIDE = (40, 80, 160, 320)
T: dict[str, Any] = {"layer_scale": True, "rms": True}
ATTNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], float, dict[str, Any]]] = {
    "xxs": ((2, 2, 4, 2), (32, 64, 128, 240), 0.02, {}),
    "xs": ((2, 2, 7, 2), WIDE, 0.02, {"layer_scale": True}),
    "s": ((2, 3, 10, 3), WIDE, 0.1, {}),
    "t1": ((2, 3, 12, 3), (48, 96, 224, 384), 0.1, T),
    "t2": ((3, 3, 16, 3), (64, 128, 288, 512), 0.2, T),
    "t3": ((4, 4, 26, 4), (72, 144, 320, 576), 0.4, T),
    "t4": ((5, 5, 28, 5), (96, 192, 384, 768), 0.5, T),
}
SITS = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
SYSTEM = System(
    name="attnet",
    title="Attentive Convolution, AttNet",
    paper="Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional Efficiency (2025)",
    year=2025,
    kind="network",
    variants={
        **{f"attnet_{n}": partial(AttNet, depths, dims, drop=drop, **o) for n, (depths, dims, drop, o) in ATTNETS.items()},
        **{f"sit_{n}_2": partial(SiT, *sizes) for n, sizes in SITS.items()},
        **{f"sit_atconv_{n}_2": partial(SiT, *sizes, mixer="atconv") for n, sizes in SITS.items()},
        "sit_hybrid_xl_2": partial(SiT, *SITS["xl"], mixer="hybrid"),
        "atconv": ATConv,
    },
    checked=(
        "parameters of seven AttNets to the digit, of nine SiTs to the published digits", "MACs to the published digits",
        "closed forms of ATConv's parameters and cost", "batch as groups is unfold", "alpha at its limits: K0, and kernels of mean zero",
        "a constant map has equal bins", "samples do not see each other", "gradcheck",
    ),
    lowering=(
        Lowering(part="1×1, GLU's depthwise 3×3 and product, stem", verdict="as is", note="batch norm folds"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="dynamic depthwise layer", verdict="after a change",
                 note="weights written per image, generated on the host; a frame of buffer for Wv x"),
        Lowering(part="LayerNorm, RMSNorm", verdict="after a change", note="batch norm, folded into the next pointwise layer; retrain"),
        Lowering(part="SiT's attention and adaLN", verdict="no", note="softmax; with ATConv, norms and condition stay on the host"),
    ),
    demo="models.zoo.demos.attnet:demo",
    bench=bench,
)
