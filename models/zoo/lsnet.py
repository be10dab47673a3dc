"""LSNet and the LS convolution: see large, focus small.

Paper: Wang, Chen, Lin, Han and Ding, arXiv 2503.23135 (CVPR 2025).

Idea: a cheap large-kernel branch looks at a wide neighbourhood and predicts, for every pixel, a small 3 × 3 kernel; the small kernel
then gathers the pixel's neighbours. Each kernel is shared by eight channels.

Equations. x (N, C, H, W), G = C / 8 kernels a pixel, LSConv(x) = BN(SKA(x, LKP(x))) + x:

- LKP: 1 × 1 C -> C/2, ReLU; 7 × 7 depthwise; 1 × 1 C/2 -> C/2, ReLU (each with BN); 1 × 1 C/2 -> 9 G with bias; group norm of G groups,
  that is over the 9 taps of a kernel and the whole map -> w (N, G, 9, H, W)
- SKA: out[n, c, i, j] = sum_k x[n, c, i + k // 3 - 1, j + k % 3 - 1] w[n, c mod G, k, i, j], zero padding, 9 C H W multiply-accumulates

Blocks: even ones RepVGG depthwise (3 × 3 + 1 × 1 + identity) and squeeze-excitation; odd ones LSConv, in the last stage attention with a
learned bias per (|dy|, |dx|); then FFN, C -> 2C -> C. Three strided convolutions before, depthwise-pointwise steps between stages.

How far this reference goes. Operators, blocks, the three variants and the fusion of batch norms are the authors'. SKA is a sum of nine
shifted products here, not a Triton kernel. The attention's bias fixes the map size of the last stage (``size``). Names are ours;
``key_map`` gives the authors' names, which ``load_published`` reads, but no published checkpoint was at hand to try it.

On hardware. Stem (through shifts), FFN, RepVGG, steps between stages and LKP up to its norm map as they are. SKA: nine one-hot depthwise
shifts times weight maps, eight adds. After a change: group norm over the map -> a calibrated affine, squeeze-excitation's sigmoid -> a
table, last-stage attention -> LSConv (``attention=False``), with retraining. Softmax attention does not map.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ConvBN

HEAD_DIM = 16
GROUP = 8


class LKP(nn.Module):
    """Large-kernel perception: (N, dim, H, W) -> kernels (N, dim / group, side², H, W); dim a multiple of ``group``."""

    def __init__(self, dim: int, *, large: int = 7, small: int = 3, group: int = GROUP) -> None:
        super().__init__()
        if group < 2 or dim < group or dim % group or dim % 2:
            raise ValueError(f"dim must be even and a multiple of group {group}, not {dim!r}")
        if large % 2 == 0 or small % 2 == 0:
            raise ValueError(f"large and small must be odd, not {large!r} and {small!r}")
        half, self.kernels, self.taps = dim // 2, dim // group, small * small
        self.cv1 = ConvBN(dim, half)
        self.cv2 = ConvBN(half, half, large, padding=large // 2, groups=half)
        self.cv3 = ConvBN(half, half)
        self.cv4 = nn.Conv2d(half, self.taps * self.kernels, 1)
        self.norm = nn.GroupNorm(self.kernels, self.taps * self.kernels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.cv3(self.cv2(F.relu(self.cv1(x)))))
        w = cast(Tensor, self.norm(self.cv4(y)))
        return w.reshape(len(w), self.kernels, self.taps, *w.shape[2:])


def ska(x: Tensor, w: Tensor) -> Tensor:
    """Small-kernel aggregation: x (N, C, H, W), w (N, G, k², H, W) -> (N, C, H, W); channel c uses kernel c mod G."""
    c, height, width = x.shape[1:]
    side = int(w.shape[2] ** 0.5)
    if w.ndim != 5 or c % w.shape[1] or side * side != w.shape[2] or side % 2 == 0 or tuple(w.shape[3:]) != (height, width):
        raise ValueError(f"w must be (N, G, k², {height}, {width}) with G a divisor of {c} and k odd, not {tuple(w.shape)!r}")
    padded = F.pad(x, [side // 2] * 4)
    padded = padded.reshape(len(x), c // w.shape[1], w.shape[1], *padded.shape[2:])
    out = x.new_zeros(())
    for k in range(side * side):
        row, column = divmod(k, side)
        out = out + padded[..., row : row + height, column : column + width] * w[:, None, :, k]
    return out.flatten(1, 2)


class LSConv(nn.Module):
    """BN(SKA(x, LKP(x))) + x: (N, dim, H, W) both ways."""

    def __init__(self, dim: int, *, large: int = 7, small: int = 3, group: int = GROUP) -> None:
        super().__init__()
        self.lkp = LKP(dim, large=large, small=small, group=group)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(ska(x, self.lkp(x)))) + x


class RepVGGDW(nn.Module):
    """BN(dw3(x)) + BN(dw1(x)) + x: (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = ConvBN(dim, dim, 3, padding=1, groups=dim)
        self.conv1 = ConvBN(dim, dim, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)) + cast(Tensor, self.conv1(x)) + x

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The one biased 3 × 3 depthwise convolution that this is in eval mode."""
        conv, point = self.conv.fused(), self.conv1.fused()
        conv.weight[:, :, 1, 1] += point.weight[:, :, 0, 0] + 1
        cast(Tensor, conv.bias).add_(cast(Tensor, point.bias))
        return conv


class SqueezeExcite(nn.Module):
    """x * sigmoid(FC(relu(FC(mean x)))), a quarter of the channels between, rounded to a multiple of 8 (at least 90 %)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        middle = max(8, int(dim / 4 + 4) // 8 * 8)
        middle += 8 if middle < 0.9 * dim / 4 else 0
        self.fc1, self.fc2 = nn.Conv2d(dim, middle, 1), nn.Conv2d(middle, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))).sigmoid()


