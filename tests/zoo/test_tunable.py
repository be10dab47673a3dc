"""Tunable convolutions: the published parameter counts, and that omega does what the equations say."""
from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import tunable as demonstration
from models.zoo.tunable import (
    EDSR,
    SYSTEM,
    Fixed,
    Mode,
    NAFNet,
    ParametricMultiLoss,
    Tunable,
    TunableConv2d,
    TunableLinear,
    TunableScale,
    draw_omega,
    fix_,
)

GEOMETRY: list[dict[str, Any]] = [
    {"kernel": 3, "padding": 1}, {"kernel": 3, "stride": 2}, {"kernel": 1}, {"kernel": 3, "padding": 1, "groups": 6},
    {"kernel": 2, "stride": 2, "groups": 2},
]  # fmt: skip


def small(**options: Any) -> NAFNet:
    torch.manual_seed(0)
    model = NAFNet(8, encoder=(1, 1), middle=1, decoder=(1, 1), channels=1, **options)
    for scale in (m for m in model.modules() if isinstance(m, TunableScale)):
        nn.init.normal_(scale.scale)  # scales of zero would hide the blocks
    return model


def layer(**options: Any) -> TunableConv2d:
    torch.manual_seed(0)
    return TunableConv2d(6, 6, **({"kernel": 3, "padding": 1} | options)).double()


def test_published_parameters() -> None:
    with torch.device("meta"):
        two, one = SYSTEM.variants["tunable_nafnet_32"](), SYSTEM.variants["tunable_nafnet_32_p1_linear"]()
    assert parameters(two) == 58_281_794 and parameters(one) == 29_159_715
    tunable = [m for m in two.modules() if isinstance(m, Tunable)]
    norms = parameters(two) - sum(parameters(m) for m in tunable)
    assert len(tunable) == 298 and norms == 39_424 and 2 * (parameters(one) - norms) + norms + 298 * 6 == parameters(two)
    fixed = fix_(small(params=1, mode="linear"), torch.ones(1))
    assert parameters(fixed) == parameters(small(params=1, mode="linear"))
    with torch.device("meta"):
        assert parameters(EDSR(params=1, mode="linear")) == 33 * (64 * 64 * 9 + 64) + (3 * 64 * 9 + 64) + (64 * 3 * 9 + 3)


@pytest.mark.parametrize("geometry", GEOMETRY)
def test_overhead_is_p_times_the_kernel(geometry: dict[str, Any]) -> None:
    x, ours = torch.randn(1, 6, 12, 12), TunableConv2d(6, 12, params=3, mode="linear", **geometry)
    plain = ours.merged(torch.ones(3))
    assert macs(ours, x, torch.ones(1, 3)) - macs(plain, x) == 3 * parameters(plain)


@pytest.mark.parametrize("geometry", GEOMETRY)
def test_one_hot_picks_a_kernel_and_mixed_batches_are_single_samples(geometry: dict[str, Any]) -> None:
    ours = layer(params=3, mode="linear", **geometry)
    assert ours.bias is not None
    x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
    y = ours(x, torch.eye(3, dtype=torch.float64))
    for p in range(3):
        wanted = F.conv2d(x[p : p + 1], ours.weight[p], ours.bias[p], ours.stride, ours.padding, groups=ours.groups)
        torch.testing.assert_close(y[p : p + 1], wanted, rtol=1e-10, atol=1e-12)
    omega = torch.rand(3, 3, dtype=torch.float64)
    y = ours(x, omega)
    for i in range(3):
        torch.testing.assert_close(ours(x[i : i + 1], omega[i : i + 1]), y[i : i + 1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(x, omega[0]), ours(x, omega[:1].expand(3, -1)))


def test_one_parameter_is_a_plain_convolution_and_starts_as_one() -> None:
    torch.manual_seed(3)
    plain = nn.Conv2d(4, 5, 3, padding=1)
    torch.manual_seed(3)
    ours, x = TunableConv2d(4, 5, 3, padding=1, params=1, mode="linear"), torch.randn(2, 4, 6, 6)
    assert ours.bias is not None and plain.bias is not None
    assert torch.equal(ours.weight[0], plain.weight) and torch.equal(ours.bias[0], plain.bias)
    torch.testing.assert_close(ours(x, torch.ones(1)), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "linear", "scale"])
