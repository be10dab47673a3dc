"""TCNCA: temporal convolution network with chunked attention.

Paper: Menet, Hersche, Karunaratne, Benini, Sebastian and Rahimi, arXiv 2312.05605. The layer around it: MEGA, arXiv 2209.10655.

Idea: MEGA carries context between the chunks of its attention by a moving average, a linear recurrence of O(L log L). A causal dilated
convolution does the same in O(L), sees exactly R steps back and picks single steps instead of averaging.

Equations. x (B, L, D), y = LN(x), v = silu(W_v y) (B, L, E), m = MOVE(y) (B, L, D):

- TCN: n causal depthwise convolutions of kernel K, dilation f^i for i = 0..n-1, zeros on the left, silu after each; it sees
  R = 1 + (K - 1)(f^n - 1) / (f - 1) steps, 1 + n (K - 1) for f = 1
- EMA (MEGA's): silu(k * y + omega y), k_l = sum_h gamma_h / sqrt(N) p_h beta_h q_h^l, p = sigmoid(delta), q = 1 - p sigmoid(alpha)
- [u | z r | h_x] = W_m m, widths D | Z + E | D; u sigmoid, z and r silu; queries and keys z * gamma_j + beta_j, j = 0, 1
- a = softmax(Z^-1/2 q k^T + b) v, causal, inside chunks of c steps, b learned, one number an offset;
  or phi(q k^T / (steps seen) + b) v with phi Laplace or relu²
- h = silu(h_x + W_h (a * r)), out = x + u * (h - x); then, optionally, x + W_2 silu(W_1 LN(x))

How far this reference goes. Only the paper's abstract and MEGA's program were at hand. MEGA's layer and its EMA are the authors'. Depthwise
TCN layers (``mixing`` True: dense ones), silu after each, and the simple form, out = x + W_h a without u, r and h_x, are our readings,
K, f and n are arguments. ``tcnca_enwik8`` is MEGA's EnWik8 size, as recalled, with K, f, n = 17, 4, 4 and chunks of 2048, our choice;
its accuracy is not claimed. MEGA's rotary bias and its bidirectional form are not here.

On hardware. A dilated depthwise 1 × K maps where f^i (K - 1) is in the range of the offsets, else as line-buffered shifts by the host.
Linear layers are pointwise, gates multiply and add, sigmoid and silu are tables. Layer norm and attention (softmax, products of
activations) do not map.
"""
from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System

Move = Literal["tcn", "ema", "none"]
Score = Literal["softmax", "laplace", "relu2"]
State = list[Tensor]


def receptive_field(kernel: int, factor: int, layers: int) -> int:
    """Steps that a TCN sees, its own included."""
    return 1 + (kernel - 1) * sum(int(factor**i) for i in range(layers))


