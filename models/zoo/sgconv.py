"""SGConv: structured global convolution for long sequences.

Paper: Li, Cai, Zhang, Chen and Dey, "What Makes Convolutional Models Great on Long Sequence Modeling?", arXiv 2210.09298 (ICLR 2023).

Idea: a kernel as long as the sequence needs two things to be trained: parameters that grow with the logarithm of its length, and weights
that fall with distance. SGConv concatenates sub-kernels of d parameters, stretched to double length and half amplitude each.

Equations. S = 1 + ⌈log2(L_max / d)⌉ - s0 sub-kernels w_i (Ch, H, d), Ch the channels, twice if bidirectional; s0 is ``init_scale``:

- k = concat_i(stretch(w_i, 2^(max(0, i-1) + s0)) * m_h^(S-1-i)) / Z, m_h from decay_min to decay_max over the H features (2: amplitudes
  halve), lengths d, d, 2 d, 4 d ..; Z = |k| at the start, kept as a buffer
- y[t] = sum_{s <= t} k0[t-s] u[s] (+ sum_{s > t} k1[s-t-1] u[s] if bidirectional) + D_h u[t], u (B, H, L), by FFT of length 2 L
- out = linear(GELU(y)) over the features, H Ch -> H, or a GLU; S d H Ch (2) + Ch H + H (H Ch + 1) parameters

How far this reference goes. Kernel, convolution and layer are the authors' in their default mode (cat, randn, linear). Z is taken when
the layer is built, which is its first forward pass unless weights are set between. Our reading: mode "sum" adds sub-kernels of length
d 2^(i + s0) from position 0; start "cos" is i + 1 periods of a cosine; the learnable decay, factor (position + 1)^-decay_h, starts at 0.
The settings of the long-range-arena networks were not at hand: the variants are single layers.

On hardware. The FFT does not map. With nearest stretching the kernel is exactly a sum over scales of a running sum of 2^(i-1) samples and
a d-tap depthwise convolution of that dilation (`SGConv.multirate`): S d taps instead of L, with delay lines and dilation. The mixing
layer is pointwise, GELU a table.
"""
from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System


