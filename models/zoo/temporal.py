"""TS-LSTM and Temporal-Inception: what to do with the features of a video's frames.

Paper: Ma, Chen, Kira and AlRegib, "TS-LSTM and Temporal-Inception", arXiv 1703.10667 (Signal Processing: Image Communication, 2019).

Idea: an LSTM over a few segments, each pooled by its maximum, keeps the order of events and forgets the order inside a segment.
Temporal-Inception finds the order with convolutions along time, of two lengths at a time, whose kernels all feature dimensions share.

Equations. Features x (B, T, D), T = 25 frames, D = 4096: pool5 of an RGB and of a flow ResNet-101, concatenated.

- TS-LSTM: S = 3 segments of T // S frames, the rest dropped; per segment s a batch norm of D applied frame by frame (statistics of every
  frame by itself, parameters of the segment), u_s = max over its frames; LSTM of H = 512 over u_1..u_S; BN, linear, log-softmax of h_S
- its LSTM has diagonal peepholes and two biases, gates i, f, g, o:
  i, f = sigmoid(W x_t + b + R h_{t-1} + b' + p * c_{t-1}), g = tanh(..), c_t = f * c_{t-1} + i * g, o = sigmoid(.. + p_o * c_t),
  h_t = o * tanh(c_t)
- Temporal-Inception: map (B, 1, D, T); four modules of two branches, convolution 1 × 5 and 1 × 7 to 1, 2, 4, 8 maps each, BN, ReLU,
  max pooling by 2, 2, 2, 3 in time, concatenated: 16 maps and one step; 1 × 1 to 4, 2, 1 maps, each BN, ReLU; dropout; linear D -> 1024,
  BN, ReLU, dropout; linear, log-softmax

How far this reference goes. Both networks and the two-stream wiring (flow: ten stacked pairs, 20 channels) are the authors'. Their program
carries the LSTM's state from one batch into the next, and starts all parameters uniform in ±0.1, batch norms too: the first is a
mistake and left out, the second is kept. Which of a module's five places has the spatial dropout is not known to us: here after the last
1 × 1. Not here: their VGG-style temporal network, TV-L1 flow. Published Lua files: the LSTM's parameters have their gates here in the
order of nn.LSTM; there is no key map.

On hardware. Temporal-Inception: small convolutions on a (D, T) map become shifts and pointwise layers with the norm folded in, ReLU,
maximum and concat map as they are, the linear layers are pointwise. TS-LSTM: maximum as it is; the LSTM's step after a change (tables
for sigmoid and tanh; a peephole is one more multiply), stepped by the host. Log-softmax stays with the host.
"""
from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ResNet

FRAMES = 25
CLASSES = {"ucf101": 101, "hmdb51": 51}


class PeepholeLSTM(nn.Module):
    """x (B, S, inputs) -> h of every step (B, S, hidden), from a zero state. Parameters named as in nn.LSTM, and three peepholes."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        self.weight_ih, self.weight_hh = (nn.Parameter(torch.empty(4 * hidden, n)) for n in (inputs, hidden))
        self.bias_ih, self.bias_hh = (nn.Parameter(torch.empty(4 * hidden)) for _ in range(2))
        self.peep_i, self.peep_f, self.peep_o = (nn.Parameter(torch.empty(hidden)) for _ in range(3))
        reset_uniform_(self)

    def forward(self, x: Tensor) -> Tensor:
        a = F.linear(x, self.weight_ih, self.bias_ih)  # all steps at once; only the recurrent part must wait
        h = c = a.new_zeros(len(x), self.weight_hh.shape[1])
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            i, f, g, o = (a[:, t] + F.linear(h, self.weight_hh, self.bias_hh)).chunk(4, 1)
            i, f = (i + self.peep_i * c).sigmoid(), (f + self.peep_f * c).sigmoid()
            c = f * c + i * g.tanh()
            h = (o + self.peep_o * c).sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1)


@torch.no_grad()
def reset_uniform_(module: nn.Module, bound: float = 0.1) -> None:
    """Every parameter uniform in ±bound, those of batch norms too, as the authors start TS-LSTM."""
    for p in module.parameters():
        nn.init.uniform_(p, -bound, bound)


@torch.no_grad()
def clamp_gradients_(module: nn.Module, bound: float = 5.0) -> None:
    """Every element of every gradient into ±bound, as the authors train TS-LSTM."""
    nn.utils.clip_grad_value_(module.parameters(), bound)


class TSLSTM(nn.Module):
    """x (B, T, dim), T at least ``segments`` -> log-probabilities (B, classes)."""

    def __init__(self, dim: int = 4096, classes: int = 101, *, segments: int = 3, hidden: int = 512, drop: float = 0.0) -> None:
        super().__init__()
        if segments < 1:
            raise ValueError(f"segments must be at least 1, not {segments!r}")
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(segments))
        self.lstm = PeepholeLSTM(dim, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(drop)
        self.fc = nn.Linear(hidden, classes)
        reset_uniform_(self)

    def pooled(self, x: Tensor) -> Tensor:
        """The maxima of the segments, (B, segments, dim)."""
        length = x.shape[1] // len(self.norms)
        if x.ndim != 3 or length < 1:
            raise ValueError(f"x must be (B, T, dim) with T at least {len(self.norms)}, not {tuple(x.shape)!r}")
        parts = [
            torch.stack([norm(x[:, t]) for t in range(s * length, (s + 1) * length)]).amax(0) for s, norm in enumerate(self.norms)
        ]
        return torch.stack(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        last = self.lstm(self.pooled(x))[:, -1]
        return cast(Tensor, self.fc(self.dropout(self.norm(last)))).log_softmax(-1)


class InceptionModule(nn.Module):
    """Two branches along time, 5 and 7 frames: (B, inputs, D, T) -> (B, 2 outputs, D, T // pool)."""

    def __init__(self, inputs: int, outputs: int, pool: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, (1, length), padding=(0, length // 2)), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.MaxPool2d((1, pool)),
            )
            for length in (5, 7)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class TemporalInception(nn.Module):
    """x (B, 24..47 frames, dim) -> log-probabilities (B, classes); the paper's T is 25."""

    def __init__(self, dim: int = 4096, classes: int = 101, *, hidden: int = 1024, drop: float = 0.2) -> None:
        super().__init__()
        self.modules_ = nn.Sequential(*(InceptionModule(2**k, 2**k, pool) for k, pool in enumerate((2, 2, 2, 3))))
        squeeze: list[nn.Module] = []
        for a, b in pairwise((16, 4, 2, 1)):
            squeeze += [nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.squeeze = nn.Sequential(*squeeze)
        self.spatial_dropout = nn.Dropout2d(drop)
        self.head = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, classes),
        )  # fmt: skip

    def features(self, x: Tensor) -> Tensor:
        """One number a feature dimension, (B, dim)."""
        if x.ndim != 3 or not 24 <= x.shape[1] < 48:
            raise ValueError(f"x must be (B, T, dim) with T in 24..47, not {tuple(x.shape)!r}")
        maps = self.modules_(x.transpose(1, 2).unsqueeze(1))
        return cast(Tensor, self.spatial_dropout(self.squeeze(maps))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(x))).log_softmax(-1)


