"""ResidualViT: dense video features from few full frames and many cheap ones.

Paper: Soldan, Caba Heilbron, Ghanem, Sivic and Russell, arXiv 2509.13255 (ICCV 2025).

Idea: neighbouring frames are alike, so only every (N + 1)-th frame (I-frame) goes through the whole ViT. The frames after it (P-frames) go
through the same frozen ViT with few of their tokens, plus one residual token that brings what the I-frame's feature knows.

Equations. f_t = E_V(x_t), normalized, for I-frames; f_{t+k} = E_S(f_t, x_{t+k}), k = 1..N, always from the I-frame's feature:

- E_S: patches, class token, positions; reduction of the patch tokens; residual token A(f_t) behind the class token, without a position;
  norm, blocks, norm, projection of the class token
- A = Linear(d -> width), optionally ReLU and Linear again; nothing else is trained
- reduction keeps max(1, round((1 - p) P)) tokens: uniform (spread evenly), random, center (closest to the grid's), motion (largest sum
  of motion vectors), residuals (largest sum of a codec's residual); or merges r tokens in every block (ToMe, attention with log size);
  or makes the picture smaller
- loss, per frame over the batch's captions: - sum softmax(s f_T Txt^T) log softmax(s f_S Txt^T); or squared error
- cost a frame: (C_V + N C_S) / (N + 1)

How far this reference goes. Order, reductions, loss and variants are the paper's. Its code divides rows of the grid without rounding in
"center"; this one keeps the tokens closest to the centre. Class and residual token take no part in merging. The smaller picture has
round(sqrt(keep)) patches a side, positions resized bicubically (our reading). Motion vectors and residuals come with the frames
(``hint``); a codec is not here. Weights are random: CLIP's need a key map, which is not here.

On hardware. Attention, layer norm and softmax do not map; software reference only.
"""
from __future__ import annotations

from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import VisionTransformer, bipartite_match

Reduction = Literal["uniform", "random", "center", "motion", "residuals", "merge", "resolution"]


def kept(patches: int, p: float) -> int:
    """How many of ``patches`` tokens are left at the drop ratio p."""
    return max(1, round((1 - p) * patches))


def patch_energy(field: Tensor, patch: int) -> Tensor:
    """Sum over each patch of a field's length: motion vectors (N, 2, H, W) or a residual (N, C, H, W) -> (N, P)."""
    length = torch.linalg.vector_norm(field, dim=1, keepdim=True)
    return (F.avg_pool2d(length, patch) * patch**2).flatten(1)


