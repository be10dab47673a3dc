"""Bi-directional hybrid framework for video anomaly detection: ConvTTrans and the layer-interactive ConvLSTM bridge.

Paper: Shen, Ouyang, Lu, Yang and Sanchez, "Advancing Video Anomaly Detection: A Bi-Directional Hybrid Framework for Enhanced Single- and
Multi-Task Approaches", arXiv 2504.14753 (IEEE Transactions on Image Processing 33, 2024).

Idea: the frames in the middle of a clip are predicted from those on both sides; what cannot be predicted is abnormal. A transformer whose
tokens are whole frames sees the clip's course, and pairs of ConvLSTMs bring back the fine detail that its small maps have lost.

Equations. Clip (B, T, C, H, W) in -1..1, T = 2 t_s + t_t; context: the first and last t_s frames; targets: the t_t between:

- encoder, each frame: 16 channels at full size (low), then 32 and 64 with a max pooling each: (64, H/4, W/4)
- ConvTSA: q, k, v by 3 × 3 convolutions; per head a token is a frame, C/h H W numbers; A = softmax(q k^T / sqrt(C/h H W)), (T, T) only;
  3 × 3 convolution of A v. ConvFFN: 3 × 3 C -> 4C, leaky ReLU 0.2, 3 × 3 4C -> C. Norms are batch norms, before each part
- ConvTTrans: encoder layers on the context; decoder layers, causal self-attention, attention to the encoder's output, FFN, on the maps of
  the frames one step before each target, and in the other direction, with other layers, one step after, in reversed order
- decoder: transposed 2 × 2 convolutions 64 -> 32 -> 16, at full size
- ConvLSTM: [i f g o] = GN(conv 5 × 5 [x, h, h^e]); alpha reads the low maps with h^e = 0, beta the decoder's maps with h^e = alpha's h
- target = tanh(conv 3 × 3 (lambda forward + (1 - lambda) backward, turned round)), lambda = 0.85
- loss on 0..1: (1 - SSIM) / 2 + |y - x| under a Gaussian / 2, window 11, sigma 1.5

How far this reference goes. Layers, sizes and loss as above. Ours, as they are not published: the number of heads (4; neither parameters
nor products depend on it), windows without padding in the loss, and the score: the PSNR of the targets, 1 - min-max normalized over a
video. The multi-task framework around it is not here. Batch norms use the batch's own statistics at test time too, as published, so that
a result depends on its batch; with ``running_stats`` it does not. The published mask of context frames (those whose first pixel is 1 are
padding) is `context_mask`, and off unless given. In the cells the order of the inputs is [x, h^e, h].

On hardware. Convolutions 3 × 3 and 5 × 5 by their taps, max pooling, leaky ReLU, sigmoid and tanh tables, gates, and the transposed
convolution (pointwise, depth to space) map. Products of whole frames, six at most, go to the host. Batch norm folds once it has running
statistics; group norm has to become batch norm, with retraining.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ConvLSTMCell

SLOPE = 0.2


def _norm(channels: int, running: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=running)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ConvTSA(nn.Module):
    """Queries (B, S, C, H, W) attend to frames (B, T, C, H, W); ``mask`` (S, T) or (B, S, T) is True where they may look."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must be positive and divide {channels} channels, not {heads!r}")
        self.heads = heads
        self.q, self.k, self.v, self.out = (_conv(channels, channels) for _ in range(4))

    def _tokens(self, conv: nn.Module, x: Tensor) -> Tensor:
        """(B, heads, T, C/h H W)."""
        y: Tensor = conv(x.flatten(0, 1))
        return y.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._tokens(self.q, x), self._tokens(self.k, frames), self._tokens(self.v, frames)
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = logits.masked_fill(~(mask if mask.ndim == 2 else mask[:, None]), -torch.finfo(logits.dtype).max)
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, *x.shape[2:])
        return cast(Tensor, self.out(y)).view(x.shape)


class ConvFFN(nn.Sequential):
    """(N, C, H, W) both ways."""

    def __init__(self, channels: int) -> None:
        super().__init__(_conv(channels, 4 * channels), nn.LeakyReLU(SLOPE), _conv(4 * channels, channels))


class Layer(nn.Module):
    """Pre-norm layer on (B, S, C, H, W): self-attention, then with ``cross`` attention to the context, then ConvFFN."""

    def __init__(self, channels: int, heads: int, cross: bool, running: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels, running), _norm(channels, running)
        self.attn, self.ffn = ConvTSA(channels, heads), ConvFFN(channels)
        self.norm_c = _norm(channels, running) if cross else None
        self.cross = ConvTSA(channels, heads) if cross else None

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None, context_mask: Tensor | None = None) -> Tensor:
        y = _each(self.norm1, x)
        x = x + self.attn(y, y, mask)
        if self.cross is not None and self.norm_c is not None:
            x = x + self.cross(_each(self.norm_c, x), context, context_mask)
        return x + _each(self.ffn, _each(self.norm2, x))


def _each(module: nn.Module, frames: Tensor) -> Tensor:
    """A module for maps (N, C, H, W) on every frame of (B, T, C, H, W)."""
    y = cast(Tensor, module(frames.flatten(0, 1)))
    return y.reshape(*frames.shape[:2], *y.shape[1:])


