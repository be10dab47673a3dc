"""Poincaré ResNet: residual networks whose layers live in hyperbolic space.

Paper: van Spengler, Berkhout and Mettes, "Poincaré ResNet", arXiv 2303.14027 (ICCV 2023).

Idea: convolution, normalization and the residual sum are replaced by their counterparts on the Poincaré ball. Weights that start as the
identity keep norms alive through many layers, batch norm around a closed-form midpoint replaces the iterative mean, and gradients
written by hand keep the graph small.

Equations. Ball c |x|² < 1, lambda_x = 2 / (1 - c |x|²), s = sqrt(c):

- x (+) y = ((1 + 2c<x,y> + c|y|²) x + (1 - c|x|²) y) / (1 + 2c<x,y> + c²|x|²|y|²)
- exp_0 v = tanh(s|v|) v / (s|v|), log_0 its inverse; exp_x v = x (+) exp_0(lambda_x v / 2), log_x y = 2 / lambda_x log_0(-x (+) y)
- dist(x, y) = 2/s atanh(s |-x (+) y|); transport x -> y of v: gyr[y, -x] v lambda_x / lambda_y, where
  gyr[u, v] w = -(u (+) v) (+) (u (+) (v (+) w))
- FC, x (.., n), Z (n, m), r (m): v_k = 2|z_k|/s asinh(lambda_x s <x, z_k>/|z_k| cosh 2s r_k - (lambda_x - 1) sinh 2s r_k),
  w = sinh(s v)/s, y = w / (1 + sqrt(1 + c|w|²)). Z = I/2, r = 0 is exactly the identity
- features between layers are tangent vectors at 0 (N, C, H, W); convolution: times B(nK/2, 1/2) / B(n/2, 1/2), unfold to n K = n k²
  values, exp_0, FC, log_0
- norm over the batch: mu = 1/2 (x) sum g² x / (sum g² - n/2), g² = lambda/2; 1/2 (x) m = m G/(1 + G), G = (1 - c|m|²)^-1/2;
  x -> exp_b(sqrt(v / (mean dist² + 1e-6)) transport_{mu -> b} log_mu x), b = exp_0(bias), v a scalar
- residual log_0(exp_0 f (+) exp_0 x); ReLU on tangent vectors. Points are pulled back to norm (1 - eps)/s, eps 4e-3 (1e-5 in double)

How far this reference goes. Layers, network and sizes are the paper's; the norm has no running statistics, so that the result for an image
depends on its batch in eval mode too. ``official`` True keeps two quirks of the published code: lambda = 2 (1 - c|x|²) inside the FC
(identity layers then shrink) and the residual's maps over the width instead of the channels. I/2 as start of a 3 × 3 convolution
takes output j from tap j mod 9 of channel j // 9, as published: norms are preserved by 1 × 1 layers only. Our reading: the mean over the
map is taken of tangent vectors, and the logits are log_0 of the last FC. The curvature is a constant here: hand-written gradients are with
respect to points; with ``manual`` False ``c`` may be a tensor that learns. Gyrations take w scaled to half the ball's radius,
which their linearity allows, for accuracy.

On hardware. tanh, atanh, asinh, norms and quotients of whole vectors at every layer: nothing but ReLU and unfolding maps. A software
reference.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.layers import full_precision

Init = Literal["identity", "normal"]
TINY = 1e-15


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(x, dim=-1, keepdim=True)).clamp_min(TINY)


def _root(c: float | Tensor) -> float:
    """Its square root; typed as a float, with which a tensor computes alike."""
    return cast(float, c.sqrt()) if isinstance(c, Tensor) else math.sqrt(c)


def _radial(v: Tensor, c: float | Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """s|v| and the factor f of exp_0 v = f v, or of log_0 where ``inverse``."""
    s = _norm(v) * _root(c)
    return s, s.clamp_max(1 - torch.finfo(v.dtype).eps).atanh() / s if inverse else s.tanh() / s


def _mobius(x: Tensor, y: Tensor, c: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of x and y in their sum, and the denominator."""
    xy, xx, yy = _dot(x, y), _dot(x, x), _dot(y, y)
    return 1 + 2 * c * xy + c * yy, 1 - c * xx, 1 + 2 * c * xy + c * c * xx * yy