class SGKernel(nn.Module):
    """The structured kernel: () -> (channels, dim, length) for a length; see `SGConv` for the arguments."""

    def __init__(
        self, dim: int, max_length: int, *, base: int = 32, channels: int = 1, decay: tuple[float, float] = (2.0, 2.0), init_scale: int = 0,
        combine: Literal["cat", "sum"] = "cat", start: Literal["randn", "cos"] = "randn", stretch: Literal["linear", "nearest"] = "linear",
        learnable_decay: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or channels < 1 or base < 1:
            raise ValueError(f"dim, channels and base must be positive, not {dim!r}, {channels!r} and {base!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be positive, not {max_length!r}")
        for name, value, known in (("combine", combine, ("cat", "sum")), ("start", start, ("randn", "cos")),
                                   ("stretch", stretch, ("linear", "nearest"))):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, not {value!r}")
        scales = 1 + max(0, math.ceil(math.log2(max_length / base))) - init_scale
        if init_scale < 0 or scales < 1:
            raise ValueError(f"init_scale must be at least 0 and leave a sub-kernel of {scales + init_scale}, not {init_scale!r}")
        self.combine, self.stretch, self.init_scale = combine, stretch, init_scale
        wave = [torch.cos(torch.arange(base) * (2 * math.pi * (i + 1) / base)).expand(channels, dim, base) for i in range(scales)]
        self.weights = nn.ParameterList(torch.randn(channels, dim, base) if start == "randn" else w.clone() for w in wave)
        self.decay = nn.Parameter(torch.zeros(dim, 1)) if learnable_decay else None
        self.register_buffer("m", torch.linspace(*decay, dim).view(dim, 1), persistent=False)
        self.register_buffer("z", torch.ones(channels, dim, 1))
        self.renormalize()

    def factor(self, i: int) -> int:
        """By how much sub-kernel i is stretched."""
        return int(2 ** ((max(0, i - 1) if self.combine == "cat" else i) + self.init_scale))

    def amplitude(self, i: int) -> Tensor:
        """m_h^(S-1-i) as (dim, 1)."""
        return cast(Tensor, self.m) ** (len(self.weights) - 1 - i)

    def whole(self) -> Tensor:
        """The kernel before the division by Z and of its full length."""
        size = self.weights[0].shape[-1]
        parts = []
        for i, w in enumerate(self.weights):
            long = F.interpolate(w, size=size * self.factor(i), mode=self.stretch)
            parts.append(long * self.amplitude(i))
        if self.combine == "cat":
            k = torch.cat(parts, -1)
        else:
            k = torch.stack([F.pad(p, (0, parts[-1].shape[-1] - p.shape[-1])) for p in parts]).sum(0)
        if self.decay is not None:
            place = torch.arange(1, k.shape[-1] + 1, device=k.device, dtype=k.dtype)
            k = k * place ** -self.decay
        return k

    @torch.no_grad()
    def renormalize(self) -> None:
        """Take Z from the kernel as it is now."""
        cast(Tensor, self.z).copy_(self.whole().norm(dim=-1, keepdim=True))

    def forward(self, length: int) -> Tensor:
        k = self.whole() / cast(Tensor, self.z)
        return F.pad(k, (0, length - k.shape[-1]))  # a negative width cuts


class SGConv(nn.Module):
    """The layer: (B, dim, L) both ways, any L; kernels reach ``max_length`` rounded up.

    ``base``: d; ``channels``: kernels a feature, mixed by the linear layer; ``mix`` False: return the convolution, (B, channels, dim, L).
    Further options as in `SGKernel`.
    """

    def __init__(
        self, dim: int, max_length: int, *, base: int = 32, bidirectional: bool = False, channels: int = 1, dropout: float = 0.0,
        glu: bool = False, mix: bool = True, **kernel: Any,
    ) -> None:
        super().__init__()
        self.dim, self.bidirectional, self.mix, self.max_length = dim, bidirectional, mix, max_length
        self.kernel = SGKernel(dim, max_length, base=base, channels=channels * (2 if bidirectional else 1), **kernel)
        self.d = nn.Parameter(torch.randn(channels, dim))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim * channels, dim * (2 if glu else 1)) if mix else None
        self.glu = glu

    def macs(self, length: int | None = None) -> int:
        """Multiply-accumulates for one sequence of ``length`` (default: the longest), a transform of N samples counted N ceil(log2 N)."""
        n = 2 * (length or self.max_length)
        made, kernels = self.d.numel(), self.d.numel() * (2 if self.bidirectional else 1)
        transforms = (self.dim + kernels + made) * n * (n - 1).bit_length()
        mixed = 0 if self.linear is None else self.linear.weight.numel()
        return transforms + 4 * made * (n // 2 + 1) + (made + mixed) * (n // 2)

    def convolve(self, u: Tensor) -> Tensor:
        """y (B, channels, dim, L) of u (B, dim, L)."""
        if u.ndim != 3 or u.shape[1] != self.dim:
            raise ValueError(f"u must be (B, {self.dim}, L), not {tuple(u.shape)!r}")
        length, wide = u.shape[-1], u if u.dtype == torch.float64 else u.float()  # no half-precision transforms
        k = self.kernel(length).to(wide.dtype)
        if self.bidirectional:
            ahead, back = k.chunk(2, 0)
            k = F.pad(ahead, (0, length)) + F.pad(back.flip(-1), (length, 0))
        spectrum = torch.fft.rfft(k, n=2 * length) * torch.fft.rfft(wide, n=2 * length)[:, None]
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + self.d[..., None] * wide[:, None]
        return cast(Tensor, y.to(u.dtype))

    def multirate(self, u: Tensor) -> Tensor:
        """What `convolve` returns, without FFT: running sums and dilated depthwise taps; nearest stretching of "cat" only."""
        if self.kernel.stretch != "nearest" or self.kernel.combine != "cat" or self.kernel.decay is not None:
            raise ValueError("stretch must be 'nearest' with combine 'cat' and no learnable decay for this form")
        ways = [(False, slice(0, len(self.d)))] + ([(True, slice(len(self.d), None))] if self.bidirectional else [])
        total = self.d[..., None] * u[:, None]
        for backward, part in ways:
            x = F.pad(u.flip(-1), (1, 0))[..., :-1] if backward else u  # strictly later samples
            y, offset = torch.zeros_like(total), 0
            for i, w in enumerate(self.kernel.weights):
                r = self.kernel.factor(i)
                taps = (w * self.kernel.amplitude(i) / self.kernel.z)[part]
                box = F.pad(x, (r, 0)).cumsum(-1)
                box = box[..., r:] - box[..., :-r]
                for q in range(w.shape[-1]):
                    late = offset + q * r
                    if late < u.shape[-1]:
                        y = y + taps[..., q : q + 1] * F.pad(box, (late, 0))[:, None, :, : u.shape[-1]]
                offset += w.shape[-1] * r
            total = total + (y.flip(-1) if backward else y)
        return total

    def forward(self, u: Tensor) -> Tensor:
        y = self.convolve(u)
        if self.linear is None:
            return y
        y = self.linear(self.dropout(F.gelu(y)).flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        return F.glu(y, 1) if self.glu else y

    def groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: the kernels have their own rate, 1e-3, and no decay."""
        kernel = list(self.kernel.parameters())
        other = [p for name, p in self.named_parameters() if not name.startswith("kernel.")]
        return [{"params": kernel, "lr": 1e-3, "weight_decay": 0.0}, {"params": other, "lr": lr, "weight_decay": weight_decay}]


def bench() -> BenchCase:
    """SGConv of 4096 samples beside a depthwise convolution of 127."""
    return BenchCase(
        name="SGConv against depthwise 127, 64 features, 4096 samples",
        ours=SGConv(64, 4096, mix=False),
        baseline=nn.Conv1d(64, 64, 127, padding=63, groups=64),
        inputs=(torch.randn(2, 64, 4096),),
    )


SYSTEM = System(
    name="sgconv",
    title="SGConv",
    paper="arXiv 2210.09298 (ICLR 2023)",
    year=2023,
    kind="operator",
    variants={
        "sgconv": SGConv,
        "sgconv_256_1m_bi": partial(SGConv, 256, 1_000_000, bidirectional=True),
        "sgconv_128_1k": partial(SGConv, 128, 1024, base=64),
        "sgconv_128_16k_bi": partial(SGConv, 128, 16_384, bidirectional=True),
    },
    checked=(
        "parameters of three settings to the digit, closed form", "FFT is the direct sum: cut, padded, both ways, two channels",
        "causal without wrapping around", "norm 1 at first", "nearest stretching is running sums and dilated taps", "gradcheck",
    ),
    lowering=(
        Lowering(part="FFT convolution", verdict="no", note="a transform over the whole sequence"),
        Lowering(part="kernel with nearest stretching", verdict="after a change",
                 note="running sums and dilated depthwise taps, exact; delay lines, dilation, one dimension"),
        Lowering(part="mixing layer", verdict="as is", note="pointwise"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
    ),
    demo="models.zoo.demos.sgconv:demo",
    bench=bench,
)
