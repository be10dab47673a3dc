"""SparK: masked image modelling for convolutional networks, by sparse convolution.

Paper: Tian, Jiang, Diao, Lin, Wang and Yuan, "Designing BERT for Convolutional Networks", arXiv 2301.03580 (ICLR 2023).

Idea: masked patches are left out of a convolutional encoder as a sparse convolution leaves out voxels, so that the mask's pattern stays
what it is at every depth. A light decoder then paints the masked patches from the encoder's maps of all scales.

Equations. Active map M (B, 1, f, f) of 0 and 1, f = H / 32, round(f² (1 - 0.6)) ones at random places of each image. At a layer whose
map is h × w, M is repeated h / f times; op below is dense and followed by * M:

- convolution, pooling: y = op(x) * M; layer norm of each active pixel; batch norm with means over the batch's active pixels only
  (biased variance to normalize, unbiased into the running one); a ConvNeXt block's branch * M
- image * M -> maps of strides 4 to 32. Densify, from the smallest, i = 0..3: norm, a learned token where M is 0, and a convolution to
  768 / 2^i channels (1 × 1 for i = 0, or none where widths agree; else 3 × 3)
- decoder: five blocks c -> c/2 of transposed 4 × 4 convolution of stride 2, 3 × 3, BN, ReLU6, 3 × 3, BN; block i < 4 first adds map i;
  1 × 1 -> 3 channels
- loss: squared error to patches (32² · 3 values) normalized by their own mean and unbiased variance + 1e-6, mean over the masked ones

How far this reference goes. Encoders (ResNet-50 to -200, ConvNeXt-S to -L), densification, decoder and loss are the paper's. The encoder
is any dense one, converted; its state dict has the same names, so that fine-tuning loads it into the dense network. LAMB and the
schedules of pre-training are not here; names of our ResNet and decoder differ from the published checkpoints', and no key map is here.

On hardware. Pre-training stays on the host. The trained encoder is the plain network: ConvNeXt's or ResNet's verdict. Masked inference
would multiply by a 0/1 map after each layer, which maps as it is. Decoder: the transposed convolution is zero insertion and a convolution,
ReLU6 a threshold.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.convnext import CONFIGS, Block, ConvNeXtTrunk
from models.zoo.layers import DropPath, LayerNorm2d, ResNet, trunc_normal_init

Model = TypeVar("Model", bound=nn.Module)


class Active:
    """The active map that all layers of one sparse encoder share: (B, 1, f, f) bool, or None for all active."""

    def __init__(self) -> None:
        self.map: Tensor | None = None

    def at(self, x: Tensor) -> Tensor:
        """The map for x (B, C, h, w), as (B, 1, h, w) of its dtype, on its device."""
        if self.map is None:
            return x.new_ones(()).expand(len(x), 1, *x.shape[2:])
        rows, columns = self.map.shape[2:]
        if x.shape[2] % rows or x.shape[3] % columns:
            raise ValueError(f"x must have sides that are multiples of the map's {(rows, columns)}, not {tuple(x.shape[2:])!r}")
        return self.map.repeat_interleave(x.shape[2] // rows, 2).repeat_interleave(x.shape[3] // columns, 3).to(x)


class SparseConv2d(nn.Conv2d):
    """Convolution, zero outside the active map."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y * self.active.at(y)


class SparseMaxPool2d(nn.MaxPool2d):
    """Max pooling, zero outside the active map."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        y = cast(Tensor, super().forward(input))
        return y * self.active.at(y)


class SparseAvgPool2d(nn.AvgPool2d):
    """Average pooling, zero outside the active map."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y * self.active.at(y)


class SparseLayerNorm2d(LayerNorm2d):
    """Layer norm over channels, zero outside the active map."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y * self.active.at(y)


class SparseBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the active pixels; zero outside. x must be zero there already."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        m = self.active.at(input)
        if not self.training:
            return super().forward(input) * m
        x, wide = input.float() if input.dtype != torch.float64 else input, m.to(self.weight.dtype)
        n = wide.sum()
        mean = (x * wide).sum((0, 2, 3), keepdim=True) / n
        apart = (x - mean) * wide
        var = apart.square().sum((0, 2, 3), keepdim=True) / n
        with torch.no_grad():
            momentum = self.momentum or 0.1
            cast(Tensor, self.running_mean).lerp_(mean.flatten(), momentum)
            cast(Tensor, self.running_var).lerp_(var.flatten() * n / (n - 1).clamp(min=1), momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
        y = apart * (var + self.eps).rsqrt() * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return (y * wide).to(input.dtype)


class SparseBlock(Block):
    """ConvNeXt block whose branch is zero outside the active map, as its input is."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * self.active.at(y)


SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: SparseConv2d, nn.MaxPool2d: SparseMaxPool2d, nn.AvgPool2d: SparseAvgPool2d, nn.BatchNorm2d: SparseBatchNorm2d,
    LayerNorm2d: SparseLayerNorm2d, Block: SparseBlock,
}  # fmt: skip
#: Layers that keep zero pixels zero, or, for the linear one, stand in a block that masks what it returns.
KEPT = (nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Linear, DropPath)


def sparse(model: Model, active: Active) -> Model:
    """A sparse encoder that shares the parameters and buffers of the dense ``model``; ``active`` is where its map is set."""
    found = SPARSE.get(type(model), type(model))
    if found is type(model) and not isinstance(model, KEPT) and not list(model.children()):
        raise ValueError(f"model has a layer without a sparse form: {model}")
    copy = found.__new__(found)
    copy.__dict__.update(model.__dict__)
    copy.__dict__["_modules"] = {name: None if child is None else sparse(child, active) for name, child in model._modules.items()}
    if found is not type(model):
        copy.__dict__["active"] = active
    return cast(Model, copy)


class ResNetTrunk(ResNet):
    """ResNet as an encoder: (N, 3, H, W) -> maps of strides 4, 8, 16, 32."""

    def __init__(self, depths: Sequence[int] = (3, 4, 6, 3), *, dim: int = 64) -> None:
        super().__init__(depths, dim=dim)
        self.depths, self.dims = tuple(depths), tuple(4 * dim * 2**i for i in range(len(depths)))

    def maps(self, x: Tensor) -> list[Tensor]:
        """What every stage returns."""
        x, found, block = self.stem(x), [], iter(self.blocks)
        for depth in self.depths:
            for _ in range(depth):
                x = next(block)(x)
            found.append(x)
        return found


class UNetBlock(nn.Module):
    """Decoder block: (N, dim, H, W) -> (N, dim / 2, 2 H, 2 W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim, 4, 2, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU6(),
            nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.BatchNorm2d(dim // 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(self.up(x)))


class LightDecoder(nn.Module):
    """Maps of ``width`` / 2^i channels, from the smallest -> image; ``steps`` doublings."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(UNetBlock(width // 2**i) for i in range(steps))
        self.proj = nn.Conv2d(width // 2**steps, 3, 1)
        self.apply(trunc_normal_init)
        for block in self.blocks:
            up = cast(UNetBlock, block).up
            nn.init.kaiming_normal_(up.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, up.bias))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[0]
        for i, block in enumerate(self.blocks):
            x = block(x + maps[i] if 0 < i < len(maps) else x)
        return cast(Tensor, self.proj(x))


