"""ConvSSM and ConvS5: state-space models whose state is a map.

Paper: Smith, De Mello, Kautz, Linderman and Byeon, arXiv 2310.19694 (NeurIPS 2023).

Idea: a linear recurrence of maps, with convolutions for its matrices, keeps the locality of ConvLSTM and can be unrolled in parallel.
Where the state kernel is 1 × 1 and diagonal, composing two steps costs no more than one, so that an associative scan takes log L levels.

Equations. u_k (B, U, H, W) real, x_k (B, P, H, W) complex, k = 1..L; convolutions of stride 1 with zero padding:

- ConvSSM: x_k = A * x_{k-1} + B * u_k, y_k = C * x_k, with kernels A (P, P, a, a), B (P, U, b, b), C (U, P, c, c)
- composing L kernels of a taps gives one of L (a - 1) + 1 taps; only a = 1 keeps its size
- ConvS5: A = diag(exp(Lambda Delta)), B = Lambda^-1 (A - 1) B~ (zero-order hold), Delta = exp(log_step) (P), y_k = 2 Re(C * x_k):
  every complex state stands for a conjugate pair; Re Lambda is clipped to at most -1e-4
- scan: (a, b) . (c, d) = (c a, c b + d) is associative; x_0 is folded into the first b
- start: S = HiPPO-LegS + p p^T, Lambda = mean diag(S) + i eigh(-i S), one half of each conjugate pair; B~ = V* B_0, C = C_0 V with
  B_0, C_0 He-normal; log_step uniform in log .001 .. log .1
- after it, per frame (C_D_config): "resnet" gelu(y + conv(gelu(GN(conv(gelu(GN y)))))), "standard" gelu(GN(y + conv(u))),
  "half_glu" z * sigma(W z) with z = gelu(LN y); then the layer gives LN(u + that)

How far this reference goes. The operator, the three ends of a layer, the Moving-MNIST network and its ConvLSTM twin are the paper's
(its gelu is the tanh one). Frames are (L, B, C, H, W) here, channels last there. The decoder's first convolution has the narrowest
width, and actions (none in Moving-MNIST) are an embedding of two rows and one channel: both found from the published parameter counts.
Squeeze-and-excitation after "standard" and the quantized-latent networks are not here. On a CPU the scan is no faster than the loop.

On hardware. The recurrence is a 1 × 1 depthwise convolution of real pairs, a shuffle of the pair and an addition (``real_form``);
as |A| is close to 1, the state needs 16 bits or more, and a buffer of a frame. B and C are dense 3 × 3 convolutions, by their taps.
GELU is a table. Group and layer norm have to become batch norm, with retraining.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import ConvLSTMCell, LayerNorm2d

Pair = tuple[Tensor, Tensor]
End = Literal["resnet", "standard", "half_glu"]
EPS = 1e-6


@lru_cache(maxsize=8)
def hippo(size: int) -> Pair:
    """Lambda (size / 2) and V (size, size / 2) of the normal part of HiPPO-LegS, one of each conjugate pair, in double precision."""
    n = torch.arange(size, dtype=torch.float64, device="cpu")
    root, low = (1 + 2 * n).sqrt(), (n + 0.5).sqrt()
    a = -(torch.tril(torch.outer(root, root)) - torch.diag(n))
    s = a + torch.outer(low, low)
    skew = (s - s.mT) / 2  # s is this plus a multiple of the identity
    imaginary, v = torch.linalg.eigh(-1j * skew)
    half = size // 2
    return torch.complex(s.diagonal().mean().expand(half), imaginary[:half]), v[:, :half].contiguous()


def associate(left: Pair, right: Pair) -> Pair:
    """(a, b) . (c, d) = (c a, c b + d): first the step x -> a x + b, then c x + d."""
    (a, b), (c, d) = left, right
    return c * a, c * b + d


def parallel_scan(a: Tensor, b: Tensor) -> Pair:
    """All prefixes of (a_1, b_1) . (a_2, b_2) . ... along the first dimension, in about 2 log L levels and 2 L products."""
    length, pairs = len(a), len(a) // 2
    if length == 1:
        return a, b
    odd = parallel_scan(*associate((a[: 2 * pairs : 2], b[: 2 * pairs : 2]), (a[1::2], b[1::2])))
    later = (length - 1) // 2
    even = associate((odd[0][:later], odd[1][:later]), (a[2::2], b[2::2]))
    merged = []
    for first, e, o in zip((a, b), even, odd, strict=True):
        e = torch.cat((first[:1], e))
        merged.append(torch.cat((torch.stack((e[:pairs], o), 1).flatten(0, 1), e[pairs:])))
    return merged[0], merged[1]


def compose(later: Tensor, earlier: Tensor) -> Tensor:
    """The one kernel (P, R, a + b - 1, ...) of two square ones in turn: (P, Q, a, a) after (Q, R, b, b)."""
    side = later.shape[-1] - 1
    flipped = later.flip(-2, -1)
    return F.conv2d(earlier.transpose(0, 1), flipped, padding=side).transpose(0, 1)


class ConvSSM(nn.Module):
    """The general model, real: u (L, B, U, H, W) -> y (L, B, U, H, W) and x_L (B, states, H, W), step by step."""

    def __init__(self, inputs: int, states: int, *, a_kernel: int = 1, b_kernel: int = 3, c_kernel: int = 3) -> None:
        super().__init__()
        for name, value in (("a_kernel", a_kernel), ("b_kernel", b_kernel), ("c_kernel", c_kernel)):
            if value % 2 == 0:
                raise ValueError(f"{name} must be odd, not {value!r}")
        self.A = nn.Parameter(0.5 * torch.randn(states, states, a_kernel, a_kernel) / math.sqrt(states * a_kernel**2))
        self.B = nn.Parameter(torch.randn(states, inputs, b_kernel, b_kernel) / math.sqrt(inputs * b_kernel**2))
        self.C = nn.Parameter(torch.randn(inputs, states, c_kernel, c_kernel) / math.sqrt(states * c_kernel**2))

    def forward(self, u: Tensor, x0: Tensor | None = None) -> Pair:
        x = u.new_zeros(u.shape[1], len(self.A), *u.shape[-2:]) if x0 is None else x0
        ys = []
        for frame in u:
            x = F.conv2d(x, self.A, padding="same") + F.conv2d(frame, self.B, padding="same")
            ys.append(F.conv2d(x, self.C, padding="same"))
        return torch.stack(ys), x


class ConvS5(nn.Module):
    """u (L, B, inputs, H, W) real -> y of that shape and x_L (B, ssm_size / 2, H, W) complex. ``parallel``: by the scan or by a loop.

    ``blocks``: copies of a HiPPO matrix of ssm_size / blocks, which must be even.
    """

    def __init__(
        self, inputs: int = 256, ssm_size: int = 256, *, blocks: int = 1, b_kernel: int = 3, c_kernel: int = 3,
        dt: tuple[float, float] = (0.001, 0.1), clip_eigs: bool = True, parallel: bool = True,
    ) -> None:
        super().__init__()
        if blocks < 1 or ssm_size < 2 or ssm_size % (2 * blocks):
            raise ValueError(f"ssm_size must be a positive multiple of {2 * blocks}, twice the blocks, not {ssm_size!r}")
        for name, value in (("b_kernel", b_kernel), ("c_kernel", c_kernel)):
            if value % 2 == 0:
                raise ValueError(f"{name} must be odd, not {value!r}")
        self.states, self.clip_eigs, self.parallel = ssm_size // 2, clip_eigs, parallel
        eigenvalues, v = hippo(ssm_size // blocks)
        basis = torch.block_diag(*[v] * blocks)  # type: ignore[no-untyped-call]
        b = torch.randn(ssm_size, inputs * b_kernel**2, device="cpu").double() * math.sqrt(2 / (inputs * b_kernel**2))
        c = torch.randn(inputs * c_kernel**2, ssm_size, device="cpu").double() * math.sqrt(2 / (ssm_size * c_kernel**2))
        turned_b = (basis.mH @ b.to(basis.dtype)).view(self.states, inputs, b_kernel, b_kernel)
        turned_c = (c.to(basis.dtype) @ basis).view(inputs, c_kernel, c_kernel, self.states).permute(0, 3, 1, 2)
        self.Lambda_re, self.Lambda_im = (_parameter(x.repeat(blocks)) for x in (eigenvalues.real, eigenvalues.imag))
        self.B, self.C = (_parameter(torch.view_as_real(x.resolve_conj().contiguous())) for x in (turned_b, turned_c))
        low, high = (math.log(x) for x in dt)
        self.log_step = nn.Parameter(torch.rand(self.states) * (high - low) + low)

    def discretize(self) -> tuple[Tensor, Tensor]:
        """A (P) and the factor (P) that turns B~ into B."""
        real = self.Lambda_re.clamp(max=-1e-4) if self.clip_eigs else self.Lambda_re
        eigenvalues = torch.complex(real, self.Lambda_im)
        a = (eigenvalues * self.log_step.exp()).exp()
        return a, (a - 1) / eigenvalues

    def real_kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        """A (P) complex, and the kernels of the real form: B (2 P, U, b, b), real parts first, and C (U, 2 P, c, c) with the factor 2."""
        a, factor = self.discretize()
        b = factor.view(-1, 1, 1, 1) * torch.view_as_complex(self.B)
        c = torch.view_as_complex(self.C)
        return a, torch.cat((b.real, b.imag)), 2 * torch.cat((c.real, -c.imag), 1)

    @torch.no_grad()
    def real_form(self) -> ConvSSM:
        """The same model with 2 P real states, (Re x, Im x)."""
        a, b, c = self.real_kernels()
        model = ConvSSM(b.shape[1], len(b), b_kernel=b.shape[-1], c_kernel=c.shape[-1]).to(b)
        re, im = torch.diag(a.real), torch.diag(a.imag)
        matrix = torch.cat((torch.cat((re, -im), 1), torch.cat((im, re), 1)))
        for parameter, value in ((model.A, matrix[:, :, None, None]), (model.B, b), (model.C, c)):
            parameter.copy_(value)
        return model

    def forward(self, u: Tensor, x0: Tensor | None = None) -> Pair:
        length, batch = u.shape[:2]
        a, b_kernel, c_kernel = self.real_kernels()
        driven = F.conv2d(u.flatten(0, 1), b_kernel, padding="same")
        if driven.dtype != torch.float64:
            driven = driven.float()  # the state is never kept in half precision
        driven = driven.reshape(length, batch, -1, *u.shape[-2:])
        drive = torch.complex(*(x.contiguous() for x in driven.chunk(2, 2)))
        step = a.view(1, -1, 1, 1)
        if x0 is not None:
            drive = torch.cat((drive[:1] + step * x0, drive[1:]))
        if self.parallel:
            states = parallel_scan(step.expand(length, 1, -1, 1, 1), drive)[1]
        else:
            x = drive[0]
            kept = [x]
            for each in drive[1:]:
                x = step * x + each
                kept.append(x)
            states = torch.stack(kept)
        pairs = torch.cat((states.real, states.imag), 2).flatten(0, 1)
        return F.conv2d(pairs, c_kernel, padding="same").reshape(u.shape), states[-1]


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(value.shape).copy_(value))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class Resnet(nn.Module):
    """gelu(y + h), h = conv(gelu(GN(conv(gelu(GN y))))): frames (N, C, H, W) both ways; u is not used."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, channels, eps=EPS) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(2))

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        return _gelu(y + self.conv2(_gelu(self.norm2(self.conv1(_gelu(self.norm1(y)))))))


