"""Self-slimmed vision transformer (SiT): tokens softly merged on the way, learned from the unslimmed network.

Paper: Zong, Li, Song, Wang, Qiao, Leng and Liu, "Self-slimmed Vision Transformer", arXiv 2111.12624 (ECCV 2022).

Idea: instead of dropping tokens a small layer mixes the N of them into fewer, each a weighted mean of all, so that no information is cut
off. The full network teaches the slimmed one layer by layer: in training a reverse module restores the full set of tokens from the
slimmed, to be compared with the teacher's.

Equations. x (B, N, C) patch tokens; the class token passes by:

- TSM, N -> M: W = softmax over the N tokens of scale * FC gelu(FC LN x), C -> C/2 -> M, scale a learned scalar; out = W' x (B, M, C).
  After the last block of every stage but the final one, M = int(P / 2^i) of P patches: 196, 98, 49, 24
- RTSM, M -> P: y = MLP over tokens (M -> 4P -> P, GELU) of LN x; out = y + MLP over channels (C -> 4C -> C) of LN y
- FRD loss = CE + 2 mean over layers of MSE(RTSM_l(student tokens), teacher tokens_l) + 2 tau² KL(teacher || student), tau = 1

Host LV-ViT: four 3 × 3 convolutions of stride 2 with BN and GELU between (C/8, C/4, C/2, C; L has two more of stride 1 after the
first), class token, learned positions, blocks x + attention(LN x) / lam, x + MLP(LN x) / lam (ratio 3, qkv without bias, lam 2; L 3).

How far this reference goes. TSM, RTSM, loss, host and all five variants have the authors' sizes, which count an auxiliary head per token
that is never used here. RTSMs belong to the loss (``FRD``), not to the network, and are absent in eval. Our reading: layers before the
first slimming are compared directly, class tokens not at all; the optional term of a CNN teacher is the cross-entropy with its
hard labels on the one head (``FRD.forward``, ``hard``), since the published path has a second head that does not run. A state dict
of the teacher loads into the student by ``start_from``. A key map of published checkpoints is not here.

On hardware. Softmax over tokens and products of activations do not map, neither in attention nor in TSM; the stem is dense 3 × 3, which
maps through nine one-hot depthwise shifts and a pointwise layer. A software reference.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import Attention, ConvBN, DropPath, trunc_normal_init

PATCH = 16


class TSM(nn.Module):
    """Token slimming: (B, N, dim) -> (B, keep, dim), any N."""

    def __init__(self, dim: int, keep: int) -> None:
        super().__init__()
        if keep < 1:
            raise ValueError(f"keep must be positive, not {keep!r}")
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, keep)
        self.scale = nn.Parameter(torch.ones(()))

    def weights(self, x: Tensor) -> Tensor:
        """W (B, N, keep): each column sums to 1 over the tokens."""
        logits: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return (logits * self.scale).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x).transpose(1, 2) @ x


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class RTSM(nn.Module):
    """Reverse token slimming: (B, kept, dim) -> (B, patches, dim)."""

    def __init__(self, dim: int, kept: int, patches: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(dim), mlp(kept, 4 * patches, patches)
        self.norm2, self.channels = nn.LayerNorm(dim), mlp(dim, 4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return y + cast(Tensor, self.channels(self.norm2(y)))


class Block(nn.Module):
    """x + attention(LN x) / lam, then x + MLP(LN x) / lam: (B, L, dim) both ways."""

    def __init__(self, dim: int, heads: int, lam: float, drop: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, qkv_bias=False)
        self.norm2, self.mlp = nn.LayerNorm(dim), mlp(dim, 3 * dim, dim)
        self.lam, self.drop_path = lam, DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x))) / self.lam
        return x + cast(Tensor, self.drop_path(self.mlp(self.norm2(x)))) / self.lam


def stem(dim: int, extra: int) -> nn.Sequential:
    """(B, 3, H, W) -> (B, dim, H / 16, W / 16); ``extra``: convolutions of stride 1 after the first."""
    widths = (3, dim // 8, dim // 4, dim // 2, dim)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [ConvBN(a, b, 3, stride=2, padding=1), nn.GELU()]
        if i == 0:
            for _ in range(extra):
                layers += [ConvBN(b, b, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class SiT(nn.Module):
    """(B, 3, *size) -> (B, classes). ``stages``: blocks of each; one stage is LV-ViT itself, the unslimmed teacher.

    ``size``: (H, W) of the images, multiples of 16; ``keep``: share of the tokens that each slimming keeps; ``extra``: see the stem;
    ``lam``: divides the residual branches; ``drop``: stochastic depth of the last block.
    """

    def __init__(
        self, dim: int, heads: int, stages: Sequence[int], *, size: tuple[int, int] = (224, 224), classes: int = 1000, keep: float = 0.5,
        extra: int = 0, lam: float = 2.0, drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim < 8 or dim % 8:
            raise ValueError(f"dim must be a multiple of 8, not {dim!r}")
        if min(size) < PATCH or size[0] % PATCH or size[1] % PATCH:
            raise ValueError(f"size must be multiples of {PATCH}, not {size!r}")
        if not 0 < keep < 1:
            raise ValueError(f"keep must be in 0..1, ends excluded, not {keep!r}")
        if not stages or min(stages) < 1:
            raise ValueError(f"stages must be positive numbers of blocks, not {stages!r}")
        self.size, self.dim, self.patches = size, dim, size[0] * size[1] // PATCH**2
        self.kept = [int(self.patches * keep**i) for i in range(len(stages))]
        #: Patch tokens that go into each block.
        self.tokens = [kept for kept, depth in zip(self.kept, stages, strict=True) for _ in range(depth)]
        self.patch_embed = stem(dim, extra)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patches + 1, dim))
        rates = torch.linspace(0, drop, sum(stages), device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(dim, heads, lam, rate) for rate in rates)
        after = [sum(stages[:i]) - 1 for i in range(1, len(stages))]
        self.slim = nn.ModuleDict({str(block): TSM(dim, kept) for block, kept in zip(after, self.kept[1:], strict=True)})
        self.norm, self.head, self.aux_head = nn.LayerNorm(dim), nn.Linear(dim, classes), nn.Linear(dim, classes)
        self.apply(trunc_normal_init)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        self.aux_head.requires_grad_(False)  # kept for the count, never used

    def features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the patch tokens (B, tokens[l], dim) that leave each block, before its slimming."""
        if (x.shape[-2], x.shape[-1]) != self.size:
            raise ValueError(f"x must be images of {self.size}, not {tuple(x.shape[-2:])!r}")
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        layers = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            layers.append(x[:, 1:])
            if str(i) in self.slim:
                x = torch.cat((x[:, :1], self.slim[str(i)](x[:, 1:])), 1)
        return cast(Tensor, self.head(self.norm(x[:, 0]))), layers

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[0]

    def start_from(self, teacher: SiT) -> None:
        """Take over all weights of the unslimmed network; the slimming modules stay as they are."""
        missing, unexpected = self.load_state_dict(teacher.state_dict(), strict=False)
        if unexpected or any(not key.startswith("slim.") for key in missing):
            raise ValueError(f"teacher must be the unslimmed network of this one; keys differ: {unexpected or missing}")


