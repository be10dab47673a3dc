"""Long-term recurrent convolutional networks (LRCN).

Paper: Donahue, Hendricks, Rohrbach, Venugopalan, Guadarrama, Saenko and Darrell, arXiv 1411.4389 (CVPR 2015).

Idea: one convolutional network phi, shared over time, turns every frame into features; an LSTM reads them in order and a linear layer
answers at every step. Trained end to end, it sees motion that no single frame shows.

Equations. Time-major, x (T, N, D), h and c (N, H), cont (T, N) in {0, 1}, 0 at the first frame of a clip. Gates in the order i, f, o, g:

- a_t = W_xc x_t + b_c + W_hc (cont_t * h_{t-1}) [+ W_xc_static x_static]
- i, f, o = sigmoid, g = tanh of their quarter of a_t (N, 4H)
- c_t = cont_t * (f * c_{t-1}) + i * g,  h_t = o * tanh(c_t)

One bias, no peepholes. Activity recognition: the label of a clip is the average of softmax over steps.

How far this reference goes. The LSTM and the activity network (a CaffeNet with ceil-mode pooling, 3 × 227 × 227, normalization after
pooling), LRCN-fc6 with 256, 512 or 1024 units and LRCN-fc7, and the single-frame network, are the authors'. Captioning (one LSTM; two,
image to the first; factored, image to the second only) is here with 1000 units and a 1000-wide embedding, which we recall and could
not check. Not here: the flow network's data, 10-crop testing, beam search. Published Caffe files hold ip weights as W_xc, W_hc, b_c
in this gate order: the key map is the layer's name.

On hardware. One step maps after a change: pointwise layers on a 1 × 1 map, tables for sigmoid and tanh, multiply and add; the host keeps
c and h as 16-bit integers and runs the loop over time. The dense convolutions of CaffeNet become shifts, concatenation and pointwise, or
phi is swapped for a depthwise-pointwise network. Local response normalization does not map; leave it out or use batch norm.
"""
from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

State = tuple[Tensor, Tensor]
FEATURES = 13824  # 384 × 6 × 6 of a 227 × 227 image
Form = Literal["1u", "2u", "2f"]


class LrcnLSTM(nn.Module):
    """The LSTM of LRCN: x (T, N, inputs), cont (T, N) -> (T, N, hidden) and the state (h, c), each (N, hidden).

    ``static``: width of an input that every step sees (0: none).
    """

    def __init__(self, inputs: int, hidden: int, *, static: int = 0) -> None:
        super().__init__()
        for name, value, least in (("inputs", inputs, 1), ("hidden", hidden, 1), ("static", static, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value!r}")
        self.hidden = hidden
        self.W_xc = nn.Parameter(torch.empty(4 * hidden, inputs))
        self.W_hc = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.b_c = nn.Parameter(torch.zeros(4 * hidden))
        self.W_xc_static = nn.Parameter(torch.empty(4 * hidden, static)) if static else None
        self.reset_parameters()

    def reset_parameters(self, bound: float = 0.01) -> None:
        """Weights uniform in ±bound (the paper's 0.01), bias 0."""
        for weight in (self.W_xc, self.W_hc, self.W_xc_static):
            if weight is not None:
                nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.b_c)

    def step(self, a: Tensor, cont: Tensor, state: State) -> State:
        """From a_t without its recurrent part (N, 4H), cont_t (N, 1) and (h, c) of the step before to (h_t, c_t)."""
        h, c = state
        i, f, o, g = (a + F.linear(cont * h, self.W_hc)).chunk(4, 1)
        c = cont * (f.sigmoid() * c) + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def forward(
        self, x: Tensor, cont: Tensor | None = None, static: Tensor | None = None, state: State | None = None,
    ) -> tuple[Tensor, State]:
        """``cont`` None: one clip that starts at step 0, or that goes on from ``state``. ``static`` (N, static)."""
        steps, n = x.shape[:2]
        if (static is None) != (self.W_xc_static is None):
            raise ValueError(f"static must be {'absent' if self.W_xc_static is None else 'given'}, not {type(static).__name__}")
        if cont is None:
            cont = x.new_ones(steps, n)
        if tuple(cont.shape) != (steps, n):
            raise ValueError(f"cont must have the shape {(steps, n)}, not {tuple(cont.shape)!r}")
        a = F.linear(x, self.W_xc, self.b_c)  # all steps at once; only the recurrent part must wait
        if static is not None and self.W_xc_static is not None:
            a = a + F.linear(static, self.W_xc_static)
        cont = cont.to(a.dtype).unsqueeze(-1)
        h, c = state if state is not None else (a.new_zeros(n, self.hidden), a.new_zeros(n, self.hidden))
        outputs: list[Tensor] = []
        for t in range(steps):
            h, c = self.step(a[t], cont[t], (h, c))
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def to_torch(self) -> nn.LSTM:
        """The same layer as nn.LSTM (gates i, f, g, o); ValueError if it has a static input."""
        if self.W_xc_static is not None:
            raise ValueError("static must be 0 for nn.LSTM, which has no such input")
        other = nn.LSTM(self.W_xc.shape[1], self.hidden).to(self.W_xc)

        def swapped(w: Tensor) -> Tensor:
            i, f, o, g = w.detach().chunk(4)
            return torch.cat((i, f, g, o))

        parts = (("weight_ih_l0", self.W_xc), ("weight_hh_l0", self.W_hc), ("bias_ih_l0", self.b_c))
        other.load_state_dict({k: swapped(w) for k, w in parts} | {"bias_hh_l0": torch.zeros_like(self.b_c)})
        return other