def test_linear_mode_is_linear_in_omega(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    ours: Tunable
    if kind == "conv":
        ours = TunableConv2d(4, 3, 3, params=3, mode="linear").double()
    elif kind == "linear":
        ours, x = TunableLinear(5, 2, params=3, mode="linear").double(), x
    else:
        ours = TunableScale(4, params=3, mode="linear").double()
        nn.init.normal_(cast(Any, ours).scale)
    omega = torch.randn(2, 3, dtype=torch.float64)
    basis = torch.stack([ours(x, e) for e in torch.eye(3, dtype=torch.float64)])
    wanted = torch.einsum("bp,pb...->b...", omega, basis)
    torch.testing.assert_close(ours(x, omega), wanted, rtol=1e-10, atol=1e-12)


def test_learned_affine_map_of_omega() -> None:
    ours, x = layer(params=2, expand=3), torch.randn(1, 6, 5, 5, dtype=torch.float64)
    assert ours.affine is not None and ours.weight.shape[0] == 6 and ours.affine.weight.shape == (6, 2)
    omega = torch.tensor([0.3, -1.2], dtype=torch.float64)
    a = ours.affine.weight @ omega + ours.affine.bias
    twin = TunableConv2d(6, 6, 3, padding=1, params=6, mode="linear").double()
    twin.load_state_dict({k: v for k, v in ours.state_dict().items() if "affine" not in k})
    torch.testing.assert_close(ours(x, omega), twin(x, a), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["linear", "mlp"])
def test_merged_layers_are_the_tunable_ones(mode: Mode) -> None:
    omega = torch.tensor([0.7, 0.1], dtype=torch.float64)
    for geometry in GEOMETRY:
        ours, x = layer(mode=mode, **geometry), torch.randn(2, 6, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(ours.merged(omega)(x), ours(x, omega), rtol=1e-10, atol=1e-12)
    linear, v = TunableLinear(4, 3, mode=mode).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(linear.merged(omega)(v), linear(v, omega), rtol=1e-10, atol=1e-12)
    assert linear(v[:, 0], omega).shape == (2, 3)


@pytest.mark.parametrize("build", [small, partial(EDSR, 8, 2, channels=1)])
def test_fixed_network_is_the_tunable_one(build: Any) -> None:
    model = build().double().eval()
    x, omega = torch.rand(2, 1, 10, 9, dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    wanted = model(x, omega)
    fix_(model, omega)
    assert not any(isinstance(m, Tunable) for m in model.modules()) and any(isinstance(m, Fixed) for m in model.modules())
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)


def test_loss_and_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    omega = draw_omega(4000, 3, generator=generator)
    torch.testing.assert_close(omega.sum(1), torch.ones(4000))
    assert (omega >= 0).all() and (omega.mean(0) - 1 / 3).abs().max() < 0.02
    assert abs(float((omega[:, 0] < 0.5).double().mean()) - 0.75) < 0.03  # uniform on the triangle
    box = draw_omega(4000, 2, kind="box", generator=generator)
    assert abs(float(box.var()) - 1 / 12) < 0.004
    y, targets = torch.randn(3, 5), torch.randn(2, 3, 5)
    loss = ParametricMultiLoss([lambda a, b: (a - b).square().mean(1), lambda a, b: (a - b).abs().mean(1)])
    first, second = (y - targets[0]).square(), (y - targets[1]).abs()
    wanted = [float(omega[i, 0] * first[i].mean() + omega[i, 1] * second[i].mean()) for i in range(3)]
    assert float(loss(y, list(targets), omega[:3, :2])) == pytest.approx(sum(wanted) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_gradcheck(kind: str) -> None:
    torch.manual_seed(0)
    ours: Tunable = TunableConv2d(4, 2, 3, groups=2, expand=2) if kind == "conv" else TunableLinear(4, 2)
    ours = ours.double()
    shape = (2, 4, 4, 4) if kind == "conv" else (2, 3, 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    omega = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in ours.named_parameters()]

    def run(x: Tensor, omega: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x, omega))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, omega, *ours.parameters()), fast_mode=True)


