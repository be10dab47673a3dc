"""FFNet: figures of the variants, fusion, and what is an instance of the MetaMixer scheme."""
from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import metamixer as demonstration
from models.zoo.layers import ConvBN, DropPath
from models.zoo.metamixer import (
    SYSTEM,
    Block,
    ChannelMixer,
    FFNet,
    FFNetSR,
    FFNifiedAttention,
    MetaMixer,
    PointResidual,
    RepVGGDW,
    SelfAttention,
    depthwise,
    fuse_,
)

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("ffnet_1", 13_775_656, 13_660_152, {256: 2.985}), ("ffnet_2", 27_208_408, 26_908_440, {256: 6.003}),
    ("ffnet_3", 48_817_896, 48_330_632, {256: 10.146, 384: 22.83}), ("ffnet_4", 79_868_968, 79_200_360, {256: 19.17, 384: 43.12}),
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


def small(**options: Any) -> FFNet:
    torch.manual_seed(0)
    return FFNet((8, 16, 16), (1, 1, 1), token_kernels=(3, 7, 7), classes=3, **options)


@pytest.mark.parametrize(("variant", "plain", "fused", "giga"), FIGURES)
def test_published_figures(variant: str, plain: int, fused: int, giga: dict[int, float]) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) == plain
        fuse_(model)
        assert parameters(model) == fused
        for side, wanted in giga.items():
            digits = 5.1e-4 if wanted < 15 else 5.1e-3
            assert macs(model, torch.empty(1, 3, side, side)) / 1e9 == pytest.approx(wanted, abs=digits)
    kinds = {type(m) for m in model.modules() if not list(m.children())}
    assert kinds <= {nn.Conv2d, nn.GELU, nn.Linear, nn.BatchNorm2d, DropPath}
    dense = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) and m.groups != m.in_channels]
    assert dense == ["stem.0", "stem.2"]  # all else is pointwise or depthwise
    assert {m.kernel_size[0] for m in model.modules() if isinstance(m, nn.Conv2d)} == {1, 3, 7}


@pytest.mark.parametrize(("variant", "count"), [("ffnet_sr_light", 1_789_452), ("ffnet_sr", 2_381_580)])
def test_super_resolution_figures(variant: str, count: int) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) == count
        assert model(torch.empty(1, 3, 20, 30)).shape == (1, 3, 40, 60)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_fused_is_unfused(kernel: int, scale: float | None) -> None:
    model = shaken(small(kernel=kernel, scale=scale)).double().eval()
    x = torch.randn(2, 3, 34, 27, dtype=torch.float64)  # odd sides at every stage
    y = model(x)
    fuse_(model)
    assert not any(isinstance(m, ConvBN | RepVGGDW | PointResidual) for m in model.modules())
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)


