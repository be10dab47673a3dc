"""ConvS5: parameters of the published networks, and what makes the scan, the loop, chunks and the real form one model."""
from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.zoo import convs5
from models.zoo.convs5 import ENDS, SYSTEM, ConvLSTMLayer, ConvS5, ConvS5Layer, ConvSSM, VideoModel
from models.zoo.counting import macs, parameters
from models.zoo.layers import ConvLSTMCell


def small(core: Any = "convs5", **options: Any) -> VideoModel:
    torch.manual_seed(0)
    return VideoModel(core, widths=(4, 8), layers=2, ssm_size=8, groups=2, **options)


def operator(**options: Any) -> ConvS5:
    torch.manual_seed(0)
    return ConvS5(3, 8, **options).double()


def test_published_parameters() -> None:
    with torch.device("meta"):
        ours, theirs = SYSTEM.variants["convs5_moving_mnist"](), SYSTEM.variants["convlstm_moving_mnist"]()
        assert parameters(ours) == 21_681_411 and parameters(theirs) == 40_540_419
        assert isinstance(ours, VideoModel) and isinstance(theirs, VideoModel)
        assert parameters(ours.encoder) == 1_223_552 and parameters(ours.decoder) == 1_497_985
        assert parameters(ours.sequence_model) == 18_893_824
        assert parameters(ours.sequence_model[0]) == 2_361_728 and parameters(theirs.sequence_model[0]) == 4_719_104
        predicted, states = ours(torch.empty(2, 3, 1, 64, 64))
        assert predicted.shape == (2, 3, 1, 64, 64) and [tuple(cast(Tensor, s).shape) for s in states] == [(3, 128, 16, 16)] * 8
        layer, u = SYSTEM.variants["convs5_layer"](), torch.empty(1, 1, 256, 16, 16)
        assert macs(layer, u) == 256 * (2 * 256 * 256 * 9 + 2 * 256 * 256 * 9)  # B and C as 2 P real channels, two convolutions after


def test_hippo_diagonalizes_the_normal_part() -> None:
    size = 8
    n = torch.arange(size, dtype=torch.float64)
    root, low = (1 + 2 * n).sqrt(), (n + 0.5).sqrt()
    s = torch.outer(low, low) - torch.tril(torch.outer(root, root)) + torch.diag(n)
    eigenvalues, v = convs5.hippo(size)
    assert torch.allclose(eigenvalues.real, torch.full((4,), -0.5, dtype=torch.float64), atol=1e-12) and (eigenvalues.imag < 0).all()
    torch.testing.assert_close(s.to(v.dtype) @ v, v * eigenvalues, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(v.mH @ v, torch.eye(4, dtype=v.dtype), rtol=0, atol=1e-12)
    twice = ConvS5(3, 16, blocks=2)
    assert torch.equal(twice.Lambda_im[:4], twice.Lambda_im[4:]) and twice.B.shape == (8, 3, 3, 3, 2)


def test_zero_order_hold() -> None:
    model = operator()
    a, factor = model.discretize()
    eigenvalues, step = torch.complex(model.Lambda_re, model.Lambda_im), model.log_step.exp()
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    integral = (eigenvalues * step * t[:, None]).exp().mean(0) * step  # of exp(Lambda s), s from 0 to Delta
    torch.testing.assert_close(factor, integral, rtol=1e-6, atol=0)
    torch.testing.assert_close(a, 1 + eigenvalues * factor, rtol=1e-10, atol=1e-12)
    model.Lambda_re.data.fill_(1.0)
    assert (model.discretize()[0].abs() < 1).all()
    model.clip_eigs = False
    assert (model.discretize()[0].abs() > 1).all()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16])
def test_scan_is_the_loop(length: int) -> None:
    model, u = operator(), torch.randn(length, 2, 3, 4, 5, dtype=torch.float64)
    x0 = torch.randn(2, 4, 4, 5, dtype=torch.complex128)
    y, last = model(u, x0)
    model.parallel = False
    wanted, wanted_last = model(u, x0)
    assert y.shape == u.shape and last.shape == (2, 4, 4, 5)
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, wanted_last, rtol=1e-10, atol=1e-10)


