"""FIT: far-reaching interleaved transformers.

Paper: Chen and Li, arXiv 2305.12689 (2023).

Idea: tokens are cut into groups; local layers attend inside a group, and a few latents of every group carry its content into global
layers that all latents share. Interleaving both gives a reach of the whole sequence for O(L^(4/3)) instead of O(L^2).

Equations. x (B, T groups, n tokens, c), latents (B, T, m, d_l) from a learned (T m, d_l); L = T n:

- x <- LN(W x) + pos (n, d_x), the same in all groups
- layers "(x_1)l_1(x_2)l_2...(x_k)": block i is x_i local layers on (B T, n, d_x); if l_i > 0: latents += MHA(LN latents; LN x) inside each
  group, then l_i global layers on (B, T m, d_l); except in the last block x += MHA(LN x; LN latents) inside each group. Out: LN of both
- layer: x += MHA(LN x), x += W_2 gelu(W_1 LN x), hidden 4 d; cross attention: heads min(h_x, h_l), key size min(d_x, d_l) / heads, no MLP
- parameters of a layer of width d and ratio r: 4 d^2 + 4 d, 2 r d^2 + (r + 1) d and two norms, 4 d
- attention elements: x_i T n^2 + [l_i > 0] (T m n + l_i (T m)^2) + T n m for writing back; with n ~ L^(1/3) all is O(L^(4/3))
- mask "causal": latents of group g attend to groups <= g
- FITAR: local layers causal, latents causal, and group g reads the latents of g - 1 (zeros for the first); logits by the tied embedding
- FITDenoiser: time and condition tokens, to which latents attend before the global layers; latents += LN(MLP(those of the last step)) with
  the norm's scale 0 at first; output W x

How far this reference goes. FIT and its masks are the paper's. Ours, where it says no more: FITAR's input is shifted by one token with a
learned start, so that logit i sees tokens < i; the time enters as one more condition token, its sine code normalized to mean 0 and
variance 1, with SiLU between the two dense layers; the MLP of self-conditioning is that of a layer. The paper has no parameter table, so
variants take their sizes as arguments.

On hardware. Attention, layer norm and softmax do not map. The dense layers are pointwise layers and GELU is a table, which is not enough
to be of use.
"""
from __future__ import annotations

import math
import re
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

Position = Literal["learned", "sincos", "sincos2d"]
EPS = 1e-6


def parse(layers: str) -> list[tuple[int, int]]:
    """[(x_1, l_1), ..., (x_k, l_k)] of "(x_1)l_1(x_2)...(x_k)"; a missing l_k is 0."""
    if not re.fullmatch(r"(\(\d+\)\d+)*\(\d+\)\d*", layers):
        raise ValueError(f"layers must look like '(2)4(2)', not {layers!r}")
    return [(int(x), int(last or 0)) for x, last in re.findall(r"\((\d+)\)(\d*)", layers)]


def layer_parameters(dim: int, ratio: int = 4) -> int:
    """Parameters of one layer."""
    return 4 * dim**2 + 4 * dim + 2 * ratio * dim**2 + (ratio + 1) * dim + 4 * dim


def attention_elements(layers: str, groups: int, tokens: int, latents: int) -> int:
    """Elements of all attention matrices of one head and one sequence."""
    blocks, total = parse(layers), 0
    for i, (local, over) in enumerate(blocks):
        total += local * groups * tokens**2
        if over:
            total += groups * latents * tokens + over * (groups * latents) ** 2
            if i < len(blocks) - 1:
                total += groups * tokens * latents
    return total