class Attention(nn.Module):
    """Residual attention over a map of ``size`` (rows, columns): (N, dim, *size) both ways; dim a multiple of 16 heads."""

    def __init__(self, dim: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        if heads < 1 or dim % (HEAD_DIM * heads):
            raise ValueError(f"heads must be positive and 16 heads divide dim {dim}, not {heads!r}")
        self.heads, self.size, self.keys = heads, size, heads * HEAD_DIM
        self.qkv = ConvBN(dim, 2 * self.keys + dim)
        self.dw = ConvBN(self.keys, self.keys, 3, padding=1, groups=self.keys)
        self.proj = ConvBN(dim, dim, gamma=0.0)
        self.bias = nn.Parameter(torch.zeros(heads, size[0] * size[1]))
        place = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
        apart = (place[:, None] - place[None]).abs()
        self.register_buffer("apart", apart[..., 0] * size[1] + apart[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, dim, height, width = x.shape
        if (height, width) != self.size:
            raise ValueError(f"x must be a map of {self.size}, not {(height, width)!r}; give the network the size of its images")
        q, k, v = self.qkv(x).split((self.keys, self.keys, dim), 1)
        q, k, v = (t.reshape(n, self.heads, -1, height * width) for t in (self.dw(q), k, v))
        logits = q.transpose(2, 3) @ k * HEAD_DIM**-0.5 + self.bias[:, cast(Tensor, self.apart)]
        out = (v @ logits.softmax(-1).transpose(2, 3)).reshape(n, dim, height, width)
        return x + cast(Tensor, self.proj(F.relu(out)))


class FFN(nn.Module):
    """x + BN(1 × 1 relu(BN(1 × 1 x))), twice as wide between; a fresh one is the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1, self.pw2 = ConvBN(dim, 2 * dim), ConvBN(2 * dim, dim, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.pw2(F.relu(self.pw1(x))))


def _block(index: int, dim: int, heads: int, size: tuple[int, int] | None) -> nn.Sequential:
    """Block ``index`` of a stage; ``size`` None: LSConv in odd blocks, else attention over such a map."""
    if index % 2 == 0:
        return nn.Sequential(RepVGGDW(dim), SqueezeExcite(dim), FFN(dim))
    return nn.Sequential(LSConv(dim) if size is None else Attention(dim, heads, size), FFN(dim))


class Head(nn.Sequential):
    """Batch norm and a linear layer: (N, dim) -> (N, classes)."""

    def __init__(self, dim: int, classes: int) -> None:
        linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.BatchNorm1d(dim), linear)

    @torch.no_grad()
    def fused(self) -> nn.Linear:
        """The one linear layer that this is in eval mode."""
        bn, linear = self
        assert isinstance(bn, nn.BatchNorm1d) and isinstance(linear, nn.Linear)
        scale = cast(Tensor, bn.weight) * (cast(Tensor, bn.running_var) + bn.eps).rsqrt()
        shift = cast(Tensor, bn.bias) - cast(Tensor, bn.running_mean) * scale
        linear.bias.add_(linear.weight @ shift)
        linear.weight.mul_(scale)
        return linear


class LSNet(nn.Module):
    """(N, 3, H, W) -> (N, classes). ``size``: (H, W) of the images, which the last stage's attention needs.

    ``attention`` False: LSConv in the last stage too, any size. ``distilled``: a second head; a pair in training, the mean in eval.
    """

    def __init__(
        self, dims: Sequence[int], depths: Sequence[int], heads: Sequence[int] = (3, 3, 3, 4), *, classes: int = 1000,
        size: tuple[int, int] = (224, 224), attention: bool = True, distilled: bool = False,
    ) -> None:
        super().__init__()
        if not len(dims) == len(depths) == len(heads):
            raise ValueError(f"depths and heads must be as many as dims {tuple(dims)}, not {tuple(depths)!r} and {tuple(heads)!r}")
        if dims[0] % 8:
            raise ValueError(f"dims must be multiples of 8, not {tuple(dims)!r}")
        widths = (3, dims[0] // 4, dims[0] // 2, dims[0])
        stem: list[nn.Module] = []
        for a, b in pairwise(widths):
            stem += [ConvBN(a, b, 3, stride=2, padding=1), nn.ReLU()]
        self.stem = nn.Sequential(*stem[:-1])
        last = tuple(-(-s // (8 * 2 ** (len(dims) - 1))) for s in size)
        stages: list[nn.Module] = []
        for i, (dim, depth, head) in enumerate(zip(dims, depths, heads, strict=True)):
            before = dims[i - 1]
            step: list[nn.Module] = []
            if i:
                step = [ConvBN(before, before, 3, stride=2, padding=1, groups=before), ConvBN(before, dim)]
            place = (last[0], last[1]) if attention and i == len(dims) - 1 else None
            stages.append(nn.Sequential(*step, *(_block(k, dim, head, place) for k in range(depth))))
        self.stages = nn.Sequential(*stages)
        self.heads = nn.ModuleList(Head(dims[-1], classes) for _ in range(1 + distilled))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        features = self.stages(self.stem(x)).mean((2, 3))
        scores = [head(features) for head in self.heads]
        if len(scores) == 1:
            return cast(Tensor, scores[0])
        return tuple(scores) if self.training else (scores[0] + scores[1]) / 2


def fuse_(model: nn.Module) -> nn.Module:
    """Replace every batch norm that follows or precedes a linear map by that map's own weights, in place; eval only."""
    for name, child in list(model.named_children()):
        if isinstance(child, ConvBN | RepVGGDW | Head):
            setattr(model, name, child.fused())
        else:
            fuse_(child)
    return model.eval()


def _published(module: nn.Module, part: str) -> str:
    """The authors' name for one step of a key, from ``module`` to its part."""
    if isinstance(module, ConvBN):
        return ("c", "bn")[int(part)]
    if isinstance(module, Head):
        return ("bn", "l")[int(part)]
    if isinstance(module, Attention):
        return {"bias": "attention_biases", "proj": "proj.1"}.get(part, part)
    child = getattr(module, part)
    places = ((RepVGGDW | LSConv, "mixer"), (Attention, "mixer.m"), (SqueezeExcite, "se"), (FFN, "ffn.m"))
    return next((name for kind, name in places if isinstance(child, kind)), part)


def key_map(model: LSNet) -> dict[str, str]:
    """Names in the authors' state dict -> names here, for every entry (unfused). Their ``attention_bias_idxs`` has no counterpart."""
    tops = {"stem": "patch_embed", "heads.0": "head", "heads.1": "head_dist"} | {f"stages.{i}": f"blocks{i + 1}" for i in range(9)}
    found = {}
    for key in model.state_dict():
        module: Any = model
        names: list[str] = []
        for part in key.split("."):
            names.append(_published(module, part))
            module = getattr(module, part)
        theirs = ".".join(names)
        top = next(t for t in tops if theirs.startswith(f"{t}."))
        found[tops[top] + theirs[len(top) :]] = key
    return found


def load_published(model: LSNet, state: Mapping[str, Tensor]) -> None:
    """Load the authors' state dict, strictly but for their index buffers."""
    names = key_map(model)
    kept = {key: value for key, value in state.items() if not key.endswith("attention_bias_idxs")}
    unknown = sorted(kept.keys() - names.keys())
    if unknown:
        raise ValueError(f"state must hold the authors' names, not {unknown[0]!r}")
    model.load_state_dict({names[key]: value for key, value in kept.items()})


def bench() -> BenchCase:
    """LSConv beside the 3 × 3 depthwise convolution whose place it takes."""
    return BenchCase(
        name="LSConv against depthwise 3×3, 64 channels, 28×28",
        ours=LSConv(64),
        baseline=nn.Conv2d(64, 64, 3, padding=1, groups=64),
        inputs=(torch.randn(8, 64, 28, 28),),
    )


CONFIGS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "t": ((64, 128, 256, 384), (0, 2, 8, 10)),
    "s": ((96, 192, 320, 448), (1, 2, 8, 10)),
    "b": ((128, 256, 384, 512), (4, 6, 8, 10)),
}
SYSTEM = System(
    name="lsnet",
    title="LSNet, LS convolution",
    paper="arXiv 2503.23135 (CVPR 2025)",
    year=2025,
    kind="network",
    variants={
        **{f"lsnet_{name}": partial(LSNet, *config) for name, config in CONFIGS.items()},
        **{f"lsnet_{name}_distill": partial(LSNet, *config, distilled=True) for name, config in CONFIGS.items()},
        "lsnet_t_hw": partial(LSNet, *CONFIGS["t"], attention=False),
        "lsconv": LSConv,
    },
    checked=(
        "parameters of T, S, B to the digit, plain and fused", "MACs to the published digits", "fused = unfused",
        "SKA of a constant kernel is a depthwise convolution, of a centre tap the identity", "SKA is linear; its gradient sums 8 channels",
        "what a kernel sees", "gradcheck",
    ),
    lowering=(
        Lowering(part="stem, FFN, RepVGG, steps between stages", verdict="as is", note="shifts, depthwise, pointwise, add"),
        Lowering(part="SKA", verdict="as is", note="nine one-hot depthwise shifts times weight maps, eight adds"),
        Lowering(part="LKP's group norm", verdict="after a change", note="a calibrated affine per channel; retrain"),
        Lowering(part="squeeze-excitation", verdict="after a change", note="mean, pointwise, table for the sigmoid, multiply"),
        Lowering(part="attention of the last stage", verdict="no", note="softmax and products of activations; use LSConv there"),
    ),
    demo="models.zoo.demos.lsnet:demo",
    bench=bench,
)
