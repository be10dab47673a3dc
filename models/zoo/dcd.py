"""Dynamic contrastive distillation (DCD) of an image-text cross-encoder.

Paper: Rao, Ding, Qi, Fang, Liu, Shen and Tao, "Dynamic Contrastive Distillation for Image-Text Retrieval", arXiv 2207.01426
(2022).

Idea: a cross-encoder is too dear for many negatives, so the teacher, without gradient, scores all and the student learns from the hardest
few. The teacher's entropy then says, image by image, whether to learn from the label or from the teacher.

Equations. An image, its text (index 0) and F false ones; teacher scores t (B, F + 1):

- the student runs on the positive and the K = 7 negatives of the highest t, in that order: s, t (B, K + 1)
- H_i = entropy of softmax(t_i), e_i = H_i / sum H (sum e = 1); w = softmax over the batch of (1 - e)²
- C = sum_i e_i BCE(s_i, one-hot 0), mean over the K + 1: doubtful images lean on their labels
- D = T² sum_i w_i MSE(t_i / T, s_i / T), mean over the K + 1: sure images lean on the teacher
- loss = a D + (1 - a) C, a = 0.2, T = 1

Cross-encoder (METER): tokens of both encoders through co-attention layers, in each and for both sides LN(x + self-attention x),
LN(x + attention to the other side), LN(x + MLP x); poolers tanh(FC first token); a matching head of two rows, the second of which is
the score. The student has the teacher's encoders and half of the co-attention layers, its own poolers and head.

How far this reference goes. Selection, weights and loss are the paper's as far as the facts at hand went. ``official`` True keeps two
slips of the published code: D takes the mean-reduced MSE, so that w has no effect, and teacher scores stay sorted by the teacher,
so that columns are those of other texts wherever the positive is not its first. ``weighting`` "wsl" is the alternative there,
1 - exp(-CE_s / CE_t) in place of w, taken as a mean over the batch (our reading of the scale). The encoders stand for CLIP and RoBERTa
and are one linear layer each here; they are shared and frozen (our reading), so that their tokens can be kept. No masks: texts of one
length. The published retrieval figures and speed-ups cannot be checked without data and weights.

On hardware. A way to train: nothing of it is lowered. What it trains is a transformer, whose softmax attention does not map.
"""
from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import Attention, trunc_normal_init

Weighting = Literal["entropy", "wsl"]
Pick = Literal["hard", "random"]


def uncertainty(scores: Tensor) -> Tensor:
    """e (B,) of teacher scores (B, n): each one's share in the entropy of the batch; 1 / B where there is none at all."""
    log = scores.log_softmax(1)
    entropy = -(log.exp() * log).sum(1)
    total = entropy.sum()
    return torch.where(total > 0, entropy / total.clamp_min(torch.finfo(scores.dtype).tiny), torch.full_like(entropy, 1 / len(entropy)))


def confidence(e: Tensor) -> Tensor:
    """w (B,): softmax over the batch of (1 - e)²."""
    return (1 - e).square().softmax(0)


def choose(scores: Tensor, negatives: int, pick: Pick = "hard") -> Tensor:
    """Columns (B, negatives + 1) of scores (B, F + 1): 0, then the highest of the others, or any of them, without repetition."""
    if not 1 <= negatives < scores.shape[1]:
        raise ValueError(f"negatives must be in 1..{scores.shape[1] - 1}, not {negatives!r}")
    rank = scores[:, 1:] if pick == "hard" else torch.rand_like(scores[:, 1:])
    return F.pad(rank.topk(negatives, 1).indices + 1, (1, 0))


class Terms(NamedTuple):
    """Loss and its two parts."""

    total: Tensor
    distillation: Tensor
    contrast: Tensor


class DCDLoss(nn.Module):
    """student and teacher scores (B, K + 1), the positive first -> Terms. No gradient reaches the teacher's."""

    def __init__(
        self, alpha: float = 0.2, temperature: float = 1.0, *, weighting: Weighting = "entropy", official: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in 0..1, not {alpha!r}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature!r}")
        if weighting not in ("entropy", "wsl"):
            raise ValueError(f"weighting must be 'entropy' or 'wsl', not {weighting!r}")
        self.alpha, self.temperature, self.weighting, self.official = alpha, temperature, weighting, official

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        if student.shape != teacher.shape or student.ndim != 2:
            raise ValueError(f"student and teacher must be (B, K + 1) alike, not {tuple(student.shape)!r} and {tuple(teacher.shape)!r}")
        teacher = teacher.detach()
        e = uncertainty(teacher)
        label = F.one_hot(torch.zeros_like(student[:, 0], dtype=torch.long), student.shape[1]).to(student.dtype)
        contrast = (e * F.binary_cross_entropy_with_logits(student, label, reduction="none").mean(1)).sum()
        target = teacher.sort(1, descending=True).values if self.official else teacher
        apart = (target / self.temperature - student / self.temperature).square().mean(1)
        if self.weighting == "wsl":
            ratio = student.detach().log_softmax(1)[:, 0] / teacher.log_softmax(1)[:, 0].clamp_max(-torch.finfo(teacher.dtype).eps)
            weights = (1 - (-ratio).exp()) / len(ratio)
        else:
            weights = confidence(e)
        distillation = self.temperature**2 * (weights.sum() * apart.mean() if self.official else (weights * apart).sum())
        return Terms(self.alpha * distillation + (1 - self.alpha) * contrast, distillation, contrast)


