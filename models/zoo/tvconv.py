"""TVConv: translation variant convolution for layout-aware visual processing (Chen et al., CVPR 2022, arXiv 2203.10489).

Idea: where all images share a layout (aligned faces, eye fundus), a depthwise kernel of its own at every pixel, the same for all images,
sees more than one kernel for all pixels. A small network makes the kernels from learnable affinity maps, so that near pixels share what
they learn; after training the kernels are computed once and stored.

Equations, output map (h, w), k x k taps, stride s, C channels:
    W = B(A)                                    A (1, cA, h, w) learnable, starts at one;  W (1, C, k², h, w)
    B = [conv3x3 -> LayerNorm(hidden, h, w) -> ReLU] x (1 + layers) -> conv3x3        (zero padding, no biases, nothing behind the last)
    out[n, c, y, x] = sum_t W[c, t, y, x] * pad(in)[n, c, s*y + t // k, s*x + t % k]  (+ bias map b[c, y, x])

How far: the operator, its stored form, MobileNetV2 and ShuffleNetV2 with either depthwise layer, and the AM-softmax loss of the face
experiments. Our readings: the bias maps' generator reads the same affinity maps as the kernels'; the batch norm in front of the embedding
stands before the pool (only so do the published MACs come out, which count two operations for every element of a batch norm);
ShuffleNetV2 keeps its max pool behind a stem of stride 1. Names are ours, without a key map. Not here: the
DeepLabV3+ head for disc and cup. The authors' fast form steps rows by w instead of s*w and is wrong at stride 2.

On hardware: stored maps are k² one-hot depthwise shifts, each times a constant map, and additions; every other layer is depthwise,
pointwise or ReLU6. The maps take 9*C*h*w int8 values (4 MB for x0.1 at 96 x 96, 15 MB for x1.0), so they stream from memory. The
generator stays in software.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.ops.wiring import Shuffle
from models.zoo.base import BenchCase, Lowering, System

Atom = Literal["base", "TVConv"]
Size = tuple[int, int]


def vary(x: Tensor, weights: Tensor, stride: int = 1) -> Tensor:
    """The sum of the equation above: ``x`` (N, C, H, W), ``weights`` (1, C, k², h, w) -> (N, C, h, w), padded by k // 2 with zeros."""
    taps, height, width = weights.shape[2:]
    kernel = round(taps**0.5)
    padded = nn.functional.pad(x, [kernel // 2] * 4)
    out = torch.zeros_like(padded[:, :, :1, :1])
    for tap in range(taps):
        row, column = divmod(tap, kernel)
        shifted = padded[:, :, row:row + stride * (height - 1) + 1:stride, column:column + stride * (width - 1) + 1:stride]
        out = out + shifted * weights[:, :, tap]
    return out


class Generator(nn.Module):
    """B of the paper: affinity maps (1, cA, h, w) -> (1, outputs, h, w)."""

    def __init__(self, affinity: int, hidden: int, layers: int, outputs: int, size: Size) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs in [affinity] + [hidden] * layers:
            blocks += [nn.Conv2d(inputs, hidden, 3, padding=1, bias=False), nn.LayerNorm([hidden, *size]), nn.ReLU()]
        self.net = nn.Sequential(*blocks, nn.Conv2d(hidden, outputs, 3, padding=1, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.net(maps)
        return out


class _Varying(nn.Module):
    """What both forms share: the check of sizes and the sum."""

    def __init__(self, channels: int, size: Size, kernel: int, stride: int) -> None:
        super().__init__()
        self.channels, self.size, self.kernel, self.stride = channels, size, kernel, stride

    def check(self, x: Tensor) -> None:
        """ValueError unless ``x`` (N, C, H, W) gives the fixed output size."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (N, {self.channels}, H, W), not {tuple(x.shape)!r}")
        made = tuple((side - 1) // self.stride + 1 for side in x.shape[2:])
        if made != self.size:
            raise ValueError(f"x must be a map whose output is {self.size!r}, not {made!r}")

    def macs(self) -> int:
        """Multiply-accumulates for one image once the maps are stored: a depthwise convolution's."""
        return self.kernel**2 * self.channels * self.size[0] * self.size[1]


class TVConv(_Varying):
    """The operator in training: (N, C, H, W) -> (N, C, *size); ``size`` is that of the output, fixed."""

    def __init__(
        self, channels: int, size: Size, kernel: int = 3, stride: int = 1, *,
        affinity: int = 4, hidden: int = 64, layers: int = 3, bias: bool = False,
    ) -> None:
        for name, value in (("channels", channels), ("stride", stride), ("affinity", affinity), ("hidden", hidden), ("size", min(size))):
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value!r}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, not {kernel!r}")
        if layers < 0:
            raise ValueError(f"layers must be at least 0, not {layers!r}")
        super().__init__(channels, size, kernel, stride)
        self.affinity = nn.Parameter(torch.ones(1, affinity, *size))
        self.generate = Generator(affinity, hidden, layers, kernel**2 * channels, size)
        self.generate_bias = Generator(affinity, hidden, layers, channels, size) if bias else None

    def weights(self) -> Tensor:
        """W (1, C, k², h, w)."""
        maps: Tensor = self.generate(self.affinity)
        return maps.view(1, self.channels, self.kernel**2, *self.size)

    def bias(self) -> Tensor | None:
        """b (1, C, h, w), None without."""
        return None if self.generate_bias is None else self.generate_bias(self.affinity)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        out, bias = vary(x, self.weights(), self.stride), self.bias()
        return out if bias is None else out + bias


class StoredTVConv(_Varying):
    """The operator once trained: the maps are constants (buffers), the generator is gone."""

    weights: Tensor
    bias: Tensor | None

    def __init__(self, trained: TVConv) -> None:
        super().__init__(trained.channels, trained.size, trained.kernel, trained.stride)
        with torch.no_grad():
            self.register_buffer("weights", trained.weights())
            self.register_buffer("bias", trained.bias())

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        out = vary(x, self.weights, self.stride)
        return out if self.bias is None else out + self.bias


def deploy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every TVConv stores its maps."""
    if isinstance(model, TVConv):
        return StoredTVConv(model)
    model = copy.deepcopy(model)
    for name, child in list(model.named_children()):
        setattr(model, name, deploy(child))
    return model


def _depthwise(atom: Atom, channels: int, size: Size, stride: int) -> nn.Module:
    """The 3x3 layer between two pointwise ones; ``size`` is that of the output."""
    if atom == "TVConv":
        return TVConv(channels, size, 3, stride)
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]


def _round(value: float, divisor: int = 8) -> int:
    """A width as MobileNetV2 rounds it: to a multiple of 8, at least 8, never more than a tenth below."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _embedding(channels: int, features: int) -> list[nn.Module]:
    """The face experiments' end: (N, channels, h, w) -> (N, features)."""
    return [nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, features), nn.BatchNorm1d(features)]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: pointwise up by ``expand``, 3x3 ``atom``, pointwise down; plus the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int, expand: int, atom: Atom) -> None:
        super().__init__()
        hidden = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        up = [*_pointwise(inputs, hidden), nn.ReLU6()] if expand != 1 else []
        self.body = nn.Sequential(
            *up, _depthwise(atom, hidden, size, stride), nn.BatchNorm2d(hidden), nn.ReLU6(), *_pointwise(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


def _checked(size: int, atom: str, width: float) -> None:
    if size < 16 or size % 16:
        raise ValueError(f"size must be a positive multiple of 16, not {size!r}")
    if atom not in ("base", "TVConv"):
        raise ValueError(f"atom must be 'base' or 'TVConv', not {atom!r}")
    if width <= 0:
        raise ValueError(f"width must be positive, not {width!r}")


def mobilenet_v2(width: float = 1.0, *, atom: Atom = "TVConv", size: int = 96, features: int = 512) -> nn.Sequential:
    """MobileNetV2 for faces: (N, 3, size, size) -> (N, features); stem of stride 1."""
    _checked(size, atom, width)
    settings = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    inputs = _round(32 * width)
    layers: list[nn.Module] = [nn.Conv2d(3, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU6()]
    for expand, channels, repeat, first in settings:
        for stride in [first] + [1] * (repeat - 1):
            size //= stride
            layers.append(InvertedResidual(inputs, _round(channels * width), (size, size), stride, expand, atom))
            inputs = _round(channels * width)
    return nn.Sequential(*layers, *_pointwise(inputs, 512), nn.ReLU6(), *_embedding(512, features))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride); at stride 1 the first half of the channels passes."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int, atom: Atom) -> None:
        super().__init__()
        half = outputs // 2
        self.split = stride == 1
        self.left = nn.Sequential() if self.split else nn.Sequential(
            _depthwise(atom, inputs, size, stride), nn.BatchNorm2d(inputs), *_pointwise(inputs, half), nn.ReLU()
        )
        self.right = nn.Sequential(
            *_pointwise(half if self.split else inputs, half), nn.ReLU(),
            _depthwise(atom, half, size, stride), nn.BatchNorm2d(half), *_pointwise(half, half), nn.ReLU(),
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        out: Tensor = self.shuffle(torch.cat([self.left(left), self.right(right)], 1))
        return out


SHUFFLE_WIDTHS: Mapping[float, tuple[int, int, int]] = {0.5: (48, 96, 192), 1.0: (116, 232, 464), 1.5: (176, 352, 704)}


def shufflenet_v2(width: float = 1.0, *, atom: Atom = "TVConv", size: int = 96, features: int = 512) -> nn.Sequential:
    """ShuffleNetV2 for faces: (N, 3, size, size) -> (N, features); stem of stride 1, then a max pool."""
    _checked(size, atom, width)
    if width not in SHUFFLE_WIDTHS:
        raise ValueError(f"width must be one of {sorted(SHUFFLE_WIDTHS)}, not {width!r}")
    inputs, size = 24, size // 2
    layers: list[nn.Module] = [nn.Conv2d(3, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for channels, repeat in zip(SHUFFLE_WIDTHS[width], (4, 8, 4), strict=True):
        size //= 2
        for index in range(repeat):
            layers.append(ShuffleUnit(inputs, channels, (size, size), 1 if index else 2, atom))
            inputs = channels
    return nn.Sequential(*layers, *_pointwise(inputs, 1024), nn.ReLU(), *_embedding(1024, features))


class AMSoftmax(nn.Module):
    """Additive margin softmax: cross entropy of ``scale * (cos(x, w_c) - margin [c = label])``; x (N, features), labels (N,) -> scalar."""

    def __init__(self, features: int, classes: int, margin: float = 0.35, scale: float = 32.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.randn(classes, features) / features**0.5)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        cosine = nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T
        target = nn.functional.one_hot(labels, self.weight.shape[0]).to(cosine.dtype)
        return nn.functional.cross_entropy(self.scale * (cosine - self.margin * target), labels)


def _bench() -> BenchCase:
    ours = StoredTVConv(TVConv(64, (48, 48), hidden=8, layers=1))
    plain = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    return BenchCase(name="stored TVConv 64 x 48 x 48", ours=ours, baseline=plain, inputs=(torch.randn(4, 64, 48, 48),))


_VARIANTS: dict[str, Callable[..., nn.Module]] = {
    **{f"mobilenet_v2_x{width:.1f}".replace(".", "_"): partial(mobilenet_v2, width) for width in (0.1, 0.2, 0.3, 0.5, 1.0)},
    **{f"shufflenet_v2_x{width:.1f}".replace(".", "_"): partial(shufflenet_v2, width) for width in SHUFFLE_WIDTHS},
}

SYSTEM = System(
    name="tvconv",
    title="TVConv: translation variant convolution",
    paper="arXiv 2203.10489, CVPR 2022",
    year=2022,
    kind="operator",
    variants=_VARIANTS,
    checked=(
        "parameters in training, stored and of the base", "published MACs", "constant maps equal a depthwise convolution",
        "stored equals trained", "interior of a fresh W is constant", "stride 2",
    ),
    lowering=(
        Lowering(part="stored maps", verdict="as is", note="one-hot shifts times constant maps, added; streams 9*C*h*w int8 values"),
        Lowering(part="pointwise, ReLU6, batch norm", verdict="as is", note="folded into requantisation"),
        Lowering(part="generator", verdict="no", note="not needed: it runs once, after training"),
    ),
    demo="models.zoo.demos.tvconv:demo",
    bench=_bench,
)