def merge_tokens(x: Tensor, size: Tensor, metric: Tensor, r: int, protect: int) -> tuple[Tensor, Tensor]:
    """ToMe: tokens (B, L, C) of size (B, L) -> r fewer, at most half; the first ``protect`` take no part and stay first."""
    head, tail = x[:, :protect], x[:, protect:]
    head_size, tail_size = size[:, :protect], size[:, protect:]
    r = min(r, tail.shape[1] // 2)
    if r < 1:
        return x, size
    score, target = bipartite_match(metric[:, protect:])
    order = score.argsort(dim=1, descending=True, stable=True)
    gone, left = order[:, :r], order[:, r:].sort(1).values
    goal = target.gather(1, gone)

    def rows(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

    weight = tail_size[..., None].to(tail.dtype)
    a, b = tail[:, 0::2], (tail * weight)[:, 1::2]
    total = tail_size[:, 1::2].scatter_add(1, goal, tail_size[:, 0::2].gather(1, gone))
    b = b.scatter_add(1, goal[..., None].expand(-1, -1, b.shape[-1]), rows((tail * weight)[:, 0::2], gone))
    b = b / total[..., None].to(b.dtype)
    return torch.cat((head, rows(a, left), b), 1), torch.cat((head_size, tail_size[:, 0::2].gather(1, left), total), 1)


class ResidualTokenizer(nn.Sequential):
    """A: feature (N, outputs) -> residual token (N, width); ``layers`` linear ones with ReLU between."""

    def __init__(self, outputs: int, width: int, layers: int = 1) -> None:
        if layers < 1:
            raise ValueError(f"layers must be at least 1, not {layers!r}")
        parts: list[nn.Module] = [nn.Linear(outputs, width)]
        for _ in range(layers - 1):
            parts += [nn.ReLU(), nn.Linear(width, width)]
        super().__init__(*parts)


class ResidualViT(nn.Module):
    """Video (N, T, 3, S, S) -> features (N, T, outputs) of length 1. ``vit``: with a projection; it is frozen here.

    ``interval``: N, P-frames behind each I-frame. ``p``: share of tokens dropped; ``r``: tokens merged in a block, for "merge".
    """

    def __init__(
        self, vit: VisionTransformer, *, interval: int = 2, reduction: Reduction = "uniform", p: float = 0.85, r: int = 20, layers: int = 1
    ) -> None:
        super().__init__()
        if vit.proj is None:
            raise ValueError("vit must have a projection (outputs), not None")
        if interval < 0:
            raise ValueError(f"interval must be 0 or more, not {interval!r}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, not {reduction!r}")
        if not 0 <= p < 1 or r < 0:
            raise ValueError(f"p and r must be in 0..1, 1 excluded, and 0 or more, not {p!r} and {r!r}")
        self.vit = vit.requires_grad_(False)
        self.interval, self.r, self.keep = interval, r, kept(vit.patches, p)
        self.reduction: Reduction = reduction
        self.tokenizer = ResidualTokenizer(vit.proj.out_features, vit.proj.in_features, layers)

    def choose(self, x: Tensor, hint: Tensor | None = None) -> Tensor:
        """Which patches (B, keep), rising, of pictures x stay. ``hint`` as `patch_energy`'s field for "motion" and "residuals"."""
        vit, n = self.vit, len(x)
        side = round(vit.patches**0.5)
        if self.reduction == "uniform":
            return torch.linspace(0, vit.patches - 1, self.keep, dtype=torch.float64, device=x.device).long().expand(n, -1)
        if self.reduction == "random":
            score = torch.rand(n, vit.patches, device=x.device)
        elif self.reduction == "center":
            place = torch.arange(vit.patches, device=x.device)
            middle = (side - 1) / 2
            score = -((place // side - middle) ** 2 + (place % side - middle) ** 2).expand(n, -1)
            closest: Tensor = score.argsort(dim=1, descending=True, stable=True)[:, : self.keep]
            return closest.sort(dim=1).values
        else:
            if hint is None or len(hint) != n or tuple(hint.shape[2:]) != tuple(x.shape[2:]):
                shape = None if hint is None else tuple(hint.shape)
                raise ValueError(f"hint must be a field ({n}, C, {x.shape[2]}, {x.shape[3]}) for {self.reduction}, not {shape!r}")
            score = patch_energy(hint, vit.image // side)
        return score.topk(self.keep, dim=1).indices.sort(dim=1).values

    def _smaller(self, x: Tensor) -> Tensor:
        """Tokens of the picture with about ``keep`` patches."""
        vit = self.vit
        assert vit.cls is not None
        old, new = round(vit.patches**0.5), max(1, round(self.keep**0.5))
        patch = vit.conv.kernel_size[0]
        y = vit.conv(F.interpolate(x, (new * patch, new * patch), mode="bilinear", antialias=True, align_corners=False)).flatten(2).mT
        grid = vit.pos[1:].T.reshape(1, -1, old, old)
        pos = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False).flatten(2).mT
        first = (vit.cls + vit.pos[0]).to(y.dtype).expand(len(y), 1, -1)
        return torch.cat((first, y + pos), 1)

    def full(self, x: Tensor) -> Tensor:
        """E_V: pictures (B, 3, S, S) -> (B, outputs) of length 1."""
        return F.normalize(self.vit(x), dim=-1)

    def student(self, x: Tensor, feature: Tensor | None, hint: Tensor | None = None) -> Tensor:
        """E_S: as ``full`` with fewer tokens, and the residual token of ``feature`` (B, outputs) unless that is None."""
        vit = self.vit
        if self.reduction == "resolution":
            y = self._smaller(x)
        else:
            y = vit.embed(x)
            if self.reduction != "merge" and self.keep < vit.patches:
                index = self.choose(x, hint)[..., None].expand(-1, -1, y.shape[-1])
                y = torch.cat((y[:, :1], y[:, 1:].gather(1, index)), 1)
        protect = 1
        if feature is not None:
            token = cast(Tensor, self.tokenizer(feature))[:, None]
            y, protect = torch.cat((y[:, :1], token.to(y.dtype), y[:, 1:]), 1), 2
        y = vit.norm_pre(y)
        size = torch.ones(y.shape[:2], device=y.device)
        for block in vit.blocks:
            if self.reduction == "merge" and self.r:
                y, metric = block.attend(y, size)  # type: ignore[operator]
                y, size = merge_tokens(y, size, metric, self.r, protect)
                y = block.feed(y)  # type: ignore[operator]
            else:
                y = block(y)
        return F.normalize(vit.head(y), dim=-1)

    def forward(self, video: Tensor, hints: Tensor | None = None) -> Tensor:
        if video.ndim != 5:
            raise ValueError(f"video must be (N, T, C, H, W), not {tuple(video.shape)!r}")
        n, length = video.shape[:2]
        anchors = torch.arange(0, length, self.interval + 1, device=video.device)
        features = self.full(video[:, anchors].flatten(0, 1)).view(n, len(anchors), -1)
        others = torch.tensor([t for t in range(length) if t % (self.interval + 1)], dtype=torch.long, device=video.device)
        out = features.new_zeros(n, length, features.shape[-1]).index_copy(1, anchors, features)
        if not len(others):
            return out
        known = features[:, others // (self.interval + 1)].flatten(0, 1)
        hint = None if hints is None else hints[:, others].flatten(0, 1)
        rest = self.student(video[:, others].flatten(0, 1), known, hint).view(n, len(others), -1)
        return out.index_copy(1, others, rest.to(out.dtype))


def distillation_loss(teacher: Tensor, student: Tensor, text: Tensor, scale: float = 100.0) -> Tensor:
    """Cross-entropy of the frames' distributions over captions: teacher, student (B, d), text (M, d), all of length 1."""
    wanted = (scale * teacher @ text.mT).softmax(-1)
    return -(wanted * (scale * student @ text.mT).log_softmax(-1)).sum(-1).mean()


def average_cost(full: float, student: float, interval: int) -> float:
    """(C_V + N C_S) / (N + 1)."""
    return (full + interval * student) / (interval + 1)


CONFIGS: dict[str, tuple[int, int, int, int, int]] = {  # patch, width, blocks, heads, outputs
    "b32": (32, 768, 12, 12, 512),
    "b16": (16, 768, 12, 12, 512),
    "l14": (14, 1024, 24, 16, 768),
}


def residualvit(name: str, *, interval: int = 2, reduction: Reduction = "uniform", p: float = 0.85, r: int = 20) -> ResidualViT:
    """ResidualViT around CLIP's ViT of that name, 224 × 224."""
    patch, width, depth, heads, outputs = CONFIGS[name]
    vit = VisionTransformer(224, patch, width, depth, heads, outputs=outputs)
    return ResidualViT(vit, interval=interval, reduction=reduction, p=p, r=r)


class _Full(nn.Module):
    """Every frame in full."""

    def __init__(self, model: ResidualViT) -> None:
        super().__init__()
        self.vit = model.vit

    def forward(self, video: Tensor) -> Tensor:
        return F.normalize(self.vit(video.flatten(0, 1)), dim=-1)


def bench() -> BenchCase:
    """Three frames, one of them in full, beside three in full."""
    ours = ResidualViT(VisionTransformer(64, 8, 128, 4, 4, outputs=64))
    return BenchCase(
        name="ResidualViT, N = 2, against every frame in full", ours=ours, baseline=_Full(ours), inputs=(torch.randn(2, 3, 3, 64, 64),)
    )


SYSTEM = System(
    name="residualvit",
    title="ResidualViT",
    paper="arXiv 2509.13255 (ICCV 2025)",
    year=2025,
    kind="method",
    variants={f"residualvit_{name}": partial(residualvit, name) for name in CONFIGS},
    checked=(
        "MACs of full and reduced frames of three ViTs", "average savings at N = 2 and 3", "parameters of the residual tokenizer",
        "p = 0 or r = 0 without residual token: the plain ViT", "merging keeps the sum of sizes", "which tokens each reduction keeps",
        "features of P-frames come from their I-frame", "gradcheck",
    ),
    lowering=(
        Lowering(part="attention, softmax, layer norm", verdict="no", note="products of activations, statistics per token"),
        Lowering(part="token reduction", verdict="no", note="gather by index, sorting"),
    ),
    demo="models.zoo.demos.residualvit:demo",
    bench=bench,
)