class CrossAttention(nn.Module):
    """Multi-head attention of x (B, L, dim) to y (B, M, dim) -> (B, L, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        n, length, dim = x.shape
        q = self.query(x).reshape(n, length, self.heads, -1).transpose(1, 2)
        k, v = self.kv(y).reshape(n, y.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return cast(Tensor, self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim)))


class CoAttentionSide(nn.Module):
    """One side of a layer: x (B, L, dim), the other side y (B, M, dim) -> (B, L, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.own, self.cross = Attention(dim, heads), CrossAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norms[0](x + self.own(x))
        x = self.norms[1](x + self.cross(x, y))
        return cast(Tensor, self.norms[2](x + self.mlp(x)))


class CrossEncoder(nn.Module):
    """image (B, L, image_dim), text (B, n, M, text_dim) -> scores (B, n); dim a multiple of ``heads``.

    ``share``: a cross-encoder of the same dim whose encoders are taken.
    """

    def __init__(
        self, layers: int, *, dim: int = 768, heads: int = 12, image_dim: int = 768, text_dim: int = 768, share: CrossEncoder | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be positive, not {layers!r}")
        if share is not None and share.vision.out_features != dim:
            raise ValueError(f"share must have encoders to dim {dim}, not to {share.vision.out_features!r}")
        self.vision: nn.Linear = nn.Linear(image_dim, dim) if share is None else share.vision
        self.text: nn.Linear = nn.Linear(text_dim, dim) if share is None else share.text
        self.layers = nn.ModuleList(
            nn.ModuleDict({side: CoAttentionSide(dim, heads) for side in ("image", "text")}) for _ in range(layers)
        )
        self.poolers = nn.ModuleDict({side: nn.Linear(dim, dim) for side in ("image", "text")})
        self.head = nn.Linear(2 * dim, 2)
        for part in (self.layers, self.poolers, self.head):
            part.apply(trunc_normal_init)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        n = text.shape[1]
        x = self.vision(image).repeat_interleave(n, 0)  # encoded once for all of its texts
        y = self.text(text).flatten(0, 1)
        for layer in self.layers:
            sides = cast(nn.ModuleDict, layer)
            x, y = sides["image"](x, y), sides["text"](y, x)
        pooled = torch.cat((self.poolers["image"](x[:, 0]).tanh(), self.poolers["text"](y[:, 0]).tanh()), 1)
        return cast(Tensor, self.head(pooled))[:, 1].reshape(-1, n)


class DCD(nn.Module):
    """The method: image (B, ..), text (B, F + 1, ..), the positive first -> Terms; in eval the student's scores (B, F + 1).

    ``teacher``, ``student``: any modules (image, text (B, n, ..)) -> scores (B, n). The teacher's parameters are frozen.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, loss: DCDLoss | None = None, *, negatives: int = 7, pick: Pick = "hard"
    ) -> None:
        super().__init__()
        if pick not in ("hard", "random"):
            raise ValueError(f"pick must be 'hard' or 'random', not {pick!r}")
        self.teacher, self.student = teacher.requires_grad_(False), student
        self.loss = DCDLoss() if loss is None else loss
        self.negatives, self.pick = negatives, pick

    def train(self, mode: bool = True) -> DCD:
        """The teacher stays in eval."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, image: Tensor, text: Tensor) -> Terms | Tensor:
        if not self.training:
            return cast(Tensor, self.student(image, text))
        with torch.no_grad():
            scores: Tensor = self.teacher(image, text)
            chosen = choose(scores, self.negatives, self.pick)
        few = text[torch.arange(len(text), device=text.device)[:, None], chosen]
        return cast(Terms, self.loss(self.student(image, few), scores.gather(1, chosen)))


def bench() -> BenchCase:
    """The student's three co-attention layers beside the teacher's six."""
    build = partial(CrossEncoder, dim=96, heads=4, image_dim=96, text_dim=96)
    return BenchCase(
        name="three co-attention layers against six, 96 channels, 4 texts",
        ours=build(3),
        baseline=build(6),
        inputs=(torch.randn(4, 49, 96), torch.randn(4, 4, 12, 96)),
    )


SYSTEM = System(
    name="dcd",
    title="Dynamic contrastive distillation",
    paper="arXiv 2207.01426 (2022)",
    year=2022,
    kind="method",
    variants={"dcd_teacher": partial(CrossEncoder, 6), "dcd_student": partial(CrossEncoder, 3)},
    checked=(
        "shares of entropy and weights sum to 1; equal entropies are plain distillation",
        "positive first, the teacher's hardest K, distinct",
        "loss against its definition; both slips of the published code", "the teacher gets no gradient",
        "co-attention of the student costs half", "gradcheck",
    ),
    lowering=(
        Lowering(part="selection and loss", verdict="no", note="training only"),
        Lowering(part="cross-encoder", verdict="no", note="softmax attention"),
    ),
    demo="models.zoo.demos.dcd:demo",
    bench=bench,
)
