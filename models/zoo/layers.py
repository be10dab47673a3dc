"""Parts that several systems share."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W), every pixel by itself (ConvNeXt, arXiv 2201.03545)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        moved = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return moved.permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: in training each sample's branch is dropped with ``probability``, the rest scaled (arXiv 1603.09382)."""

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability must be in 0..1, 1 excluded, not {probability!r}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        keep = 1 - self.probability
        mask = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype) < keep
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class ConvBN(nn.Sequential):
    """Convolution without bias, then batch norm; stride, padding and groups as nn.Conv2d. ``gamma``: the norm's first scale."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, padding: int = 0, groups: int = 1, gamma: float = 1.0
    ) -> None:
        bn = nn.BatchNorm2d(outputs)
        nn.init.constant_(bn.weight, gamma)
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), bn)

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The one convolution that this is in eval mode."""
        conv, bn = self
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        return torch.nn.utils.fuse_conv_bn_eval(conv.eval(), bn.eval())
