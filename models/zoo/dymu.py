"""DyMU: dynamic token merging (DToMe) and virtual token unmerging (VTU).

Paper: Wang, Xu, Yang, Luo, Kautz, Ji and Molchanov, arXiv 2504.17040 (2025); merging as in ToMe, arXiv 2210.09461.

Idea: tokens of an image merge where they are similar enough, so that simple images leave few tokens and complex ones many, with
thresholds set once on a batch, without training. The language model then attends as if all tokens were still there, computed from the
merged ones.

Equations. DToMe, after the attention of block l, for L tokens of an image with sizes w (all 1 at first):

- metric = mean over heads of the keys, normalized; A = even tokens, B = odd ones; S = A B^T; score_a = max_b S_ab, target_a its b
- a merges where score_a > tau_l, at most L / 2 of them; merged token = sum w x / sum w, size = sum w; order [A left over, B]
- calibration: tau_l = the first similarity behind the B r_l highest of a batch of B images together, at least 0, mean over batches
- attention adds log(w) to the logits of a key; the class token never merges

VTU for U stored tokens at N positions, m_i the token of position i, M (N, U) one-hot, halves (1, 2) of q and k, frequencies t_d:

- a_ij = sum_d cos((p_j - p_i) t_d) (q1 k1 + q2 k2)_d[m_i, m_j] + sin((p_j - p_i) t_d) (q2 k1 - q1 k2)_d[m_i, m_j]
- out = (M^T M)^-1 M^T softmax(a / sqrt(D), causal in N) M V

How far this reference goes. Both operators and the schedules' sums are the paper's; how a linear schedule (falling from 2 r to 0, or
rising) and a total that the depth does not divide are rounded is our reading. Tokens leave through the norm after the blocks; language
models often take an earlier layer. Even unmerged tokens leave in the paper's order, `Merged.unmerged` puts them back. Similarities are
clamped to 1 (rounding exceeds it), so a threshold of 1 never merges. Batches are padded to their longest image and padding has size 0.
VTU holds N × N × D / 2 values, as published: it saves operations, not time. Merging depends on the data and is not compiled; the match
and VTU are.

On hardware. Sorting, gathering by similarity and softmax do not map; software reference only.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import VisionTransformer, bipartite_match

Schedule = Literal["constant", "linear", "reverse"]


class Merged(NamedTuple):
    """Tokens (B, L, C), padded with size 0; size (B, L); index (B, N): which token stands for an original one."""

    tokens: Tensor
    size: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index

    def counts(self) -> Tensor:
        """Tokens left per image."""
        return (self.size > 0).sum(1)

    def matrix(self) -> Tensor:
        """The binary position matrix (B, L, N); its columns sum to 1."""
        return F.one_hot(self.index, self.size.shape[1]).mT

    def unmerged(self) -> Tensor:
        """The tokens at all N places again, (B, N, C)."""
        return self.tokens.gather(1, self.index[..., None].expand(-1, -1, self.tokens.shape[-1]))


def match(metric: Tensor, protect: bool = False) -> tuple[Tensor, Tensor]:
    """Metric (L, D) -> for each even token its best similarity to an odd one, at most 1, and which. ``protect``: token 0 stays."""
    score, target = bipartite_match(metric)
    if protect:
        score = torch.cat((score.new_full((1,), -torch.inf), score[1:]))
    return score, target


def merge(
    tokens: Tensor, size: Tensor, index: Tensor, score: Tensor, target: Tensor, chosen: Tensor, keep_order: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the ``chosen`` even tokens of one image into their targets; tokens (L, C), size (L,), index (N,) -> the same, shorter.

    At most L // 2 are merged. Order: even tokens left over, by falling score (``keep_order``: as they were), then odd ones.
    """
    if int(chosen.sum()) > len(tokens) // 2:
        best = torch.where(chosen, score, -torch.inf).topk(len(tokens) // 2).indices
        chosen = torch.zeros_like(chosen).scatter(0, best, True)
    left, gone = (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
    if not keep_order:
        left = left[score[left].argsort(descending=True, stable=True)]
    weight = size[:, None].to(tokens.dtype)
    a, b, goal = tokens * weight, (tokens * weight)[1::2], target[gone]
    total = size[1::2].index_add(0, goal, size[0::2][gone])
    b = b.index_add(0, goal, a[0::2][gone]) / total[:, None].to(b.dtype)
    place = torch.empty(len(tokens), dtype=torch.long, device=tokens.device)
    place[0::2] = place[0::2].scatter(0, left, torch.arange(len(left), device=left.device)).scatter(0, gone, len(left) + goal)
    place[1::2] = len(left) + torch.arange(len(b), device=left.device)
    return torch.cat((tokens[0::2][left], b)), torch.cat((size[0::2][left], total)), place[index]


def schedule(total: int, depth: int, kind: Schedule = "constant") -> tuple[int, ...]:
    """Tokens to merge in each of ``depth`` blocks, ``total`` in all: as many in each, falling to 0, or rising from 0."""
    if total < 0 or depth < 1:
        raise ValueError(f"total and depth must be 0 or more and 1 or more, not {total!r} and {depth!r}")
    weights = {"constant": [1] * depth, "linear": [*range(depth - 1, -1, -1)], "reverse": [*range(depth)]}
    if kind not in weights:
        raise ValueError(f"kind must be one of {', '.join(weights)}, not {kind!r}")
    parts = weights[kind] if sum(weights[kind]) else [1] * depth
    ends = [total * sum(parts[:k]) // sum(parts) for k in range(depth + 1)]
    return tuple(b - a for a, b in pairwise(ends))


class DyMUEncoder(VisionTransformer):
    """ViT with DToMe: (B, inputs, image, image) -> `Merged` patch tokens. ``r``: tokens to merge in each block on average.

    Thresholds start at 1, which never merges; `calibrate` sets them. Options as VisionTransformer.
    """

    def __init__(self, image: int, patch: int, width: int, depth: int, heads: int, *, r: Sequence[int], **options: Any) -> None:
        super().__init__(image, patch, width, depth, heads, **options)
        if len(r) != depth or min(r) < 0:
            raise ValueError(f"r must be {depth} numbers of 0 or more, not {tuple(r)!r}")
        self.r = tuple(r)
        self.register_buffer("thresholds", torch.ones(depth))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def _choose(self, layer: int, scores: list[Tensor], how: str, found: list[float]) -> list[Tensor]:
        """Which even tokens of each image merge."""
        count = self.r[layer]
        if how == "threshold":
            return [s > cast(Tensor, self.thresholds)[layer] for s in scores]
        if how == "fixed":
            best = [s.topk(min(count, int(s.isfinite().sum()))).indices for s in scores]
            return [torch.zeros_like(s, dtype=torch.bool).scatter(0, b, True) for s, b in zip(scores, best, strict=True)]
        pooled, lengths = torch.cat(scores), [len(s) for s in scores]
        values, order = pooled.sort(descending=True, stable=True)
        edges = min(count * len(scores), int(pooled.isfinite().sum()))
        rejected = float(values[edges]) if edges < len(values) else 0.0
        found.append(max(rejected, 0.0) if count else 1.0)
        return list(torch.zeros_like(pooled, dtype=torch.bool).scatter(0, order[:edges], True).split_with_sizes(lengths))

    def _merged(self, x: Tensor, how: str) -> tuple[Merged, list[float]]:
        y = cast(Tensor, self.norm_pre(self.embed(x)))
        protect = self.cls is not None
        size = torch.ones(y.shape[:2], device=y.device)
        index = torch.arange(y.shape[1], device=y.device).expand(len(y), -1)
        found: list[float] = []
        for layer, block in enumerate(self.blocks):
            y, metric = block.attend(y, size)  # type: ignore[operator]
            lengths = (size > 0).sum(1).tolist()
            pairs = [match(metric[i, :n], protect) for i, n in enumerate(lengths)]
            chosen = self._choose(layer, [s for s, _ in pairs], how, found)
            parts = [
                merge(y[i, :n], size[i, :n], index[i], *pairs[i], chosen[i], protect) for i, n in enumerate(lengths)
            ]
            y, size = (pad_sequence([p[k] for p in parts], batch_first=True) for k in (0, 1))
            index = torch.stack([p[2] for p in parts])
            y = block.feed(y)  # type: ignore[operator]
        y = cast(Tensor, self.norm_post(y))
        if protect:  # the class token stays first
            y, size, index = y[:, 1:], size[:, 1:], index[:, 1:] - 1
        return Merged(y * (size > 0)[..., None], size, index), found

    def forward(self, x: Tensor) -> Merged:
        return self._merged(x, "threshold")[0]

    def fixed(self, x: Tensor) -> Merged:
        """ToMe: exactly ``r`` tokens of every image merge."""
        return self._merged(x, "fixed")[0]

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> Merged:
        """Take one batch into the mean of the thresholds; the tokens merged as the batch's own highest similarities say."""
        merged, found = self._merged(x, "calibrate")
        thresholds, batches = cast(Tensor, self.thresholds), cast(Tensor, self.batches)
        new = torch.tensor(found, dtype=thresholds.dtype, device=thresholds.device)
        thresholds.copy_((thresholds * batches + new) / (batches + 1))
        batches.add_(1)
        return merged


def rotary(x: Tensor, positions: Tensor, theta: Tensor) -> Tensor:
    """x (..., N, D) rotated by positions (N,) times theta (D / 2,); pairs are (d, d + D / 2)."""
    angle = positions[:, None].to(theta.dtype) * theta
    one, two = x.chunk(2, -1)
    return torch.cat((one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()), -1)


def virtual_logits(q: Tensor, k: Tensor, index: Tensor, positions: Tensor, theta: Tensor) -> Tensor:
    """Rotary logits of N positions from U stored tokens: q, k (B, H, U, D), index (B, N), positions (N,), theta (D / 2,).

    (B, H, N, N), row i the query at positions[i].
    """
    (q1, q2), (k1, k2) = q.chunk(2, -1), k.chunk(2, -1)
    q1, q2, k1, k2 = q1[..., None, :], q2[..., None, :], k1[..., None, :, :], k2[..., None, :, :]
    cosine, sine = (q1 * k1 + q2 * k2).movedim(1, 3), (q2 * k1 - q1 * k2).movedim(1, 3)  # (B, U, U, H, D / 2)
    image = torch.arange(len(index), device=index.device)[:, None, None]
    rows, columns = index[:, :, None], index[:, None, :]
    angle = (positions[None, :] - positions[:, None])[..., None].to(theta.dtype) * theta
    first = torch.einsum("bijhd,ijd->bhij", cosine[image, rows, columns], angle.cos())
    return first + torch.einsum("bijhd,ijd->bhij", sine[image, rows, columns], angle.sin())


class VirtualAttention(nn.Module):
    """Rotary self-attention of N virtual tokens from U stored ones: x (B, U, dim), index (B, N) -> (B, U, dim).

    With index 0..N-1 it is plain attention. A stored token that no position uses gives the projection's value of zero.
    """

    def __init__(self, dim: int, heads: int, *, base: float = 10000.0, causal: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(f"heads must be positive and twice as many divide dim {dim}, not {heads!r}")
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        half = dim // heads // 2
        self.register_buffer("theta", base ** (-torch.arange(half, dtype=torch.float64) / half).float(), persistent=False)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        positions = torch.arange(index.shape[1], device=x.device)
        logits = virtual_logits(q, k, index, positions, cast(Tensor, self.theta).to(x.dtype)) * q.shape[-1] ** -0.5
        if self.causal:
            logits = logits.masked_fill(positions[None, :] > positions[:, None], -torch.inf)
        where = F.one_hot(index, x.shape[1]).to(v.dtype)  # M
        out = logits.softmax(-1).to(v.dtype) @ where[:, None] @ v
        return cast(Tensor, self.proj(group_mean(out.transpose(1, 2).flatten(2), where)))


def group_mean(x: Tensor, where: Tensor) -> Tensor:
    """(M^T M)^-1 M^T x: (B, N, C) with one-hot M (B, N, U) -> (B, U, C); 0 where a group is empty."""
    return where.mT @ x / where.sum(1)[..., None].clamp(min=1)


def bench() -> BenchCase:
    """The encoder with DToMe beside the same one without, on images of two grey levels."""
    torch.manual_seed(0)
    images = torch.randint(0, 2, (4, 1, 16, 16)).float().repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    ours = DyMUEncoder(64, 4, 64, 4, 4, r=(48,) * 4)
    ours.calibrate(images)
    baseline = VisionTransformer(64, 4, 64, 4, 4)
    baseline.load_state_dict({k: v for k, v in ours.state_dict().items() if k not in ("thresholds", "batches")})
    return BenchCase(name="encoder with DToMe, 256 to 64 tokens, against plain", ours=ours, baseline=baseline, inputs=(images,))


def _encoder(
    image: int, patch: int, width: int, depth: int, heads: int, out: int, hidden: int | None, clip: bool, *, kind: Schedule = "constant"
) -> DyMUEncoder:
    r = schedule((image // patch) ** 2 - out, depth, kind)
    return DyMUEncoder(image, patch, width, depth, heads, r=r, hidden=hidden, clip=clip)


OUTPUTS = (480, 384, 192, 72)
SYSTEM = System(
    name="dymu",
    title="DyMU: dynamic merging, virtual unmerging",
    paper="arXiv 2504.17040 (2025)",
    year=2025,
    kind="method",
    variants={
        **{f"dymu_clip_l14_336_out{n}": partial(_encoder, 336, 14, 1024, 24, 16, n, None, True) for n in OUTPUTS},
        **{f"dymu_siglip_b16_384_out{n}": partial(_encoder, 384, 16, 768, 12, 12, n, None, False) for n in OUTPUTS},
        "dymu_so400m_14_384_out192": partial(_encoder, 384, 14, 1152, 27, 16, 192, 4304, False),
        "virtual_attention": VirtualAttention,
    },
    checked=(
        "schedules of nine encoders, their parameters in closed form", "a threshold of 1 changes nothing, bit for bit",
        "virtual logits = logits of duplicated tokens, float64", "merging equal rows again is exact", "sizes sum to N",
        "columns of the position matrix sum to 1", "calibration leaves the wanted mean", "tokens grow with complexity", "gradcheck",
    ),
    lowering=(
        Lowering(part="DToMe", verdict="no", note="sorting, gathering by similarity"),
        Lowering(part="VTU", verdict="no", note="softmax and products of activations"),
    ),
    demo="models.zoo.demos.dymu:demo",
    bench=bench,
)
