"""Parts that several systems share."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for the device of ``x`` (which meta tensors, and nothing else, do not know)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W), every pixel by itself (ConvNeXt, arXiv 2201.03545)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        moved = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return moved.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention of tokens (N, L, dim): softmax(q k^T / sqrt(dim / heads)) v. q, k, v packed."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must be positive and divide dim {dim}, not {heads!r}")
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.proj(y.transpose(1, 2).flatten(2)))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class TokenBlock(nn.Module):
    """Pre-norm transformer block in two halves, for methods that change the tokens (N, L, dim) between them.

    ``hidden``: width of the MLP, 4 dim if None.
    """

    def __init__(self, dim: int, heads: int, hidden: int | None = None, act: Callable[[], nn.Module] = nn.GELU, eps: float = 1e-5) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim, eps=eps), Attention(dim, heads), nn.LayerNorm(dim, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), act(), nn.Linear(hidden, dim))

    def attend(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x + attention, and the keys' mean over the heads (N, L, dim / heads).

        ``size`` (N, L): log(size) is added to the logits of a key (ToMe's proportional attention), so that size 0 hides a token.
        """
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.attn.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT * k.shape[-1] ** -0.5
        if size is not None:
            logits = logits + size.log()[:, None, None]
        y = logits.softmax(-1).to(v.dtype) @ v
        return x + self.attn.proj(y.transpose(1, 2).flatten(2)), k.mean(1)

    def feed(self, x: Tensor) -> Tensor:
        """x + MLP."""
        return x + cast(Tensor, self.mlp(self.norm2(x)))

    def forward(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        return self.feed(self.attend(x, size)[0])


class VisionTransformer(nn.Module):
    """ViT as in CLIP (arXiv 2103.00020) or, with ``clip`` False, as in SigLIP (arXiv 2303.15343, without its pooling head).

    (N, inputs, image, image) -> tokens (N, P [+ 1], width); with ``outputs`` the class token's projection, (N, outputs). CLIP has a class
    token, a norm before the blocks, QuickGELU and no bias in the patch convolution; SigLIP has none of the first two, GELU by tanh, a bias.
    """

    def __init__(
        self, image: int, patch: int, width: int, depth: int, heads: int, *, hidden: int | None = None, inputs: int = 3,
        clip: bool = True, outputs: int | None = None,
    ) -> None:
        super().__init__()
        if patch < 1 or image < patch:
            raise ValueError(f"patch must be in 1..image {image}, not {patch!r}")
        if outputs is not None and not clip:
            raise ValueError(f"outputs must be None without a class token, not {outputs!r}")
        self.image, self.patches, eps = image, (image // patch) ** 2, 1e-5 if clip else 1e-6
        self.conv = nn.Conv2d(inputs, width, patch, patch, bias=not clip)
        self.cls = nn.Parameter(torch.randn(width) * width**-0.5) if clip else None
        self.pos = nn.Parameter(torch.randn(self.patches + clip, width) * width**-0.5)
        self.norm_pre: nn.Module = nn.LayerNorm(width, eps=eps) if clip else nn.Identity()
        act: Callable[[], nn.Module] = QuickGELU if clip else partial(nn.GELU, "tanh")
        self.blocks = nn.ModuleList(TokenBlock(width, heads, hidden, act, eps) for _ in range(depth))
        self.norm_post = nn.LayerNorm(width, eps=eps)
        self.proj = None if outputs is None else nn.Linear(width, outputs, bias=False)

    def embed(self, x: Tensor) -> Tensor:
        """Patches, behind the class token if there is one, with their positions: (N, P [+ 1], width)."""
        if tuple(x.shape[-2:]) != (self.image, self.image):
            raise ValueError(f"x must be images of {self.image} × {self.image}, not {tuple(x.shape)!r}")
        y = cast(Tensor, self.conv(x)).flatten(2).mT
        if self.cls is not None:
            y = torch.cat((self.cls.to(y.dtype).expand(len(y), 1, -1), y), 1)
        return y + self.pos

    def head(self, tokens: Tensor) -> Tensor:
        """The norm after the blocks, and the projection of the class token."""
        if self.proj is None:
            return cast(Tensor, self.norm_post(tokens))
        return cast(Tensor, self.proj(self.norm_post(tokens[:, 0])))

    def forward(self, x: Tensor) -> Any:
        y = self.norm_pre(self.embed(x))
        for block in self.blocks:
            y = block(y)
        return self.head(y)


def bipartite_match(metric: Tensor) -> tuple[Tensor, Tensor]:
    """ToMe's matching (arXiv 2210.09461): metric (..., L, D) -> for each even token its best cosine to an odd one, and which.

    At most 1 (rounding exceeds it); -inf where there is no odd token.
    """
    unit = F.normalize(metric, dim=-1)
    a, b = unit[..., 0::2, :], unit[..., 1::2, :]
    if not b.shape[-2]:
        return a.new_full(a.shape[:-1], -torch.inf), torch.zeros(a.shape[:-1], dtype=torch.long, device=a.device)
    score, target = (a @ b.mT).clamp(max=1).max(-1)
    return score, target


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
    """Convolution without bias, then batch norm; the rest as nn.Conv2d. ``gamma``: the norm's first scale."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1,
        gamma: float = 1.0,
    ) -> None:
        bn = nn.BatchNorm2d(outputs)
        nn.init.constant_(bn.weight, gamma)
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False), bn)

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The one convolution that this is in eval mode."""
        conv, bn = self
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        return torch.nn.utils.fuse_conv_bn_eval(conv.eval(), bn.eval())


def plain_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """The convolution of a plain ResNet: padding ``kernel // 2``, no bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """ResNet bottleneck with the stride on its 3 × 3: (N, inputs, H, W) -> (N, 4 dim, H', W'). ``conv`` as `plain_conv`."""

    def __init__(self, inputs: int, dim: int, stride: int = 1, conv: Callable[..., nn.Module] = plain_conv) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, dim, 1), nn.BatchNorm2d(dim), nn.ReLU(),
            conv(dim, dim, 3, stride=stride), nn.BatchNorm2d(dim), nn.ReLU(),
            conv(dim, 4 * dim, 1), nn.BatchNorm2d(4 * dim),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * dim:
            self.skip = nn.Sequential(nn.Conv2d(inputs, 4 * dim, 1, stride, bias=False), nn.BatchNorm2d(4 * dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(cast(Tensor, self.body(x)) + cast(Tensor, self.skip(x)))


class ResNet(nn.Module):
    """ResNet of bottlenecks without classifier: (N, inputs, H, W) -> (N, 2048 for four stages of dim 64, H / 32, W / 32).

    ``conv``: the convolutions inside the bottlenecks, called as `plain_conv` (arXiv 1512.03385).
    """

    def __init__(
        self, depths: Sequence[int] = (3, 4, 6, 3), *, inputs: int = 3, dim: int = 64, conv: Callable[..., nn.Module] = plain_conv,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        blocks: list[nn.Module] = []
        width = 64
        for stage, depth in enumerate(depths):
            for k in range(depth):
                blocks.append(Bottleneck(width, dim * 2**stage, 2 if stage and not k else 1, conv))
                width = 4 * dim * 2**stage
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(self.stem(x)))


def trunc_normal_init(module: nn.Module) -> None:
    """For ``apply``: convolutions and linear layers get weights of truncated normal 0.02 and biases of 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SqueezeExcite(nn.Module):
    """x * sigmoid(up(act(down(mean x)))), ``hidden`` channels between: (N, channels, H, W) both ways (arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be positive, not {hidden!r}")
        self.down, self.act, self.up = nn.Conv2d(channels, hidden, 1), act(), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.up(self.act(self.down(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class GRN(nn.Module):
    """Global response norm, (N, C, H, W) both ways (ConvNeXt V2, arXiv 2301.00808); a fresh one is the identity.

    G_c = ||x_c||_2 over the map, out = (weight G / (mean_c G + 1e-6) + 1) x + bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        norm = norm / (norm.mean(1, keepdim=True) + 1e-6)
        y: Tensor = (self.weight.view(-1, 1, 1) * norm + 1) * x
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


class DilatedReparam(nn.Module):
    """Dilated Reparam Block (UniRepLKNet, arXiv 2311.15599): a depthwise ``kernel`` × ``kernel`` convolution plus smaller dilated ones.

    (N, channels, H, W) both ways, stride 1. ``branches``: (size k, dilation r) each, r (k - 1) + 1 odd and at most ``kernel``. Every
    convolution has its own batch norm; ``merged`` gives the one convolution that the sum is in eval mode.
    """

    def __init__(self, channels: int, kernel: int, branches: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, not {kernel!r}")
        if any(k < 1 or k % 2 == 0 or r < 1 or r * (k - 1) >= kernel for k, r in branches):
            raise ValueError(f"branches must be odd sizes that fit in {kernel} with their dilation, not {tuple(branches)!r}")
        self.main = ConvBN(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.branches = nn.ModuleDict(
            {f"k{k}_{r}": ConvBN(channels, channels, k, padding=r * (k // 2), dilation=r, groups=channels) for k, r in branches}
        )

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.main(x))
        for branch in self.branches.values():
            y = y + branch(x)
        return y

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The one convolution: dilated kernels are stuffed with zeros, centred and added."""
        whole = self.main.fused()
        assert whole.bias is not None
        side = whole.kernel_size[0]
        for branch in self.branches.values():
            part = cast(ConvBN, branch).fused()
            assert part.bias is not None
            dense = F.conv_transpose2d(part.weight, part.weight.new_ones(1, 1, 1, 1), stride=part.dilation)
            whole.weight += F.pad(dense, [(side - dense.shape[-1]) // 2] * 4)
            whole.bias += part.bias
        return whole


class ConvLSTMCell(nn.Module):
    """x (N, inputs, H, W) and (h, c), each (N, hidden, H, W), -> the next (h, c).

    [i f g o] = norm(conv([x, h])), c' = sigma(f) c + sigma(i) tanh(g), h' = sigma(o) tanh(c'). ``gates``: the order of the blocks of
    channels that the convolution yields. ``norm_groups``: a group norm on them, None for none. An extra input is concatenated to x.
    """

    def __init__(
        self, inputs: int, hidden: int, kernel: int = 3, *, bias: bool = True, gates: str = "ifgo", norm_groups: int | None = None
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {kernel!r}")
        if sorted(gates) != ["f", "g", "i", "o"]:
            raise ValueError(f"gates must be an order of 'i', 'f', 'g' and 'o', not {gates!r}")
        self.hidden, self.gates = hidden, gates
        self.conv = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.Identity() if norm_groups is None else nn.GroupNorm(norm_groups, 4 * hidden)

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(h, c) before the first frame: zeros."""
        zeros = x.new_zeros(len(x), self.hidden, *x.shape[-2:])
        return zeros, zeros

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self.start(x) if state is None else state
        blocks = dict(zip(self.gates, self.norm(self.conv(torch.cat((x, h), 1))).chunk(4, 1), strict=True))
        c = blocks["f"].sigmoid() * c + blocks["i"].sigmoid() * blocks["g"].tanh()
        return blocks["o"].sigmoid() * c.tanh(), c
