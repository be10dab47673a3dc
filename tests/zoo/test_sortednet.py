"""SortedNet: sub-networks are prefixes, exactly; their cost, gradients and statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.sortednet import (
    SYSTEM,
    NestedAttention,
    NestedBatchNorm2d,
    NestedConv2d,
    NestedLinear,
    Sampler,
    Sorted,
    SortedCNN,
    SortedMLP,
    select,
    soft_loss,
    sorted_step,
)


def mlp() -> SortedMLP:
    torch.manual_seed(0)
    return SortedMLP(6, 3, (4, 8, 12), (1, 2, 4))


def cnn() -> SortedCNN:
    torch.manual_seed(0)
    return SortedCNN(2, 3, (4, 8), (1, 2))


CASES = [(mlp, (5, 6)), (cnn, (3, 2, 6, 5))]


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_slicing_the_state_is_running_in_place(build: Callable[[], Sorted], shape: tuple[int, ...]) -> None:
    model, x = build().double(), torch.randn(*shape).double()
    for width, depth in model.choices():  # running statistics that differ
        model(x, width, depth)
    model.eval()
    for width, depth in model.choices():
        small = model.extract(width, depth)
        assert not small.training and parameters(small) <= parameters(model)
        assert torch.equal(small(x), model(x, width, depth))


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_gradients_vanish_outside_the_slice(build: Callable[[], Sorted], shape: tuple[int, ...]) -> None:
    model = build()
    model(torch.randn(*shape), 4, 1).square().sum().backward()
    small = model.extract(4, 1).state_dict()
    for name, p in model.named_parameters():
        if name not in small:  # a deeper layer
            assert p.grad is None
            continue
        assert p.grad is not None and bool(p.grad.abs().sum() > 0)
        p.grad[tuple(slice(0, n) for n in small[name].shape)] = 0
        assert not p.grad.any()


def test_family_costs_no_more_than_its_largest() -> None:
    model = mlp()
    assert parameters(model) == parameters(model.extract(12, 4)) == 6 * 12 + 12 + 4 * (24 + 12 * 12 + 12) + 24 + 12 * 3 + 3
    pointers = {p.data_ptr() for p in model.parameters()}
    model(torch.zeros(1, 6), 4, 2)
    assert {p.data_ptr() for p in model.parameters()} == pointers  # switching copies no weight


def test_macs_go_with_width_squared_times_depth() -> None:
    model, x = mlp(), torch.zeros(1, 6)
    for width, depth in model.choices():
        assert macs(model.extract(width, depth), x) == 6 * width + depth * width**2 + 3 * width


def test_number_of_sub_networks() -> None:
    with torch.device("meta"):
        models = {name: build() for name, build in SYSTEM.variants.items()}
    sizes = {name: len(m.choices()) for name, m in models.items() if isinstance(m, Sorted)}
    assert sizes == {"sorted_mlp_16": 16, "sorted_mlp_160": 160, "sorted_cnn_16": 16}


def test_full_width_layers_are_the_plain_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6)
    conv, norm = NestedConv2d(4, 6, 3, stride=2, padding=1), NestedBatchNorm2d((3, 4))
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, 2, 1))
    plain = nn.BatchNorm2d(4)
    torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_var[1], plain.running_var)
    assert torch.equal(norm.running_mean[0], torch.zeros(4))  # the other width's row


def test_statistics_do_not_depend_on_the_depth_drawn() -> None:
    x, states = torch.randn(4, 2, 6, 6), []
    for depth in (1, 2):
        model = cnn()
        model(x, 8, depth)
        states.append(model.state_dict()["norms.1.running_var"])
    assert torch.equal(*states)


def test_fewer_heads_read_the_leading_slices() -> None:
    torch.manual_seed(0)
    layer, x = NestedAttention(8, 4, 2), torch.randn(2, 5, 8)
    small = NestedAttention(8, 3, 2)
    small.load_state_dict({k: layer.state_dict()[k][tuple(slice(0, n) for n in v.shape)] for k, v in small.state_dict().items()})
    torch.testing.assert_close(layer(x, 3), small(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="heads"):
        layer(x, 5)


def test_exits_and_soft_loss() -> None:
    model, x, y = mlp(), torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    exits = model.exits(x, 8)
    for logits, depth in zip(exits, model.depths, strict=True):
        torch.testing.assert_close(logits, model(x, 8, depth))
    wanted = sum(F.cross_entropy(model(x, 8, d), y) for d in model.depths) / 3
    torch.testing.assert_close(soft_loss(exits, y), wanted)


def test_step_accumulates_the_drawn_gradients() -> None:
    model, other = mlp(), mlp()
    data = [(torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])) for _ in range(3)]
    sampler = Sampler(model.choices(), 7)
    losses = sorted_step(model, torch.optim.SGD(model.parameters(), 0.1), sampler, data)
    drawn = [c for s in [Sampler(model.choices(), 7)] for c in (s(), s(), s())]
    total = sum((F.cross_entropy(other(x, *c), y) for (x, y), c in zip(data, drawn, strict=True)), torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    assert sum(losses) == pytest.approx(total.item(), rel=1e-6)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q if q.grad is None else q - 0.1 * q.grad)


def test_sampler_is_uniform_or_weighted() -> None:
    choices = mlp().choices()
    sampler = Sampler(choices, 0)
    drawn = [sampler() for _ in range(1800)]
    assert all(150 < drawn.count(c) < 250 for c in choices)  # 200 expected, standard deviation 13
    assert {Sampler(choices[:2], s, (0.0, 1.0))() for s in range(20)} == {choices[1]}
    assert select({(8, 4): 0.9, (4, 8): 0.9, (4, 1): 0.2}, 0.8) == (4, 8)
    assert select({(4, 1): 0.2}, 0.8) is None


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_modes_batch_state_and_layout(build: Callable[[], Sorted], shape: tuple[int, ...]) -> None:
    model, x = build(), torch.randn(*shape)
    model.train()(x)
    y = model.eval()(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    other = build().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    if x.ndim == 4:
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x, 4, 1).isfinite().all()


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_gradcheck(build: Callable[[], Sorted], shape: tuple[int, ...]) -> None:
    model = build().double().eval()
    width, depth = sorted(model.choices())[0]
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: model(z, width, depth), (x,), fast_mode=True)


def test_compiles_without_breaks() -> None:
    layer, x = NestedLinear(8, 8), torch.randn(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, 6), layer(x, 6))


def test_errors_name_the_argument() -> None:
    x = torch.zeros(1, 6)
    with pytest.raises(ValueError, match="width must"):
        mlp()(x, 5, 1)
    with pytest.raises(ValueError, match="depth must"):
        mlp()(x, 4, 3)
    with pytest.raises(ValueError, match="widths must"):
        SortedMLP(6, 3, (8, 4), (1,))
    with pytest.raises(ValueError, match="weights must"):
        Sampler([(1, 1)], 0, ())
    with pytest.raises(ValueError, match="width must"):
        NestedBatchNorm2d((4,))(torch.zeros(1, 3, 2, 2))