class TCN(nn.Module):
    """Causal dilated convolutions with silu after each: (B, L, dim) both ways. ``mixing``: dense instead of depthwise."""

    def __init__(self, dim: int, kernel: int = 3, factor: int = 2, layers: int = 3, *, mixing: bool = False) -> None:
        super().__init__()
        for name, value in (("kernel", kernel), ("factor", factor), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        self.receptive_field = receptive_field(kernel, factor, layers)
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, dilation=factor**i, groups=1 if mixing else dim) for i in range(layers)
        )

    @staticmethod
    def _memory(conv: nn.Module) -> int:
        assert isinstance(conv, nn.Conv1d)
        return (conv.kernel_size[0] - 1) * conv.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for conv in self.convs:
            x = F.silu(conv(F.pad(x, (self._memory(conv), 0))))
        return x.transpose(1, 2)

    def start(self, x: Tensor) -> State:
        """State before the first step of a sequence like x (B, dim): the last (K - 1) f^i inputs of each layer, zeros."""
        return [x.new_zeros(*x.shape, self._memory(conv)) for conv in self.convs]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of a stream: x (B, dim) -> (B, dim) and the next state."""
        after: State = []
        for conv, past in zip(self.convs, state, strict=True):
            window = torch.cat((past, x.unsqueeze(-1)), -1)
            after.append(window[..., 1:])
            x = F.silu(conv(window).squeeze(-1))
        return x, after


class EMA(nn.Module):
    """MEGA's damped moving average of ``terms`` N per channel, by FFT: (B, L, dim) both ways."""

    def __init__(self, dim: int, terms: int = 16) -> None:
        super().__init__()
        if terms < 1:
            raise ValueError(f"terms must be at least 1, not {terms!r}")
        self.delta, self.alpha, self.beta, self.gamma = (nn.Parameter(torch.empty(dim, terms)) for _ in range(4))
        self.omega = nn.Parameter(torch.empty(dim))
        for p, std in ((self.delta, 0.2), (self.alpha, 0.2), (self.gamma, 1.0), (self.omega, 1.0)):
            nn.init.normal_(p, std=std)
        sign = torch.ones(terms)
        sign[1::2] = -1
        with torch.no_grad():
            self.beta.copy_(sign + 0.02 * torch.randn(dim, terms))

    def kernel(self, length: int) -> Tensor:
        """k, (dim, length)."""
        p = self.delta.sigmoid()
        q = 1 - p * self.alpha.sigmoid()
        powers = torch.exp(torch.arange(length, device=q.device, dtype=q.dtype) * q.log().unsqueeze(-1))
        return torch.einsum("dn,dnl->dl", self.gamma * p * self.beta / math.sqrt(q.shape[1]), powers)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        wide = x.transpose(1, 2)
        wide = wide if wide.dtype == torch.float64 else wide.float()  # no half-precision transforms
        spectrum = torch.fft.rfft(wide, n=2 * length) * torch.fft.rfft(self.kernel(length).to(wide.dtype), n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2)
        return F.silu(y + self.omega * x).to(x.dtype)


class ChunkedAttention(nn.Module):
    """Causal attention inside chunks: q, k (B, L, Z) and v (B, L, E) -> (B, L, E), any L."""

    def __init__(self, chunk: int, score: Score = "softmax") -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk!r}")
        if score not in ("softmax", "laplace", "relu2"):
            raise ValueError(f"score must be softmax, laplace or relu2, not {score!r}")
        self.chunk, self.score = chunk, score
        self.bias = nn.Parameter(0.02 * torch.randn(2 * chunk - 1))  # of offset key - query, from -(chunk - 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[1]
        side = min(self.chunk, length)
        missing = -length % side
        q, k, v = (F.pad(t, (0, 0, 0, missing)).reshape(len(t), -1, side, t.shape[-1]) for t in (q, k, v))
        place = torch.arange(side, device=q.device)
        bias = self.bias[place - place[:, None] + self.chunk - 1]
        seen = place <= place[:, None]
        logits = q @ k.transpose(-1, -2)
        if self.score == "softmax":
            weights = (logits * q.shape[-1] ** -0.5 + bias).masked_fill(~seen, -math.inf).softmax(-1)
        else:
            logits = logits / (place + 1).unsqueeze(-1) + bias
            if self.score == "relu2":
                weights = F.relu(logits).square()
            else:  # Laplace: MEGA's smooth form of relu², mean sqrt(1/2), deviation sqrt(1/4 pi)
                weights = 0.5 * (1 + torch.erf((logits - math.sqrt(0.5)) * math.sqrt(2 * math.pi)))
            weights = weights * seen
        joined: Tensor = (weights.to(v.dtype) @ v).flatten(1, 2)
        return joined[:, :length]


