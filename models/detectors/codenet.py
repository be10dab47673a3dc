"""CoDeNet's detector (network Q) as a family: ShuffleNetV2 trunk, three deformable decoder stages, CenterNet heads.

Source: Dong et al., CoDeNet, FPGA'21 (arXiv 2006.08357); trunk: Ma et al., ShuffleNet V2, with torchvision's names and wiring, so that its
state dicts load. Every operation is a module with a path, ``trace`` gives the torch.fx graph with these modules as leaves.
An ``nn.Identity`` marks a tensor that quantization gives a quantizer and that has no activation function of its own.
"""
from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.ops.deform import OFFSET_MAX, OFFSET_MIN, SquareDeform
from models.ops.wiring import Add, Concat, Shuffle, Split, Upsample

#: Width -> channels of the stem, the three stages and conv5.
CHANNELS = {
    0.25: (24, 24, 48, 96, 512),
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    2.0: (24, 244, 488, 976, 2153),
}
REPEATS = (4, 8, 4)
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Output pixels are 4 x 4 input pixels.
STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class CodenetConfig:
    """What makes one member of the family.

    size: (height, width) of the input. frac_bits: the fraction bits F of the offsets. laterals: the stages of stride 16 and 8 are added,
    through a 1x1 convolution each, to the decoder's maps of their size (small objects need them; CoDeNet has none).
    """

    width: float = 0.25
    size: tuple[int, int] = (128, 128)
    classes: tuple[str, ...] = DIGITS
    stem: str = "pool"
    decoder: tuple[int, int, int] = (256, 128, 64)
    head_channels: int = 64
    frac_bits: int = 2
    laterals: bool = False

    def __post_init__(self) -> None:
        if self.width not in CHANNELS:
            raise ValueError(f"width must be one of {sorted(CHANNELS)}, not {self.width!r}")
        if len(self.size) != 2 or any(n < 32 or n % 32 or n > 4096 for n in self.size):
            raise ValueError(f"size must be (height, width), each a multiple of 32 up to 4096, not {self.size!r}")
        if not self.classes or len(set(self.classes)) != len(self.classes) or not all(isinstance(c, str) and c for c in self.classes):
            raise ValueError(f"classes must be distinct names, at least one, not {self.classes!r}")
        if self.stem not in ("pool", "stride4"):
            raise ValueError(f"stem must be 'pool' or 'stride4', not {self.stem!r}")
        if len(self.decoder) != 3 or min(self.decoder) < 1 or self.head_channels < 1:
            raise ValueError(f"decoder and head_channels must be positive, not {self.decoder!r} and {self.head_channels!r}")
        if not 0 <= self.frac_bits <= 4:
            raise ValueError(f"frac_bits must be in 0..4, not {self.frac_bits!r}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CodenetConfig:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"the model's configuration must be a JSON object, not {text[:40]!r}")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"the model's configuration has unknown fields: {sorted(unknown)}")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**values)


PRESETS = {
    "tiny": CodenetConfig(width=0.5),
    "small": CodenetConfig(width=0.5, size=(256, 256)),
    "a": CodenetConfig(width=1.0, size=(256, 256), classes=VOC, stem="stride4"),
    "b": CodenetConfig(width=1.0, size=(256, 256), classes=VOC),
    "c": CodenetConfig(width=1.0, size=(512, 512), classes=VOC, stem="stride4"),
    "d": CodenetConfig(width=2.0, size=(512, 512), classes=VOC, stem="stride4"),
    "e": CodenetConfig(width=2.0, size=(512, 512), classes=VOC),
}


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False, relu: bool = True) -> list[nn.Module]:
    """Convolution, batch norm and, unless told otherwise, ReLU: the modules of one layer, in order."""
    groups = inputs if depthwise else 1
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else [])]