class Standard(nn.Module):
    """gelu(GN(y + D * u))."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.D = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        return _gelu(self.norm(y + self.D(u)))


class HalfGLU(nn.Module):
    """z * sigma(W z), z = gelu(LN y); u is not used."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.norm, self.W = LayerNorm2d(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        z = _gelu(self.norm(y))
        return z * cast(Tensor, self.W(z)).sigmoid()


ENDS = {"resnet": Resnet, "standard": Standard, "half_glu": HalfGLU}


class ConvS5Layer(nn.Module):
    """LN(u + end(ConvS5 u)): u (L, B, channels, H, W) and x_0 -> the same shape and x_L."""

    def __init__(
        self, channels: int = 256, ssm_size: int = 256, *, end: End = "resnet", kernel: int = 3, groups: int = 32, parallel: bool = True
    ) -> None:
        super().__init__()
        if end not in ENDS:
            raise ValueError(f"end must be one of {', '.join(ENDS)}, not {end!r}")
        if channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, not {groups!r}")
        self.ssm = ConvS5(channels, ssm_size, b_kernel=kernel, c_kernel=kernel, parallel=parallel)
        self.end = ENDS[end](channels, kernel, groups)
        self.norm = LayerNorm2d(channels, eps=EPS)

    def forward(self, u: Tensor, x0: Tensor | None = None) -> Pair:
        y, last = self.ssm(u, x0)
        flat = u.flatten(0, 1)
        return self.norm(flat + self.end(y.flatten(0, 1), flat)).reshape(u.shape), last


