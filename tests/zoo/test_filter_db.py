"""CNN Filter DB: the measures on layers whose answer is known, and dense layers by their basis filters."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.zoo import filter_db as db
from models.zoo.counting import macs, parameters
from models.zoo.filter_db import BasisConv2d


def gaussian(outputs: int = 16, inputs: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(*shape: int) -> Tensor:
    return gaussian(*shape).reshape(-1, 9)


@pytest.mark.parametrize(("n", "value"), [(8, 0.5092), (16, 0.7221), (64, 0.9056), (256, 0.9433), (1024, 0.9499), (65536, 0.9513)])
def test_random_threshold(n: int, value: float) -> None:
    assert db.random_threshold(n) == pytest.approx(value, abs=5e-5)
    assert db.random_threshold(3) > 0


def test_random_layers() -> None:
    entropies = [db.variance_entropy(gaussian(seed=s).reshape(-1, 9)) for s in range(20)]
    ratios = [h / db.random_threshold(128) for h in entropies]
    assert abs(sum(entropies) / 20 - 0.936) < 0.004 and abs(sum(ratios) / 20 - 1.004) < 0.005
    assert all(0.97 < r < 1.03 for r in ratios) and max(entropies) < math.log10(9)
    assert db.quality("x", gaussian()).ratio == pytest.approx(ratios[0])


def test_rank_two_and_rank_one() -> None:
    generator = torch.Generator().manual_seed(1)
    plane = torch.randn(128, 2, generator=generator).double() @ torch.linalg.qr(torch.randn(9, 2, generator=generator).double())[0].T
    h = db.variance_entropy(plane)
    assert h == pytest.approx(math.log10(2), abs=0.01) and h / db.random_threshold(128) == pytest.approx(0.318, abs=0.01)
    assert h == pytest.approx(0.296, abs=0.01)
    line = torch.randn(64, 1).double() @ torch.randn(1, 9).double()
    assert db.variance_entropy(line) == pytest.approx(0, abs=1e-10)
    found = db.pca(plane).ratio
    assert float(found[2:].sum()) < 1e-20
    two = torch.tensor([[1.0] + [0] * 8, [-1.0] + [0] * 8, [0, 1.0] + [0] * 7, [0, -1.0] + [0] * 7])
    assert db.variance_entropy(two) == pytest.approx(math.log10(2), abs=1e-12)


def test_sparse_constant_and_zero_layers() -> None:
    weight = gaussian()
    zeroed = torch.zeros(128, dtype=torch.bool)
    zeroed[:71] = True
    weight.view(128, 9)[zeroed] = 0
    found = db.quality("x", weight)
    assert found.sparsity == pytest.approx(71 / 128) and torch.equal(db.sparse(weight), zeroed)
    assert found.clean_entropy == db.variance_entropy(weight.view(128, 9)[71:]) and found.clean_ratio > 0.9
    peak = weight.abs().max()
    small = weight.clone()
    small.view(128, 9)[0, 0], small.view(128, 9)[1, 0] = 0.0099 * peak, 0.0101 * peak
    assert db.sparsity(small) == pytest.approx(70 / 128)
    constant = torch.full((8, 4, 3, 3), 0.3)
    assert db.variance_entropy(constant.view(-1, 9)) == 0 and db.sparsity(constant) == 0
    zeros = db.quality("z", torch.zeros(4, 4, 3, 3))
    assert zeros.sparsity == 1 and zeros.entropy == 0 and zeros.clean_entropy == 0 and math.isnan(zeros.clean_ratio)
    assert math.isnan(db.quality("n", gaussian(1, 2)).ratio)


def test_invariant_to_scale_and_order() -> None:
    weight = gaussian()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    first = db.quality("x", weight)
    for other in (weight * -3.7, weight[order], weight[:, order[order < 8]]):
        second = db.quality("x", other)
        for name in ("sparsity", "entropy", "ratio", "orthogonality"):
            assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-10)
    p, q = rows(16, 8), rows(8, 8).cumsum(1)
    value = db.shift(p, q)
    each = torch.rand(len(p), 1, dtype=torch.float64) + 0.1
    assert db.shift(p * each, q) == pytest.approx(value, rel=1e-6) and db.shift(p.flip(0), q) == pytest.approx(value, rel=1e-6)


def test_shift_is_symmetric_and_zero_only_for_one_group() -> None:
    p, q = rows(32, 16), rows(32, 16).cumsum(1)
    assert db.shift(p, p) == 0 and db.shift(p, q) == pytest.approx(db.shift(q, p), rel=1e-8) and db.shift(p, q) > 1
    near = gaussian(32, 16, seed=5).reshape(-1, 9)
    assert 0 < db.shift(p, near) < 0.5 * db.shift(p, q)


def test_shift_by_hand() -> None:
    first, second = torch.zeros(4, 9), torch.zeros(4, 9)
    first[:, 0], first[:, 1] = torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.5
    second[:, 0], second[:, 1] = torch.tensor([1.0, -1.0, -1.0, -1.0]), 0.5
    eps = float(torch.finfo(torch.float32).eps)
    whole = 1 + 68 * eps
    a, b = (0.5 / whole, 0.5 / whole), (0.75 / whole, 0.25 / whole)
    wanted = sum((x - y) * math.log(x / y) for x, y in zip(a, b, strict=True))
    assert db.shift(first, second) == pytest.approx(wanted, rel=1e-6)


def test_components_are_orthonormal() -> None:
    for n in (1, 4, 128):
        found = db.pca(rows(n, 1))
        torch.testing.assert_close(found.components @ found.components.mT, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)
    x = rows(128, 1)
    c = found.coefficients(x)
    torch.testing.assert_close(c.T.cov(), torch.diag(found.variances), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(c @ found.components + found.mean, x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(db.scaled(torch.tensor([[2.0, -4.0], [0.0, 0.0]])), torch.tensor([[0.5, -1.0], [0.0, 0.0]]))


def test_orthogonality_of_known_layers() -> None:
    base = torch.linalg.qr(gaussian(18, 2).reshape(18, 18))[0]
    assert db.orthogonality(base[:4].reshape(4, 2, 3, 3) * 5) == pytest.approx(1, abs=1e-12)
    parallel = base[:1].reshape(1, 2, 3, 3).repeat(4, 1, 1, 1)
    assert db.orthogonality(parallel) == pytest.approx(0, abs=1e-12)
    half = torch.cat((base[0], base[0] + math.sqrt(3) * base[1])).reshape(2, 2, 3, 3)  # 60 degrees apart
    assert db.orthogonality(half) == pytest.approx(0.5, abs=1e-12)
    assert db.orthogonality(parallel[:1]) == 1
    part = base[:2].reshape(2, 2, 3, 3).clone()
    part[0] = 0
    assert db.orthogonality(part) == pytest.approx(0.5)  # a zero row misses its own 1


def test_a_network_is_walked() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 6, 3)), nn.Linear(4, 4))
    found = db.analyse(model)
    assert [(q.name, q.filters) for q in found] == [("0", 12), ("2.0", 24)]
    assert db.filters(model).shape == (36, 9) and torch.equal(db.filters([gaussian()]), rows(16, 8))


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"bias": False}, {"padding": 2}])
def test_nine_basis_filters_are_the_dense_layer(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(5, 7, 3, **options).double(), torch.randn(2, 5, 8, 9, dtype=torch.float64)
    ours = BasisConv2d.from_conv(conv)
    torch.testing.assert_close(ours(x), conv(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.dense(), conv.weight.detach(), rtol=1e-10, atol=1e-12)
    flat = ours.basis.detach().flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)
    single = conv.float()
    torch.testing.assert_close(BasisConv2d.from_conv(single)(x.float()), single(x.float()), rtol=1e-5, atol=1e-6)


def test_cut_basis_loses_the_smallest_directions() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    values = torch.linalg.svdvals(conv.weight.detach().reshape(-1, 9))
    for rank in (1, 4, 8):
        lost = (BasisConv2d.from_conv(conv, rank).dense() - conv.weight).square().sum()
        torch.testing.assert_close(lost, values[rank:].square().sum(), rtol=1e-10, atol=0)
    two = BasisConv2d(4, 6, 2).double()
    conv.weight.data.copy_(two.dense())
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(BasisConv2d.from_conv(conv, 2)(x), conv(x), rtol=1e-10, atol=1e-12)
    one = nn.Conv2d(1, 2, 3, bias=False)  # fewer filters than the rank
    torch.testing.assert_close(BasisConv2d.from_conv(one)(x[:, :1].float()), one(x[:, :1].float()), rtol=1e-5, atol=1e-6)


def test_basis_layer_as_a_module() -> None:
    torch.manual_seed(0)
    layer, x = BasisConv2d(4, 6, 3), torch.randn(2, 4, 6, 6)
    assert parameters(layer) == 3 * 9 + 6 * 4 * 3 + 6 and macs(layer, x[:1]) == 36 * (9 * 4 * 3 + 6 * 4 * 3)
    y = layer(x)
    torch.testing.assert_close(layer.eval()(x[1:]), y[1:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), y)
    other = BasisConv2d(4, 6, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).isfinite().all()
    layer.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    small = BasisConv2d(2, 2, 2).double()
    assert torch.autograd.gradcheck(small, (torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True),))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="n must be"):
        db.random_threshold(2)
    with pytest.raises(ValueError, match="rank must be"):
        BasisConv2d(2, 2, 10)
    with pytest.raises(ValueError, match="conv must be"):
        BasisConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="weight must be"):
        db.sparsity(torch.zeros(2, 2, 5, 5))
    with pytest.raises(ValueError, match="weights must hold"):
        db.filters(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rows must be"):
        db.pca(torch.zeros(0, 9))
    with pytest.raises(ValueError, match="bins must be"):
        db.shift(rows(2, 2), rows(2, 2), bins=1)