class Densify(nn.Module):
    """Sparse map (N, dim, h, w) -> (N, width, h, w) with a learned token in the holes; ``first``: 1 × 1 instead of 3 × 3."""

    def __init__(self, dim: int, width: int, norm: nn.Module, first: bool, active: Active) -> None:
        super().__init__()
        self.norm, self.active = sparse(norm, active), active
        self.token = nn.Parameter(torch.empty(1, dim, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.02, b=0.02)
        self.proj: nn.Module = nn.Conv2d(dim, width, 1 if first else 3, padding=0 if first else 1)
        trunc_normal_init(self.proj)
        if first and dim == width:
            self.proj = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return cast(Tensor, self.proj(torch.where(self.active.at(y) > 0, y, self.token.to(y.dtype))))


class SparK(nn.Module):
    """Images (B, 3, H, W), sides multiples of the encoder's stride -> loss.

    ``encoder``: a dense one with ``maps`` and ``dims``; ``width`` of the decoder; ``ratio`` of the patches is masked.
    """

    def __init__(self, encoder: ConvNeXtTrunk | ResNetTrunk, *, width: int = 768, ratio: float = 0.6) -> None:
        super().__init__()
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must be between 0 and 1, not {ratio!r}")
        stages = len(encoder.dims)
        if width < 1 or width % 2 ** (stages + 1):
            raise ValueError(f"width must be a multiple of {2 ** (stages + 1)}, not {width!r}")
        self.ratio, self.stride, self.active = ratio, 2 ** (stages + 1), Active()
        self.encoder = sparse(encoder, self.active)
        norm: Callable[[int], nn.Module] = LayerNorm2d if isinstance(encoder, ConvNeXtTrunk) else nn.BatchNorm2d
        dims = reversed(encoder.dims)
        self.densify = nn.ModuleList(Densify(d, width // 2**i, norm(d), i == 0, self.active) for i, d in enumerate(dims))
        self.decoder = LightDecoder(width, stages + 1)

    def draw(self, x: Tensor) -> Tensor:
        """A random active map (B, 1, f, f) for images x."""
        rows, columns = x.shape[2] // self.stride, x.shape[3] // self.stride
        keep = round(rows * columns * (1 - self.ratio))
        order = torch.rand(len(x), rows * columns, device=x.device).argsort(1)
        active: Tensor = order < keep
        return active.view(-1, 1, rows, columns)

    def encode(self, x: Tensor, active: Tensor) -> list[Tensor]:
        """The encoder's maps, zero outside the active map."""
        self._check(x, active)
        self.active.map = active
        maps: list[Tensor] = self.encoder.maps(x * self.active.at(x))
        return maps

    def reconstruct(self, x: Tensor, active: Tensor) -> Tensor:
        """Painted image (B, 3, H, W), in the units of normalized patches."""
        maps = self.encode(x, active)
        return cast(Tensor, self.decoder([dense(m) for dense, m in zip(self.densify, reversed(maps), strict=True)]))

    def patches(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches in rows, stride² · 3), values of a patch by row, column, channel."""
        p = self.stride
        y = x.reshape(*x.shape[:2], x.shape[2] // p, p, x.shape[3] // p, p)
        return torch.einsum("bchpwq->bhwpqc", y).reshape(len(x), -1, p * p * x.shape[1])

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        active = self.draw(x) if active is None else active
        self._check(x, active)
        target = self.patches(x)
        var, mean = torch.var_mean(target, -1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
        error = (self.patches(self.reconstruct(x, active)) - target).square().mean(-1)
        masked = ~active.flatten(1)
        return (error * masked).sum() / masked.sum()

    def _check(self, x: Tensor, active: Tensor) -> None:
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"x must have sides that are multiples of {self.stride}, not {tuple(x.shape[2:])!r}")
        if tuple(active.shape) != (len(x), 1, x.shape[2] // self.stride, x.shape[3] // self.stride) or active.dtype != torch.bool:
            raise ValueError(f"active must be bool, a map of each image's patches, not {tuple(active.shape)!r} of {active.dtype}")


def _resnet(depths: Sequence[int], **options: float) -> SparK:
    return SparK(ResNetTrunk(depths), **options)  # type: ignore[arg-type]


def _convnext(size: str, **options: float) -> SparK:
    return SparK(ConvNeXtTrunk(*CONFIGS[size]), **options)  # type: ignore[arg-type]


def bench() -> BenchCase:
    """A sparse 3 × 3 convolution, 40 % active, beside the dense one: what masking costs."""
    active = Active()
    active.map = torch.arange(49).view(1, 1, 7, 7).expand(4, 1, 7, 7) % 5 < 2
    plain = nn.Conv2d(64, 64, 3, padding=1)
    return BenchCase(name="sparse conv 3×3 against dense, 64 channels, 28×28", ours=sparse(nn.Conv2d(64, 64, 3, padding=1), active),
                     baseline=plain, inputs=(torch.randn(4, 64, 28, 28),))


RESNETS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3), "200": (3, 24, 36, 3)}
SYSTEM = System(
    name="spark",
    title="SparK",
    paper="arXiv 2301.03580 (ICLR 2023)",
    year=2023,
    kind="method",
    variants={
        **{f"spark_resnet{name}": partial(_resnet, depths) for name, depths in RESNETS.items()},
        **{f"spark_convnext_{name}": partial(_convnext, name) for name in ("small", "base", "large")},
    },
    checked=(
        "parameters of seven encoders, of the decoder and of the whole to the digit", "all active is the dense network, exactly in eval",
        "masked pixels have no effect", "the active set is the same at every depth, where dense layers fill it",
        "sparse convolution against a loop over active pixels", "statistics of active pixels only",
        "a blank prediction's loss is 1 - 1/3072", "names of the dense network's state dict",
    ),
    lowering=(
        Lowering(part="trained encoder", verdict="as is", note="the plain ResNet; ConvNeXt after its own changes"),
        Lowering(part="masked inference", verdict="as is", note="multiply by a 0/1 map after each layer"),
        Lowering(part="decoder", verdict="after a change", note="transposed convolution as zero insertion and convolution"),
        Lowering(part="pre-training", verdict="no", note="host"),
    ),
    demo="models.zoo.demos.spark:demo",
    bench=bench,
)