class Bridge(nn.Module):
    """Two layer-interactive ConvLSTMs: low maps and decoder maps, (B, S, F, H, W) each, -> the hidden maps of beta."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = max(1, 4 * channels // 32)
        self.alpha, self.beta = (ConvLSTMCell(2 * channels, channels, 5, norm_groups=groups) for _ in range(2))

    def forward(self, low: Tensor, maps: Tensor) -> Tensor:
        state_a, state_b, found = self.alpha.start(low[:, 0]), self.beta.start(maps[:, 0]), []
        nothing = torch.zeros_like(state_a[0])
        for x, y in zip(low.unbind(1), maps.unbind(1), strict=True):
            state_a = self.alpha(torch.cat((x, nothing), 1), state_a)
            state_b = self.beta(torch.cat((y, state_a[0]), 1), state_b)
            found.append(state_b[0])
        return torch.stack(found, 1)


class HybridVAD(nn.Module):
    """Clip (B, 2 side + targets, channels, H, W) in -1..1, H and W multiples of 4 -> the targets (B, targets, channels, H, W).

    ``layers``: of the encoder and of each direction's decoder; ``forward_weight``: lambda.
    """

    def __init__(
        self, channels: int = 1, *, side: int = 3, targets: int = 3, widths: Sequence[int] = (16, 32, 64), layers: tuple[int, int] = (5, 5),
        heads: int = 4, forward_weight: float = 0.85, running_stats: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("side", side), ("targets", targets)):
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value!r}")
        if len(widths) != 3:
            raise ValueError(f"widths must be three, not {tuple(widths)!r}")
        if not 0 <= forward_weight <= 1:
            raise ValueError(f"forward_weight must be in 0..1, not {forward_weight!r}")
        self.side, self.targets, self.forward_weight = side, targets, forward_weight
        low, middle, high = widths

        def block(conv: nn.Module, outputs: int, *more: nn.Module) -> nn.Sequential:
            return nn.Sequential(conv, _norm(outputs, running_stats), nn.LeakyReLU(SLOPE), *more)

        def stack(depth: int, cross: bool) -> nn.ModuleList:
            return nn.ModuleList(Layer(high, heads, cross, running_stats) for _ in range(depth))

        self.low = block(_conv(channels, low), low)
        self.encoder = nn.Sequential(
            block(_conv(low, middle), middle, nn.MaxPool2d(2)), block(_conv(middle, high), high, nn.MaxPool2d(2)),
        )  # fmt: skip
        self.context_layers = stack(layers[0], False)
        self.forward_layers, self.backward_layers = stack(layers[1], True), stack(layers[1], True)
        self.context_norm, self.target_norm = _norm(high, running_stats), _norm(high, running_stats)
        self.decoder = nn.Sequential(
            block(nn.ConvTranspose2d(high, middle, 2, 2), middle), block(nn.ConvTranspose2d(middle, low, 2, 2), low),
        )  # fmt: skip
        self.forward_bridge, self.backward_bridge = Bridge(low), Bridge(low)
        self.out = _conv(low, channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)

    def context_mask(self, clip: Tensor) -> Tensor:
        """As published: False (B, 2 side) for context frames whose first pixel is 1, which are padding."""
        return self._context(clip)[:, :, 0, 0, 0] != 1

    def _context(self, frames: Tensor) -> Tensor:
        return torch.cat((frames[:, : self.side], frames[:, -self.side :]), 1)

    def encode(self, maps: Tensor, mask: Tensor | None = None) -> Tensor:
        """ConvTTrans' encoder: maps (B, 2 side, C, h, w) both ways."""
        for layer in self.context_layers:
            maps = layer(maps, mask)
        return _each(self.context_norm, maps)

    def _direction(
        self, layers: nn.ModuleList, bridge: nn.Module, low: Tensor, maps: Tensor, context: Tensor, mask: Tensor | None
    ) -> Tensor:
        causal = torch.ones(maps.shape[1], maps.shape[1], dtype=torch.bool, device=maps.device).tril()
        for layer in layers:
            maps = layer(maps, causal, context, mask)
        return cast(Tensor, bridge(low, _each(self.decoder, _each(self.target_norm, maps))))

    def forward(self, clip: Tensor, context_mask: Tensor | None = None) -> Tensor:
        length = 2 * self.side + self.targets
        if clip.ndim != 5 or clip.shape[1] != length:
            raise ValueError(f"clip must be (B, {length}, channels, H, W), not {tuple(clip.shape)!r}")
        if clip.shape[-1] % 4 or clip.shape[-2] % 4:
            raise ValueError(f"clip must have sides that are multiples of 4, not {tuple(clip.shape[-2:])!r}")
        low = _each(self.low, clip)
        maps = _each(self.encoder, low)
        mask = None if context_mask is None else context_mask[:, None]
        context = self.encode(self._context(maps), mask)
        before = slice(self.side - 1, self.side + self.targets - 1)
        found = self._direction(self.forward_layers, self.forward_bridge, low[:, before], maps[:, before], context, mask)
        if self.forward_weight < 1:
            after = slice(self.side + 1, self.side + self.targets + 1)
            back = [x[:, after].flip(1) for x in (low, maps)]
            other = self._direction(self.backward_layers, self.backward_bridge, back[0], back[1], context, mask)
            found = self.forward_weight * found + (1 - self.forward_weight) * other.flip(1)
        return _each(self.out, found).tanh()

    def targets_of(self, clip: Tensor) -> Tensor:
        return clip[:, self.side : self.side + self.targets]

    def loss(self, clip: Tensor) -> Tensor:
        """Of the prediction and the clip's own targets."""
        predicted, wanted = (x.flatten(0, 1) / 2 + 0.5 for x in (self(clip), self.targets_of(clip)))
        return ssim_l1(predicted, wanted)

    @torch.no_grad()
    def errors(self, clip: Tensor) -> Tensor:
        """Mean squared error (B, targets), on 0..1."""
        error: Tensor = (self(clip) - self.targets_of(clip)) / 2
        return error.square().mean((2, 3, 4))


