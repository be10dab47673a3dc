"""Poincaré ResNet: figures, the geometry of the ball, and gradients by hand against autograd."""
from __future__ import annotations

import math
from typing import Any, TypeVar, cast

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.demos import poincare as demonstration
from models.zoo.poincare import (
    SYSTEM,
    Block,
    MidpointNorm,
    PoincareBall,
    PoincareConv2d,
    PoincareLinear,
    PoincareResNet,
    beta,
    residual,
)

Model = TypeVar("Model", bound=nn.Module)
CURVATURES = (0.1, 1.0)


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def close(ours: Tensor, wanted: Tensor, rtol: float = 1e-10, atol: float = 1e-11) -> None:
    torch.testing.assert_close(ours, wanted, rtol=rtol, atol=atol)


def points(ball: PoincareBall, *shape: int, radius: float = 0.7) -> Tensor:
    """Points of the ball, up to ``radius`` of the way to its border, away from the origin."""
    x = torch.randn(*shape, dtype=torch.float64)
    x = x / x.norm(dim=-1, keepdim=True) * (0.1 + (radius - 0.1) * torch.rand(*shape[:-1], 1, dtype=torch.float64))
    return cast(Tensor, x / math.sqrt(ball.c)).requires_grad_()


def small(**options: Any) -> PoincareResNet:
    torch.manual_seed(0)
    return PoincareResNet((4, 6, 8), 8, classes=3, **options)


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("hyperbolic_8_16_32_resnet_20", 68_757), ("hyperbolic_8_16_32_resnet_32", 117_601), ("hyperbolic_4_8_16_resnet_20", 17_529),
        ("euclidean_8_16_32_resnet_20", 69_082),
    ],
)  # fmt: skip
def test_published_figures(variant: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(SYSTEM.variants[variant]()) == count


def test_macs_are_those_of_the_twin() -> None:
    x = torch.zeros(1, 3, 16, 16)
    assert macs(small(), x) == macs(small(euclidean=True), x)


@pytest.mark.parametrize("c", CURVATURES)
def test_geometry(c: float) -> None:
    torch.manual_seed(0)
    ball = PoincareBall(c)
    x, y, v = (points(ball, 30, 5).detach() for _ in range(3))
    zero = torch.zeros_like(x)
    close(ball.add(x, zero), x)
    close(ball.add(zero, x), x)
    close(ball.add(-x, ball.add(x, y)), y)  # left cancellation
    close(ball.exp0(ball.log0(x)), x)
    close(ball.exp(x, ball.log(x, y)), y)
    close(ball.exp(zero, v), ball.exp0(v))
    close(ball.dist(x, y), ball.dist(y, x))
    close(ball.dist(zero, x), 2 * (c**0.5 * x.norm(dim=-1)).atanh() / c**0.5)
    cosh = 1 + 2 * c * (x - y).square().sum(-1) / ((1 - c * x.square().sum(-1)) * (1 - c * y.square().sum(-1)))
    close(ball.dist(x, y), cosh.acosh() / c**0.5, rtol=1e-8, atol=1e-10)  # another closed form
    lam_x, lam_y = (2 / (1 - c * p.square().sum(-1, keepdim=True)) for p in (x, y))
    close((lam_x * ball.log(x, y)).norm(dim=-1), ball.dist(x, y))
    moved = ball.transport(x, y, v)
    close((lam_y * moved).norm(dim=-1), (lam_x * v).norm(dim=-1))
    close(ball.transport(y, x, moved), v)
    close(ball.transport(x, x, v), v)


@pytest.mark.parametrize("c", CURVATURES)
def test_gyration_is_the_closed_form_and_linear(c: float) -> None:
    torch.manual_seed(0)
    ball = PoincareBall(c)
    u, v = (points(ball, 20, 4).detach() for _ in range(2))
    w = 100 * torch.randn(20, 4, dtype=torch.float64)  # far outside the ball

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1, keepdim=True)

    a = -c * c * dot(u, w) * dot(v, v) + c * dot(v, w) + 2 * c * c * dot(u, v) * dot(v, w)
    b = -c * c * dot(v, w) * dot(u, u) - c * dot(u, w)
    wanted = w + 2 * (a * u + b * v) / (1 + 2 * c * dot(u, v) + c * c * dot(u, u) * dot(v, v))
    torch.testing.assert_close(ball.gyration(u, v, w), wanted, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(ball.gyration(u, v, 1e-9 * w), 1e-9 * wanted, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("c", CURVATURES)
def test_identity_weights_are_exactly_the_identity(c: float) -> None:
    ball = PoincareBall(c)
    x = points(ball, 40, 6, radius=0.95).detach()
    z, r = torch.eye(6, dtype=torch.float64) / 2, torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(ball.fc(x, z, r), x, rtol=1e-12, atol=1e-14)
    assert (ball.fc(x, z, r, official=True) - x).abs().max() > 0.05
    image = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(PoincareConv2d(5, 5, 1, ball).double()(0.3 * image), 0.3 * image, rtol=1e-10, atol=1e-12)


def test_fc_as_in_the_equation() -> None:
    ball, c = PoincareBall(0.1), 0.1
    x, z, r = points(ball, 7, 3).detach(), torch.randn(3, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    y = ball.fc(x, z, r)
    for n in range(7):
        lam, s = 2 / (1 - c * float(x[n] @ x[n])), math.sqrt(c)
        w = []
        for k in range(2):
            size = float(z[:, k].norm())
            inner = lam * s * float(x[n] @ z[:, k]) / size * math.cosh(2 * s * r[k]) - (lam - 1) * math.sinh(2 * s * r[k])
            w.append(math.sinh(s * 2 * size / s * math.asinh(inner)) / s)
        wanted = torch.tensor(w, dtype=torch.float64) / (1 + math.sqrt(1 + c * sum(a * a for a in w)))
        torch.testing.assert_close(y[n], wanted, rtol=1e-10, atol=1e-12)


def test_flat_limit_is_linear_in_c() -> None:
    torch.manual_seed(0)
    x, y, v = 0.5 * torch.randn(3, 10, 4, dtype=torch.float64)
    z, r = 0.5 * torch.randn(4, 3, dtype=torch.float64), 0.5 * torch.randn(3, dtype=torch.float64)

    def errors(c: float) -> list[float]:
        ball = PoincareBall(c)
        pairs = (
            (ball.add(x, y), x + y), (ball.dist(x, y), 2 * (x - y).norm(dim=-1)), (ball.transport(x, y, v), v),
            (ball.fc(x, z, r), 2 * (x @ z - z.norm(dim=0) * r)), (ball.exp(x, v), x + v), (ball.midpoint(x), x.mean(0)),
        )
        return [float((a - b).abs().max()) for a, b in pairs]

    for coarse, fine in zip(errors(1e-5), errors(1e-6), strict=True):
        assert 0 < fine < 1e-3 and 8 < coarse / fine < 12


def test_midpoint_of_two_points_is_between_them() -> None:
    ball = PoincareBall(1.0)
    x = points(ball, 2, 3).detach()
    m = ball.midpoint(x)
    torch.testing.assert_close(ball.dist(m, x[0]), ball.dist(m, x[1]), rtol=1e-10, atol=0)
    torch.testing.assert_close(ball.dist(m, x[0]) * 2, ball.dist(x[0], x[1]), rtol=1e-10, atol=0)
    half = torch.tensor([0.8, 0.0, 0.0], dtype=torch.float64)
    assert float(ball.midpoint(torch.stack((half, 0 * half)))[0]) == pytest.approx(math.tanh(math.atanh(0.8) / 2), rel=1e-12)


def test_projection_stays_inside() -> None:
    for dtype, eps in ((torch.float32, 4e-3), (torch.float64, 1e-5)):
        for manual in (True, False):
            ball = PoincareBall(0.25, manual=manual)
            y = ball.project(torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=dtype))
            assert float(y[0].norm()) == pytest.approx(2 * (1 - eps), rel=1e-6)
            torch.testing.assert_close(y[1], torch.tensor([0.3, 0.4], dtype=dtype))


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("name", ["add", "exp0", "log0", "exp", "log", "dist", "transport", "project"])
def test_gradients_by_hand(c: float, name: str) -> None:
    """Equal to autograd of the formulas, and to finite differences."""
    torch.manual_seed(0)
    by_hand, plain = PoincareBall(c), PoincareBall(c, manual=False)
    x, y, v = (points(by_hand, 6, 3) for _ in range(3))
    inputs = {"exp0": (v,), "log0": (x,), "project": (x,), "transport": (x, y, v)}.get(name, (x, y))
    scale = 2.0 if name == "project" else 1.0  # half of the points come to lie outside
    found = [torch.autograd.grad(getattr(b, name)(*(scale * t for t in inputs)).sin().sum(), inputs) for b in (by_hand, plain)]
    for ours, auto in zip(*found, strict=True):
        torch.testing.assert_close(ours, auto, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *t: getattr(by_hand, name)(*(scale * u for u in t)), inputs)


def test_gradients_of_broadcast_points_and_of_the_origin() -> None:
    ball = PoincareBall(0.5)
    x, one = points(ball, 2, 4, 3), points(ball, 3)
    assert torch.autograd.gradcheck(ball.add, (x, one)) and torch.autograd.gradcheck(ball.transport, (one, x, x))
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    for f in (ball.exp0, ball.log0, ball.project):
        (grad,) = torch.autograd.grad(f(zero).sum(), zero)
        assert torch.equal(grad, torch.ones_like(zero))


def test_a_curvature_that_learns() -> None:
    """By autograd of the formulas; the gradient is that of finite differences."""
    x, y = (points(PoincareBall(0.5), 4, 3).detach() for _ in range(2))
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: PoincareBall(c, manual=False).dist(x, y), (c,))


def test_graph_of_hand_written_gradients_is_a_third() -> None:
    def nodes(manual: bool) -> int:
        ball = PoincareBall(0.1, manual=manual)
        x, y, v = (points(ball, 4, 3) for _ in range(3))
        seen, todo = set(), [ball.exp(y, ball.transport(x, y, ball.log(x, v))).grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(True) <= 24 and nodes(False) >= 3 * nodes(True)
    assert demonstration.kept_bytes(True, 0) < 0.75 * demonstration.kept_bytes(False, 0)


def test_norms_through_twenty_layers() -> None:
    ball = PoincareBall(0.1)
    torch.manual_seed(0)
    x = nn.functional.normalize(torch.randn(64, 8, dtype=torch.float64)) * 0.837

    def after(**options: Any) -> float:
        net = nn.Sequential(*(PoincareLinear(8, 8, ball, **options) for _ in range(20))).double()
        with torch.no_grad():
            return float(ball.exp0(net(ball.log0(x))).norm(dim=1).mean())

    assert after() == pytest.approx(0.837, rel=1e-10)
    assert 0.25 < after(official=True) < 0.4
    assert after(init="normal") < 1e-5


def test_convolution_is_unfold_and_fc() -> None:
    ball = PoincareBall(0.1)
    layer, x = shaken(PoincareConv2d(2, 3, 3, ball, stride=2)).double(), 0.2 * torch.randn(1, 2, 5, 6, dtype=torch.float64)
    assert beta(4) == pytest.approx(math.gamma(2) * math.gamma(0.5) / math.gamma(2.5)) and layer.scale == pytest.approx(beta(18) / beta(2))
    y = layer(x)
    assert y.shape == (1, 3, 3, 3)
    patch = torch.zeros(2, 3, 3, dtype=torch.float64)
    patch[:, :, :] = nn.functional.pad(x, [1] * 4)[0, :, 2:5, 4:7]
    wanted = ball.log0(ball.fc(ball.exp0(patch.flatten() * layer.scale)[None], layer.weight, layer.bias))[0]
    torch.testing.assert_close(y[0, :, 1, 2], wanted, rtol=1e-10, atol=1e-12)


def test_norm_centres_and_scales() -> None:
    ball = PoincareBall(0.1)
    layer, x = MidpointNorm(4, ball).double().requires_grad_(False), 0.5 + 0.4 * torch.randn(3, 4, 5, 5, dtype=torch.float64)
    flat = ball.exp0(layer(x).permute(0, 2, 3, 1).reshape(-1, 4))
    centre = ball.midpoint(flat)
    assert float(centre.norm()) < 0.05  # the mean of the tangent vectors is moved, the midpoint of points nearly
    assert float(ball.dist(flat, torch.zeros(4, dtype=torch.float64)).square().mean()) == pytest.approx(1, rel=1e-4)
    layer.mean.data[:] = torch.tensor([0.3, 0, -0.2, 0.1])
    layer.var.data.fill_(0.25)
    flat = ball.exp0(layer(x).permute(0, 2, 3, 1).reshape(-1, 4))
    assert float(ball.dist(flat, ball.exp0(layer.mean)).square().mean()) == pytest.approx(0.25, rel=1e-4)
    assert torch.equal(layer.eval()(x), layer.train()(x))  # no running statistics


def test_residual_axis_and_origin() -> None:
    ball, x = PoincareBall(0.1), 0.3 * torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(residual(x, torch.zeros_like(x), ball), x, rtol=1e-10, atol=1e-12)
    y = 0.3 * torch.randn_like(x)
    pixel = ball.log0(ball.add(ball.exp0(x[0, :, 2, 3]), ball.exp0(y[0, :, 2, 3])))
    torch.testing.assert_close(residual(x, y, ball)[0, :, 2, 3], pixel, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(residual(x, y, ball, -1), residual(x, y, ball), atol=1e-4)
    assert [Block(4, 4, 1, ball, official=flag).dim for flag in (False, True)] == [1, -1]


@pytest.mark.parametrize("which", ["linear", "conv", "norm", "residual"])
def test_gradcheck_of_layers(which: str) -> None:
    ball = PoincareBall(0.3)
    layers: dict[str, nn.Module] = {
        "linear": PoincareLinear(3, 2, ball, init="normal"), "conv": PoincareConv2d(2, 2, 3, ball, init="normal"),
        "norm": MidpointNorm(2, ball),
    }
    torch.manual_seed(0)
    x = (0.4 * torch.randn(2, *([3] if which == "linear" else [2, 3, 3]), dtype=torch.float64)).requires_grad_()
    if which == "residual":
        assert torch.autograd.gradcheck(lambda a: residual(a, a.flip(0), ball), (x,))
        return
    layer = shaken(layers[which]).double()
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("official", [False, True])
def test_network_modes_and_state(official: bool) -> None:
    model, x = shaken(small(official=official)), torch.randn(3, 3, 8, 12)
    y = model(x)
    assert y.shape == (3, 3) and torch.equal(model.eval()(x), y)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)
    by_autograd = small(official=official, manual=False)
    by_autograd.load_state_dict(model.state_dict())
    torch.testing.assert_close(by_autograd(x), y, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x), y, rtol=1e-3, atol=1e-3)  # inside in single precision
    for net in (model, by_autograd):
        net.double()(x.double()).square().sum().backward()
    for p, q in zip(model.parameters(), by_autograd.parameters(), strict=True):
        assert p.grad is not None and p.grad.isfinite().all() and q.grad is not None
        close(p.grad, q.grad, rtol=1e-8, atol=1e-10)
    assert small(euclidean=True)(x).shape == (3, 3)


def test_layers_but_the_norm_treat_images_alone() -> None:
    ball = PoincareBall()
    x = 0.3 * torch.randn(3, 4, 6, 6)
    layer = shaken(PoincareConv2d(4, 4, 3, ball))
    torch.testing.assert_close(layer(x[1:2]), layer(x)[1:2], rtol=1e-5, atol=1e-6)
    norm = MidpointNorm(4, ball)
    assert not torch.allclose(norm(x[1:2]), norm(x)[1:2], rtol=1e-3)  # as stated


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, when it traces such a function
def test_compiles_without_breaks() -> None:
    layer = nn.Sequential(shaken(PoincareConv2d(2, 2, 3, PoincareBall())), MidpointNorm(2, PoincareBall()))
    x = 0.3 * torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="c must be positive"):
        PoincareBall(0.0)
    with pytest.raises(ValueError, match="c must be a float"):
        PoincareBall(torch.ones(()))
    with pytest.raises(ValueError, match="kernel must be"):
        PoincareConv2d(2, 2, 2, PoincareBall())
    with pytest.raises(ValueError, match="init must be"):
        PoincareLinear(2, 2, PoincareBall(), init="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth must be"):
        PoincareResNet(depth=18)