class FRD(nn.Module):
    """Feature recalibration distillation: the student in eval, in training its loss. The teacher gets no gradient.

    ``features``, ``logits``: weights of the two terms beside the cross-entropy; ``tau``: temperature.
    """

    def __init__(self, student: SiT, teacher: SiT, *, features: float = 2.0, logits: float = 2.0, tau: float = 1.0) -> None:
        super().__init__()
        if len(student.blocks) != len(teacher.blocks) or student.dim != teacher.dim or student.size != teacher.size:
            raise ValueError("teacher must have the depth, width and size of the student")
        if tau <= 0:
            raise ValueError(f"tau must be positive, not {tau!r}")
        self.student, self.features, self.logits, self.tau = student, features, logits, tau
        self.teacher = teacher.requires_grad_(False)
        self.reverse = nn.ModuleList(
            nn.Identity() if kept == student.patches else RTSM(student.dim, kept, student.patches) for kept in student.tokens
        )

    def train(self, mode: bool = True) -> FRD:
        """The teacher stays in eval."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor, label: Tensor | None = None, hard: Tensor | None = None) -> Tensor:
        """In training the loss for ``label`` (B,), with ``hard`` (B, classes) the logits of a CNN; in eval the student's logits."""
        if not self.training:
            return cast(Tensor, self.student(x))
        if label is None:
            raise ValueError("label must be given in training")
        scores, layers = self.student.features(x)
        with torch.no_grad():
            wanted, targets = self.teacher.features(x)
        apart = [F.mse_loss(reverse(own), target) for reverse, own, target in zip(self.reverse, layers, targets, strict=True)]
        divergence = F.kl_div(
            (scores / self.tau).log_softmax(1), (wanted / self.tau).log_softmax(1), reduction="batchmean", log_target=True,
        )  # fmt: skip
        loss = F.cross_entropy(scores, label) + self.features * torch.stack(apart).mean() + self.logits * self.tau**2 * divergence
        return loss if hard is None else loss + F.cross_entropy(scores, hard.argmax(1))


