"""SparK: figures of the variants, and what makes an encoder sparse."""
from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.convnext import ConvNeXtTrunk
from models.zoo.counting import macs, parameters
from models.zoo.layers import LayerNorm2d
from models.zoo.spark import SYSTEM, Active, Densify, ResNetTrunk, SparK, SparseBatchNorm2d, sparse

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("spark_resnet50", 23_508_032, 52_921_835), ("spark_resnet101", 42_500_160, 71_913_963), ("spark_resnet152", 58_143_808, 87_557_611),
    ("spark_resnet200", 62_624_832, 92_038_635), ("spark_convnext_small", 49_453_152, 74_383_083),
    ("spark_convnext_base", 87_564_416, 113_863_595), ("spark_convnext_large", 196_227_264, 224_083_755),
]  # fmt: skip


def shaken(model: Model) -> Model:
    """Every parameter and running statistic away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_()
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model


def encoder(kind: str) -> Any:
    torch.manual_seed(0)
    return shaken(ResNetTrunk((1, 2), dim=4) if kind == "resnet" else ConvNeXtTrunk((1, 2), (8, 16)))


def some(n: int = 2, rows: int = 4, columns: int = 5) -> Tensor:
    """An active map with 40 % ones."""
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(n, rows * columns, generator=generator).argsort(1)
    return (order < round(0.4 * rows * columns)).view(n, 1, rows, columns)


@pytest.mark.parametrize(("variant", "inner", "total"), FIGURES)
def test_published_figures(variant: str, inner: int, total: int) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
    assert isinstance(model, SparK)
    assert (parameters(model.encoder), parameters(model)) == (inner, total)
    assert parameters(model.decoder) == 23_183_115
    proj = sum(parameters(d.proj) for d in model.densify if isinstance(d, Densify))
    assert proj == {"spark_resnet50": 6_219_168, "spark_convnext_small": 1_742_496}.get(variant, proj)


def test_shapes_and_downstream_cost_at_224() -> None:
    """The table's 4.1 G is ResNet-50 with its head, 2 M more; the sparse encoder costs what the dense one costs."""
    with torch.device("meta"):
        model = SYSTEM.variants["spark_resnet50"]()
        assert isinstance(model, SparK)
        x = torch.empty(1, 3, 224, 224)
        maps = model.encode(x, torch.empty(1, 1, 7, 7, dtype=torch.bool))
        assert [tuple(m.shape[1:]) for m in maps] == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
        assert macs(model.encoder, x) / 1e9 == pytest.approx(4.1, abs=0.05)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_all_active_is_the_dense_network(kind: str) -> None:
    dense, x = encoder(kind).double(), torch.randn(2, 3, 32, 40, dtype=torch.float64)
    plain = copy.deepcopy(dense)
    active = Active()
    masked = sparse(dense, active)
    assert list(masked.state_dict()) == list(dense.state_dict())
    for every in (None, torch.ones(2, 1, 4, 5, dtype=torch.bool)):
        active.map = every
        for a, b in zip(masked.eval().maps(x), plain.eval().maps(x), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(masked.train().maps(x), plain.train().maps(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for key, value in plain.state_dict().items():  # running statistics too, and the dense encoder shares them
        torch.testing.assert_close(dense.state_dict()[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_active_set_is_the_same_at_every_depth(kind: str) -> None:
    dense, x, m = encoder(kind).eval(), torch.randn(2, 3, 32, 40), some()
    model = SparK(dense, width=16)
    maps = model.eval().encode(x, m)
    for found in maps:
        full = m.repeat_interleave(found.shape[2] // 4, 2).repeat_interleave(found.shape[3] // 5, 3).expand_as(found)
        assert not found[~full].any() and (found[full] != 0).double().mean() > (0.3 if kind == "resnet" else 0.999)
    filled = dense.maps(x * m.repeat_interleave(8, 2).repeat_interleave(8, 3))[-1]  # dense layers on a masked image
    assert (filled != 0).any(1).double().mean() == 1


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_masked_pixels_have_no_effect(kind: str) -> None:
    model, m = SparK(encoder(kind), width=16).train(), some()
    x = torch.randn(2, 3, 32, 40)
    full = m.repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(full, x, torch.randn_like(x))
    for a, b in zip(model.encode(x, m), model.encode(other, m), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(model.eval().reconstruct(x, m), model.reconstruct(other, m))


def test_sparse_convolution_is_submanifold() -> None:
    """Each active pixel sums its active neighbours; others are not there."""
    active, m = Active(), some(1, 4, 5)
    conv = shaken(sparse(nn.Conv2d(2, 3, 3, padding=1), active)).double()
    active.map = m
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64) * m
    wanted = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    sites = [(int(i), int(j)) for i, j in m[0, 0].nonzero()]
    for i, j in sites:
        assert conv.bias is not None
        wanted[0, :, i, j] = conv.bias.detach()
        for k, n in sites:
            if abs(k - i) <= 1 and abs(n - j) <= 1:
                wanted[0, :, i, j] += conv.weight[:, :, k - i + 1, n - j + 1].detach() @ x[0, :, k, n]
    torch.testing.assert_close(conv(x), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2)])
def test_sparse_pooling(pool: nn.Module) -> None:
    active = Active()
    active.map = some(2, 2, 3)
    x = torch.randn(2, 4, 8, 12)
    wanted = pool(x) * active.map.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(sparse(pool, active)(x), wanted)


def test_batch_norm_sees_active_pixels_only() -> None:
    active, m = Active(), some()
    plain = shaken(nn.BatchNorm1d(3)).double()
    norm = nn.BatchNorm2d(3).double()
    norm.load_state_dict(plain.state_dict())
    norm = sparse(norm, active)
    assert isinstance(norm, SparseBatchNorm2d)
    active.map = m
    x = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    full = m.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0]
    x = x * full[:, None]
    for training in (True, False):
        norm.train(training)
        plain.train(training)
        wanted = torch.zeros_like(x).permute(0, 2, 3, 1)
        wanted[full] = plain(x.permute(0, 2, 3, 1)[full])
        torch.testing.assert_close(norm(x), wanted.permute(0, 3, 1, 2), rtol=1e-10, atol=1e-12)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(norm.state_dict()[key], value, rtol=1e-10, atol=1e-12)


def test_gradcheck_of_the_hand_written_norm() -> None:
    active = Active()
    active.map = some(2, 2, 2)
    norm = sparse(nn.BatchNorm2d(2).double(), active).train()
    m = active.map
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm(x * m), (x,))


def test_densify_fills_holes_with_the_token() -> None:
    active, m = Active(), some()
    fill = Densify(4, 4, LayerNorm2d(4), True, active)
    active.map = m
    assert isinstance(fill.proj, nn.Identity)
    x = torch.randn(2, 4, 4, 5) * m
    y = fill(x)
    hole = ~m.expand_as(y)
    assert torch.equal(y[hole], fill.token.expand_as(y)[hole]) and fill.token.abs().max() <= 0.02
    torch.testing.assert_close(y[~hole], fill.norm(x)[~hole])
    assert parameters(Densify(4, 6, LayerNorm2d(4), False, active).proj) == 9 * 24 + 6


def test_patches_and_loss() -> None:
    torch.manual_seed(0)
    model = SparK(encoder("convnext"), width=16)
    x, m = torch.randn(2, 3, 16, 24), some(2, 2, 3)
    patches = model.patches(x)
    assert patches.shape == (2, 6, 192)
    assert torch.equal(patches[1, 4].view(8, 8, 3), x[1, :, 8:16, 8:16].permute(1, 2, 0))
    nn.init.zeros_(model.decoder.proj.weight)
    nn.init.zeros_(model.decoder.proj.bias)  # type: ignore[arg-type]
    assert model(x, m).item() == pytest.approx(191 / 192, abs=1e-5)  # unbiased variance
    nn.init.ones_(model.decoder.proj.bias)  # type: ignore[arg-type]
    assert model(x, m).item() == pytest.approx(191 / 192 + 1, abs=1e-5)
    shaken(model).eval()
    painted = model.patches(model.reconstruct(x, m))
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    hole = ~m.flatten(1)
    torch.testing.assert_close(model(x, m), F.mse_loss(painted[hole], target[hole]), rtol=1e-5, atol=1e-6)


def test_loss_starts_near_one() -> None:
    torch.manual_seed(0)
    model = SparK(ConvNeXtTrunk((1, 1, 1, 1), (8, 8, 8, 8)))
    assert model(torch.randn(1, 3, 64, 64)).item() == pytest.approx(1, abs=0.35)  # batch norm in the decoder keeps it of order one


def test_maps_drawn() -> None:
    model = SparK(encoder("convnext"), width=16)
    torch.manual_seed(0)
    m = model.draw(torch.zeros(500, 3, 56, 56))
    assert m.shape == (500, 1, 7, 7) and set(m.sum((1, 2, 3)).tolist()) == {20}
    assert (m.double().mean(0) - 20 / 49).abs().max() < 0.1 and not torch.equal(m[0], m[1])


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_modes_batch_and_state(kind: str) -> None:
    model = SparK(encoder(kind), width=16)
    x, m = torch.randn(3, 3, 32, 40), some(3)
    model.train()(x, m).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    y = model.eval().reconstruct(x, m)
    assert y.shape == x.shape
    torch.testing.assert_close(model.reconstruct(x[1:2], m[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.reconstruct(x.contiguous(memory_format=torch.channels_last), m), y, rtol=1e-4, atol=1e-4)
    other = SparK(encoder(kind), width=16).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.reconstruct(x, m), y)
    torch.testing.assert_close(copy.deepcopy(model).reconstruct(x, m), y)
    encoder(kind).load_state_dict(model.encoder.state_dict())  # the dense network, for fine-tuning
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.train()(x, m).isfinite()


@pytest.mark.parametrize("which", ["norm", "conv", "block"])
def test_compiles_without_breaks(which: str) -> None:
    active = Active()
    active.map = some()
    dense = {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 4, 3, padding=1), "block": ConvNeXtTrunk((1,), (4,)).stages[0]}[which]
    layer, x = sparse(dense, active), torch.randn(2, 4, 8, 10)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="model has a layer without"):
        sparse(nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1), b=nn.GroupNorm(2, 4))), Active())
    with pytest.raises(ValueError, match="ratio must be"):
        SparK(encoder("convnext"), ratio=1.0)
    with pytest.raises(ValueError, match="width must be"):
        SparK(encoder("convnext"), width=20)
    model = SparK(encoder("convnext"), width=16)
    with pytest.raises(ValueError, match="x must have sides"):
        model(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="active must be"):
        model(torch.zeros(1, 3, 32, 32), torch.ones(1, 1, 4, 4))
    active = Active()
    active.map = some(1)
    with pytest.raises(ValueError, match="x must have sides"):
        active.at(torch.zeros(1, 1, 6, 5))