def caffe_convolutions() -> nn.Sequential:
    """phi up to pool5: (N, 3, H, W) -> (N, 384, h, w), 227 -> 6. Pooling in ceil mode, normalization after it."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)

    layers = nn.Sequential(
        nn.Conv2d(3, 96, 7, 2), nn.ReLU(), pool(), norm(),
        nn.Conv2d(96, 384, 5, 2, groups=2), nn.ReLU(), pool(), norm(),
        nn.Conv2d(384, 512, 3, padding=1), nn.ReLU(),
        nn.Conv2d(512, 512, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(512, 384, 3, padding=1, groups=2), nn.ReLU(), pool(),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(cast(Tensor, layer.bias), 0.1)
    return layers


def caffe_features(depth: Literal["fc6", "fc7"] = "fc6") -> nn.Sequential:
    """phi with one (fc6) or two (fc7) layers of 4096 units: (N, 3, 227, 227) -> (N, 4096)."""
    if depth not in ("fc6", "fc7"):
        raise ValueError(f"depth must be fc6 or fc7, not {depth!r}")
    widths = [FEATURES, 4096, 4096][: 2 if depth == "fc6" else 3]
    layers: list[nn.Module] = [caffe_convolutions(), nn.Flatten()]
    for a, b in pairwise(widths):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.constant_(linear.bias, 0.1)
        layers += [linear, nn.ReLU(), nn.Dropout(0.9)]
    return nn.Sequential(*layers)


class Lrcn(nn.Module):
    """Activity recognition: frames (T, N, 3, H, W), cont (T, N) -> scores of every step (T, N, classes).

    ``features``: phi, frames (B, 3, H, W) -> (B, width); None for a CaffeNet up to ``depth``.
    """

    def __init__(
        self, hidden: int = 256, classes: int = 101, *, depth: Literal["fc6", "fc7"] = "fc6",
        features: nn.Module | None = None, width: int = 4096, drop: float = 0.5,
    ) -> None:
        super().__init__()
        self.phi = caffe_features(depth) if features is None else features
        self.lstm = LrcnLSTM(width, hidden)
        self.dropout = nn.Dropout(drop)
        self.fc8 = nn.Linear(hidden, classes)

    def forward(self, frames: Tensor, cont: Tensor | None = None) -> Tensor:
        if frames.ndim != 5:
            raise ValueError(f"frames must be (T, N, C, H, W), not {tuple(frames.shape)!r}")
        steps, n = frames.shape[:2]
        x = self.phi(frames.flatten(0, 1)).view(steps, n, -1)
        return cast(Tensor, self.fc8(self.dropout(self.lstm(x, cont)[0])))


class SingleFrame(nn.Module):
    """The paper's baseline: the same phi up to fc7 and a linear layer on every frame, (T, N, 3, H, W) -> (T, N, classes)."""

    def __init__(self, classes: int = 101, *, features: nn.Module | None = None, width: int = 4096) -> None:
        super().__init__()
        self.phi = caffe_features("fc7") if features is None else features
        self.fc8 = nn.Linear(width, classes)

    def forward(self, frames: Tensor) -> Tensor:
        steps, n = frames.shape[:2]
        return cast(Tensor, self.fc8(self.phi(frames.flatten(0, 1)))).view(steps, n, -1)


