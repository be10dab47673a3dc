"""ConvNeXt: figures of the variants, and the equalities that make it lowerable."""
from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.convnext import SYSTEM, Block, ConvNeXt, IsotropicConvNeXt, as_pointwise, fold_
from models.zoo.counting import macs, parameters
from models.zoo.layers import LayerNorm2d

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("convnext_tiny", 28_589_128, {224: 4.456, 384: 13.092}), ("convnext_small", 50_223_688, {224: 8.684}),
    ("convnext_base", 88_591_464, {224: 15.355, 384: 45.122}), ("convnext_large", 197_767_336, {224: 34.361}),
    ("convnext_xlarge", 350_196_968, {224: 60.921}), ("convnext_isotropic_small", 22_308_712, {224: 4.286}),
    ("convnext_isotropic_base", 87_083_752, {224: 16.896}), ("convnext_isotropic_large", 305_905_640, {224: 59.699}),
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


def small(**options: Any) -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt((1, 1, 2, 1), (8, 12, 16, 20), classes=3, **options)


@pytest.mark.parametrize(("variant", "count", "giga"), FIGURES)
def test_published_figures(variant: str, count: int, giga: dict[int, float]) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) == count
        for side, expected in giga.items():
            assert macs(model, torch.empty(1, 3, side, side)) / 1e9 == pytest.approx(expected, abs=5.1e-4)


def test_pieces_and_shapes_of_tiny() -> None:
    with torch.device("meta"):
        model = SYSTEM.variants["convnext_tiny"]()
        assert isinstance(model, ConvNeXt)
        maps = model.maps(torch.empty(2, 3, 224, 224))
    assert [tuple(m.shape) for m in maps] == [(2, 96, 56, 56), (2, 192, 28, 28), (2, 384, 14, 14), (2, 768, 7, 7)]
    assert [parameters(m) for m in model.downsample_layers] == [4_896, 74_112, 295_680, 1_181_184]
    assert [parameters(stage[0]) for stage in model.stages] == [79_296, 306_048, 1_201_920, 4_763_136]  # type: ignore[index]
    assert parameters(model.norm) == 1_536 and parameters(model.head) == 769_000
    keys = set(model.state_dict())  # the authors' names
    wanted = {"downsample_layers.0.1.weight", "downsample_layers.3.0.bias", "stages.2.8.dwconv.weight", "stages.0.0.norm.bias"}
    assert wanted | {"stages.3.2.pwconv1.weight", "stages.1.1.pwconv2.bias", "stages.0.2.gamma", "norm.weight", "head.bias"} <= keys


def test_block_as_in_the_equations_on_nchw() -> None:
    block, x = shaken(Block(6)).double(), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    y = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=6)
    mean, var = y.mean(1, keepdim=True), y.var(1, unbiased=False, keepdim=True)
    norm = block.norm
    assert isinstance(norm, LayerNorm2d)
    y = (y - mean) / (var + 1e-6).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    y = F.gelu(F.conv2d(y, block.pwconv1.weight[..., None, None], block.pwconv1.bias))
    y = F.conv2d(y, block.pwconv2.weight[..., None, None], block.pwconv2.bias)
    assert block.gamma is not None
    torch.testing.assert_close(block(x), x + block.gamma.view(-1, 1, 1) * y, rtol=1e-10, atol=1e-12)


def test_gamma() -> None:
    x = torch.randn(2, 6, 9, 8)
    block = shaken(Block(6))
    assert block.gamma is not None
    y = block(x)
    torch.testing.assert_close(fold_(block)(x), y, rtol=1e-5, atol=1e-5)
    assert block.gamma is None
    block = shaken(Block(6))
    assert block.gamma is not None
    nn.init.zeros_(block.gamma)
    assert torch.equal(block(x), x)
    torch.testing.assert_close(Block(6)(x), x, rtol=0, atol=1e-4)
    assert Block(6, layer_scale=0).gamma is None


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_folded_is_unfolded(norm: Any) -> None:
    model, x = shaken(small(norm=norm)).double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    y = model(x)
    torch.testing.assert_close(fold_(model)(x), y, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert any(isinstance(m, LayerNorm2d) for m in model.modules()) == (norm == "layer")


@pytest.mark.parametrize("p", [2, 4])
def test_patch_convolution_is_space_to_depth_and_pointwise(p: int) -> None:
    conv, x = nn.Conv2d(3, 5, p, p).double(), torch.randn(2, 3, 16, 8, dtype=torch.float64)
    torch.testing.assert_close(as_pointwise(conv)(x), conv(x), rtol=1e-10, atol=1e-12)


def test_translation_inside_the_map() -> None:
    block, x = shaken(Block(4)).double(), torch.randn(1, 4, 16, 16, dtype=torch.float64)
    moved = block(x.roll(2, 3))[..., 5:-5, 5:-5]
    torch.testing.assert_close(moved, block(x)[..., 5:-5, 3:-7], rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    block = shaken(Block(3)).double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_first_weights() -> None:
    torch.manual_seed(0)
    model = ConvNeXt((1, 1), (64, 64), head_scale=0.5)
    for p in (model.stages[0][0].pwconv1.weight, 2 * model.head.weight):  # type: ignore[index]
        assert p.std().item() == pytest.approx(0.02, rel=0.03) and p.abs().max() < 0.11
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_network_modes_batch_and_state() -> None:
    model, x = shaken(small()).eval(), torch.randn(3, 3, 40, 64)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-5, atol=1e-5)
    other = small().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    dropped = shaken(small(drop=0.5)).train()
    assert not torch.equal(dropped(x), dropped(x)) and torch.equal(dropped.eval()(x), dropped(x))
    assert [b.drop_path.probability for b in dropped.modules() if isinstance(b, Block)] == [0, 0.125, 0.25, 0.375, 0.5]


def test_isotropic_runs() -> None:
    torch.manual_seed(0)
    model, x = shaken(IsotropicConvNeXt(2, 8, classes=3)).eval(), torch.randn(2, 3, 48, 32)
    assert model(x).shape == (2, 3) and all(isinstance(b, Block) and b.gamma is None for b in model.blocks)
    torch.testing.assert_close(model(x[1:]), model(x)[1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="x must have sides"):
        model(torch.zeros(1, 3, 8, 16))


def test_compiles_without_breaks() -> None:
    block, x = shaken(Block(8)), torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), block(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kernel must be"):
        Block(8, kernel=4)
    with pytest.raises(ValueError, match="norm must be"):
        Block(8, norm="group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depths must be"):
        ConvNeXt((1, 1), (8,))
    with pytest.raises(ValueError, match="x must have sides"):
        small()(torch.zeros(1, 3, 31, 64))
    with pytest.raises(ValueError, match="conv must have"):
        as_pointwise(nn.Conv2d(3, 4, 3, 2))


def test_demonstration_networks_differ_in_the_kernel_only() -> None:
    from models.zoo.demos import convnext as demonstration

    x: Tensor = torch.zeros(1, 2, 12, 12)
    large, plain = (macs(demonstration.network(k), x) for k in (7, 3))
    assert large - plain == demonstration.BLOCKS * demonstration.DIM * 40 * 144 and large < 1.3 * plain
