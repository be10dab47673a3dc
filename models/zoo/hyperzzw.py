"""HyperZ·Z·W operators and Terminator: weights from coordinates, multiplied by activations, applied to activations.

Paper: Zhang, "HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction", arXiv 2401.17948.

Idea: a slow network turns coordinates into hyper-kernels W as large as the image. A fast network multiplies them by its activations Z,
which makes them depend on the context, and lets the result act on Z again. No residual connections, no attention.

Equations. x (N, C, S, S), c coordinates in [-1, 1]^d:

- slow network: phi_l(c) = sin(A_l c), h_0 = phi_0, h_l = phi_l * (B_l h_{l-1}) + beta (a learned map), W = B_out h_L.
  G: W (C, S, S). GC: along the channels, (C). L: (C, k, k), and depends on the context, g = GELU(1 × 1 (1 × 1 (pool_k x))) averaged
  over the batch: after each level h -> (stop(h) + 0.1 h / |h|) * (1 × 1 g), the norm per channel
- ZZW_2E(W, z) = (z * W) * z; ZZW_G: ck = x * W, then ck @ z, per channel (S, S) by (S, S);
  ZZW_L(x1, x2) = GELU(BS(1 × 1 dw(x2; L(x1)))) + b
- RGU(x) = W_y (GELU(IS(W_k x * W_q W_v x)) + map); HCI(x) = x * sigmoid(ZZW_2E(GC, mean x));
  HI(y, x) = x * sigmoid(ZZW_2E(G, mean_c y) * ZZW_2E(GC, mean y)); IS, BS: instance, batch norm without parameters or running averages
- block: fast = IS(RGU_2(ck) + RGU(x)), mix = IS(1 × 1 x), hci = IS(HCI x); ten branches: fast, out = ck @ fast, ck @ mix, ck @ hci,
  out * sigmoid(out), HI(out, x), and ZZW_L of k = 3, 9, 5, 7 from (x, hci, mix, x) on (hci, x, x, mix); with earlier features, repeated in
  channels, a 1 × 1 to C b channels; G-IBS (12 groups, BS and IS in turn), GELU, dropout, + b
- slow loss: mean squared distance of W of every pair of blocks, the shallow one repeated in channels

How far this reference goes. Operators, slow networks, block and the CIFAR-10 sizes are the authors' modules. Their top-level network was
not at hand: here each block's earlier features are the inputs of the blocks before it (none, none, one, one, two), the head is a mean
over the map and a linear layer, the scale omega of the slow networks is 1; all three are our readings, so no published total is claimed.
As published, a sample's output depends on its batch, in eval mode too: batch norm and the context of L are averages over the batch.
Names are ours, there is no key map.

On hardware. ZZW_2E and gates map: multiply, a table for the sigmoid; W of G and GC is constant after training. Local kernels depend on
the data, ck @ z multiplies activations by activations, instance and batch statistics of the moment do not fold: these do not map.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

ALPHA, BETA = 1.0, 0.1  # s-renormalization; not trained
LOCAL = (3, 9, 5, 7)
BRANCHES = 10


def zzw_2e(w: Tensor, z: Tensor) -> Tensor:
    """(z * w) * z, w broadcast over the batch."""
    return z * w * z


def zzw_g(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """(x * w) @ z per channel: w (C, S, S), x and z (N, C, S, S)."""
    return x * w @ z


def instance_std(x: Tensor) -> Tensor:
    """Each sample's channel to mean 0 and variance 1."""
    return F.instance_norm(x)


def batch_std(x: Tensor) -> Tensor:
    """Each channel of the batch at hand to mean 0 and variance 1, in eval mode too."""
    return F.batch_norm(x, None, None, training=True)


class GroupStd(nn.Module):
    """G-IBS: of ``groups`` groups of channels the even ones by batch, the odd ones by instance."""

    def __init__(self, channels: int, groups: int = 12) -> None:
        super().__init__()
        if groups < 2 or channels % groups:
            raise ValueError(f"groups must be at least 2 and divide {channels} channels, not {groups!r}")
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(self.groups, 1)
        return torch.cat([instance_std(p) if k % 2 else batch_std(p) for k, p in enumerate(parts)], 1)


