"""Troublemaker learning (TML) for low light, global dynamic convolution (GDC) and the U-Net that holds it (UGDC).

Paper: Song, Yang, Ye, Dong and Xiang, arXiv 2402.04584 (2024).

Idea: a troublemaker network learns from few pairs to make normal pictures dark; a second network then learns to undo that on normal
pictures alone, and a third refines its output. GDC gives such networks a convolution whose kernels are computed from the picture, one per
patch, and applied everywhere.

Equations. TM: normal -> pseudo low light; PM: TM(x) -> x; EM: output = P - EM(P) with P = PM(low). Smooth L1 on pixels in every stage:
(1) TM on pairs, (2) PM with TM frozen, (3) EM with TM and PM frozen. GDC, x (N, C, H, W), patch s, P = (H / s) (W / s):

- Q = GELU(LN(DW_{s, stride s}(x) + D)), D (C, H / s, W / s) learned: P queries q_p in R^C
- K = DW7(x); A[p, y, x] = <q_p, K[:, y, x]> + b, b a scalar: a 1 × 1 convolution with the queries as weights; no softmax
- out = x + DropPath(PW(A)), P -> C

UGDC: U-Net of 64-128-256-512-1024 channels; the two deepest steps down and the first two up are [GDC, BN, ReLU, conv 3 × 3, BN, ReLU]
instead of two convolutions.

How far this reference goes. GDC, UGDC, their twins of half width (``_enhance``) and plain U-Nets are the authors'; GDC holds a layer norm
that nothing uses, as published, so that counts agree. No training code is published: what EM learns on (pairs from TM) and the batch
norms' eval mode in frozen networks are our reading. D and PW fix the size of the pictures, sides multiples of 16 s. With a fixed s, P
grows with the picture, and the dynamic part costs 2 C (H W)^2 / s^2: linear in pixels only for a fixed P. Pictures are normalized with
ImageNet's mean and deviation (`normalize`).

On hardware. Depthwise s × s with stride s, depthwise 7 × 7, pointwise, add, ReLU map as they are, GELU as a table. The 1 × 1 convolution
with weights from the data and transposed convolution do not map; dense 3 × 3 are shifts and pointwise. Software reference.
"""
from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import DropPath, LayerNorm2d

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (400, 640)


class GDC(nn.Module):
    """Global dynamic convolution, (N, dim, *size) both ways. ``patch``: s, which divides both sides."""

    def __init__(self, dim: int, size: tuple[int, int], *, patch: int = 5, drop: float = 0.2) -> None:
        super().__init__()
        if patch < 1 or min(size) < patch or size[0] % patch or size[1] % patch:
            raise ValueError(f"patch must be positive and divide both sides of size {size}, not {patch!r}")
        self.size = size
        rows, columns = size[0] // patch, size[1] // patch
        self.query = nn.Conv2d(dim, dim, patch, patch, groups=dim)
        self.d = nn.Parameter(torch.randn(dim, rows, columns))
        self.norm = LayerNorm2d(dim)
        self.key = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.b = nn.Parameter(torch.zeros(()))
        self.project = nn.Conv2d(rows * columns, dim, 1)
        self.ln = nn.LayerNorm(dim)  # published with the block; nothing uses it
        self.drop_path = DropPath(drop)

    def attend(self, x: Tensor) -> Tensor:
        """A, (N, P, H, W)."""
        q = F.gelu(self.norm(self.query(x) + self.d)).flatten(2)
        k = cast(Tensor, self.key(x)).flatten(2)
        return (q.mT @ k + self.b).view(len(x), -1, *x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"x must be a map of {self.size}, not {tuple(x.shape[2:])!r}; give the network the size of its images")
        return x + cast(Tensor, self.drop_path(self.project(self.attend(x))))


