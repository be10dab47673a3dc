"""SortedNet: one set of weights that holds a family of nested networks, all trained together.

Papers: Valipour et al., arXiv 2309.00255; the form for language models (SoFT), Sorted LLaMA, arXiv 2309.08968.

Idea: a sub-network is always a leading slice, the first w channels of every layer and the first d layers, so the networks are sorted and
contain each other. Each optimiser step draws sub-networks at random and accumulates their gradients on the shared weights.

Equations. B = widths × depths; theta_b = the leading slices of theta for b = (w, d). Objective min E_{b ~ P_B} L(f(x; theta_b)), P_B
uniform by default; a step draws g_r sub-networks, one batch each, and sums their gradients. SoFT: L = mean over depths n of
L(head(norm(h_n))) with a shared norm and head after layer n. Layers here take their input width from x and slice their own weight (w_out,
w_in); nothing is copied.

How far this reference goes. The nesting, the random step and the SoFT loss are the papers'. Our reading: batch norm keeps running
statistics per width (the paper's handling could not be checked). Depth needs none: cutting layers off the end changes nothing that comes
before. LayerNorm normalises over the channels in use. The networks are small ones of our own (residual MLP, residual CNN, attention); the
paper's tables are not reproduced.

On hardware. Prefixes suit a dataflow engine: one weight image, channel and layer counts set at run time (as is for pointwise and 3×3
layers); the statistics of each width fold into that width's requantization table (after a change). LayerNorm must become batch norm;
attention does not map.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

Choice = tuple[int, int]  # (width in channels, depth in blocks)


class NestedLinear(nn.Linear):
    """Linear layer cut to ``width`` outputs; the input width is that of x, (..., in) -> (..., width)."""

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        width = self.out_features if width is None else width
        return F.linear(x, self.weight[:width, : x.shape[-1]], None if self.bias is None else self.bias[:width])


class NestedConv2d(nn.Conv2d):
    """Dense convolution cut to ``width`` outputs, (B, in, H, W) -> (B, width, H', W')."""

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        if self.groups != 1:
            raise ValueError(f"groups must be 1 for a nested convolution, not {self.groups!r}")
        width = self.out_channels if width is None else width
        bias = None if self.bias is None else self.bias[:width]
        return F.conv2d(x, self.weight[:width, : x.shape[1]], bias, self.stride, self.padding, self.dilation)


class NestedLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that x has, (..., w)."""

    def forward(self, x: Tensor) -> Tensor:
        w = x.shape[-1]
        return F.layer_norm(x, (w,), self.weight[:w], self.bias[:w], self.eps)


class NestedBatchNorm2d(nn.Module):
    """Batch norm with shared scale and shift and one row of running statistics per width, (B, w, H, W) both ways."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, widths: Sequence[int], momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.widths, self.momentum, self.eps = tuple(widths), momentum, eps
        top = max(widths)
        self.weight, self.bias = nn.Parameter(torch.ones(top)), nn.Parameter(torch.zeros(top))
        self.register_buffer("running_mean", torch.zeros(len(widths), top))
        self.register_buffer("running_var", torch.ones(len(widths), top))

    def forward(self, x: Tensor) -> Tensor:
        w = x.shape[1]
        if w not in self.widths:
            raise ValueError(f"width must be one of {self.widths}, not {w!r}")
        row = self.widths.index(w)
        mean, var = self.running_mean[row, :w], self.running_var[row, :w]
        return F.batch_norm(x, mean, var, self.weight[:w], self.bias[:w], self.training, self.momentum, self.eps)


class NestedAttention(nn.Module):
    """Self-attention cut to its first ``heads`` heads, (B, N, dim) both ways; head h reads rows [h·dim_head, (h+1)·dim_head) of q, k, v."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.k, self.v = (NestedLinear(dim, heads * head_dim) for _ in range(3))
        self.out = NestedLinear(heads * head_dim, dim)

    def forward(self, x: Tensor, heads: int | None = None) -> Tensor:
        heads = self.heads if heads is None else heads
        if not 1 <= heads <= self.heads:
            raise ValueError(f"heads must be 1 to {self.heads}, not {heads!r}")
        b, n, dim = x.shape
        q, k, v = (m(x, heads * self.head_dim).view(b, n, heads, self.head_dim).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.out(y.transpose(1, 2).reshape(b, n, heads * self.head_dim), dim))