def test_network_modes_batch_and_state() -> None:
    model, x, omega = small().eval(), torch.rand(3, 1, 10, 14), draw_omega(3, 2)
    y = model(x, omega)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x[1:2], omega[1:2]), y[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last), omega), y, rtol=1e-4, atol=1e-5)
    other = small().eval()
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x, omega), y)
    model.train()(x, omega).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x, omega).isfinite().all()
    fresh = NAFNet(8, encoder=(1,), middle=1, decoder=(1,))
    moved = torch.rand(1, 3, 4, 4)
    wanted = fresh.ending(F.pixel_shuffle(fresh.ups[0](fresh.downs[0](fresh.intro(moved, omega[0]), omega[0]), omega[0]), 2), omega[0])
    skip = fresh.ending.merged(omega[0])
    skip.bias = None
    torch.testing.assert_close(fresh(moved, omega[0]), wanted + skip(fresh.intro(moved, omega[0])) + moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "mlp"])
def test_compiles_without_breaks(mode: Mode) -> None:
    ours, x, omega = TunableConv2d(4, 6, 3, mode=mode), torch.randn(3, 4, 6, 6), draw_omega(3, 2)
    torch.testing.assert_close(torch.compile(ours, fullgraph=True, backend="eager")(x, omega), ours(x, omega))


def test_baselines_of_the_demonstration() -> None:
    tunable, plain = demonstration.Network(2), demonstration.Network(1)
    assert parameters(tunable) == 2 * parameters(plain)
    x = torch.randn(1, 1, 16, 16)
    assert macs(tunable, x, torch.ones(2)) < 1.02 * macs(plain, x, torch.ones(1))
    clean, noisy = demonstration.batch(64, torch.Generator().manual_seed(0))
    assert math.isclose(float((noisy - clean).std()), demonstration.NOISE, rel_tol=0.05)


def test_errors_name_the_argument() -> None:
    x = torch.zeros(2, 4, 4, 4)
    with pytest.raises(ValueError, match="params must be"):
        TunableConv2d(4, 4, 3, params=0)
    with pytest.raises(ValueError, match="mode must be"):
        TunableConv2d(4, 4, 3, mode=cast(Any, "cubic"))
    with pytest.raises(ValueError, match="expand must be"):
        TunableConv2d(4, 4, 3, mode="linear", expand=2)
    with pytest.raises(ValueError, match="groups must divide"):
        TunableConv2d(4, 6, 3, groups=4)
    for omega in (torch.zeros(3), torch.zeros(3, 2), None):
        with pytest.raises(ValueError, match="omega must be"):
            TunableConv2d(4, 4, 3)(x, omega)
    with pytest.raises(ValueError, match="decoder must have"):
        NAFNet(8, encoder=(1,), decoder=(1, 1))
    with pytest.raises(ValueError, match="kind must be"):
        draw_omega(2, 2, kind=cast(Any, "ball"))
    loss = ParametricMultiLoss([lambda a, b: a.sum(1)])
    with pytest.raises(ValueError, match="targets must be"):
        loss(torch.zeros(2, 3), [], torch.zeros(2, 1))
    with pytest.raises(ValueError, match="omega must be"):
        loss(torch.zeros(2, 3), [torch.zeros(2, 3)], torch.zeros(3, 1))