def gaussian(size: int = 11, sigma: float = 1.5) -> Tensor:
    """A window (size, size) of sum 1."""
    line = (-((torch.arange(size) - (size - 1) / 2) ** 2) / (2 * sigma**2)).exp()
    window = torch.outer(line, line)
    return window / window.sum()


def _smooth(x: Tensor) -> Tensor:
    window = gaussian().to(x).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, window, groups=x.shape[1])


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of (N, C, H, W) in 0..1, sides at least 11."""
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"x must have sides of at least 11, not {tuple(x.shape[-2:])!r}")
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
    shared = _smooth(x * y) - mean_x * mean_y
    first = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (first * (2 * shared + 0.03**2) / (var_x + var_y + 0.03**2)).mean()


def ssim_l1(x: Tensor, y: Tensor) -> Tensor:
    """(1 - SSIM) / 2 + half of the absolute error under the same windows."""
    return (1 - ssim(x, y)) / 2 + _smooth((x - y).abs()).mean() / 2


def scores(errors: Tensor) -> Tensor:
    """Abnormality (L) in 0..1 of the frames of one video from their errors: 1 - PSNR, min-max normalized."""
    psnr = -10 * errors.clamp(min=1e-12).log10()
    span = psnr.max() - psnr.min()
    return 1 - (psnr - psnr.min()) / torch.where(span == 0, 1, span)


def auc(normal: Tensor, abnormal: Tensor) -> float:
    """Chance that an abnormal score is above a normal one; ties count half."""
    above = (abnormal[:, None] > normal).double() + 0.5 * (abnormal[:, None] == normal).double()
    return float(above.mean())


class _Self(nn.Module):
    """ConvTSA of frames with themselves, for the benchmark."""

    def __init__(self, layer: ConvTSA) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x, x))


class _Recurrent(nn.Module):
    """A ConvLSTM over the frames, for the benchmark."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell = ConvLSTMCell(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        state, found = self.cell.start(x[:, 0]), []
        for frame in x.unbind(1):
            state = self.cell(frame, state)
            found.append(state[0])
        return torch.stack(found, 1)


def bench() -> BenchCase:
    """Frame attention beside a ConvLSTM of the same width."""
    return BenchCase(
        name="ConvTSA against ConvLSTM 3×3, 6 frames of 32 channels, 16×16", ours=_Self(ConvTSA(32)), baseline=_Recurrent(32),
        inputs=(torch.randn(2, 6, 32, 16, 16),),
    )  # fmt: skip


def rgb() -> HybridVAD:
    """For colour videos."""
    return HybridVAD(3)


SYSTEM = System(
    name="hybrid_vad",
    title="Bi-directional hybrid framework for video anomaly detection",
    paper="arXiv 2504.14753 (IEEE TIP 2024)",
    year=2024,
    kind="network",
    variants={"hybrid_vad": HybridVAD, "hybrid_vad_rgb": rgb, "conv_tsa": ConvTSA, "li_convlstm": Bridge},
    checked=(
        "parameters of both networks and their parts to the digit", "MACs to the published digits", "attention is T × T whatever the size",
        "order of context frames", "causality of targets", "lambda = 1 leaves the backward path out", "no interaction is a plain cell",
        "SSIM of equal and of constant images", "gradcheck",
    ),
    lowering=(
        Lowering(part="3×3 and 5×5 convolutions", verdict="after a change", note="by taps"),
        Lowering(part="leaky ReLU, sigmoid, tanh", verdict="after a change", note="tables"),
        Lowering(part="gates, max pooling, transposed 2×2", verdict="as is", note="multiply, add, pointwise and depth to space"),
        Lowering(part="BatchNorm", verdict="after a change", note="running statistics, then folded"),
        Lowering(part="GroupNorm", verdict="after a change", note="batch norm, folded; retrain"),
        Lowering(part="frame attention", verdict="no", note="products of whole frames and softmax go to the host; at most 6 × 6 numbers"),
    ),
    demo="models.zoo.demos.hybrid_vad:demo",
    bench=bench,
)