class Sorted(nn.Module):
    """A network with nested sub-networks ``widths`` × ``depths``; ``forward(x, width, depth)`` runs one in place, default the largest."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        for name, values in (("widths", widths), ("depths", depths)):
            if not values or min(values) < 1 or list(values) != sorted(set(values)):
                raise ValueError(f"{name} must be positive and rise, not {tuple(values)!r}")
        self.widths, self.depths = tuple(widths), tuple(depths)

    def choices(self) -> list[Choice]:
        """Every sub-network, smallest first."""
        return list(itertools.product(self.widths, self.depths))

    def choose(self, width: int | None, depth: int | None) -> Choice:
        w, d = self.widths[-1] if width is None else width, self.depths[-1] if depth is None else depth
        if w not in self.widths:
            raise ValueError(f"width must be one of {self.widths}, not {w!r}")
        if d not in self.depths:
            raise ValueError(f"depth must be one of {self.depths}, not {d!r}")
        return w, d

    def like(self, width: int, depth: int) -> Sorted:
        """A new network of that size alone."""
        raise NotImplementedError

    def extract(self, width: int, depth: int) -> Sorted:
        """The sub-network on its own: a smaller network whose every weight is the leading slice of this one's."""
        width, depth = self.choose(width, depth)
        small = self.like(width, depth).to(next(self.parameters()))
        row = self.widths.index(width)
        state: dict[str, Tensor] = {}
        own = self.state_dict()
        for key, value in small.state_dict().items():
            source = own[key][row : row + 1] if key.endswith(("running_mean", "running_var")) else own[key]
            state[key] = source[tuple(slice(0, n) for n in value.shape)]
        small.load_state_dict(state)
        return small.train(self.training)


