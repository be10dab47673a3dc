"""Building blocks of the detectors. Every operation is a module with a path; ``Container`` marks those that torch.fx looks into.

An ``nn.Identity`` marks a tensor that quantization gives a quantizer and that has no activation function of its own.
"""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from models.ops.deform import OFFSET_MAX, OFFSET_MIN, SquareDeform
from models.ops.pointwise import Pointwise
from models.ops.wiring import Add, Concat, Shuffle, Split, Upsample

#: How a gather finds its taps: by a predicted dilation a pixel, or always the same ones.
GATHERS = ("square", "static")


class Container(nn.Module):
    """A module that only calls others."""


@dataclass(frozen=True, kw_only=True)
class Gather:
    """A depthwise spatial operator: ``square`` predicts one offset o a pixel within ``bounds`` (the dilation is o + 1) for a 3x3 kernel,
    ``static`` is an ordinary depthwise convolution with that ``kernel`` and ``dilation``."""

    kind: str = "square"
    kernel: int = 3
    dilation: int = 1
    bounds: tuple[int, int] = (OFFSET_MIN, OFFSET_MAX)

    def __post_init__(self) -> None:
        if self.kind not in GATHERS:
            raise ValueError(f"gather must be one of {', '.join(GATHERS)}, not {self.kind!r}")
        if self.kernel not in (3, 5, 7, 9) or not 1 <= self.dilation <= 8:
            raise ValueError(f"kernel must be 3, 5, 7 or 9 and dilation 1..8, not {self.kernel!r} and {self.dilation!r}")
        if self.kind == "square" and (self.kernel, self.dilation) != (3, 1):
            raise ValueError(f"a square gather has kernel 3, dilation 1, not {self.kernel!r} and {self.dilation!r}; or choose static")
        low, high = self.bounds
        if not -16 <= low <= 0 <= high <= 16 or low == high:
            raise ValueError(f"bounds of the offset must hold 0 and lie within -16..16, not {self.bounds!r}")


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False, relu: bool = True) -> list[nn.Module]:
    """Convolution, batch norm and, unless told otherwise, ReLU: the modules of one layer, in order."""
    groups = inputs if depthwise else 1
    conv = Pointwise(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else [])]