def clip_probabilities(scores: Tensor) -> Tensor:
    """(T, N, classes) scores -> (N, classes): softmax averaged over the steps."""
    return scores.softmax(-1).mean(0)


class Captioner(nn.Module):
    """Captioning: image features (N, 4096) and words (T, N) of numbers below ``words`` -> scores of the next word (T, N, words).

    ``form``: 1u (one LSTM sees word and image), 2u (two, image to the first), 2f (two, image to the second only).
    """

    def __init__(self, words: int, form: Form = "2f", *, hidden: int = 1000, embedding: int = 1000, image: int = 4096) -> None:
        super().__init__()
        if form not in ("1u", "2u", "2f"):
            raise ValueError(f"form must be 1u, 2u or 2f, not {form!r}")
        self.embed = nn.Embedding(words, embedding)
        self.lstm1 = LrcnLSTM(embedding, hidden, static=0 if form == "2f" else image)
        self.lstm2 = None if form == "1u" else LrcnLSTM(hidden, hidden, static=image if form == "2f" else 0)
        self.predict = nn.Linear(hidden, words)

    def forward(self, image: Tensor, words: Tensor, cont: Tensor | None = None) -> Tensor:
        x = self.embed(words)
        for lstm in (self.lstm1, self.lstm2):
            if lstm is not None:
                x, _ = lstm(x, cont, None if lstm.W_xc_static is None else image)
        return cast(Tensor, self.predict(x))


class _Recurrent(nn.Module):
    """Only the outputs of an LSTM, for the benchmark."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.lstm(x)[0])


def bench() -> BenchCase:
    """The LSTM over 16 frames beside the linear layer on every frame that it replaces."""
    return BenchCase(
        name="LSTM-256 against a per-frame linear layer, 16 frames of 512 features",
        ours=_Recurrent(LrcnLSTM(512, 256)),
        baseline=nn.Linear(512, 256),
        inputs=(torch.randn(16, 8, 512),),
    )


SYSTEM = System(
    name="lrcn",
    title="Long-term recurrent convolutional network",
    paper="arXiv 1411.4389 (CVPR 2015)",
    year=2015,
    kind="network",
    variants={
        "lrcn_fc6_256": partial(Lrcn, 256),
        "lrcn_fc6_512": partial(Lrcn, 512),
        "lrcn_fc6_1024": partial(Lrcn, 1024),
        "lrcn_fc7_256": partial(Lrcn, 256, depth="fc7"),
        "lrcn_single_frame": SingleFrame,
        **{f"lrcn_{form}": partial(Captioner, form=form) for form in ("1u", "2u", "2f")},
    },
    checked=(
        "parameters of the activity network and its parts to the digit", "shapes for 227 pixels", "equals nn.LSTM with gates permuted",
        "cont flushes both states; clips joined in time are two runs", "causal", "per-frame when nothing is remembered", "gradcheck",
    ),
    lowering=(
        Lowering(part="LSTM step", verdict="after a change", note="pointwise on a 1×1 map, tables, multiply, add; host keeps c and h"),
        Lowering(part="dense convolutions", verdict="after a change", note="shifts, concat and pointwise; or a depthwise-pointwise phi"),
        Lowering(part="linear layers", verdict="as is", note="pointwise on a 1×1 map"),
        Lowering(part="local response normalization", verdict="no", note="left out, or batch norm with retraining"),
    ),
    demo="models.zoo.demos.lrcn:demo",
    bench=bench,
)