class ConvLSTMLayer(nn.Module):
    """The paper's baseline, LN(u + h): u (L, B, channels, H, W) and (h_0, c_0) -> the same shape and (h_L, c_L)."""

    def __init__(self, channels: int = 256, kernel: int = 3) -> None:
        super().__init__()
        self.cell = ConvLSTMCell(channels, channels, kernel, bias=False, gates="ifog")
        self.norm = LayerNorm2d(channels, eps=EPS)

    def forward(self, u: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        state = self.cell.start(u[0]) if state is None else state
        ys = []
        for frame in u:
            state = self.cell(frame, state)
            ys.append(self.norm(frame + state[0]))
        return torch.stack(ys), state


class ResNetBlock(nn.Module):
    """skip(x) + 0.1 conv(elu(GN(conv(elu(GN x))))): (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs, eps=EPS), nn.GroupNorm(groups, outputs, eps=EPS)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.elu(self.norm2(self.conv1(F.elu(self.norm1(x))))))
        return cast(Tensor, self.skip(x) + 0.1 * y)


class VideoModel(nn.Module):
    """Frames (L, B, channels, H, W) in -1..1 -> for each the prediction of the next one, and the states of the layers.

    ``core``: "convs5" or "convlstm"; H and W are multiples of 2^(len(widths) - 1). ``actions``: (L, B) integers, 0 for none.
    """

    def __init__(
        self, core: Literal["convs5", "convlstm"] = "convs5", *, channels: int = 1, widths: Sequence[int] = (64, 128, 256), layers: int = 8,
        ssm_size: int = 256, end: End = "resnet", groups: int = 32, actions: int = 1, parallel: bool = True,
    ) -> None:
        super().__init__()
        if core not in ("convs5", "convlstm"):
            raise ValueError(f"core must be 'convs5' or 'convlstm', not {core!r}")
        if len(widths) < 2:
            raise ValueError(f"widths must be at least two, not {tuple(widths)!r}")
        wide, self.reduction = widths[-1], 2 ** (len(widths) - 1)
        parts: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), ResNetBlock(widths[0], widths[0], groups)]
        for a, b in pairwise(widths):
            parts += [nn.AvgPool2d(2), ResNetBlock(a, b, groups)]
        self.encoder = nn.Sequential(*parts)
        self.action_embeds = nn.Embedding(actions + 1, 1)
        self.action_conv = nn.Conv2d(wide + 1, wide, 1)
        self.sequence_model = nn.ModuleList(
            ConvS5Layer(wide, ssm_size, end=end, groups=groups, parallel=parallel) if core == "convs5" else ConvLSTMLayer(wide)
            for _ in range(layers)
        )
        down = list(reversed(widths))
        parts = [nn.Conv2d(wide, widths[0], 3, padding=1), ResNetBlock(widths[0], wide, groups)]
        for a, b in pairwise(down):
            parts += [nn.Upsample(scale_factor=2), ResNetBlock(a, b, groups)]
        self.decoder = nn.Sequential(*parts, LayerNorm2d(widths[0], eps=EPS), nn.Conv2d(widths[0], channels, 1), nn.Tanh())

    def forward(
        self, frames: Tensor, actions: Tensor | None = None, states: Sequence[Tensor | Pair | None] | None = None
    ) -> tuple[Tensor, list[Tensor | Pair]]:
        if frames.shape[-2] % self.reduction or frames.shape[-1] % self.reduction:
            raise ValueError(f"frames must have sides that are multiples of {self.reduction}, not {tuple(frames.shape[-2:])!r}")
        leading = frames.shape[:2]
        z = self.encoder(frames.flatten(0, 1))
        if actions is None:
            actions = torch.zeros(leading, dtype=torch.long, device=frames.device)
        given = self.action_embeds(actions.flatten())[..., None, None].expand(-1, -1, *z.shape[-2:])
        z = self.action_conv(torch.cat((z, given.to(z.dtype)), 1)).unflatten(0, leading)
        last: list[Tensor | Pair] = []
        for layer, state in zip(self.sequence_model, states or [None] * len(self.sequence_model), strict=True):
            z, after = layer(z, state)
            last.append(after)
        return self.decoder(z.flatten(0, 1)).unflatten(0, leading), last

    def loss(self, frames: Tensor) -> Tensor:
        """Half of the squared and half of the absolute error of each next frame, summed over columns and channels, mean of the rest."""
        error = self(frames[:-1])[0] - frames[1:]
        summed: Tensor = (error.square() + error.abs()).sum((-3, -1))
        return 0.5 * summed.mean()

    @torch.no_grad()
    def generate(self, frames: Tensor, steps: int) -> Tensor:
        """The next ``steps`` frames (steps, B, channels, H, W), each fed back; only the states are carried."""
        predicted, states = self(frames)
        found = [predicted[-1]]
        for _ in range(steps - 1):
            predicted, states = self(found[-1][None], None, states)
            found.append(predicted[-1])
        return torch.stack(found)


class _Frames(nn.Module):
    """A layer as one tensor to one tensor, for the benchmark."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, u: Tensor) -> Tensor:
        y, _ = self.layer(u)
        return cast(Tensor, y)


def bench() -> BenchCase:
    """A ConvS5 layer beside a ConvLSTM layer of the same width."""
    return BenchCase(
        name="ConvS5 layer against ConvLSTM layer, 32 frames of 32 channels, 8×8",
        ours=_Frames(ConvS5Layer(32, 32)),
        baseline=_Frames(ConvLSTMLayer(32)),
        inputs=(torch.randn(32, 2, 32, 8, 8),),
    )


SYSTEM = System(
    name="convs5",
    title="ConvSSM, ConvS5",
    paper="arXiv 2310.19694 (NeurIPS 2023)",
    year=2023,
    kind="operator",
    variants={
        "convs5_moving_mnist": VideoModel,
        "convlstm_moving_mnist": partial(VideoModel, "convlstm"),
        "convs5_layer": ConvS5Layer,
        "convs5": ConvS5,
    },
    checked=(
        "parameters of both networks, a layer, encoder and decoder to the digit", "scan equals loop",
        "chunks with carried state equal one run", "real form of 2P channels", "1×1 kernels are S5 at every pixel",
        "composed state kernels grow", "zero-order hold", "eigenvalues of HiPPO-LegS", "gradcheck",
    ),
    lowering=(
        Lowering(part="recurrence", verdict="after a change", note="real pairs: 1×1 depthwise, shuffle, add; 16-bit frame buffer"),
        Lowering(part="B and C kernels", verdict="after a change", note="dense 3×3 as a sum of taps"),
        Lowering(part="GELU", verdict="after a change", note="a table"),
        Lowering(part="GroupNorm, LayerNorm", verdict="after a change", note="batch norm, folded; retrain"),
    ),
    demo="models.zoo.demos.convs5:demo",
    bench=bench,
)
