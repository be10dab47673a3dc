"""Efficient ConvBN blocks: Train, Eval, Tune and Deploy mode of a convolution with batch norm.

Paper: You, Wei, Wang, Zhang and Long, arXiv 2305.11624 (ICLR 2024).

Idea: with frozen statistics a convolution and its batch norm are one affine map, so its weights can be computed on the fly from those of
both and applied by one convolution (Tune). That keeps Eval's training exactly, saves the memory of the norm's input, and avoids the large
steps that training folded weights (Deploy) may take.

Equations. s = gamma / sqrt(var + eps) per output channel, from running statistics; conv has W, b, norm has gamma, beta, mu, var:

- Eval: y = BN(conv(x)); Tune: y = conv(x; W', b') with W' = s W, b' = beta + s (b - mu) computed in the forward pass; Deploy: W', b' are
  the parameters; Train: y = BN(conv(x)) with the statistics of the batch
- with G = dL/dW', g = dL/db' = sum of dL/dy: in Eval and Tune dW = s G, db = s g, dbeta = g,
  dgamma = (<G, W> + g (b - mu)) / sqrt(var + eps); in Deploy dW' = G
- a step of SGD on the weights moves W' by -lr s^2 G in Eval and Tune, by -lr G in Deploy. Where s << 1 Deploy's steps are 1 / s^2 larger
  and it diverges first; where s >> 1 it is the other way round. So the paper's claim of stability is one for s < 1.

How far this reference goes. Modes and equations are the paper's, for Conv1d..3d, their transposes (s on dimension 1 of the weight, group by
group) and Linear, with groups, without bias, and norms without gamma and beta. `convert_` finds the pairs of a model with torch.fx, as
PyTorch's own version does; what fx cannot trace must be converted by hand. ``resnet50_tune`` and its twins are ResNet-50 in these modes.

On hardware. W' and b' are what lowering folds anyway. Use Tune in quantization-aware training, so that the quantizers see W'.
"""
from __future__ import annotations

from functools import partial
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ResNet