def test_scan_over_600_steps_and_its_operator() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(600, 1, dtype=torch.float64), torch.randn(600, 3, dtype=torch.float64)
    products, states = convs5.parallel_scan(a, b)
    x, wanted = torch.zeros(3, dtype=torch.float64), []
    for i in range(600):
        x = a[i] * x + b[i]
        wanted.append(x)
    torch.testing.assert_close(states, torch.stack(wanted), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(products, a.cumprod(0), rtol=1e-10, atol=0)
    first, second, third = ((a[i], b[i]) for i in range(3))
    left = convs5.associate(convs5.associate(first, second), third)
    right = convs5.associate(first, convs5.associate(second, third))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_chunks_with_carried_state_are_one_run() -> None:
    model, u = operator(), torch.randn(9, 1, 3, 4, 4, dtype=torch.float64)
    whole, end = model(u)
    first, state = model(u[:4])
    second, last = model(u[4:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, end, rtol=1e-10, atol=1e-10)


def test_real_form_and_twice_the_real_part() -> None:
    model, u = operator(), torch.randn(5, 2, 3, 6, 6, dtype=torch.float64)
    y, last = model(u)
    again, state = model.real_form()(u)
    assert state.shape == (2, 8, 6, 6)
    torch.testing.assert_close(again, y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.complex(*state.chunk(2, 1)), last, rtol=1e-10, atol=1e-10)
    c = torch.view_as_complex(model.C)
    torch.testing.assert_close(2 * F.conv2d(last, c, padding=1).real, y[-1], rtol=1e-10, atol=1e-10)


def test_pointwise_kernels_are_s5_at_every_pixel() -> None:
    model, u = operator(b_kernel=1, c_kernel=1), torch.randn(6, 1, 3, 2, 3, dtype=torch.float64)
    a, factor = model.discretize()
    b, c = (torch.view_as_complex(x)[..., 0, 0] for x in (model.B, model.C))
    y, _ = model(u)
    for i, j in ((0, 0), (1, 2)):
        x = torch.zeros(4, dtype=torch.complex128)
        for k in range(6):
            x = a * x + factor * (b @ u[k, 0, :, i, j].to(b.dtype))
            torch.testing.assert_close(2 * (c @ x).real, y[k, 0, :, i, j], rtol=1e-10, atol=1e-10)


def test_composed_state_kernels_grow() -> None:
    torch.manual_seed(0)
    model = ConvSSM(2, 3, a_kernel=3).double()
    kernel: Tensor = model.A
    for length in (2, 3, 4):
        kernel = convs5.compose(model.A, kernel)
        assert kernel.shape[-1] == length * (3 - 1) + 1
    x0 = torch.randn(1, 3, 15, 15, dtype=torch.float64)
    _, last = model(torch.zeros(4, 1, 2, 15, 15, dtype=torch.float64), x0)
    inner = (..., slice(4, -4), slice(4, -4))  # away from the padding
    torch.testing.assert_close(last[inner], F.conv2d(x0, kernel, padding="same")[inner], rtol=1e-10, atol=1e-12)
    assert convs5.compose(model.A[..., 1:2, 1:2], model.A[..., 1:2, 1:2]).shape[-1] == 1


@pytest.mark.parametrize("parallel", [True, False])
def test_gradcheck(parallel: bool) -> None:
    model = ConvS5(2, 4, parallel=parallel).double()
    u = torch.randn(3, 1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in model.named_parameters()]

    def run(u: Tensor, *values: Tensor) -> Tensor:
        return cast(Tensor, torch.func.functional_call(model, dict(zip(names, values, strict=True)), (u,))[0])

    assert torch.autograd.gradcheck(run, (u, *model.parameters()), fast_mode=True)


@pytest.mark.parametrize("end", list(ENDS))
def test_layer_ends(end: Any) -> None:
    layer, u = ConvS5Layer(8, 8, end=end, groups=4), torch.randn(3, 2, 8, 4, 4)
    out, last = layer(u)
    assert out.shape == u.shape and last.shape == (2, 4, 4, 4)
    torch.testing.assert_close(out.mean(2), torch.zeros(3, 2, 4, 4), rtol=0, atol=1e-5)  # post-norm
    later = u.clone()
    later[2] += 1
    assert torch.equal(layer(later)[0][:2], out[:2]) and not torch.equal(layer(later)[0][2], out[2])


def test_convlstm_gates() -> None:
    torch.manual_seed(0)
    cell, x = ConvLSTMCell(2, 3, bias=False, gates="ifog").double(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    h, c = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    i, f, o, g = cell.conv(torch.cat((x, h), 1)).chunk(4, 1)
    wanted = f.sigmoid() * c + i.sigmoid() * g.tanh()
    found = cell(x, (h, c))
    torch.testing.assert_close(found[1], wanted)
    torch.testing.assert_close(found[0], o.sigmoid() * wanted.tanh())
    torch.testing.assert_close(cell(x)[0], cell(x, (0 * h, 0 * c))[0])
    layer, u = ConvLSTMLayer(4), torch.randn(4, 1, 4, 3, 3)
    first, state = layer(u[:2])
    torch.testing.assert_close(torch.cat((first, layer(u[2:], state)[0])), layer(u)[0])


@pytest.mark.parametrize("core", ["convs5", "convlstm"])
def test_network_modes_batch_state_and_generation(core: str) -> None:
    model, frames = small(core).eval(), torch.randn(5, 3, 1, 8, 8).clamp(-1, 1)
    predicted, _ = model(frames)
    assert predicted.abs().max() <= 1
    torch.testing.assert_close(model(frames[:, 1:2])[0], predicted[:, 1:2], rtol=1e-4, atol=1e-5)
    other = small(core).eval()
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(frames)[0], predicted)
    model.train().loss(frames).backward()  # type: ignore[no-untyped-call]
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    actions = torch.ones(5, 3, dtype=torch.long)
    assert not torch.equal(model(frames, actions)[0], predicted)
    model.eval()
    future = model.generate(frames, 3)  # carried states against running again over all frames, own predictions among them
    grown = frames
    with torch.no_grad():
        for _ in range(3):
            grown = torch.cat((grown, model(grown)[0][-1:]))
    torch.testing.assert_close(future, grown[5:], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(frames)[0].isfinite().all()
    moved = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(moved.view(frames.shape))[0], predicted, rtol=1e-4, atol=1e-5)


def test_loss_as_published() -> None:
    model, frames = small(), torch.rand(3, 2, 1, 8, 8)
    error = model(frames[:-1])[0] - frames[1:]
    rows = error.permute(0, 1, 3, 4, 2).flatten(-2)  # (L, B, H, W C)
    wanted = 0.5 * rows.square().sum(-1).mean() + 0.5 * rows.abs().sum(-1).mean()
    torch.testing.assert_close(model.loss(frames), wanted)


@pytest.mark.parametrize("parallel", [True, False])
def test_compiles_without_breaks(parallel: bool) -> None:
    layer, u = ConvS5(4, 8, parallel=parallel), torch.randn(6, 2, 4, 5, 5)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(u)[0], layer(u)[0])


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="ssm_size must be"):
        ConvS5(4, 6, blocks=2)
    with pytest.raises(ValueError, match="b_kernel must be"):
        ConvS5(4, 8, b_kernel=2)
    with pytest.raises(ValueError, match="a_kernel must be"):
        ConvSSM(4, 8, a_kernel=2)
    with pytest.raises(ValueError, match="end must be"):
        ConvS5Layer(8, 8, end=cast(Any, "glu"), groups=4)
    with pytest.raises(ValueError, match="groups must divide"):
        ConvS5Layer(8, 8)
    with pytest.raises(ValueError, match="core must be"):
        VideoModel(cast(Any, "gru"))
    with pytest.raises(ValueError, match="widths must be"):
        VideoModel(widths=(8,))
    with pytest.raises(ValueError, match="frames must have sides"):
        small()(torch.zeros(1, 1, 1, 7, 8))
    with pytest.raises(ValueError, match="gates must be"):
        ConvLSTMCell(2, 2, gates="ifg")
    with pytest.raises(ValueError, match="kernel must be"):
        ConvLSTMCell(2, 2, 4)
