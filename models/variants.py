"""Network Q with other spatial operators in its decoder: static depthwise 3x3 and 9x9, then deformable with free offsets (original), free
and bounded, square and bounded, rounded, and bilinear with F fraction bits. The rows of ``models.ablation``."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import checkpoint
from models.detectors.codenet import Codenet, CodenetConfig
from models.ops.deform import FREE, OFFSET_MAX, OFFSET_MIN, SQUARE, SquareDeform
from models.ops.pointwise import Pointwise
from models.train import start_model


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table. start: the variant whose float network this one begins with; frac_bits: F (None: offsets stay float)."""

    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    square: bool = True
    bounded: bool = True
    frac_bits: int | None = None
    start: str | None = None

    @property
    def static(self) -> bool:
        return self.network.get("gather") == "static"


VARIANTS = {
    "dw3x3": Variant(network={"gather": "static", "kernel": 3}),
    "dw9x9": Variant(network={"gather": "static", "kernel": 9}),
    "original": Variant(square=False, bounded=False),
    "bounded": Variant(square=False),
    "bounded-square": Variant(),
    "rounded": Variant(frac_bits=0, start="bounded-square"),
    **{f"bilinear-{f}": Variant(frac_bits=f, start="bounded-square") for f in (1, 2, 3, 4)},
}


class FreeDeform(SquareDeform):
    """Depthwise 3x3 with a free offset for every tap: 18 numbers a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.taps = FREE


def build(config: CodenetConfig, variant: Variant, seed: int = 0) -> Codenet:
    """The network of a variant with random weights, the same in all variants where shapes agree."""
    torch.manual_seed(seed)
    model = Codenet(dataclasses.replace(config, **variant.network, frac_bits=variant.frac_bits or 0))
    if variant.static:
        return model
    for path, module in list(model.named_modules()):
        if isinstance(module, SquareDeform) and not variant.square:
            free = FreeDeform(module.channels)
            free.load_state_dict(module.state_dict())
            where, offset = path.rpartition(".")[0], Pointwise(module.channels, 2 * 9, 1)
            for value in offset.parameters():
                nn.init.zeros_(value)
            model.set_submodule(path, free)
            model.set_submodule(f"{where}.offset", offset)
            model.set_submodule(f"{where}.bound", nn.Hardtanh(OFFSET_MIN, OFFSET_MAX) if variant.bounded else nn.Identity())
        elif isinstance(module, SquareDeform) and variant.frac_bits is not None:
            module.taps = dataclasses.replace(SQUARE, frac_bits=variant.frac_bits)
    return model


def take_trunk(model: Codenet, path: Path, seed: int) -> None:
    """Everything before the decoder from a float checkpoint of this project or a ShuffleNetV2 state dict."""
    content = checkpoint.load(path)
    if "config" not in content:
        given = start_model(model.config, init=None, trunk=path, seed=seed).state_dict()
    else:
        given = checkpoint.load_float(path).state_dict()
    own = model.state_dict()
    parts = ("conv1.", "stage", "conv5.")
    fits = {k: v for k, v in given.items() if k.startswith(parts) and k in own and own[k].shape == v.shape}
    if not fits:
        raise ValueError(f"{path} must hold a trunk of width {model.config.width:g}: no tensor fits")
    model.load_state_dict(fits, strict=False)