class TwoStream(nn.Module):
    """Frames (B, T, 3, H, W) and stacked flow (B, T, 20, H, W) -> ``head`` of the two streams' features (B, T, 2 D).

    ``rgb``, ``flow``: networks (N, C, H, W) -> (N, D, h, w), averaged over the map; None for ResNet-101.
    """

    def __init__(self, head: nn.Module, *, rgb: nn.Module | None = None, flow: nn.Module | None = None) -> None:
        super().__init__()
        self.rgb = ResNet((3, 4, 23, 3)) if rgb is None else rgb
        self.flow = ResNet((3, 4, 23, 3), inputs=20) if flow is None else flow
        self.head = head

    def forward(self, frames: Tensor, flow: Tensor) -> Tensor:
        if frames.ndim != 5 or flow.ndim != 5 or frames.shape[:2] != flow.shape[:2]:
            raise ValueError(f"flow must be (B, T, 20, H, W) with B and T of frames {tuple(frames.shape)}, not {tuple(flow.shape)!r}")
        parts = [net(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2]) for net, x in ((self.rgb, frames), (self.flow, flow))]
        return cast(Tensor, self.head(torch.cat(parts, -1)))


class MeanPool(nn.Module):
    """The baseline: the mean over time, then the head of Temporal-Inception: (B, T, dim) -> (B, classes)."""

    def __init__(self, dim: int = 4096, classes: int = 101, *, hidden: int = 1024, drop: float = 0.2) -> None:
        super().__init__()
        self.head = TemporalInception(dim, classes, hidden=hidden, drop=drop).head

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(x.mean(1))).log_softmax(-1)


def two_stream(kind: str, classes: int = 101) -> TwoStream:
    """Two ResNet-101 and "ts_lstm" or "temporal_inception"."""
    heads = {"ts_lstm": TSLSTM, "temporal_inception": TemporalInception}
    if kind not in heads:
        raise ValueError(f"kind must be one of {', '.join(heads)}, not {kind!r}")
    return TwoStream(heads[kind](4096, classes))


def bench() -> BenchCase:
    """Temporal-Inception beside pooling by the mean, the same head."""
    return BenchCase(
        name="Temporal-Inception against the mean over 25 frames of 4096 features",
        ours=TemporalInception(),
        baseline=MeanPool(),
        inputs=(torch.randn(4, FRAMES, 4096),),
    )


SYSTEM = System(
    name="temporal",
    title="TS-LSTM and Temporal-Inception",
    paper="arXiv 1703.10667",
    year=2017,
    kind="network",
    variants={
        **{f"ts_lstm_{name}": partial(TSLSTM, 4096, classes) for name, classes in CLASSES.items()},
        "ts_lstm_one_stream": partial(TSLSTM, 2048, 101),
        **{f"temporal_inception_{name}": partial(TemporalInception, 4096, classes) for name, classes in CLASSES.items()},
        "temporal_inception_one_stream": partial(TemporalInception, 2048, 101),
        "two_stream_ts_lstm": partial(two_stream, kind="ts_lstm"),
        "two_stream_temporal_inception": partial(two_stream, kind="temporal_inception"),
    },
    checked=(
        "parameters of all variants and parts to the digit", "shapes along time", "TS-LSTM: order inside a segment is lost, order of "
        "segments kept, frame 25 never matters, S = 1 is the maximum and one step", "without peepholes equals nn.LSTM",
        "Temporal-Inception commutes with permutations of features", "gradcheck",
    ),
    lowering=(
        Lowering(part="Temporal-Inception", verdict="after a change", note="along time as shifts and pointwise; norm folded in"),
        Lowering(part="maximum, concat, linear layers", verdict="as is", note="linear layers are pointwise on a 1×1 map"),
        Lowering(part="TS-LSTM step", verdict="after a change", note="pointwise, tables, multiply, add; host keeps c and h"),
        Lowering(part="batch norm before the maximum", verdict="as is", note="scale and shift per channel"),
        Lowering(part="log-softmax", verdict="no", note="host; the largest score needs none"),
    ),
    demo="models.zoo.demos.temporal:demo",
    bench=bench,
)