class TCNCALayer(nn.Module):
    """(B, L, dim) both ways. ``keys``: Z; ``values``: E; ``feed``: width of the FFN, 0 for none; ``simple``: without gates.

    ``move``: tcn; ema (MEGA's layer); none (attention alone). ``kernel``, ``factor``, ``layers``, ``mixing``: of the TCN.
    """

    def __init__(
        self, dim: int, *, keys: int = 64, values: int = 128, chunk: int = 128, move: Move = "tcn", kernel: int = 3, factor: int = 2,
        layers: int = 3, mixing: bool = False, terms: int = 16, score: Score = "softmax", feed: int = 0, simple: bool = False,
    ) -> None:
        super().__init__()
        if move not in ("tcn", "ema", "none"):
            raise ValueError(f"move must be tcn, ema or none, not {move!r}")
        self.widths, self.simple = (dim, keys, values, dim), simple
        self.norm = nn.LayerNorm(dim)
        self.move: nn.Module = nn.Identity()
        if move == "tcn":
            self.move = TCN(dim, kernel, factor, layers, mixing=mixing)
        elif move == "ema":
            self.move = EMA(dim, terms)
        self.W_v = nn.Linear(dim, values)
        self.W_m = nn.Linear(dim, keys if simple else 2 * dim + keys + values)
        self.W_h = nn.Linear(values, dim)
        self.gamma, self.beta = nn.Parameter(0.02 * torch.randn(2, keys)), nn.Parameter(torch.zeros(2, keys))
        self.attention = ChunkedAttention(chunk, score)
        self.ffn = None
        if feed:
            self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, feed), nn.SiLU(), nn.Linear(feed, dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        v, m = F.silu(self.W_v(y)), self.W_m(self.move(y))
        if self.simple:
            x = x + self.W_h(self._attend(F.silu(m), v))
        else:
            u, z, r, h = m.split(self.widths, -1)
            h = F.silu(h + self.W_h(self._attend(F.silu(z), v) * F.silu(r)))
            x = x + u.sigmoid() * (h - x)
        return x if self.ffn is None else x + cast(Tensor, self.ffn(x))

    def _attend(self, z: Tensor, v: Tensor) -> Tensor:
        q, k = (z * self.gamma[j] + self.beta[j] for j in range(2))
        return cast(Tensor, self.attention(q, k, v))


class TCNCA(nn.Module):
    """Language model: numbers below ``words`` (B, L) -> scores of the next (B, L, words). ``options``: as `TCNCALayer`."""

    def __init__(self, words: int, dim: int, depth: int, **options: Any) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth!r}")
        self.embed = nn.Embedding(words, dim)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)
        self.layers = nn.Sequential(*(TCNCALayer(dim, **options) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, words)

    def forward(self, words: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(self.layers(self.embed(words)))))


def bench() -> BenchCase:
    """The TCN beside MEGA's moving average by FFT."""
    return BenchCase(
        name="TCN (17, 4, 4) against EMA of 16 terms by FFT, 64 channels, 8192 steps",
        ours=TCN(64, 17, 4, 4),
        baseline=EMA(64, 16),
        inputs=(torch.randn(1, 8192, 64),),
    )


ENWIK8 = {"keys": 128, "values": 1024, "chunk": 2048, "feed": 1024}
SYSTEM = System(
    name="tcnca",
    title="TCN with chunked attention",
    paper="arXiv 2312.05605",
    year=2023,
    kind="network",
    variants={
        "tcnca_enwik8": partial(TCNCA, words=256, dim=512, depth=12, kernel=17, factor=4, layers=4, **ENWIK8),
        "tcnca_simple_enwik8": partial(TCNCA, words=256, dim=512, depth=12, kernel=17, factor=4, layers=4, simple=True, **ENWIK8),
        "mega_chunk_enwik8": partial(TCNCA, words=256, dim=512, depth=12, move="ema", **ENWIK8),
        "tcnca_layer": TCNCALayer,
        "tcn": TCN,
    },
    checked=(
        "receptive field by formula and by impulse", "causal; across chunks only through the TCN", "stream = whole sequence",
        "chunk >= L is full attention", "work linear in L", "EMA by FFT = its recurrence", "closed form of parameters", "gradcheck",
    ),
    lowering=(
        Lowering(part="dilated depthwise convolutions", verdict="after a change", note="offsets in range, else shifts by the host"),
        Lowering(part="linear layers, gates", verdict="as is", note="pointwise, multiply, add"),
        Lowering(part="sigmoid, silu", verdict="after a change", note="tables"),
        Lowering(part="layer norm, chunked attention", verdict="no", note="statistics a step; softmax and products of activations"),
    ),
    demo="models.zoo.demos.tcnca:demo",
    bench=bench,
)