def sincos(positions: Tensor, dim: int) -> Tensor:
    """[sin, cos] of positions (L) times 10000^(-2 j / dim): (L, dim), dim even."""
    if dim % 2:
        raise ValueError(f"dim must be even, not {dim!r}")
    rates = 10000 ** (-torch.arange(dim // 2, device=positions.device, dtype=positions.dtype) / (dim // 2))
    angles = positions[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), 1)


def sincos_grid(tokens: int, dim: int, flat: bool) -> Tensor:
    """Position codes (tokens, dim) with coordinates 0..1000: of a line, or of a square with halves for y and x."""
    if flat:
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"tokens must be a square for a plane, not {tokens!r}")
        line = sincos(torch.linspace(0, 1000, side), dim // 2)
        rows = line[:, None].expand(-1, side, -1)
        return torch.cat((rows, rows.transpose(0, 1)), 2).flatten(0, 1)
    return sincos(torch.linspace(0, 1000, tokens), dim)


class MHA(nn.Module):
    """Attention of q (N, a, dim) to tokens (N, b, other), result (N, a, dim); ``mask`` (a, b) is True where q may look."""

    def __init__(self, dim: int, other: int, heads: int) -> None:
        super().__init__()
        width = min(dim, other)
        if heads < 1 or width % heads:
            raise ValueError(f"heads must be positive and divide {width}, not {heads!r}")
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(dim, width), nn.Linear(other, width), nn.Linear(other, width)
        self.out = nn.Linear(width, dim)

    def forward(self, q: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = (self.q(q), self.k(tokens), self.v(tokens))
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    """Pre-norm transformer layer: (N, L, dim) both ways."""

    def __init__(self, dim: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.mha = MHA(dim, dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.mha(y, y, mask)
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class Cross(nn.Module):
    """q + MHA(LN q; LN tokens)."""

    def __init__(self, dim: int, other: int, heads: int) -> None:
        super().__init__()
        self.norm_q, self.norm_t = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(other, eps=EPS)
        self.mha = MHA(dim, other, heads)

    def forward(self, q: Tensor, tokens: Tensor) -> Tensor:
        return q + cast(Tensor, self.mha(self.norm_q(q), self.norm_t(tokens)))


class FITBlock(nn.Module):
    """x (B, T, n, d_x) and latents (B, T, m, d_l) both ways; ``local`` and ``over`` layers, written back unless ``last``."""

    def __init__(self, dim: int, latent_dim: int, local: int, over: int, heads: int, latent_heads: int, ratio: int, last: bool) -> None:
        super().__init__()
        self.local = nn.ModuleList(Layer(dim, heads, ratio) for _ in range(local))
        self.over = nn.ModuleList(Layer(latent_dim, latent_heads, ratio) for _ in range(over))
        both = min(heads, latent_heads)
        self.x2l = Cross(latent_dim, dim, both) if over else None
        self.l2x = Cross(dim, latent_dim, both) if over and not last else None
        self.l2c: Cross | None = None

    def forward(
        self, x: Tensor, latents: Tensor, *, local_mask: Tensor | None = None, mask: Tensor | None = None, shift: bool = False,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        batch, groups = x.shape[:2]
        y = x.flatten(0, 1)
        for layer in self.local:
            y = layer(y, local_mask)
        if self.x2l is not None:
            z = self.x2l(latents.flatten(0, 1), y).reshape(batch, -1, latents.shape[-1])
            if self.l2c is not None and condition is not None:
                z = self.l2c(z, condition)
            for layer in self.over:
                z = layer(z, mask)
            latents = z.view(latents.shape)
            if self.l2x is not None:
                seen = torch.cat((torch.zeros_like(latents[:, :1]), latents[:, :-1]), 1) if shift else latents
                y = self.l2x(y, seen.flatten(0, 1))
        return y.view(batch, groups, *y.shape[1:]), latents


class FIT(nn.Module):
    """x (B, T, n, inputs) -> x (B, T, n, dim) and latents (B, T, m, latent_dim), both normalized."""

    def __init__(
        self, layers: str, *, inputs: int, groups: int, tokens: int, latents: int, dim: int, latent_dim: int, heads: int = 8,
        latent_heads: int = 8, ratio: int = 4, mask: Literal["none", "causal"] = "none", position: Position = "learned",
    ) -> None:
        super().__init__()
        if mask not in ("none", "causal"):
            raise ValueError(f"mask must be 'none' or 'causal', not {mask!r}")
        if position not in ("learned", "sincos", "sincos2d"):
            raise ValueError(f"position must be 'learned', 'sincos' or 'sincos2d', not {position!r}")
        for name, value in (("groups", groups), ("tokens", tokens), ("latents", latents)):
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value!r}")
        self.groups, self.tokens, self.causal = groups, tokens, mask == "causal"
        self.stem, self.stem_norm = nn.Linear(inputs, dim), nn.LayerNorm(dim, eps=EPS)
        if position == "learned":
            self.pos = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, dim), std=0.02))
        else:
            self.register_buffer("pos", sincos_grid(tokens, dim, position == "sincos2d"))
        self.latents = nn.Parameter(nn.init.trunc_normal_(torch.empty(groups, latents, latent_dim), std=0.02))
        blocks, last = parse(layers), len(parse(layers)) - 1
        self.blocks = nn.ModuleList(
            FITBlock(dim, latent_dim, local, over, heads, latent_heads, ratio, i == last) for i, (local, over) in enumerate(blocks)
        )
        self.norm_x, self.norm_l = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(latent_dim, eps=EPS)

    def masks(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """For local layers (n, n) and global ones (T m, T m); None where everything is seen."""
        if not self.causal:
            return None, None
        group = torch.arange(self.groups, device=device).repeat_interleave(self.latents.shape[1])
        return None, group[:, None] >= group

    def embed(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or tuple(x.shape[1:3]) != (self.groups, self.tokens):
            raise ValueError(f"x must be (B, {self.groups}, {self.tokens}, inputs), not {tuple(x.shape)!r}")
        return cast(Tensor, self.stem_norm(self.stem(x))) + self.pos

    def run(self, x: Tensor, latents: Tensor, *, shift: bool = False, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The blocks and the last norms."""
        local, mask = self.masks(x.device)
        for block in self.blocks:
            x, latents = block(x, latents, local_mask=local, mask=mask, shift=shift, condition=condition)
        return self.norm_x(x), self.norm_l(latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(self.embed(x), self.latents.repeat(len(x), 1, 1, 1))


class FITAR(FIT):
    """Tokens (B, T, n) of ``vocabulary`` -> logits (B, T, n, vocabulary), each of the tokens before it only."""

    def __init__(
        self, layers: str, *, groups: int, tokens: int, latents: int, dim: int, latent_dim: int, vocabulary: int = 256, heads: int = 8,
        latent_heads: int = 8, ratio: int = 4, position: Position = "learned",
    ) -> None:
        super().__init__(
            layers, inputs=dim, groups=groups, tokens=tokens, latents=latents, dim=dim, latent_dim=latent_dim, heads=heads,
            latent_heads=latent_heads, ratio=ratio, mask="causal", position=position,
        )  # fmt: skip
        self.stem = nn.Identity()  # type: ignore[assignment]  # the embedding is the first layer
        self.embedding = nn.Embedding(vocabulary, dim)
        self.start = nn.Parameter(torch.zeros(dim))
        self.norm_l = nn.Identity()  # type: ignore[assignment]  # latents are no output
        nn.init.trunc_normal_(self.embedding.weight, std=0.02)

    def masks(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        within = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=device).tril()
        return within, super().masks(device)[1]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if x.ndim != 3:
            raise ValueError(f"x must be (B, {self.groups}, {self.tokens}), not {tuple(x.shape)!r}")
        flat = self.embedding(x).flatten(1, 2)
        first = self.start.expand(len(x), 1, -1)
        shifted = torch.cat((first, flat[:, :-1]), 1).view(*x.shape, -1)
        y, _ = self.run(self.embed(shifted), self.latents.repeat(len(x), 1, 1, 1), shift=True)
        return y @ self.embedding.weight.mT

    def loss(self, x: Tensor) -> Tensor:
        """Mean cross entropy of every token, in nats."""
        return F.cross_entropy(self(x).flatten(0, 2), x.flatten())


class FITDenoiser(FIT):
    """x (B, T, n, inputs), times (B) in 0..1 -> the prediction (B, T, n, inputs) and the latents, for the next step."""

    def __init__(
        self, layers: str, *, inputs: int, groups: int, tokens: int, latents: int, dim: int, latent_dim: int, heads: int = 8,
        latent_heads: int = 8, ratio: int = 4, position: Position = "learned",
    ) -> None:
        super().__init__(
            layers, inputs=inputs, groups=groups, tokens=tokens, latents=latents, dim=dim, latent_dim=latent_dim, heads=heads,
            latent_heads=latent_heads, ratio=ratio, position=position,
        )  # fmt: skip
        if latent_dim % 8:
            raise ValueError(f"latent_dim must be a multiple of 8, for the time's code, not {latent_dim!r}")
        self.time = nn.Sequential(nn.Linear(latent_dim // 4, latent_dim), nn.SiLU(), nn.Linear(latent_dim, latent_dim))
        self.previous = nn.Sequential(
            nn.Linear(latent_dim, ratio * latent_dim), nn.GELU(), nn.Linear(ratio * latent_dim, latent_dim),
            nn.LayerNorm(latent_dim, eps=EPS),
        )  # fmt: skip
        nn.init.zeros_(cast(nn.LayerNorm, self.previous[-1]).weight)
        for block in self.blocks:
            if isinstance(block, FITBlock) and block.x2l is not None:
                block.l2c = Cross(latent_dim, latent_dim, latent_heads)
        self.head = nn.Linear(dim, inputs)

    def forward(  # type: ignore[override]
        self, x: Tensor, times: Tensor, condition: Tensor | None = None, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``condition``: more tokens (B, K, latent_dim); ``previous``: latents of the step before."""
        if tuple(times.shape) != (len(x),):
            raise ValueError(f"times must be ({len(x)},), not {tuple(times.shape)!r}")
        code = sincos(1000 * times, self.latents.shape[-1] // 4)
        token = self.time(F.layer_norm(code, code.shape[-1:]).to(x.dtype))[:, None]
        tokens = token if condition is None else torch.cat((token, condition), 1)
        latents = self.latents.repeat(len(x), 1, 1, 1)
        if previous is not None:
            latents = latents + cast(Tensor, self.previous(previous))
        y, latents = self.run(self.embed(x), latents, condition=tokens)
        return self.head(y), latents


def patches(image: Tensor, side: int) -> Tensor:
    """Groups of an image: (B, H, W, c) -> (B, H W / side^2, side^2 c) in raster order, also inside a patch."""
    batch, height, width, channels = image.shape
    if height % side or width % side:
        raise ValueError(f"side must divide {height} and {width}, not {side!r}")
    cut = image.view(batch, height // side, side, width // side, side, channels)
    return cut.transpose(2, 3).reshape(batch, -1, side * side * channels)


class _Full(nn.Module):
    """Layers over all tokens at once, for the benchmark."""

    def __init__(self, depth: int, dim: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1, 2)
        for layer in self.layers:
            y = layer(y)
        return y


def bench() -> BenchCase:
    """FIT beside a transformer of as many layers, 1,024 tokens of width 64."""
    return BenchCase(
        name="FIT (1)2(1) of 32 groups against four full layers, 1,024 tokens of 64",
        ours=FIT("(1)2(1)", inputs=64, groups=32, tokens=32, latents=4, dim=64, latent_dim=64),
        baseline=_Full(4, 64, 8),
        inputs=(torch.randn(2, 32, 32, 64),),
    )


SYSTEM = System(
    name="fit",
    title="FIT: far-reaching interleaved transformers",
    paper="arXiv 2305.12689 (2023)",
    year=2023,
    kind="network",
    variants={"fit": FIT, "fitar": FITAR, "fit_denoiser": FITDenoiser},
    checked=(
        "parameters of layers and of a whole network by the closed form", "elements of all attention matrices, growth L^(4/3)",
        "one group is a Perceiver", "groups are independent without latents", "causality of FITAR and of causal latents",
        "equivariance to the order of the groups", "fresh self-conditioning is the identity", "gradcheck",
    ),
    lowering=(
        Lowering(part="attention, softmax, LayerNorm", verdict="no", note="products of activations and division by their sums"),
        Lowering(part="dense layers", verdict="as is", note="pointwise"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
    ),
    demo="models.zoo.demos.fit:demo",
    bench=bench,
)