class MobiusAdd(torch.autograd.Function):
    """x (+) y; saves x and y alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: float) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.c = c
        a, b, d = _mobius(x, y, c)
        return (a * x + b * y) / d

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,), (x, y), c = grads, ctx.saved_tensors, ctx.c
        a, b, d = _mobius(x, y, c)
        gx, gy = _dot(g, x), _dot(g, y)
        out = (a * gx + b * gy) / d  # <g, x (+) y>
        cross = 2 * c * (gx - out) / d
        dx = a / d * g + cross * y - 2 * c * (gy + c * _dot(y, y) * out) / d * x
        dy = b / d * g + cross * x + 2 * c * (gx - c * _dot(x, x) * out) / d * y
        return dx.sum_to_size(x.shape), dy.sum_to_size(y.shape), None


class Radial(torch.autograd.Function):
    """exp_0, or log_0 where ``inverse``; saves its argument alone."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, c: float, inverse: bool) -> Tensor:
        ctx.save_for_backward(v)
        ctx.c, ctx.inverse = c, inverse
        return _radial(v, c, inverse)[1] * v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,), (v,) = grads, ctx.saved_tensors
        s, f = _radial(v, ctx.c, ctx.inverse)
        slope = 1 / (1 - s * s).clamp_min(torch.finfo(v.dtype).eps) if ctx.inverse else 1 - (f * s) ** 2
        unit = v / _norm(v)
        return f * g + (slope - f) * _dot(g, unit) * unit, None, None


class Conformal(torch.autograd.Function):
    """v lambda_x / 2, or 2 v / lambda_x where ``inverse``; saves x and v alone."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, x: Tensor, c: float, inverse: bool) -> Tensor:
        ctx.save_for_backward(v, x)
        ctx.c, ctx.inverse = c, inverse
        k = 1 - c * _dot(x, x)
        return v * k if inverse else v / k

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,), (v, x), c = grads, ctx.saved_tensors, ctx.c
        k = 1 - c * _dot(x, x)
        pull = 2 * c * _dot(g, v) * x
        dv, dx = (g * k, -pull) if ctx.inverse else (g / k, pull / (k * k))
        return dv.sum_to_size(v.shape), dx.sum_to_size(x.shape), None, None


class Project(torch.autograd.Function):
    """x, or x scaled to norm ``limit`` where it is longer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limit = limit
        return x * (limit / _norm(x)).clamp_max(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,), (x,) = grads, ctx.saved_tensors
        norm = _norm(x)
        unit = x / norm
        return torch.where(norm > ctx.limit, (g - _dot(g, unit) * unit) * (ctx.limit / norm), g), None


class PoincareBall:
    """The ball of curvature -c. All maps act on the last axis. ``manual``: gradients by hand, else by autograd of the formulas."""

    def __init__(self, c: float | Tensor = 0.1, *, manual: bool = True) -> None:
        if float(c.detach() if isinstance(c, Tensor) else c) <= 0:
            raise ValueError(f"c must be positive, not {c!r}")
        if manual and isinstance(c, Tensor):
            raise ValueError(f"c must be a float where gradients are by hand, not {c!r}")
        self.c, self.manual = c, manual

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x (+) y."""
        if self.manual:
            return cast(Tensor, MobiusAdd.apply(x, y, self.c))  # type: ignore[no-untyped-call]
        a, b, d = _mobius(x, y, self.c)
        return (a * x + b * y) / d

    def project(self, x: Tensor) -> Tensor:
        """x, pulled back to norm (1 - eps) / sqrt(c) if it is longer."""
        limit = (1 - (1e-5 if x.dtype == torch.float64 else 4e-3)) / _root(self.c)
        if self.manual:
            return cast(Tensor, Project.apply(x, limit))  # type: ignore[no-untyped-call]
        return x * (limit / _norm(x)).clamp_max(1)

    def exp0(self, v: Tensor) -> Tensor:
        if self.manual:
            return cast(Tensor, Radial.apply(v, self.c, False))  # type: ignore[no-untyped-call]
        return _radial(v, self.c, False)[1] * v

    def log0(self, y: Tensor) -> Tensor:
        if self.manual:
            return cast(Tensor, Radial.apply(y, self.c, True))  # type: ignore[no-untyped-call]
        return _radial(y, self.c, True)[1] * y

    def _conformal(self, v: Tensor, x: Tensor, inverse: bool = False) -> Tensor:
        if self.manual:
            return cast(Tensor, Conformal.apply(v, x, self.c, inverse))  # type: ignore[no-untyped-call]
        k = 1 - self.c * _dot(x, x)
        return v * k if inverse else v / k

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.add(x, self.exp0(self._conformal(v, x)))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self._conformal(self.log0(self.add(-x, y)), x, inverse=True)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """(..,): 2 |log_0(-x (+) y)|."""
        return 2 * cast(Tensor, torch.linalg.vector_norm(self.log0(self.add(-x, y)), dim=-1))

    def gyration(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """gyr[u, v] w."""
        scale = (2 * _root(self.c) * _norm(w)).detach()  # linear in w: any constant does
        return self.add(-self.add(u, v), self.add(u, self.add(v, w / scale))) * scale

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of v from the tangent space of x to that of y."""
        return self._conformal(self._conformal(self.gyration(y, -x, v), x), y, inverse=True)

    def midpoint(self, x: Tensor) -> Tensor:
        """x (n, d) -> (d,)."""
        g = 1 / (1 - self.c * _dot(x, x))
        m = (g * x).sum(0) / (g.sum() - len(x) / 2)
        root = (1 - self.c * _dot(m, m)).clamp_min(TINY).sqrt()
        return m / (1 + root)

    def fc(self, x: Tensor, z: Tensor, r: Tensor, *, official: bool = False) -> Tensor:
        """x (.., n), z (n, m), r (m,) -> (.., m)."""
        s, k = _root(self.c), 1 - self.c * _dot(x, x)
        lam = 2 * k if official else 2 / k
        size = cast(Tensor, torch.linalg.vector_norm(z, dim=0)).clamp_min(TINY)
        inner = lam * s * (x @ (z / size)) * (2 * s * r).cosh() - (lam - 1) * (2 * s * r).sinh()
        w = (2 * size * inner.asinh()).sinh() / s
        return w / (1 + (1 + self.c * _dot(w, w)).sqrt())