class Gathering(Container):
    """Base of what gathers: ``gather`` maps (N, C, H, W) to (N, C, H, W), without batch norm or activation."""

    def _prepare(self, channels: int, how: Gather) -> None:
        if how.kind == "static":
            reach = how.dilation * (how.kernel // 2)
            self.static = nn.Conv2d(channels, channels, how.kernel, padding=reach, dilation=how.dilation, groups=channels, bias=False)
            return
        self.offset = Pointwise(channels, 1, 1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)  # o = 0: starts as a plain 3x3
        self.bound = nn.Hardtanh(*how.bounds)
        self.deform = SquareDeform(channels)

    def gather(self, x: Tensor) -> Tensor:
        if hasattr(self, "static"):
            taken: Tensor = self.static(x)
        else:
            taken = self.deform(x, self.bound(self.offset(x)))
        return taken


class Sampler(Gathering):
    """A gather alone: takes the place of a depthwise convolution."""

    def __init__(self, channels: int, how: Gather) -> None:
        super().__init__()
        self._prepare(channels, how)

    def forward(self, x: Tensor) -> Tensor:
        return self.gather(x)


class Block(Container):
    """A ShuffleNetV2 block as torchvision has it: (N, inputs, H, W) to (N, outputs, H / stride, W / stride).

    ``deform``: the depthwise convolution of a block of stride 1 gathers instead.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, deform: Gather | None = None) -> None:
        super().__init__()
        half = outputs // 2
        if stride == 2:
            self.branch1 = nn.Sequential(*conv_bn(inputs, inputs, 3, 2, depthwise=True, relu=False), *conv_bn(inputs, half))
        else:
            self.split = Split()
        self.branch2 = nn.Sequential(
            *conv_bn(inputs if stride == 2 else half, half),
            *_depthwise(half, stride, deform),
            *conv_bn(half, half),
        )
        self.concat = Concat()
        self.shuffle = Shuffle(2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            kept, worked = self.branch1(x), x
        else:
            halves = self.split(x)
            kept, worked = halves[0], halves[1]
        joined: Tensor = self.shuffle(self.concat(kept, self.branch2(worked)))
        return joined


def _depthwise(channels: int, stride: int, deform: Gather | None) -> list[nn.Module]:
    if deform is None or stride != 1:
        return conv_bn(channels, channels, 3, stride, depthwise=True, relu=False)
    return [Sampler(channels, deform), nn.BatchNorm2d(channels)]


class EvenOddBlock(Container):
    """A ShuffleNetV2 block as its authors (megvii) and detectron2 wire it: the shuffle, even channels from odd ones, is at the input;
    at stride 2 the kept branch has ``inputs`` channels, the worked one the rest."""

    def __init__(self, inputs: int, outputs: int, stride: int, deform: Gather | None = None) -> None:
        super().__init__()
        middle = outputs // 2
        if stride == 2:
            self.branch1 = nn.Sequential(*conv_bn(inputs, inputs, 3, 2, depthwise=True, relu=False), *conv_bn(inputs, inputs))
        else:
            inputs //= 2
            self.shuffle = Shuffle(inputs)  # even channels first
            self.split = Split()
        self.branch2 = nn.Sequential(
            *conv_bn(inputs, middle), *_depthwise(middle, stride, deform), *conv_bn(middle, outputs - inputs)
        )
        self.concat = Concat()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            joined: Tensor = self.concat(self.branch1(x), self.branch2(x))
        else:
            halves = self.split(self.shuffle(x))
            joined = self.concat(halves[0], self.branch2(halves[1]))
        return joined


class DecoderStage(Gathering):
    """Gather, mix the channels, double the map: (N, inputs, H, W) to (N, outputs, 2H, 2W).

    With ``lateral`` channels, a map (N, lateral, 2H, 2W) is mixed and added before the ReLU.
    """

    #: Path of the module that gives the stage's own map, before it is doubled (with a lateral: after).
    last = "mix"

    def __init__(self, inputs: int, outputs: int, how: Gather, lateral: int = 0) -> None:
        super().__init__()
        self._prepare(inputs, how)
        self.gathered = nn.Identity()
        self.mix = nn.Sequential(*conv_bn(inputs, outputs, relu=not lateral))
        self._finish(outputs, lateral)

    def _finish(self, outputs: int, lateral: int) -> None:
        self.upsample = Upsample(2)
        self.lateral = nn.Sequential(*conv_bn(lateral, outputs, relu=False)) if lateral else None
        if lateral:
            self.add = Add()
            self.joined = nn.ReLU()
            self.last = "joined"

    def work(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.gathered(self.gather(x)))
        return mixed

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        doubled: Tensor = self.upsample(self.work(x))
        if self.lateral is not None:
            doubled = self.joined(self.add(doubled, self.lateral(side)))
        return doubled


class MixFirstStage(DecoderStage):
    """The other order: mix, then gather on the ``outputs`` channels, batch norm, ReLU, double."""

    last = "settled"

    def __init__(self, inputs: int, outputs: int, how: Gather, lateral: int = 0) -> None:
        super(DecoderStage, self).__init__()
        self.mix = mix_before(inputs, outputs, how)
        self._prepare(outputs, how)
        self.settled = nn.Sequential(nn.BatchNorm2d(outputs), *([] if lateral else [nn.ReLU()]))
        self._finish(outputs, lateral)

    def work(self, x: Tensor) -> Tensor:
        settled: Tensor = self.settled(self.gather(self.mix(x)))
        return settled


def mix_before(inputs: int, outputs: int, how: Gather) -> nn.Sequential:
    """1x1 before a gather: bare before a deformable one (network A), with batch norm and ReLU before a static one."""
    if how.kind == "static":
        return nn.Sequential(*conv_bn(inputs, outputs))
    return nn.Sequential(Pointwise(inputs, outputs, 1, bias=False), nn.Identity())


def _last(channels: int, outputs: int, bias: float) -> list[nn.Module]:
    last = Pointwise(channels, outputs, 1)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    nn.init.normal_(last.weight, std=0.01)
    return [last, nn.Identity()]


def head(inputs: int, channels: int, outputs: int, bias: float) -> nn.Sequential:
    """One tower: 1x1, depthwise 3x3, 1x1 with bias, and a place for the quantizer of its output."""
    return nn.Sequential(*conv_bn(inputs, channels), *conv_bn(channels, channels, 3, depthwise=True), *_last(channels, outputs, bias))


def gather_head(inputs: int, channels: int, outputs: int, bias: float, how: Gather) -> nn.Sequential:
    """Network A's tower: 1x1, gather, batch norm, ReLU, 1x1 with bias."""
    middle = [Sampler(channels, how), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*mix_before(inputs, channels, how), *middle, *_last(channels, outputs, bias))