Mode = Literal["train", "eval", "tune", "deploy"]
Layer = _ConvNd | nn.Linear
Model = TypeVar("Model", bound=nn.Module)
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def outputs_of(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def fold(layer: Layer, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """W', b' of the one map that ``norm(layer(x))`` is with running statistics; differentiable in W, b, gamma, beta."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    s = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        s = norm.weight * s
    weight, bias = layer.weight, -mean if layer.bias is None else layer.bias - mean
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...); group g holds the outputs of its own rows
        groups = layer.groups
        parts = weight.reshape(groups, -1, *weight.shape[1:]) * s.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = parts.flatten(0, 1)
    else:
        scaled = weight * s.view(-1, *[1] * (weight.ndim - 1))
    return scaled, s * bias if norm.bias is None else norm.bias + s * bias


def run(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``layer`` on x with other weights."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, _ConvTransposeNd):
        convolve = _TRANSPOSED[weight.ndim]
        return convolve(x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)  # type: ignore[arg-type]
    return layer._conv_forward(x, weight, bias)


class ConvBNBlock(nn.Module):
    """``layer`` and the batch norm behind it in one of four modes; shapes as ``layer``.

    In every mode but "train" the running statistics stay as they are, also after ``.train()``. "deploy" replaces the parameters for good.
    """

    def __init__(self, layer: Layer, norm: _BatchNorm, mode: Mode = "tune") -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            raise ValueError(f"layer must be a convolution or linear, not {type(layer).__name__}")
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.num_features != outputs_of(layer):
            raise ValueError(f"norm must be a batch norm with running statistics of {outputs_of(layer)} channels, not {norm!r}")
        self.layer = layer
        self.norm: nn.Module = norm
        self.mode: Mode = "train"
        self.set_mode(mode)

    def set_mode(self, mode: Mode) -> ConvBNBlock:
        """Change the mode in place; there is no way back from "deploy"."""
        if mode not in get_args(Mode) or (self.mode == "deploy" and mode != "deploy"):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))} and stays deploy once it is, not {mode!r}")
        if mode == "deploy" and self.mode != "deploy":
            with torch.no_grad():
                weight, bias = fold(self.layer, cast(_BatchNorm, self.norm))
            self.layer.weight, self.layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.norm = nn.Identity()
        self.mode = mode
        return self.train(self.training)

    def train(self, mode: bool = True) -> ConvBNBlock:
        super().train(mode)
        if self.mode != "train":
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "tune":
            return run(self.layer, x, *fold(self.layer, cast(_BatchNorm, self.norm)))
        return cast(Tensor, self.norm(self.layer(x)))

    def extra_repr(self) -> str:
        return f"mode={self.mode}"


def convert_(model: Model, mode: Mode = "tune") -> Model:
    """Put every convolution or linear layer whose only consumer is a batch norm into one ConvBNBlock, in place; set all blocks' mode.

    Only pairs that are called once are taken. The blocks lie where the layers were; the norms leave an Identity.
    """
    if not any(isinstance(m, ConvBNBlock) for m in model.modules()):
        modules = dict(model.named_modules())
        nodes = [n for n in torch.fx.Tracer().trace(model).nodes if n.op == "call_module"]
        calls = [n.target for n in nodes]
        for node in nodes:
            before = node.args[0]
            if not isinstance(modules[str(node.target)], _BatchNorm) or not isinstance(before, torch.fx.Node) or len(before.users) > 1:
                continue
            once = calls.count(node.target) == calls.count(before.target) == 1
            layer, norm = modules.get(str(before.target)), modules[str(node.target)]
            if once and isinstance(layer, Layer) and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                model.set_submodule(str(before.target), ConvBNBlock(layer, norm, "train"))
                model.set_submodule(str(node.target), nn.Identity())
    for module in model.modules():
        if isinstance(module, ConvBNBlock):
            module.set_mode(mode)
    return model


def saved_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes that one forward pass keeps for the backward pass, without parameters and buffers; on any device, meta too."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(*inputs)
    return sum(found.values())


def block(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, mode: Mode = "tune") -> ConvBNBlock:
    """A 2-D convolution without bias, padded to the same size, and its norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return ConvBNBlock(conv, nn.BatchNorm2d(outputs), mode)


def resnet50(mode: Mode = "tune", *, classes: int = 1000) -> nn.Sequential:
    """ResNet-50, (N, 3, H, W) -> (N, classes), its 53 convolutions with their norms in ``mode``."""
    trunk = ResNet()
    return nn.Sequential(convert_(trunk, mode), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes))


def bench() -> BenchCase:
    """Tune beside Eval."""
    return BenchCase(
        name="Tune against Eval, conv 3×3, 64 channels, 28×28",
        ours=block(64, 64, mode="tune"),
        baseline=block(64, 64, mode="eval"),
        inputs=(torch.randn(4, 64, 28, 28),),
    )


SYSTEM = System(
    name="convbn",
    title="Efficient ConvBN blocks, Tune mode",
    paper="arXiv 2305.11624 (ICLR 2024)",
    year=2024,
    kind="method",
    variants={"convbn_block": block, **{f"resnet50_{mode}": partial(resnet50, mode) for mode in get_args(Mode)}},
    checked=(
        "forward and all gradients of Eval = Tune, ten layer types, float64", "the gradients' closed forms", "dW of Eval = s dW' of Deploy",
        "one step moves W' by s² G or G", "who diverges first turns with s", "bytes saved for backward, ResNet-50",
        "ResNet-50's parameters in every mode",
    ),
    lowering=(
        Lowering(part="W', b'", verdict="as is", note="the fold that lowering makes; Tune lets quantizers see W'"),
        Lowering(part="convolutions that are not depthwise or pointwise", verdict="after a change", note="one-hot shifts and pointwise"),
        Lowering(part="transposed convolution", verdict="no", note="no unit scatters; upsample and convolve instead"),
    ),
    demo="models.zoo.demos.convbn:demo",
    bench=bench,
)