class SortedMLP(Sorted):
    """Residual MLP: stem, depth × [x + fc(relu(norm(x)))], norm, head; (B, inputs) -> (B, classes)."""

    def __init__(self, inputs: int, classes: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__(widths, depths)
        self.inputs, self.classes = inputs, classes
        top = widths[-1]
        self.stem = NestedLinear(inputs, top)
        self.norms = nn.ModuleList(NestedLayerNorm(top) for _ in range(depths[-1]))
        self.layers = nn.ModuleList(NestedLinear(top, top) for _ in range(depths[-1]))
        self.norm, self.head = NestedLayerNorm(top), NestedLinear(top, classes)

    def like(self, width: int, depth: int) -> SortedMLP:
        return SortedMLP(self.inputs, self.classes, (width,), (depth,))

    def hidden(self, x: Tensor, width: int, depth: int) -> Iterable[Tensor]:
        """The stream after each of the first ``depth`` blocks, (B, width) each."""
        x = self.stem(x, width)
        for n in range(depth):
            x = x + self.layers[n](F.relu(self.norms[n](x)), width)
            yield x

    def forward(self, x: Tensor, width: int | None = None, depth: int | None = None) -> Tensor:
        w, d = self.choose(width, depth)
        for last in self.hidden(x, w, d):
            x = last
        return cast(Tensor, self.head(self.norm(x)))

    def exits(self, x: Tensor, width: int | None = None) -> list[Tensor]:
        """Logits at every depth from one pass, with the shared norm and head (SoFT)."""
        w, d = self.choose(width, None)
        return [self.head(self.norm(h)) for n, h in enumerate(self.hidden(x, w, d), 1) if n in self.depths]


class SortedCNN(Sorted):
    """Residual CNN: 3×3 stem, depth × [x + bn2(conv2(relu(bn1(conv1(x)))))], mean, head; (B, inputs, H, W) -> (B, classes)."""

    def __init__(self, inputs: int, classes: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__(widths, depths)
        self.inputs, self.classes = inputs, classes
        top, blocks = widths[-1], depths[-1]
        self.stem, self.stem_norm = NestedConv2d(inputs, top, 3, padding=1, bias=False), NestedBatchNorm2d(widths)
        self.convs = nn.ModuleList(NestedConv2d(top, top, 3, padding=1, bias=False) for _ in range(2 * blocks))
        self.norms = nn.ModuleList(NestedBatchNorm2d(widths) for _ in range(2 * blocks))
        self.head = NestedLinear(top, classes)

    def like(self, width: int, depth: int) -> SortedCNN:
        return SortedCNN(self.inputs, self.classes, (width,), (depth,))

    def forward(self, x: Tensor, width: int | None = None, depth: int | None = None) -> Tensor:
        w, d = self.choose(width, depth)
        x = F.relu(self.stem_norm(self.stem(x, w)))
        for n in range(0, 2 * d, 2):
            y = F.relu(self.norms[n](self.convs[n](x, w)))
            x = F.relu(x + self.norms[n + 1](self.convs[n + 1](y, w)))
        return cast(Tensor, self.head(x.mean((2, 3))))


class Sampler:
    """Draws sub-networks, uniformly or by ``weights`` (one a choice), from its own generator."""

    def __init__(self, choices: Sequence[Choice], seed: int = 0, weights: Sequence[float] | None = None) -> None:
        if weights is not None and (len(weights) != len(choices) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be {len(choices)} non-negative numbers, not all 0, not {weights!r}")
        self.choices = list(choices)
        self.weights = torch.ones(len(choices), device="cpu") if weights is None else torch.tensor(weights, device="cpu")
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Choice:
        return self.choices[int(torch.multinomial(self.weights, 1, generator=self.generator))]


def sorted_step(
    model: Sorted, optimiser: torch.optim.Optimizer, sampler: Callable[[], Choice], batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[float]:
    """One optimiser step: a sub-network drawn for each of the g_r ``batches``, gradients accumulated. The losses, one a batch."""
    optimiser.zero_grad()
    losses: list[float] = []
    for x, y in batches:
        value = loss(model(x, *sampler()), y)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.item())
    if not losses:
        raise ValueError("batches must hold at least one batch, not none")
    optimiser.step()
    return losses


def soft_loss(exits: Sequence[Tensor], y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> Tensor:
    """The deterministic objective of SoFT: the mean loss over all exits."""
    return torch.stack([loss(logits, y) for logits in exits]).mean()


def select(accuracies: Mapping[Choice, float], wanted: float) -> Choice | None:
    """Search-free selection: the cheapest sub-network (by w² d) that reaches ``wanted``, or None."""
    good = [c for c, value in accuracies.items() if value >= wanted]
    return min(good, key=lambda c: (c[0] ** 2 * c[1], c)) if good else None


def _bench() -> BenchCase:
    torch.manual_seed(0)
    ours = SortedMLP(64, 10, (32, 64, 96, 128), (2, 4, 6, 8))
    x = torch.randn(256, 64)
    return BenchCase(name="largest sub-network against the same MLP alone", ours=ours, baseline=ours.extract(128, 8), inputs=(x,))


def _mlp(widths: Sequence[int], depths: Sequence[int], *, inputs: int = 64, classes: int = 10) -> SortedMLP:
    return SortedMLP(inputs, classes, widths, depths)


SYSTEM = System(
    name="sortednet",
    title="SortedNet: nested sub-networks trained together",
    paper="arXiv 2309.00255; Sorted LLaMA, arXiv 2309.08968",
    year=2023,
    kind="method",
    variants={
        "sorted_mlp_16": partial(_mlp, (32, 64, 96, 128), (1, 2, 3, 4)),
        "sorted_mlp_160": partial(_mlp, tuple(range(16, 161, 16)), tuple(range(1, 17))),
        "sorted_cnn_16": partial(SortedCNN, 1, 10, (8, 16, 24, 32), (1, 2, 3, 4)),
    },
    checked=(
        "slicing the state dict = running in place, bit for bit",
        "gradients vanish outside the slice",
        "storage of the family = storage of the largest",
        "MACs of the blocks = w² d",
        "160 sub-networks = 10 widths × 16 depths",
        "statistics per width do not depend on the depth drawn",
    ),
    lowering=(
        Lowering(part="nested linear and 3×3 layers", verdict="as is", note="one weight image, channel and layer counts at run time"),
        Lowering(part="batch norm", verdict="after a change", note="folded into one requantization table a width"),
        Lowering(part="LayerNorm", verdict="after a change", note="batch norm per width"),
        Lowering(part="attention", verdict="no", note="products of activations and softmax"),
    ),
    demo="models.zoo.demos.sortednet:demo",
    bench=_bench,
)