def bench() -> BenchCase:
    """Slimming 196 tokens to 98 and one block on these beside the block on all."""
    return BenchCase(
        name="slimming and a block on 98 tokens against the block on 196, 192 channels",
        ours=nn.Sequential(TSM(192, 98), Block(192, 3, 2.0, 0.0)),
        baseline=Block(192, 3, 2.0, 0.0),
        inputs=(torch.randn(4, 196, 192),),
    )


HOSTS: dict[str, tuple[int, int, int]] = {"t": (320, 5, 14), "s": (384, 6, 16), "m": (512, 8, 20), "l": (768, 12, 24)}
LARGE = partial(SiT, size=(288, 288), extra=2, lam=3.0)
VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "sit_t": partial(SiT, 320, 5, (1, 1, 1, 11)),
    "sit_xs": partial(SiT, 384, 6, (1, 1, 1, 13)),
    "sit_s": partial(SiT, 384, 6, (9, 3, 2, 2)),
    "sit_m": partial(SiT, 512, 8, (10, 4, 3, 3)),
    "sit_l_288": partial(LARGE, 768, 12, (10, 4, 3, 7)),
    **{f"lvvit_{name}": partial(SiT, dim, heads, (depth,)) for name, (dim, heads, depth) in HOSTS.items() if name != "l"},
    "lvvit_l_288": partial(LARGE, 768, 12, (24,)),
    "tsm": TSM,
}
SYSTEM = System(
    name="sit",
    title="Self-slimmed ViT: TSM, RTSM, FRD",
    paper="arXiv 2111.12624 (ECCV 2022)",
    year=2022,
    kind="network",
    variants=VARIANTS,
    checked=(
        "parameters of five students and their teachers to the digit, of the slimming modules alone", "MACs to the published digits",
        "columns of W sum to 1 over tokens; one-hot W selects; constant tokens stay", "tokens of every layer", "RTSM absent in eval",
        "loss term by term; the teacher gets no gradient", "gradcheck",
    ),
    lowering=(
        Lowering(part="TSM, attention", verdict="no", note="softmax over tokens and products of activations"),
        Lowering(part="convolutional stem", verdict="after a change", note="dense 3×3: nine one-hot shifts and a pointwise layer"),
        Lowering(part="MLP", verdict="after a change", note="pointwise; LayerNorm to batch norm, GELU to a table; retrain"),
    ),
    demo="models.zoo.demos.sit:demo",
    bench=bench,
)