class Block(nn.Module):
    """A ShuffleNetV2 block: (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        if stride == 2:
            self.branch1 = nn.Sequential(*conv_bn(inputs, inputs, 3, 2, depthwise=True, relu=False), *conv_bn(inputs, half))
        else:
            self.split = Split()
        self.branch2 = nn.Sequential(
            *conv_bn(inputs if stride == 2 else half, half),
            *conv_bn(half, half, 3, stride, depthwise=True, relu=False),
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


class DecoderStage(nn.Module):
    """Predict offsets, gather by them, mix the channels, double the map: (N, inputs, H, W) to (N, outputs, 2H, 2W).

    With ``lateral`` channels, a map (N, lateral, 2H, 2W) is mixed and added before the ReLU.
    """

    def __init__(self, inputs: int, outputs: int, lateral: int = 0) -> None:
        super().__init__()
        self.offset = nn.Conv2d(inputs, 1, 1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)  # o = 0: starts as a plain 3x3
        self.bound = nn.Hardtanh(OFFSET_MIN, OFFSET_MAX)
        self.deform = SquareDeform(inputs)
        self.gathered = nn.Identity()
        self.mix = nn.Sequential(*conv_bn(inputs, outputs, relu=not lateral))
        self.upsample = Upsample(2)
        self.lateral = nn.Sequential(*conv_bn(lateral, outputs, relu=False)) if lateral else None
        if lateral:
            self.add = Add()
            self.joined = nn.ReLU()

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        doubled: Tensor = self.upsample(self.mix(self.gathered(self.deform(x, self.bound(self.offset(x))))))
        if self.lateral is not None:
            doubled = self.joined(self.add(doubled, self.lateral(side)))
        return doubled


def head(inputs: int, channels: int, outputs: int, bias: float) -> nn.Sequential:
    """One tower: 1x1, depthwise 3x3, 1x1 with bias, and a place for the quantizer of its output."""
    last = nn.Conv2d(channels, outputs, 1)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    nn.init.normal_(last.weight, std=0.01)
    return nn.Sequential(*conv_bn(inputs, channels), *conv_bn(channels, channels, 3, depthwise=True), last, nn.Identity())


class Codenet(nn.Module):
    """Images (N, 3, H, W), raw RGB bytes / 256, to heat map logits (N, classes, H/4, W/4), wh and reg (N, 2, H/4, W/4), in map pixels."""

    def __init__(self, config: CodenetConfig) -> None:
        super().__init__()
        self.config = config
        stem, *stages, last = CHANNELS[config.width]
        self.input = nn.Identity()
        self.conv1 = nn.Sequential(*conv_bn(3, stem, 3, 2 if config.stem == "pool" else 4))
        self.maxpool = nn.MaxPool2d(3, 2, 1) if config.stem == "pool" else None
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(Block(before, outputs, 2), *(Block(outputs, outputs, 1) for _ in range(repeats - 1)))
            for before, outputs, repeats in zip((stem, *stages), stages, REPEATS, strict=False)
        )
        self.conv5 = nn.Sequential(*conv_bn(stages[-1], last))
        widths = (last, *config.decoder)
        sides = (stages[1], stages[0], 0) if config.laterals else (0, 0, 0)
        self.decoder = nn.Sequential(*(DecoderStage(a, b, side) for (a, b), side in zip(itertools.pairwise(widths), sides, strict=True)))
        self.hm = head(widths[-1], config.head_channels, len(config.classes), -2.19)
        self.wh = head(widths[-1], config.head_channels, 2, 0.0)
        self.reg = head(widths[-1], config.head_channels, 2, 0.0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv1(self.input(image))
        if self.maxpool is not None:
            x = self.maxpool(x)
        stride8 = self.stage2(x)
        stride16 = self.stage3(stride8)
        x = self.conv5(self.stage4(stride16))
        for stage, side in zip(self.decoder, (stride16, stride8, None), strict=True):
            x = stage(x, side if self.config.laterals else None)
        return self.hm(x), self.wh(x), self.reg(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (nn.Sequential, Block, DecoderStage, Codenet))


def trace(model: nn.Module) -> fx.Graph:
    """The model's graph; every call_module node is one of the leaf operators and its target is the module's path."""
    return _Tracer().trace(model)


def images_to_input(images: Any) -> Tensor:
    """Raw images (N, H, W, 3) uint8 (NumPy or torch) to the network's input (N, 3, H, W) float32 in [0, 255/256]."""
    raw = torch.as_tensor(images)
    if raw.ndim != 4 or raw.shape[3] != 3 or raw.dtype != torch.uint8:
        raise ValueError(f"images must be (N, H, W, 3) uint8, not {tuple(raw.shape)} {raw.dtype}")
    return raw.permute(0, 3, 1, 2).float() / 256