def _stage(inputs: int, outputs: int, size: tuple[int, int] | None, patch: int, drop: float) -> nn.Sequential:
    """Two convolutions with norms and ReLUs; with ``size`` GDC is the first of them."""
    first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False) if size is None else GDC(inputs, size, patch=patch, drop=drop)
    middle = outputs if size is None else inputs
    second = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(middle), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """(N, channels, H, W) both ways, sides multiples of 16. ``stem``: width of the first stage, 16 times that in the fifth.

    ``size``: (H, W) of the pictures for UGDC, sides multiples of 16 ``patch``; None for the plain network.
    """

    def __init__(
        self, stem: int = 64, size: tuple[int, int] | None = None, *, patch: int = 5, channels: int = 3, drop: float = 0.2
    ) -> None:
        super().__init__()
        if stem < 1:
            raise ValueError(f"stem must be positive, not {stem!r}")
        if size is not None and (patch < 1 or min(size) < 1 or size[0] % (16 * patch) or size[1] % (16 * patch)):
            raise ValueError(f"size must be multiples of {16 * patch}, not {size!r}")
        widths = [stem * 2**i for i in range(5)]

        def at(level: int) -> tuple[int, int] | None:
            return None if size is None or level < 2 else (size[0] >> level, size[1] >> level)

        self.stem = _stage(channels, stem, None, patch, drop)
        downs = [(a, b, at(i) if i > 2 else None) for i, (a, b) in enumerate(pairwise(widths), 1)]
        self.down = nn.ModuleList(_stage(a, b, place, patch, drop) for a, b, place in downs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed([*pairwise(widths)]))
        self.merge = nn.ModuleList(_stage(2 * w, w, at(i), patch, drop) for i, w in reversed([*enumerate(widths[:-1])]))
        self.out = nn.Conv2d(stem, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % 16 or x.shape[-1] % 16:
            raise ValueError(f"x must have sides that are multiples of 16, not {tuple(x.shape[-2:])!r}")
        skips = [cast(Tensor, self.stem(x))]
        for stage in self.down:
            skips.append(stage(F.max_pool2d(skips[-1], 2)))
        y = skips.pop()
        for up, stage in zip(self.up, self.merge, strict=True):
            y = stage(torch.cat((skips.pop(), up(y)), 1))
        return cast(Tensor, self.out(y))


def ugdc(stem: int = 64, *, size: tuple[int, int] = SIZE, patch: int = 5, channels: int = 3, drop: float = 0.2) -> UNet:
    """U-Net with GDC for pictures of ``size``."""
    return UNet(stem, size, patch=patch, channels=channels, drop=drop)


class TML(nn.Module):
    """The three networks and their stages; forward enhances, (N, C, H, W) normalized both ways."""

    def __init__(self, tm: nn.Module, pm: nn.Module, em: nn.Module) -> None:
        super().__init__()
        self.tm, self.pm, self.em, self.stage = tm, pm, em, 1

    def stage_(self, stage: int) -> TML:
        """Go to stage 1 (TM learns), 2 (PM) or 3 (EM): the others are frozen and in eval mode."""
        if stage not in (1, 2, 3):
            raise ValueError(f"stage must be 1, 2 or 3, not {stage!r}")
        self.stage = stage
        for number, model in enumerate((self.tm, self.pm, self.em), 1):
            model.requires_grad_(number == stage)
        return self.train()

    def train(self, mode: bool = True) -> TML:
        super().train(mode)
        for number, model in enumerate((self.tm, self.pm, self.em), 1):
            model.train(mode and number == self.stage)
        return self

    def forward(self, low: Tensor) -> Tensor:
        p = self.pm(low)
        return cast(Tensor, p - self.em(p))

    def loss(self, normal: Tensor, low: Tensor | None = None) -> Tensor:
        """Smooth L1 of the current stage; only stage 1 uses, and needs, the paired ``low``."""
        if (low is not None) != (self.stage == 1):
            raise ValueError(f"low must be given in stage 1 only, not {'given' if low is not None else 'None'} in stage {self.stage}")
        if low is not None:
            return F.smooth_l1_loss(self.tm(normal), low)
        with torch.no_grad():
            low = self.tm(normal)
        return F.smooth_l1_loss(self.pm(low) if self.stage == 2 else self(low), normal)


def normalize(x: Tensor) -> Tensor:
    """Colours in 0..1 to ImageNet's mean 0 and deviation 1."""
    mean, deviation = (x.new_tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return (x - mean) / deviation


def denormalize(x: Tensor) -> Tensor:
    """The inverse of `normalize`."""
    mean, deviation = (x.new_tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return x * deviation + mean


def tml(*, size: tuple[int, int] = SIZE, stem: int = 64) -> TML:
    """TML of UGDC, the refinement half as wide."""
    return TML(ugdc(stem, size=size), ugdc(stem, size=size), ugdc(stem // 2, size=size))


def bench() -> BenchCase:
    """GDC beside the 3 × 3 convolution whose place it takes."""
    return BenchCase(
        name="GDC against conv 3×3, 64 channels, 20×20",
        ours=GDC(64, (20, 20)),
        baseline=nn.Conv2d(64, 64, 3, padding=1, bias=False),
        inputs=(torch.randn(4, 64, 20, 20),),
    )


SYSTEM = System(
    name="tml",
    title="Troublemaker learning, GDC, UGDC",
    paper="arXiv 2402.04584 (2024)",
    year=2024,
    kind="method",
    variants={
        "ugdc": ugdc, "ugdc_enhance": partial(ugdc, 32), "unet": UNet, "unet_enhance": partial(UNet, 32), "tml": tml, "gdc": GDC,
    },
    checked=(
        "parameters of four networks and of GDC at three places to the digit", "MACs to the published digits",
        "A = queries times keys", "no projection: identity", "cost 2 C (HW)² / s²: 16 times at twice the sides",
        "other sizes are refused", "stages train one network each", "gradcheck",
    ),
    lowering=(
        Lowering(part="depthwise s×s and 7×7, pointwise, add, ReLU", verdict="as is", note="the query's stride is s"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="dense 3×3", verdict="after a change", note="nine one-hot depthwise shifts and pointwise"),
        Lowering(part="dynamic 1×1", verdict="no", note="its weights come from the data"),
        Lowering(part="transposed convolution", verdict="no", note="no unit scatters"),
    ),
    demo="models.zoo.demos.tml:demo",
    bench=bench,
)
