"""DiT: dynamic token routing, on a PVTv2.

Paper: Ma, Fu, Jin, Wang et al., "DiT: Efficient Vision Transformers with Dynamic Token Routing", arXiv 2308.03409 (2023).

Idea: scales (rows) and stages (columns) span a grid of nodes, and every token finds its own way through it: at each node a gate lets it
pass the stage or copies it, another sends it to the next coarser row. A budget on the gates bounds the work.

Equations. F_ij (B, H_i, W_i, C_i), row i of R, column j of 0..K, gates 0 or 1 per token; F_00 is the stem, what is absent is 0:

- F_ij = g * B_ij(F_i,j-1) + (1 - g) * F_i,j-1 + down(c) * P_ij(F_i-1,j), g = gate(F_i,j-1), c = gate(F_i-1,j), down: 2 × 2 maximum
- gate(x) = 1 if linear(LN x) > 0; in training with logistic noise of falling scale, and the gradient of its sigmoid (straight-through)
- share = sum over nodes of mean(gate) * MACs, over the sum of MACs; budget loss (share - mu)²
- P: 3 × 3 convolution of stride 2 and LN. B: PVTv2 blocks and LN. Block: x + SRA(LN x), x + MLP(LN x); SRA: attention whose keys and
  values come from an R × R convolution of stride R and LN; MLP: linear, depthwise 3 × 3, GELU, linear

How far this reference goes. PVTv2 B0 to B5, the substrate, are theirs to the digit. Of the paper only the abstract and the figures
of the method were at hand: grid, per-token row and scale gates, budget and the skipping of empty nodes are the paper's; the form of the
gate, its estimator, the sum at a node, the maximum, the loss, the head (mean of the last node) and the sizes of the grids are our
interpretation. The paper's own figures (84.8 % at 10.3 G for B5) cannot be checked here.

On hardware. Gates (pointwise and a threshold), selection by masks, patch embeddings and the MLP's layers map. Attention and the gathering
of tokens do not, and a dataflow machine gains nothing from tokens that are masked: no, but for a form with convolutional stages.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import trunc_normal_init


class PatchEmbed(nn.Module):
    """Overlapping patches: (B, H, W, inputs) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, dim)."""

    def __init__(self, inputs: int, dim: int, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, dim, kernel, stride, kernel // 2), nn.LayerNorm(dim)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates for an input of that size."""
        return -(-height // self.stride) * -(-width // self.stride) * self.proj.weight.numel()


class SRA(nn.Module):
    """Spatial-reduction attention over maps (B, H, W, dim). ``keep``: flat indices of the tokens to compute, (B, those, dim) then."""

    def __init__(self, dim: int, heads: int, reduce: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must be positive and divide dim {dim}, not {heads!r}")
        self.heads, self.reduce = heads, reduce
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr = PatchEmbed(dim, dim, reduce, reduce) if reduce > 1 else None
        if self.sr is not None:
            self.sr.proj.padding = (0, 0)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        asked = x.flatten(1, 2) if keep is None else x.flatten(1, 2)[:, keep]
        if self.sr is not None and min(x.shape[1:3]) < self.reduce:
            raise ValueError(f"x must have sides of at least {self.reduce}, not {tuple(x.shape[1:3])!r}")
        known = (x if self.sr is None else self.sr(x)).flatten(1, 2)
        q = self.q(asked).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(known).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return cast(Tensor, y if keep is not None else y.reshape(x.shape))

    def macs(self, height: int, width: int) -> int:
        n, d, m = height * width, self.q.in_features, (height // self.reduce) * (width // self.reduce)
        reduction = m * d * d * self.reduce**2 if self.sr is not None else 0
        return 2 * n * d * d + reduction + 2 * m * d * d + 2 * n * m * d


class MLP(nn.Module):
    """Linear, depthwise 3 × 3, GELU, linear over maps (B, H, W, dim); ``keep`` as in `SRA`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        y = self.dw(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if keep is not None:
            y = y.flatten(1, 2)[:, keep]
        return cast(Tensor, self.fc2(F.gelu(y)))

    def macs(self, height: int, width: int) -> int:
        return height * width * self.fc1.out_features * (2 * self.fc1.in_features + 9)


class Block(nn.Module):
    """PVTv2 block: (B, H, W, dim) both ways."""

    def __init__(self, dim: int, heads: int, reduce: int, expand: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention, self.mlp = SRA(dim, heads, reduce), MLP(dim, int(dim * expand))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class Stage(nn.Sequential):
    """B: ``depth`` blocks and a layer norm."""

    def __init__(self, dim: int, depth: int, heads: int, reduce: int, expand: float) -> None:
        super().__init__(*(Block(dim, heads, reduce, expand) for _ in range(depth)), nn.LayerNorm(dim, eps=1e-6))

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates for a map of that size."""
        blocks = (b for b in self if isinstance(b, Block))
        return sum(b.attention.macs(height, width) + b.mlp.macs(height, width) for b in blocks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan = module.weight.shape[0] * module.weight.shape[2] * module.weight.shape[3] // module.groups
        nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)
        nn.init.zeros_(cast(Tensor, module.bias))
    else:
        trunc_normal_init(module)


class PVTv2(nn.Module):
    """The substrate: (B, 3, H, W) -> (B, classes)."""

    def __init__(
        self, dims: Sequence[int], depths: Sequence[int], *, heads: Sequence[int] = (1, 2, 5, 8), expand: Sequence[float] = (8, 8, 4, 4),
        reduce: Sequence[int] = (8, 4, 2, 1), classes: int = 1000, stem: tuple[int, int] = (7, 4),
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(heads) == len(expand) == len(reduce):
            raise ValueError(f"depths, heads, expand and reduce must be as many as dims {tuple(dims)}")
        before = (3, *dims[:-1])
        pairs = enumerate(zip(before, dims, strict=True))
        self.embeds = nn.ModuleList(PatchEmbed(a, b, *(stem if i == 0 else (3, 2))) for i, (a, b) in pairs)
        self.stages = nn.ModuleList(Stage(*row) for row in zip(dims, depths, heads, reduce, expand, strict=True))
        self.head = nn.Linear(dims[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for embed, stage in zip(self.embeds, self.stages, strict=True):
            x = stage(embed(x))
        return cast(Tensor, self.head(x.mean((1, 2))))


class Gate(nn.Module):
    """(B, H, W, dim) -> 0 or 1 per token, (B, H, W, 1); ``open``: the logit at the start. ``noise``: its scale in training."""

    def __init__(self, dim: int, open: float = 1.0) -> None:
        super().__init__()
        self.norm, self.linear, self.open, self.noise = nn.LayerNorm(dim), nn.Linear(dim, 1), open, 1.0

    def forward(self, x: Tensor) -> Tensor:
        logit = self.linear(self.norm(x)) + self.open
        if self.training and self.noise:
            u = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            logit = logit + self.noise * (u.log() - (1 - u).log())
        soft = logit.sigmoid()
        return cast(Tensor, (logit > 0).to(soft.dtype) + (soft - soft.detach()))  # exactly 0 or 1


class TokenRouting(nn.Module):
    """The grid: (B, 3, H, W) -> (B, classes); arguments as of `PVTv2`, ``columns``: K, by default as many as rows."""

    def __init__(
        self, dims: Sequence[int], depths: Sequence[int], *, heads: Sequence[int] = (1, 2, 5, 8), expand: Sequence[float] = (8, 8, 4, 4),
        reduce: Sequence[int] = (8, 4, 2, 1), classes: int = 1000, stem: tuple[int, int] = (7, 4), columns: int | None = None,
    ) -> None:
        super().__init__()
        rows = len(dims)
        if not rows == len(depths) == len(heads) == len(expand) == len(reduce):
            raise ValueError(f"depths, heads, expand and reduce must be as many as dims {tuple(dims)}")
        self.rows, self.columns = rows, rows if columns is None else columns
        if self.columns < 1:
            raise ValueError(f"columns must be positive, not {columns!r}")
        self.stem = PatchEmbed(3, dims[0], *stem)
        each = list(zip(dims, depths, heads, reduce, expand, strict=True))
        self.stages = nn.ModuleList(nn.ModuleList(Stage(*row) for _ in range(self.columns)) for row in each)
        self.row_gates = nn.ModuleList(nn.ModuleList(Gate(d) for _ in range(self.columns)) for d in dims)
        self.embeds = nn.ModuleList(
            nn.ModuleList(PatchEmbed(dims[i], dims[i + 1]) for _ in range(self.columns + 1)) for i in range(rows - 1)
        )
        self.scale_gates = nn.ModuleList(nn.ModuleList(Gate(d) for _ in range(self.columns + 1)) for d in dims[:-1])
        self.head = nn.Linear(dims[-1], classes)
        self.apply(_initialise)

    def staircase(self) -> tuple[Tensor, Tensor]:
        """Fixed gates, (rows, K) and (rows - 1, K + 1), of the path that is a PVTv2: stage i of row i, then down."""
        if self.columns < self.rows:
            raise ValueError(f"columns must be at least {self.rows} for a staircase, not {self.columns}")
        rows, scales = torch.zeros(self.rows, self.columns), torch.zeros(self.rows - 1, self.columns + 1)
        for i in range(self.rows):
            rows[i, i] = 1
            if i < self.rows - 1:
                scales[i, i + 1] = 1
        rows[-1, self.rows :] = 0
        return rows, scales

    def set_noise(self, scale: float) -> None:
        """Scale of the gates' noise in training; towards 0 at its end, so that training and eval pass the same share."""
        for module in self.modules():
            if isinstance(module, Gate):
                module.noise = scale

    def routed(self, x: Tensor, rows: Tensor | None = None, scales: Tensor | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Scores, the share of MACs that gates let pass, and all row gates. ``rows``, ``scales``: fixed gates, for all tokens alike."""
        for name, fixed, shape in (("rows", rows, (self.rows, self.columns)), ("scales", scales, (self.rows - 1, self.columns + 1))):
            if fixed is not None and tuple(fixed.shape) != shape:
                raise ValueError(f"{name} must be of shape {shape}, not {tuple(fixed.shape)!r}")
        found: list[Tensor] = []
        used, whole = x.new_zeros(()), 0
        column: list[Tensor | None] = [self.stem(x.permute(0, 2, 3, 1)), *[None] * (self.rows - 1)]
        for j in range(self.columns + 1):
            for i in range(self.rows):
                before = column[i]
                if j and before is not None:
                    stage, gate = self._at(self.stages, i, j - 1), self._at(self.row_gates, i, j - 1)
                    g = self._gate(gate, before, None if rows is None else rows[i, j - 1])
                    cost = cast(Stage, stage).macs(*before.shape[1:3])
                    used, whole = used + g.mean() * cost, whole + cost
                    found.append(g)
                    if not self._empty(g):
                        column[i] = g * stage(before) + (1 - g) * before
                above = column[i - 1] if i else None
                if above is not None:
                    embed, gate = self._at(self.embeds, i - 1, j), self._at(self.scale_gates, i - 1, j)
                    c = self._gate(gate, above, None if scales is None else scales[i - 1, j])
                    cost = cast(PatchEmbed, embed).macs(*above.shape[1:3])
                    used, whole = used + c.mean() * cost, whole + cost
                    down = F.max_pool2d(c.permute(0, 3, 1, 2), 2, ceil_mode=True).permute(0, 2, 3, 1)
                    here = column[i]
                    arrived = down * embed(above)
                    column[i] = arrived if here is None else here + arrived
        last = column[-1]
        assert last is not None
        return self.head(last.mean((1, 2))), used / whole, found

    def forward(self, x: Tensor) -> Tensor:
        return self.routed(x)[0]

    @staticmethod
    def _at(grid: nn.ModuleList, i: int, j: int) -> nn.Module:
        return cast(nn.ModuleList, grid[i])[j]

    @staticmethod
    def _gate(gate: nn.Module, x: Tensor, fixed: Tensor | None) -> Tensor:
        return cast(Tensor, gate(x)) if fixed is None else fixed.to(x).expand(*x.shape[:3], 1)

    def _empty(self, g: Tensor) -> bool:
        """Whether a node has nothing to do and is skipped; in eval only, and not while a graph is traced."""
        return not self.training and not torch.compiler.is_compiling() and not g.is_meta and not bool(g.any())


def budget_loss(share: Tensor, mu: float) -> Tensor:
    """(share - mu)²."""
    if not 0 <= mu <= 1:
        raise ValueError(f"mu must be in 0..1, not {mu!r}")
    return (share - mu).square()


def bench() -> BenchCase:
    """A grid of two rows, its gates learned, beside the PVTv2 on its staircase."""
    sizes = {"heads": (1, 2), "expand": (4, 4), "reduce": (2, 1), "classes": 10}
    return BenchCase(
        name="two rows of routing against PVTv2's path, 64×64 images",
        ours=TokenRouting((32, 64), (1, 1), **sizes),  # type: ignore[arg-type]
        baseline=PVTv2((32, 64), (1, 1), **sizes),  # type: ignore[arg-type]
        inputs=(torch.randn(4, 3, 64, 64),),
    )


WIDE = (64, 128, 320, 512)
CONFIGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), (8, 8, 4, 4)),
    "b1": (WIDE, (2, 2, 2, 2), (8, 8, 4, 4)),
    "b2": (WIDE, (3, 4, 6, 3), (8, 8, 4, 4)),
    "b3": (WIDE, (3, 4, 18, 3), (8, 8, 4, 4)),
    "b4": (WIDE, (3, 8, 27, 3), (8, 8, 4, 4)),
    "b5": (WIDE, (3, 6, 40, 3), (4, 4, 4, 4)),
}
SYSTEM = System(
    name="token_routing",
    title="Dynamic token routing (DiT)",
    paper="arXiv 2308.03409 (2023)",
    year=2023,
    kind="network",
    variants={
        **{f"pvt_v2_{n}": partial(PVTv2, dims, depths, expand=e) for n, (dims, depths, e) in CONFIGS.items()},
        **{f"token_routing_{n}": partial(TokenRouting, *CONFIGS[n][:2], expand=CONFIGS[n][2]) for n in ("b0", "b1")},
    },
    checked=(
        "parameters of six PVTv2 to the digit, MACs to the published digits", "gates on the staircase are PVTv2",
        "closed row gates leave the chain of patch embeddings", "gathered tokens are masked tokens in attention and MLP",
        "share of MACs against the counter, linear in the gates, budget loss 0 at its target", "empty nodes are skipped", "gradcheck",
    ),
    lowering=(
        Lowering(part="gates, selection, patch embeddings, MLP", verdict="as is", note="pointwise, threshold, masks, depthwise"),
        Lowering(part="GELU, LayerNorm", verdict="after a change", note="a table; batch norm, with retraining"),
        Lowering(part="attention, gathering of tokens", verdict="no", note="softmax; a dataflow machine gains nothing from masked tokens"),
    ),
    demo="models.zoo.demos.token_routing:demo",
    bench=bench,
)
