"""Self-expanding convolutional network (SECNN): a network that grows its own layers and channels while it trains.

Paper: Appolinary, Deaconu, Yang and Li, "Self Expanding Convolutional Neural Networks", arXiv 2401.05686.

Idea: the natural expansion score says how much the loss could fall with the present parameters. When it would rise enough by an added
identity layer or by added channels, the network takes that step, without starting again.

Equations. x (N, 3, S, S), K blocks of widths c_1..c_K, l_k identity layers in block k:

- block: conv 3 × 3 with bias, dropout, BN, LeakyReLU(0.2), l_k identity layers (conv 3 × 3 without bias, BN, LeakyReLU), max pooling 2
- head: z = [maxpool(block_1) | block_K], LeakyReLU(conv 1 × 1 to the classes), flatten, linear to 20, BN, LeakyReLU, dropout, BN, linear
- score: gradients G (B, p) of B batches, g their mean, F = mean of g_b g_b^T; eta = g^T F^-1 g exp(-lambda dp²), dp the added parameters.
  ``diagonal``: eta = sum_i g_i² / (F_ii + eps); ``code``: sum_b,i g_bi² / (F_ii + eps) / (B p), as in the authors' program;
  ``full``: g^T F^+ g = |P 1|² / B, P the projection on the span of G's columns, in [0, 1]
- growth: best of eta(one more identity layer in block k) and eta(C more channels in block k) over eta now; above tau, that step is taken

How far this reference goes. Network, both growth steps, the score's two forms and the rule are the authors'; ``full`` is for checks.
Identity layers start as a Dirac kernel plus noise; the authors' program fills all nine taps, which is a box filter and no identity. Its
``code`` score never exceeds 1 and its ratios stay near 1, so that tau = 2 fires only while gradients are small beside eps: tau is a
parameter here. New biases start at 0; zeros in a block's identity layers close its new channels until they are trained. The ten
published sizes are reachable by growth; which steps gave them is not known.

On hardware. Every stage of growth is a plain network: 3 × 3 convolutions through shifts and pointwise with the norm folded in, max pooling,
concat and pointwise map; LeakyReLU is a table. A grown layer only lengthens the program.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

SLOPE = 0.2
NOISE = 1e-4
Form = Literal["code", "diagonal", "full"]


class Insert(NamedTuple):
    """``added`` entries put before index ``at`` on axis ``dim`` of the parameter ``name``."""

    name: str
    dim: int
    at: int
    added: int


class IdentityLayer(nn.Module):
    """conv 3 × 3 without bias, BN, LeakyReLU: (N, C, H, W) both ways. Starts as a Dirac kernel plus ``noise`` N(0, 1)."""

    def __init__(self, channels: int, noise: float = NOISE) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.dirac_(self.conv.weight)
        with torch.no_grad():
            self.conv.weight.add_(noise * torch.randn_like(self.conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), SLOPE)


class Block(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, H // 2, W // 2)."""

    def __init__(self, inputs: int, outputs: int, layers: int, drop: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout2d(drop)
        self.bn = nn.BatchNorm2d(outputs)
        self.identities = nn.ModuleList(IdentityLayer(outputs) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn(self.dropout(self.conv(x))), SLOPE)
        for layer in self.identities:
            x = layer(x)
        return F.max_pool2d(x, 2)


class SelfExpandingCNN(nn.Module):
    """(N, inputs, side, side) -> (N, classes); ``side`` a multiple of 2^blocks, at least two blocks.

    ``layers``: identity layers of each block, at most ``most``; ``hidden``: width of the head.
    """

    def __init__(
        self, channels: Sequence[int] = (16, 16, 16), layers: Sequence[int] | None = None, *, classes: int = 10, inputs: int = 3,
        side: int = 32, hidden: int = 20, drop: float = 0.1, drop_head: float = 0.05, most: int = 10,
    ) -> None:
        super().__init__()
        layers = (0,) * len(channels) if layers is None else layers
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels must be two or more positive numbers, not {tuple(channels)!r}")
        if len(layers) != len(channels) or not all(0 <= n <= most for n in layers):
            raise ValueError(f"layers must be {len(channels)} numbers in 0..{most}, not {tuple(layers)!r}")
        if side < 1 or side % 2 ** len(channels):
            raise ValueError(f"side must be a multiple of {2 ** len(channels)}, not {side!r}")
        self.side, self.most = side, most
        widths = (inputs, *channels)
        self.blocks = nn.ModuleList(Block(widths[k], widths[k + 1], layers[k], drop) for k in range(len(channels)))
        self.merge = nn.Conv2d(channels[0] + channels[-1], classes, 1)
        self.head = nn.Sequential(
            nn.Linear(classes * (side >> len(channels)) ** 2, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(SLOPE),
            nn.Dropout(drop_head), nn.BatchNorm1d(hidden), nn.Linear(hidden, classes),
        )  # fmt: skip

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and identity layers of the blocks."""
        blocks = cast(list[Block], list(self.blocks))
        return tuple(b.conv.out_channels for b in blocks), tuple(len(b.identities) for b in blocks)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != (self.side, self.side):
            raise ValueError(f"x must have sides of {self.side}, not {tuple(x.shape[-2:])!r}")
        first = x = self.blocks[0](x)
        for block in list(self.blocks)[1:]:
            x = block(x)
        skip = F.max_pool2d(first, 2 ** (len(self.blocks) - 1))
        return cast(Tensor, self.head(F.leaky_relu(self.merge(torch.cat((skip, x), 1)), SLOPE).flatten(1)))

    def _block(self, index: int) -> Block:
        if not 0 <= index < len(self.blocks):
            raise ValueError(f"block must be in 0..{len(self.blocks) - 1}, not {index!r}")
        return cast(Block, self.blocks[index])

    def add_identity_(self, block: int, noise: float = NOISE) -> list[Insert]:
        """One more identity layer at the end of a block; ValueError at the limit. No parameter changes its shape."""
        found = self._block(block)
        if len(found.identities) >= self.most:
            raise ValueError(f"block must have fewer than {self.most} identity layers, not {len(found.identities)!r} ({block})")
        layer = IdentityLayer(found.conv.out_channels, noise).to(found.conv.weight)
        found.identities.append(layer.train(self.training))
        return []

    @torch.no_grad()
    def add_channels_(self, block: int, count: int, noise: float = NOISE) -> list[Insert]:
        """``count`` more channels in a block: new weights N(0, 1) ``noise`` in and out, zero in its identity layers. What was put where."""
        found = self._block(block)
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count!r}")
        width, last = found.conv.out_channels, block == len(self.blocks) - 1
        done: list[Insert] = []

        def widen(name: str, dim: int, at: int, fill: float | None) -> None:
            path, _, leaf = name.rpartition(".")
            module = self.get_submodule(path)
            old = cast(Tensor, getattr(module, leaf))
            size = list(old.shape)
            size[dim] = count
            new = noise * torch.randn(size, dtype=old.dtype, device=old.device) if fill is None else old.new_full(size, fill)
            wide = torch.cat((old.narrow(dim, 0, at), new, old.narrow(dim, at, old.shape[dim] - at)), dim)
            if isinstance(old, nn.Parameter):
                wide = nn.Parameter(wide, old.requires_grad)
                done.append(Insert(name, dim, at, count))
            setattr(module, leaf, wide)

        def widen_norm(path: str) -> None:
            for leaf, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                widen(f"{path}.{leaf}", 0, width, fill)
            cast(nn.BatchNorm2d, self.get_submodule(path)).num_features += count

        widen(f"blocks.{block}.conv.weight", 0, width, None)
        widen(f"blocks.{block}.conv.bias", 0, width, 0.0)
        widen_norm(f"blocks.{block}.bn")
        for k in range(len(found.identities)):
            path = f"blocks.{block}.identities.{k}"
            for dim in (0, 1):
                widen(f"{path}.conv.weight", dim, width, 0.0)
            widen_norm(f"{path}.bn")
            conv = cast(nn.Conv2d, self.get_submodule(f"{path}.conv"))
            conv.in_channels = conv.out_channels = width + count
        found.conv.out_channels += count
        if block == 0 or last:
            widen("merge.weight", 1, width if block == 0 else self.merge.in_channels, None)
            self.merge.in_channels += count
        if not last:
            widen(f"blocks.{block + 1}.conv.weight", 1, width, None)
            self._block(block + 1).conv.in_channels += count
        return done


def carry_state(optimiser: torch.optim.Optimizer, before: dict[str, nn.Parameter], model: nn.Module, inserted: Sequence[Insert]) -> None:
    """After growth: the optimiser takes the model's new parameters, the moments of old entries stay, those of new ones are 0.

    ``before``: the named parameters before growth. All parameters must be in the optimiser's first group.
    """
    now = dict(model.named_parameters())
    for name, parameter in now.items():
        old = before.get(name)
        if old is None or old is parameter or old not in optimiser.state:
            continue
        state = optimiser.state.pop(old)
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.shape != old.shape:
                continue
            for _, dim, at, added in (each for each in inserted if each.name == name):
                size = list(value.shape)
                size[dim] = added
                value = torch.cat((value.narrow(dim, 0, at), value.new_zeros(size), value.narrow(dim, at, value.shape[dim] - at)), dim)
            state[key] = value
        optimiser.state[parameter] = state
    optimiser.param_groups[0]["params"] = list(now.values())


def gradients(model: nn.Module, x: Tensor, y: Tensor, batches: int) -> Tensor:
    """Gradients of the cross entropy of ``batches`` equal parts of (x, y), (batches, parameters), in eval mode."""
    if batches < 1 or len(x) % batches:
        raise ValueError(f"batches must divide the {len(x)} samples, not {batches!r}")
    training, parameters = model.training, list(model.parameters())
    model.eval()
    rows = []
    for part, label in zip(x.chunk(batches), y.chunk(batches), strict=True):
        found = torch.autograd.grad(F.cross_entropy(model(part), label), parameters)
        rows.append(torch.cat([g.flatten() for g in found]))
    model.train(training)
    return torch.stack(rows)


def expansion_score(g: Tensor, form: Form = "diagonal", *, eps: float = 1e-5, added: int = 0, strength: float = 1e-7) -> float:
    """Natural expansion score of gradients g (batches, parameters), times exp(-strength added²)."""
    fisher = g.square().mean(0)
    if form == "code":
        eta = (g.square() / (fisher + eps)).sum() / g.numel()
    elif form == "diagonal":
        eta = (g.mean(0).square() / (fisher + eps)).sum()
    elif form == "full":
        ones = g.new_ones(len(g), 1)
        u, s, _ = torch.linalg.svd(g, full_matrices=False)
        u = u[:, s > s.max() * len(g) * torch.finfo(g.dtype).eps]
        eta = (u.T @ ones).square().sum() / len(g)
    else:
        raise ValueError(f"form must be code, diagonal or full, not {form!r}")
    return float(eta) * math.exp(-strength * added**2)


class Growth(NamedTuple):
    """A growth step: kind, block, channels added (0 for a layer) and how many times better its score is."""

    kind: Literal["layer", "channels"]
    block: int
    channels: int
    ratio: float


class Expander:
    """The rule of growth; call ``step`` once an epoch. ``amounts``: channels of the first step and of later ones."""

    def __init__(
        self, *, tau: float = 2.0, form: Form = "diagonal", batches: int = 16, amounts: tuple[int, int] = (2, 4), cooldown: int = 10,
        strength: float = 1e-7,
    ) -> None:
        if tau <= 0:
            raise ValueError(f"tau must be positive, not {tau!r}")
        self.tau, self.form, self.batches, self.amounts, self.cooldown, self.strength = tau, form, batches, amounts, cooldown, strength
        self.waiting, self.history = cooldown, list[Growth]()

    def propose(self, model: SelfExpandingCNN, x: Tensor, y: Tensor) -> Growth | None:
        """The best step by its score on the samples (x, y), whatever its ratio; None if no block can grow."""
        now = expansion_score(gradients(model, x, y, self.batches), self.form)
        size = sum(p.numel() for p in model.parameters())
        amount = self.amounts[any(g.kind == "channels" for g in self.history)]
        found: list[Growth] = []
        for block in range(len(model.blocks)):
            for count in (0, amount):
                if not count and model.shape[1][block] >= model.most:
                    continue
                other = copy.deepcopy(model)
                apply_(other, Growth("channels" if count else "layer", block, count, 0.0))
                added = sum(p.numel() for p in other.parameters()) - size
                eta = expansion_score(gradients(other, x, y, self.batches), self.form, added=added, strength=self.strength)
                found.append(Growth("channels" if count else "layer", block, count, eta / now))
        return max(found, key=lambda g: g.ratio, default=None)

    def step(self, model: SelfExpandingCNN, x: Tensor, y: Tensor, optimiser: torch.optim.Optimizer | None = None) -> Growth | None:
        """At the end of an epoch: grow if the best step's ratio exceeds tau, at most once in ``cooldown`` epochs."""
        self.waiting -= 1
        if self.waiting > 0:
            return None
        best = self.propose(model, x, y)
        if best is None or not best.ratio > self.tau:
            return None
        before = dict(model.named_parameters())
        inserted = apply_(model, best)
        if optimiser is not None:
            carry_state(optimiser, before, model, inserted)
        self.history.append(best)
        self.waiting = self.cooldown
        return best


def apply_(model: SelfExpandingCNN, growth: Growth) -> list[Insert]:
    """Take a growth step in place."""
    return model.add_channels_(growth.block, growth.channels) if growth.kind == "channels" else model.add_identity_(growth.block)


def bench() -> BenchCase:
    """An identity layer beside the plain convolution of the same width."""
    return BenchCase(
        name="identity layer against conv 3×3, 16 channels, 32×32",
        ours=IdentityLayer(16),
        baseline=nn.Conv2d(16, 16, 3, padding=1, bias=False),
        inputs=(torch.randn(8, 16, 32, 32),),
    )


SYSTEM = System(
    name="secnn",
    title="Self-expanding CNN",
    paper="arXiv 2401.05686",
    year=2024,
    kind="method",
    variants={
        "secnn": SelfExpandingCNN,
        "secnn_1_layer": partial(SelfExpandingCNN, layers=(1, 0, 0)),
        "secnn_2_layers": partial(SelfExpandingCNN, layers=(2, 0, 0)),
    },
    checked=(
        "parameters of the published stages, the closed form, all ten published counts reachable", "growth keeps the function up to noise",
        "code score at most 1; invariant to the loss's scale without eps", "full score: projection, in [0, 1], never falls by growth",
        "optimiser state survives growth", "gradcheck",
    ),
    lowering=(
        Lowering(part="3×3 convolutions with BN", verdict="after a change", note="shifts and pointwise, norm folded in"),
        Lowering(part="LeakyReLU", verdict="after a change", note="a table"),
        Lowering(part="max pooling, concat, 1×1, linear", verdict="as is", note="every stage of growth is a plain network"),
        Lowering(part="growth", verdict="no", note="host, in training; it only lengthens the program"),
    ),
    demo="models.zoo.demos.secnn:demo",
    bench=bench,
)