class SlowNet(nn.Module):
    """MAGNet: a hyper-kernel (outputs, size, ... ``axes`` times). ``context``: the channels of the map that L looks at (0: none).

    ``layers``: L of the equations; ``omega``: scale of the first weights.
    """

    coordinates: Tensor

    def __init__(self, size: int, outputs: int, hidden: int, layers: int, *, axes: int = 2, context: int = 0, omega: float = 1.0) -> None:
        super().__init__()
        for name, value in (("size", size), ("hidden", hidden), ("layers", layers), ("axes", axes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        self.shape, self.context = (outputs, *(size,) * axes), context
        line = torch.linspace(-1, 1, size)
        self.register_buffer("coordinates", torch.cartesian_prod(*(line,) * axes).view(-1, axes), persistent=False)
        self.filters = nn.ModuleList(nn.Linear(axes, hidden) for _ in range(layers + 1))
        self.linears = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.bias = nn.Parameter(torch.zeros(size**axes, 1))
        self.out = nn.Linear(hidden, outputs)
        if context:
            self.reduce, self.fc = nn.Linear(context, hidden), nn.Linear(hidden, hidden)
            self.gates = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self._reset(omega)

    @torch.no_grad()
    def _reset(self, omega: float) -> None:
        for level, layer in enumerate(self.filters):
            assert isinstance(layer, nn.Linear)
            shape = torch.full(layer.weight.shape, 6.0 / (level + 1), device="cpu")
            layer.weight.mul_(2 * math.pi * omega * torch._standard_gamma(shape).to(layer.weight))
            nn.init.zeros_(layer.bias)
        for layer in (*self.linears, *(self.gates if self.context else ()), self.out):
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            nn.init.ones_(layer.bias)
        nn.init.zeros_(self.out.bias)
        self.out.weight.mul_(len(self.coordinates) ** -0.5)

    def forward(self, x: Tensor | None = None) -> Tensor:
        """``x`` (N, context, H, W), only for a network with context."""
        if (x is None) == bool(self.context):
            raise ValueError(f"x must be {'given' if self.context else 'absent'}, not {type(x).__name__}")
        g: Tensor | None = None
        if x is not None:
            pooled = F.adaptive_avg_pool2d(x, self.shape[1]).mean(0)
            g = F.gelu(self.fc(self.reduce(pooled.flatten(1).T)))
        h = self.filters[0](self.coordinates).sin()
        for level, linear in enumerate(self.linears):
            h = self.filters[level + 1](self.coordinates).sin() * linear(h) + self.bias
            if g is not None:
                h = (ALPHA * h.detach() + BETA * F.normalize(h, dim=0)) * self.gates[level](g)
        return cast(Tensor, self.out(h)).T.reshape(self.shape)


class RGU(nn.Module):
    """Recursive gated unit: (N, channels, size, size) both ways."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.W_k, self.W_v, self.W_q, self.W_y = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        for conv in (self.W_k, self.W_v, self.W_q, self.W_y):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
            nn.init.zeros_(cast(Tensor, conv.bias))
        self.bias = nn.Parameter(torch.zeros(size, size))

    def forward(self, x: Tensor) -> Tensor:
        gated = instance_std(self.W_k(x) * self.W_q(self.W_v(x)))
        return cast(Tensor, self.W_y(F.gelu(gated) + self.bias))


def _mixer(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.kaiming_normal_(conv.weight)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


class ZZWLocal(nn.Module):
    """ZZW_L: the kernel from x1, applied to x2, both (N, channels, H, W); k odd."""

    def __init__(self, channels: int, k: int, *, hidden: int = 32, layers: int = 2, omega: float = 1.0) -> None:
        super().__init__()
        if k % 2 == 0:
            raise ValueError(f"k must be odd, not {k!r}")
        self.slow = SlowNet(k, channels, hidden, layers, context=channels, omega=omega)
        self.mixer = _mixer(channels, channels)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        kernel = cast(Tensor, self.slow(x1)).unsqueeze(1).to(x2.dtype)
        y = F.conv2d(x2, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
        return F.gelu(batch_std(self.mixer(y))) + self.bias


class HyperChannel(nn.Module):
    """HCI: x * sigmoid(ZZW_2E(GC, mean x))."""

    def __init__(self, channels: int, hidden: int = 32, layers: int = 2, omega: float = 1.0) -> None:
        super().__init__()
        self.slow = SlowNet(channels, 1, hidden, layers, axes=1, omega=omega)

    def score(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1)."""
        return zzw_2e(self.slow().view(-1, 1, 1), x.mean((2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.score(x).sigmoid()


class HyperInteraction(nn.Module):
    """HI(y, x) = x * sigmoid(ZZW_2E(G, mean_c y) * ZZW_2E(GC, mean y))."""

    def __init__(self, channels: int, size: int, *, hidden: int = 64, hidden_c: int = 16, layers: int = 2, omega: float = 1.0) -> None:
        super().__init__()
        self.channel = HyperChannel(channels, hidden_c, layers, omega)
        self.slow = SlowNet(size, 1, hidden, layers, omega=omega)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        place = zzw_2e(self.slow(), y.mean(1, keepdim=True))
        return x * (place * self.channel.score(y)).sigmoid()


class SFNEBlock(nn.Module):
    """Slow-fast block: (N, channels, size, size) -> (N, factor channels, size, size). ``earlier``: how many earlier features it takes.

    ``layers``: of the global slow network; ``hidden``, ``hidden_l``: widths of the slow networks G, and L and GC.
    """

    def __init__(
        self, channels: int, factor: int, size: int, *, layers: int = 2, earlier: int = 0, drop: float = 0.0, hidden: int = 64,
        hidden_l: int = 32, groups: int = 12, omega: float = 1.0,
    ) -> None:
        super().__init__()
        self.size, self.earlier = size, earlier
        self.slow = SlowNet(size, channels, hidden, layers, omega=omega)
        self.local = nn.ModuleList(ZZWLocal(channels, k, hidden=hidden_l, omega=omega) for k in LOCAL)
        self.rgu, self.rgu_2 = RGU(channels, size), RGU(channels, size)
        self.mix = _mixer(channels, channels)
        self.hci = HyperChannel(channels, hidden_l, omega=omega)
        self.hi = HyperInteraction(channels, size, hidden=hidden, hidden_c=max(hidden_l // 2, 1), omega=omega)
        self.bottleneck = _mixer((BRANCHES + earlier) * channels, factor * channels)
        self.norm, self.dropout = GroupStd(factor * channels, groups), nn.Dropout2d(drop)
        self.bias = nn.Parameter(torch.zeros(1))

    def branches(self, x: Tensor) -> list[Tensor]:
        """The ten branches, each (N, channels, size, size)."""
        w = self.slow().to(x.dtype)
        fast = instance_std(self.rgu_2(x * w) + self.rgu(x))
        mix, hci = instance_std(self.mix(x)), instance_std(self.hci(x))
        out = zzw_g(w, x, fast)
        pairs = ((x, hci), (hci, x), (mix, x), (x, mix))
        local = [layer(*pair) for layer, pair in zip(self.local, pairs, strict=True)]
        return [fast, out, zzw_g(w, x, mix), zzw_g(w, x, hci), out * out.sigmoid(), self.hi(out, x), *local]

    def forward(self, x: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        if tuple(x.shape[-2:]) != (self.size, self.size):
            raise ValueError(f"x must have sides of {self.size}, not {tuple(x.shape[-2:])!r}")
        if len(earlier) != self.earlier:
            raise ValueError(f"earlier must be {self.earlier} features, not {len(earlier)!r}")
        repeated = [e.repeat(1, x.shape[1] // e.shape[1], 1, 1) for e in earlier]
        y = F.gelu(self.norm(self.bottleneck(torch.cat((*self.branches(x), *repeated), 1))))
        return cast(Tensor, self.dropout(y + self.bias))


class Terminator(nn.Module):
    """(N, inputs, size, size) -> (N, classes). ``factors``: growth of the channels by each block.

    ``layers``: of each block's global slow network; ``earlier``: how many earlier features each block takes.
    """

    def __init__(
        self, factors: Sequence[int] = (4, 3, 2, 2, 2), *, inputs: int = 3, size: int = 32, classes: int = 10,
        layers: Sequence[int] = (3, 2, 2, 2, 2), earlier: Sequence[int] = (0, 0, 1, 1, 2),
        drops: Sequence[float] = (0.0, 0.05, 0.05, 0.05, 0.05), hidden: int = 64, hidden_l: int = 32, groups: int = 12, omega: float = 1.0,
    ) -> None:
        super().__init__()
        if not len(factors) == len(layers) == len(earlier) == len(drops):
            raise ValueError(f"layers, earlier and drops must be as many as factors {tuple(factors)}")
        if any(n > k for k, n in enumerate(earlier)):
            raise ValueError(f"earlier must be at most the number of blocks before, not {tuple(earlier)!r}")
        self.factors = tuple(factors)
        widths = [inputs * math.prod(factors[:k]) for k in range(len(factors) + 1)]
        self.blocks = nn.ModuleList(
            SFNEBlock(
                widths[k], f, size, layers=layers[k], earlier=earlier[k], drop=drops[k], hidden=hidden, hidden_l=hidden_l, groups=groups,
                omega=omega,
            )
            for k, f in enumerate(factors)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        inputs: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, SFNEBlock)
            count = len(inputs)
            inputs.append(x)
            x = block(x, inputs[count - block.earlier : count][::-1])
        return cast(Tensor, self.head(x.mean((2, 3))))

    def slow_loss(self) -> Tensor:
        """Sum over pairs of blocks of the mean squared distance of their global kernels, the shallow one repeated in channels."""
        kernels = [cast(Tensor, cast(SFNEBlock, block).slow()) for block in self.blocks]
        total = kernels[0].new_zeros(())
        for shallow, deep in combinations(kernels, 2):
            total = total + F.mse_loss(shallow.repeat(len(deep) // len(shallow), 1, 1), deep)
        return total


class _Itself(nn.Module):
    """An operator of two maps on one, for the benchmark."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.operator(x, x))


def bench() -> BenchCase:
    """ZZW_L beside the 7 × 7 depthwise and pointwise convolution whose place it takes."""

    return BenchCase(
        name="ZZW_L of 7×7 against depthwise 7×7 and pointwise, 36 channels, 32×32",
        ours=_Itself(ZZWLocal(36, 7)),
        baseline=nn.Sequential(nn.Conv2d(36, 36, 7, padding=3, groups=36), nn.Conv2d(36, 36, 1), nn.BatchNorm2d(36), nn.GELU()),
        inputs=(torch.randn(8, 36, 32, 32),),
    )


SYSTEM = System(
    name="hyperzzw",
    title="HyperZ·Z·W, Terminator",
    paper="arXiv 2401.17948",
    year=2024,
    kind="network",
    variants={
        "terminator_cifar10": Terminator,
        "terminator_cifar100": partial(Terminator, classes=100),
        "sfne_block": SFNEBlock,
        "zzw_l": ZZWLocal,
        "slow_net": SlowNet,
    },
    checked=(
        "parameters of the five CIFAR-10 blocks by the authors' sizes", "ZZW_2E is quadratic", "global kernels do not see the input",
        "batch dependence of local kernels, none of the rest at batch 1", "zero mean of each standardized group", "parameters do not grow "
        "with the kernel but for bias maps", "s-renormalization", "gradcheck",
    ),
    lowering=(
        Lowering(part="ZZW_2E, gates", verdict="after a change", note="multiply, table; W constant after training"),
        Lowering(part="pointwise layers", verdict="as is", note="pointwise unit"),
        Lowering(part="ZZW_G", verdict="no", note="product of activations with activations"),
        Lowering(part="ZZW_L", verdict="after a change", note="only with the kernel frozen to a depthwise constant"),
        Lowering(part="instance and batch standardization", verdict="no", note="statistics of the moment; batch norm is another network"),
    ),
    demo="models.zoo.demos.hyperzzw:demo",
    bench=bench,
)