def start(inputs: int, outputs: int, init: Init) -> Tensor:
    """Z (inputs, outputs): I/2, or normal of variance 1 / (2 inputs outputs) (hyperbolic networks ++)."""
    if init not in ("identity", "normal"):
        raise ValueError(f"init must be 'identity' or 'normal', not {init!r}")
    return torch.eye(inputs, outputs) / 2 if init == "identity" else torch.randn(inputs, outputs) * (2 * inputs * outputs) ** -0.5


def beta(n: int) -> float:
    """B(n / 2, 1 / 2)."""
    return math.exp(math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2))


def wide(x: Tensor) -> Tensor:
    """At least single precision: quotients near the border need it."""
    return x if x.dtype == torch.float64 else x.float()


class PoincareLinear(nn.Module):
    """Tangent vectors (.., inputs) -> (.., outputs)."""

    def __init__(self, inputs: int, outputs: int, ball: PoincareBall, *, init: Init = "identity", official: bool = False) -> None:
        super().__init__()
        self.ball, self.official = ball, official
        self.weight, self.bias = nn.Parameter(start(inputs, outputs, init)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        ball = self.ball
        with full_precision(x):
            y = ball.fc(ball.project(ball.exp0(wide(x))), self.weight, self.bias, official=self.official)
            return ball.log0(ball.project(y)).to(x.dtype)


class PoincareConv2d(PoincareLinear):
    """Tangent vectors (N, inputs, H, W) -> (N, outputs, H', W'); padding ``kernel // 2`` with the origin."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, ball: PoincareBall, *, stride: int = 1, init: Init = "identity",
        official: bool = False,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, not {kernel!r}")
        super().__init__(inputs * kernel * kernel, outputs, ball, init=init, official=official)
        self.kernel, self.stride = kernel, stride
        self.scale = beta(inputs * kernel * kernel) / beta(inputs)

    def forward(self, x: Tensor) -> Tensor:
        size = [-(-n // self.stride) for n in x.shape[-2:]]
        columns = F.unfold(x * self.scale, self.kernel, padding=self.kernel // 2, stride=self.stride)
        y = super().forward(columns.transpose(1, 2))
        return y.transpose(1, 2).reshape(len(x), -1, *size)


class MidpointNorm(nn.Module):
    """Batch norm around the midpoint: tangent vectors (N, dim, H, W) both ways; statistics of the batch in training and in eval."""

    def __init__(self, dim: int, ball: PoincareBall) -> None:
        super().__init__()
        self.ball = ball
        self.mean, self.var = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        ball = self.ball
        with full_precision(x):
            flat = wide(x).permute(0, 2, 3, 1)
            points = ball.project(ball.exp0(flat.reshape(-1, x.shape[1])))
            mu, b = ball.midpoint(points), ball.project(ball.exp0(self.mean.to(flat.dtype)))
            variance = ball.dist(points, mu).square().mean()
            v = ball.transport(mu, b, ball.log(mu, points))
            y = ball.project(ball.exp(b, (self.var / (variance + 1e-6)).sqrt() * v))
            return ball.log0(y).reshape(flat.shape).permute(0, 3, 1, 2).to(x.dtype)


def residual(x: Tensor, y: Tensor, ball: PoincareBall, dim: int = 1) -> Tensor:
    """log_0(exp_0 x (+) exp_0 y) over axis ``dim``."""
    with full_precision(x):
        a, b = (ball.project(ball.exp0(wide(t).movedim(dim, -1))) for t in (x, y))
        return ball.log0(ball.project(ball.add(a, b))).movedim(-1, dim).to(x.dtype)


class Block(nn.Module):
    """ReLU(residual(norm conv ReLU norm conv x, x)); 1 × 1 where the shape changes. ``ball`` None: the Euclidean twin."""

    def __init__(self, inputs: int, outputs: int, stride: int, ball: PoincareBall | None, **options: Any) -> None:
        super().__init__()
        self.ball, self.dim = ball, -1 if options.get("official") else 1
        self.body = nn.Sequential(
            conv(inputs, outputs, 3, stride, ball, **options), norm(outputs, ball), nn.ReLU(),
            conv(outputs, outputs, 3, 1, ball, **options), norm(outputs, ball),
        )  # fmt: skip
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride, ball, **options)

    def forward(self, x: Tensor) -> Tensor:
        f, x = self.body(x), self.skip(x)
        return F.relu(f + x if self.ball is None else residual(f, x, self.ball, self.dim))


def conv(inputs: int, outputs: int, kernel: int, stride: int, ball: PoincareBall | None, **options: Any) -> nn.Module:
    """On the ball, or a convolution with bias where there is none."""
    if ball is None:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return PoincareConv2d(inputs, outputs, kernel, ball, stride=stride, **options)


def norm(dim: int, ball: PoincareBall | None) -> nn.Module:
    return nn.BatchNorm2d(dim) if ball is None else MidpointNorm(dim, ball)


class PoincareResNet(nn.Module):
    """(N, 3, H, W) -> (N, classes), any size. ``depth`` 6 b + 2 with b blocks a group. ``euclidean``: the twin without geometry."""

    def __init__(
        self, channels: Sequence[int] = (8, 16, 32), depth: int = 20, *, c: float = 0.1, classes: int = 10, euclidean: bool = False,
        manual: bool = True, init: Init = "identity", official: bool = False,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 b + 2 with b at least 1, not {depth!r}")
        ball = None if euclidean else PoincareBall(c, manual=manual)
        options: dict[str, Any] = {} if euclidean else {"init": init, "official": official}
        layers: list[nn.Module] = [conv(3, channels[0], 3, 1, ball, **options), norm(channels[0], ball), nn.ReLU()]
        width = channels[0]
        for group, dim in enumerate(channels):
            for block in range((depth - 2) // 6):
                layers.append(Block(width, dim, 2 if group and not block else 1, ball, **options))
                width = dim
        self.body = nn.Sequential(*layers)
        self.head: nn.Module = nn.Linear(width, classes) if ball is None else PoincareLinear(width, classes, ball, **options)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.body(x).mean((2, 3))))


def bench() -> BenchCase:
    """A Poincaré convolution beside a Euclidean one."""
    return BenchCase(
        name="Poincaré conv 3×3 against conv 3×3, 16 channels, 16×16",
        ours=PoincareConv2d(16, 16, 3, PoincareBall()),
        baseline=nn.Conv2d(16, 16, 3, padding=1),
        inputs=(0.1 * torch.randn(4, 16, 16, 16),),
    )


SIZES = {"8_16_32_resnet_20": ((8, 16, 32), 20), "8_16_32_resnet_32": ((8, 16, 32), 32), "4_8_16_resnet_20": ((4, 8, 16), 20)}
VARIANTS: dict[str, Callable[..., nn.Module]] = {
    **{f"hyperbolic_{name}": partial(PoincareResNet, *size) for name, size in SIZES.items()},
    "euclidean_8_16_32_resnet_20": partial(PoincareResNet, (8, 16, 32), 20, euclidean=True),
    "poincare_conv2d": PoincareConv2d,
}
SYSTEM = System(
    name="poincare",
    title="Poincaré ResNet",
    paper="arXiv 2303.14027 (ICCV 2023)",
    year=2023,
    kind="network",
    variants=VARIANTS,
    checked=(
        "parameters of three networks and of the Euclidean twin to the digit; MACs equal the twin's", "FC with I/2 is the identity",
        "limits for c -> 0, linear in c", "log inverts exp; transport and gyration keep norms; midpoint of two points",
        "gradients by hand equal autograd and gradcheck; their graph is a third", "norms through 20 layers",
    ),
    lowering=(
        Lowering(part="exp, log, FC, norm, residual", verdict="no", note="tanh, atanh, asinh, norms and quotients of whole vectors"),
        Lowering(part="ReLU on tangent vectors, unfolding", verdict="as is", note="as in any convolution"),
    ),
    demo="models.zoo.demos.poincare:demo",
    bench=bench,
)
