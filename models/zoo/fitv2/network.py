"""The transformer: attention with QK norm and rotation, SwiGLU, low-rank adaLN."""
from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.fitv2.rope import Form, VisionRotary, rotate


class Attention(nn.Module):
    """(B, N, dim) both ways; a token sees those of its id."""

    def __init__(self, dim: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must be positive and divide dim {dim}, not {heads!r}")
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, dim = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            q, k = (F.layer_norm(t, t.shape[-1:], eps=1e-6) for t in (q, k))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1)
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=seen).transpose(1, 2).reshape(b, n, dim)
        return cast(Tensor, self.proj((out * (ids != 0).unsqueeze(-1)).to(x.dtype)))


class SwiGLU(nn.Module):
    """fc2(silu(fc1_g x) * fc1_x x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x, self.fc2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift, a layer norm without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """(B, N, dim) both ways; c (B, 1 or N, dim). ``rank``: r of the adaLN, 0 for a full one (FiT v1)."""

    def __init__(self, dim: int, heads: int, hidden: int, rank: int, qk_norm: bool) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(dim, heads, qk_norm), SwiGLU(dim, hidden)
        layers = (nn.Linear(dim, rank), nn.Linear(rank, 6 * dim)) if rank else (nn.Linear(dim, 6 * dim),)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), *layers)

    def forward(self, x: Tensor, c: Tensor, shared: Tensor | float, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.adaLN_modulation(c) + shared).chunk(6, -1)
        x = x + gate1 * self.attn(modulate(x, shift1, scale1), ids, cos, sin)
        y: Tensor = x + gate2 * self.mlp(modulate(x, shift2, scale2))
        return y


class TimestepEmbedder(nn.Module):
    """t (...) in 0..1 -> (..., dim): 128 cosines, 128 sines, two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        step = torch.exp(-math.log(1e4) * torch.arange(128, device=t.device, dtype=t.dtype) / 128)
        angle = t.unsqueeze(-1) * step
        return cast(Tensor, self.mlp(torch.cat((angle.cos(), angle.sin()), -1)))


class LabelEmbedder(nn.Module):
    """y -> (..., dim); the last entry stands for no class, drawn with ``drop`` in training."""

    def __init__(self, classes: int, dim: int, drop: float) -> None:
        super().__init__()
        self.classes, self.drop = classes, drop
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, y: Tensor, ids: Tensor) -> Tensor:
        if self.training and self.drop:
            dropped = torch.rand(len(y), ids.shape[1] + 1, device=y.device) < self.drop  # of each image of a packed row
            dropped = dropped.gather(1, ids.long()) if y.ndim == 2 else dropped[:, 0]
            y = torch.where(dropped, self.classes, y)
        return cast(Tensor, self.embedding_table(y))


class FinalLayer(nn.Module):
    """(B, N, dim) -> (B, N, outputs)."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return cast(Tensor, self.linear(modulate(x, shift, scale)))


class Embedder(nn.Module):
    """Tokens (B, N, inputs) -> (B, N, dim)."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x))


class FiT(nn.Module):
    """x (B, N, patch² channels), t and y (B) or (B, N), grid (B, 2, N), ids (B, N), size (B, 2) or (B, N, 2) -> (B, N, patch² channels).

    ``rank``: r, 0 for FiT v1's adaLN; ``hidden``: of SwiGLU, default 4 dim * 2 // 3; ``sigma``: twice the outputs; ``form``, ``decouple``:
    of the rotary embedding.
    """

    def __init__(
        self, dim: int, depth: int, heads: int, *, rank: int = 0, hidden: int | None = None, patch: int = 2, channels: int = 4,
        classes: int = 1000, drop: float = 0.1, qk_norm: bool = True, sigma: bool = False, form: Form = "normal", decouple: bool = False,
    ) -> None:
        super().__init__()
        values = patch * patch * channels
        self.patch, self.channels = patch, channels
        self.x_embedder, self.t_embedder = Embedder(values, dim), TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(classes, dim, drop)
        self.rope = VisionRotary(dim // heads, form, decouple=decouple)
        self.global_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim)) if rank else None
        hidden = 4 * dim * 2 // 3 if hidden is None else hidden
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, rank, qk_norm) for _ in range(depth))
        self.final_layer = FinalLayer(dim, values * (1 + sigma))
        self._reset()

    def _reset(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for k in (0, 2):
            nn.init.normal_(cast(Tensor, self.t_embedder.mlp[k].weight), std=0.02)
        zero = [cast(nn.Sequential, block.adaLN_modulation)[-1] for block in self.blocks]
        zero += [self.final_layer.adaLN_modulation[-1], self.final_layer.linear]
        zero += [] if self.global_adaLN_modulation is None else [self.global_adaLN_modulation[-1]]
        for layer in zero:
            nn.init.zeros_(cast(Tensor, layer.weight))

    def embed(self, x: Tensor, grid: Tensor) -> Tensor:
        """Tokens before the first block; places come in with the rotary embedding only."""
        return cast(Tensor, self.x_embedder(x))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, grid: Tensor, ids: Tensor, size: Tensor | None = None) -> Tensor:
        if tuple(grid.shape) != (len(x), 2, x.shape[1]) or tuple(ids.shape) != tuple(x.shape[:2]):
            raise ValueError(f"grid and ids must fit x {tuple(x.shape)}, not {tuple(grid.shape)!r} and {tuple(ids.shape)!r}")
        c = self.t_embedder(t.to(x.dtype)) + self.y_embedder(y, ids)
        c = c if c.ndim == 3 else c.unsqueeze(1)
        cos, sin = self.rope(grid, size)
        shared = 0.0 if self.global_adaLN_modulation is None else self.global_adaLN_modulation(c)
        x = self.embed(x, grid)
        for block in self.blocks:
            x = block(x, c, shared, ids, cos, sin)
        return cast(Tensor, self.final_layer(x, c)) * (ids != 0).unsqueeze(-1)

    def freeze_for_high_resolution(self) -> None:
        """Train only the first layer, the last, and biases, as the authors do in their high-resolution stage."""
        for name, p in self.named_parameters():
            p.requires_grad_(name.startswith(("x_embedder", "final_layer")) or name.endswith("bias"))