def test_fused_is_unfused_in_float() -> None:
    model, x = shaken(small()).eval(), torch.randn(2, 3, 32, 32)
    y = model(x)
    torch.testing.assert_close(fuse_(model)(x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("outputs", "stride"), [(6, 1), (12, 1), (12, 2)])
def test_repvgg_is_a_padded_sum(outputs: int, stride: int) -> None:
    layer, x = shaken(RepVGGDW(6, outputs, stride)).double().eval(), torch.randn(2, 6, 9, 12, dtype=torch.float64)
    wanted = layer.conv[1](layer.conv[0](x)) + layer.conv1[1](layer.conv1[0](x))
    assert wanted.shape == (2, outputs, -(-9 // stride), -(-12 // stride))
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer.fused()(x), wanted, rtol=1e-10, atol=1e-10)
    point = shaken(PointResidual(6)).double().eval()
    torch.testing.assert_close(point.fused()(x), x + point.pw(point.bn(x)), rtol=1e-10, atol=1e-10)


def test_operators_are_the_scheme() -> None:
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    layer = shaken(FFNifiedAttention(8, 3)).double().eval()
    wanted = layer.value(F.gelu(layer.key(layer.query(x))))
    torch.testing.assert_close(layer(x), wanted)
    assert layer.coefficients(x).shape == x.shape
    ffn = MetaMixer(nn.Identity(), nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)).double()
    k, v = ffn.key, ffn.value
    assert isinstance(k, nn.Conv2d) and isinstance(v, nn.Conv2d)
    hidden = F.gelu(F.linear(x.permute(0, 2, 3, 1), k.weight[:, :, 0, 0], k.bias))
    torch.testing.assert_close(ffn(x), F.linear(hidden, v.weight[:, :, 0, 0], v.bias).permute(0, 3, 1, 2))
    attention = shaken(SelfAttention(8, 2)).double()
    q, keys, values = (
        f(x).reshape(2, 2, 4, 30).transpose(2, 3) for f in (attention.query, attention.keys, attention.values)
    )
    mixed = F.scaled_dot_product_attention(q, keys, values).transpose(2, 3).reshape(x.shape)
    torch.testing.assert_close(attention(x), attention.proj(mixed), rtol=1e-10, atol=1e-12)


def test_coefficients_do_not_see_beyond_their_kernel() -> None:
    for kernel, near in ((3, 1), (7, 3)):
        layer, x = shaken(FFNifiedAttention(4, kernel)).double().eval(), torch.randn(1, 4, 17, 17, dtype=torch.float64)
        moved = x.clone()
        moved[..., 8, 8] += 1
        for f, reach in ((layer.coefficients, near), (layer, 2 * near)):
            changed = (f(moved) != f(x)).any(1)[0].nonzero()
            assert changed.min() == 8 - reach and changed.max() == 8 + reach


def test_layer_scale_and_super_resolution_at_their_start() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8)
    block = Block(FFNifiedAttention(8), ChannelMixer(8), 8, scale=1e-6).eval()
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)
    assert not torch.equal(block(x), x)
    image, model = torch.rand(2, 3, 5, 7), FFNetSR(1, dim=8, scale=3)
    nn.init.zeros_(model.tail.weight)
    nn.init.zeros_(model.tail.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(model(image), F.interpolate(image, scale_factor=3, mode="nearest"))


@pytest.mark.parametrize("which", ["token 3", "token 7", "channel", "merging"])
def test_gradcheck(which: str) -> None:
    layers: dict[str, nn.Module] = {
        "token 3": FFNifiedAttention(3, 3), "token 7": FFNifiedAttention(2, 7), "channel": ChannelMixer(2, 7),
        "merging": nn.Sequential(RepVGGDW(2, 4, 2), PointResidual(4)),
    }
    layer = shaken(layers[which]).double().eval()
    x = torch.randn(1, 3 if which == "token 3" else 2, 4, 5, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("which", ["classifier", "super-resolution"])
def test_network_modes_batch_and_state(which: str) -> None:
    def build() -> nn.Module:
        return small(scale=0.5) if which == "classifier" else FFNetSR(2, dim=8)

    torch.manual_seed(0)
    model, x = shaken(build()).eval(), torch.randn(3, 3, 32, 24)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = build().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()


def test_stages_halve_and_stochastic_depth_is_of_training() -> None:
    model, x = small(drop=0.9, scale=0.5), torch.randn(4, 3, 32, 48)
    assert [tuple(f.shape[1:]) for f in model.features(x)] == [(8, 8, 12), (16, 4, 6), (16, 2, 3)]
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    x = torch.zeros(1, 1, demonstration.SIDE, demonstration.SIDE)
    ours, plain = (demonstration.network(which) for which in ("FFNified attention", "self-attention"))
    assert macs(plain.eval(), x) >= macs(ours.eval(), x) and parameters(plain) >= parameters(ours)
    assert macs(demonstration.network("dense").eval(), x) <= macs(plain, x)


def test_compiles_without_breaks() -> None:
    block, x = shaken(Block(FFNifiedAttention(8), ChannelMixer(8), 8)).eval(), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), block(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kernel must be"):
        depthwise(8, 5)
    with pytest.raises(ValueError, match="outputs must be"):
        RepVGGDW(8, 12)
    with pytest.raises(ValueError, match="heads must be"):
        SelfAttention(8, 3)
    with pytest.raises(ValueError, match="expansion must be"):
        ChannelMixer(8, 7, 0)
    with pytest.raises(ValueError, match="dims must each"):
        FFNet((16, 24), (1, 1), token_kernels=(3, 3))
    with pytest.raises(ValueError, match="depths and token_kernels"):
        FFNet((16, 32), (1,))
    with pytest.raises(ValueError, match="depth and scale"):
        FFNetSR(0)
