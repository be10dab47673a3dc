"""CoDeNet's detector (network Q) as a family: ShuffleNetV2 trunk, three deformable decoder stages, CenterNet heads.

Source: Dong et al., CoDeNet, FPGA'21 (arXiv 2006.08357); trunk: Ma et al., ShuffleNet V2, with torchvision's names and wiring, so that its
state dicts load. Every operation is a module with a path, ``trace`` gives the torch.fx graph with these modules as leaves.
Options make its relatives of it: other widths and decoders, laterals, static kernels, a deformable trunk, and network A, the ablation.
"""
from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.detectors.blocks import (
    Block,
    Container,
    DecoderStage,
    EvenOddBlock,
    Gather,
    MixFirstStage,
    conv_bn,
    gather_head,
    head,
)
from models.ops.deform import OFFSET_MAX, OFFSET_MIN

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
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant", "stop sign",
    "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
    "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
    "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Output pixels are 4 x 4 input pixels.
STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class CodenetConfig:
    """What makes one member of the family.

    width: of the trunk. size: (height, width) of the input. stem: 3x3 stride 2 and max-pool, or 3x3 stride 4. decoder: its stages'
    channels. order: of a stage, gather-first (as released and counted) or mix-first (as drawn in the paper, and network A).
    gather, kernel, dilation, bounds: the depthwise operator of the decoder (``Gather``). frac_bits: the fraction bits F of the offsets.
    laterals: the stages of stride 16 and 8 are added, through a 1x1 convolution each, to the decoder's maps of their size (small objects
    need them; CoDeNet has none). deform_stages: stages of the trunk (2, 3, 4) whose blocks of stride 1 gather by predicted offsets;
    with laterals this is "deform*". blocks: the trunk's wiring, torchvision's or even-odd (network A). heads: separable, or gather
    (network A).
    """

    width: float = 0.25
    size: tuple[int, int] = (128, 128)
    classes: tuple[str, ...] = DIGITS
    stem: str = "pool"
    decoder: tuple[int, int, int] = (256, 128, 64)
    head_channels: int = 64
    order: str = "gather-first"
    gather: str = "square"
    kernel: int = 3
    dilation: int = 1
    bounds: tuple[int, int] = (OFFSET_MIN, OFFSET_MAX)
    frac_bits: int = 2
    laterals: bool = False
    deform_stages: tuple[int, ...] = ()
    blocks: str = "torchvision"
    heads: str = "separable"

    def __post_init__(self) -> None:
        if self.width not in CHANNELS:
            raise ValueError(f"width must be one of {sorted(CHANNELS)}, not {self.width!r}")
        if len(self.size) != 2 or any(n < 32 or n % 32 or n > 4096 for n in self.size):
            raise ValueError(f"size must be (height, width), each a multiple of 32 up to 4096, not {self.size!r}")
        if not self.classes or len(set(self.classes)) != len(self.classes) or not all(isinstance(c, str) and c for c in self.classes):
            raise ValueError(f"classes must be distinct names, at least one, not {self.classes!r}")
        choices = {"stem": ("pool", "stride4"), "order": ("gather-first", "mix-first")}
        choices |= {"blocks": ("torchvision", "even-odd"), "heads": ("separable", "gather")}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be {' or '.join(map(repr, values))}, not {getattr(self, name)!r}")
        if self.blocks == "even-odd" and self.width == 0.25:
            raise ValueError("blocks must be 'torchvision' at width 0.25: even-odd blocks need stages that grow")
        if not set(self.deform_stages) <= {2, 3, 4}:
            raise ValueError(f"deform_stages must be among 2, 3 and 4, not {self.deform_stages!r}")
        if len(self.decoder) != 3 or min(self.decoder) < 1 or self.head_channels < 1:
            raise ValueError(f"decoder and head_channels must be positive, not {self.decoder!r} and {self.head_channels!r}")
        if not 0 <= self.frac_bits <= 4:
            raise ValueError(f"frac_bits must be in 0..4, not {self.frac_bits!r}")
        _ = self.taps

    @property
    def taps(self) -> Gather:
        """The decoder's depthwise operator."""
        return Gather(kind=self.gather, kernel=self.kernel, dilation=self.dilation, bounds=self.bounds)

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
    "coco": CodenetConfig(width=1.0, size=(512, 512), classes=COCO),
    "coco-2x": CodenetConfig(width=2.0, size=(512, 512), classes=COCO, decoder=(256, 128, 128), head_channels=128),
    "ablation": CodenetConfig(
        width=1.0, size=(512, 512), classes=VOC, decoder=(512, 256, 128), head_channels=128, order="mix-first", bounds=(0, 8),
        blocks="even-odd", heads="gather",
    ),
}


class Codenet(Container):
    """Images (N, 3, H, W), raw RGB bytes / 256, to heat map logits (N, classes, H/4, W/4), wh and reg (N, 2, H/4, W/4), in map pixels."""

    def __init__(self, config: CodenetConfig) -> None:
        super().__init__()
        self.config = config
        stem, *stages, last = CHANNELS[config.width]
        self.input = nn.Identity()
        self.conv1 = nn.Sequential(*conv_bn(3, stem, 3, 2 if config.stem == "pool" else 4))
        self.maxpool = nn.MaxPool2d(3, 2, 1) if config.stem == "pool" else None
        self.stage2, self.stage3, self.stage4 = (
            _stage(config, number, before, outputs)
            for number, before, outputs in zip((2, 3, 4), (stem, *stages), stages, strict=False)
        )
        self.conv5 = nn.Sequential(*conv_bn(stages[-1], last))
        widths = (last, *config.decoder)
        sides = (stages[1], stages[0], 0) if config.laterals else (0, 0, 0)
        kind = DecoderStage if config.order == "gather-first" else MixFirstStage
        pairs = zip(itertools.pairwise(widths), sides, strict=True)
        self.decoder = nn.Sequential(*(kind(a, b, config.taps, side) for (a, b), side in pairs))
        self.hm = self._head(widths[-1], len(config.classes), -2.19)
        self.wh = self._head(widths[-1], 2, 0.0)
        self.reg = self._head(widths[-1], 2, 0.0)

    def _head(self, inputs: int, outputs: int, bias: float) -> nn.Sequential:
        if self.config.heads == "gather":
            return gather_head(inputs, self.config.head_channels, outputs, bias, self.config.taps)
        return head(inputs, self.config.head_channels, outputs, bias)

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


def _stage(config: CodenetConfig, number: int, inputs: int, outputs: int) -> nn.Sequential:
    kind = Block if config.blocks == "torchvision" else EvenOddBlock
    deform = Gather(bounds=config.bounds) if number in config.deform_stages else None
    repeats = REPEATS[number - 2]
    return nn.Sequential(kind(inputs, outputs, 2), *(kind(outputs, outputs, 1, deform) for _ in range(repeats - 1)))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (nn.Sequential, Container))


def trace(model: nn.Module) -> fx.Graph:
    """The model's graph; every call_module node is one of the leaf operators and its target is the module's path."""
    return _Tracer().trace(model)


def images_to_input(images: Any) -> Tensor:
    """Raw images (N, H, W, 3) uint8 (NumPy or torch) to the network's input (N, 3, H, W) float32 in [0, 255/256]."""
    raw = torch.as_tensor(images)
    if raw.ndim != 4 or raw.shape[3] != 3 or raw.dtype != torch.uint8:
        raise ValueError(f"images must be (N, H, W, 3) uint8, not {tuple(raw.shape)} {raw.dtype}")
    return raw.permute(0, 3, 1, 2).float() / 256
