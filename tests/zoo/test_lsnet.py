"""LSNet: figures of the variants, and the equalities that define small-kernel aggregation and fusion."""
from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import lsnet as demonstration
from models.zoo.layers import ConvBN
from models.zoo.lsnet import LKP, SYSTEM, Attention, LSConv, LSNet, RepVGGDW, SqueezeExcite, fuse_, key_map, load_published, ska

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("lsnet_t", 11_409_832, 11_370_488, 0.319, 0.316), ("lsnet_s", 16_146_304, 16_098_232, 0.543, 0.539),
    ("lsnet_b", 23_313_608, 23_249_320, 1.259, 1.248),
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


def small(**options: Any) -> LSNet:
    torch.manual_seed(0)
    return LSNet((16, 16, 32, 64), (1, 2, 2, 2), (1, 1, 1, 2), classes=3, size=(64, 64), **options)


def count(model: nn.Module, image: Tensor) -> float:
    """GMAC as published: with small-kernel aggregation, 2 an element for a batch norm and 5 for a group norm."""
    extra: list[int] = []

    def add(weight: int) -> Any:
        return lambda module, inputs, output: extra.append(weight * output.numel())

    weights = {LSConv: 9, nn.BatchNorm2d: 2, nn.BatchNorm1d: 2, nn.GroupNorm: 5}
    handles = [m.register_forward_hook(add(weights[type(m)])) for m in model.modules() if type(m) in weights]
    found = macs(model.eval(), image) + sum(extra)
    for handle in handles:
        handle.remove()
    return found / 1e9


@pytest.mark.parametrize(("variant", "plain", "fused", "giga", "giga_fused"), FIGURES)
def test_published_figures(variant: str, plain: int, fused: int, giga: float, giga_fused: float) -> None:
    with torch.device("meta"):
        model, image = SYSTEM.variants[variant](), torch.empty(1, 3, 224, 224)
        sides: list[int] = []
        for module in model.modules():
            if isinstance(module, LSConv | Attention):
                module.register_forward_hook(lambda m, x, y: sides.append(y.shape[-1]))
        assert parameters(model) == plain
        assert count(model, image) == pytest.approx(giga, abs=5.1e-4)
        fuse_(model)
        assert parameters(model) == fused
        assert count(model, image) == pytest.approx(giga_fused, abs=5.1e-4)
    assert set(sides) - {28} == {14, 7, 4} and (28 in sides) == (variant == "lsnet_b")


@pytest.mark.parametrize("options", [{}, {"attention": False}, {"distilled": True}])
def test_fused_is_unfused(options: dict[str, bool]) -> None:
    model = shaken(small(**options)).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    y = model(x)
    fuse_(model)
    assert not any(isinstance(m, ConvBN | RepVGGDW | nn.BatchNorm1d) for m in model.modules())
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-10)


def test_repvgg_as_in_the_equation() -> None:
    layer, x = shaken(RepVGGDW(6)).double().eval(), torch.randn(2, 6, 7, 5, dtype=torch.float64)
    wanted = layer.conv[1](layer.conv[0](x)) + layer.conv1[1](layer.conv1[0](x)) + x
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer.fused()(x), wanted, rtol=1e-10, atol=1e-12)


def test_constant_kernel_is_a_depthwise_convolution() -> None:
    x, kernel = torch.randn(2, 24, 6, 7), torch.randn(3, 9)
    w = kernel.view(1, 3, 9, 1, 1).expand(2, 3, 9, 6, 7)
    own = torch.stack([kernel[c % 3] for c in range(24)]).view(24, 1, 3, 3)  # kernels are interleaved
    torch.testing.assert_close(ska(x, w), F.conv2d(x, own, padding=1, groups=24), rtol=1e-5, atol=1e-5)


def test_centre_tap_is_the_identity_and_ska_is_linear() -> None:
    x, z = torch.randn(2, 2, 16, 5, 5, dtype=torch.float64)
    w = torch.randn(2, 2, 9, 5, 5, dtype=torch.float64)
    centre = torch.zeros_like(w)
    centre[:, :, 4] = 1
    assert torch.equal(ska(x, centre), x)
    torch.testing.assert_close(ska(2 * x - 3 * z, w), 2 * ska(x, w) - 3 * ska(z, w), rtol=1e-10, atol=1e-12)


def test_ska_pixel_by_pixel() -> None:
    x, w = torch.randn(1, 4, 4, 5), torch.randn(1, 2, 9, 4, 5)
    wanted = torch.zeros_like(x)
    for c in range(4):
        for i in range(4):
            for j in range(5):
                for k in range(9):
                    row, column = i + k // 3 - 1, j + k % 3 - 1
                    if 0 <= row < 4 and 0 <= column < 5:
                        wanted[0, c, i, j] += x[0, c, row, column] * w[0, c % 2, k, i, j]
    torch.testing.assert_close(ska(x, w), wanted, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_kernel_sums_its_channels() -> None:
    x, w = torch.randn(1, 16, 4, 4), torch.randn(1, 2, 9, 4, 4, requires_grad=True)
    ska(x, w).sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    torch.testing.assert_close(w.grad[0, 1, 4], x[0, 1::2].sum(0), rtol=1e-5, atol=1e-5)


def test_kernels_are_normalized_and_see_seven_pixels() -> None:
    layer = LKP(16).eval()
    w = layer(torch.randn(2, 16, 12, 12))
    assert w.shape == (2, 2, 9, 12, 12)
    torch.testing.assert_close(w.mean((2, 3, 4)), torch.zeros(2, 2), rtol=0, atol=1e-5)
    layer.norm = nn.Identity()  # type: ignore[assignment]  # its statistics are of the whole map
    x = torch.randn(1, 16, 15, 15)
    moved = x.clone()
    moved[..., 7, 7] += 1
    changed = (layer(moved) != layer(x)).any(2).any(1)[0].nonzero()
    assert changed.min() == 4 and changed.max() == 10


def test_attention_bias_is_of_distances_and_fresh_blocks_pass() -> None:
    layer, x = Attention(32, 1, (3, 4)).eval(), torch.randn(2, 32, 3, 4)
    torch.testing.assert_close(layer(x), x)
    assert layer.bias.shape == (1, 12)
    apart = layer.apart.view(3, 4, 3, 4)  # type: ignore[operator]
    assert apart[0, 0, 2, 3] == apart[2, 3, 0, 0] == apart[0, 3, 2, 0] == 11 and apart[1, 1, 1, 2] == 1
    assert [SqueezeExcite(d).fc1.out_channels for d in (64, 96, 16, 448)] == [16, 24, 8, 112]


@pytest.mark.parametrize("which", ["ska", "lsconv", "attention"])
def test_gradcheck(which: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8 if which != "attention" else 16, 3, 3, dtype=torch.float64, requires_grad=True)
    if which == "ska":
        w = torch.randn(2, 2, 9, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(ska, (x, w))
        return
    layer = shaken(LSConv(8) if which == "lsconv" else Attention(16, 1, (3, 3))).double().eval()
    assert torch.autograd.gradcheck(layer, (x,))


def test_network_modes_batch_and_state() -> None:
    model, x = shaken(small()).eval(), torch.randn(3, 3, 64, 64)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = small().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    assert small(attention=False).eval()(torch.randn(1, 3, 40, 56)).shape == (1, 3)
    pair = small(distilled=True)
    both = pair.train()(x)
    assert isinstance(both, tuple) and len(both) == 2 and pair.eval()(x).shape == (3, 3)


def test_published_names() -> None:
    """A state dict with the authors' names loads; their index buffers are dropped, other names refused."""
    model, x = shaken(small(distilled=True)).eval(), torch.randn(1, 3, 64, 64)
    names = key_map(model)
    assert set(names.values()) == set(model.state_dict()) and len(names) == len(model.state_dict())
    assert {
        "patch_embed.4.bn.running_var", "blocks1.0.mixer.conv1.c.weight", "blocks1.0.se.fc2.bias", "blocks2.0.c.weight",
        "blocks2.3.mixer.lkp.cv4.bias", "blocks3.3.mixer.bn.weight", "blocks3.3.ffn.m.pw2.bn.bias", "blocks4.3.mixer.m.attention_biases",
        "blocks4.3.mixer.m.proj.1.c.weight", "head.l.weight", "head_dist.bn.num_batches_tracked",
    } <= set(names)  # fmt: skip
    state = {theirs: model.state_dict()[ours] for theirs, ours in names.items()}
    other = small(distilled=True).eval()
    load_published(other, state | {"blocks4.3.mixer.m.attention_bias_idxs": torch.zeros(4, 4)})
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match="state must hold"):
        load_published(other, state | {"stem.0.weight": torch.zeros(1)})


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    x = torch.zeros(1, 8, 12, 12)
    ours, plain = (demonstration.network(side) for side in (True, False))
    assert macs(plain, x) >= macs(ours, x) + 9 * demonstration.OURS * 144


def test_compiles_without_breaks() -> None:
    layer, x = LSConv(16).eval(), torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="dim must be"):
        LSConv(12)
    with pytest.raises(ValueError, match="large and small"):
        LKP(16, small=2)
    with pytest.raises(ValueError, match="heads must be"):
        Attention(32, 3, (4, 4))
    with pytest.raises(ValueError, match="w must be"):
        ska(torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, 9, 4, 4))
    with pytest.raises(ValueError, match="x must be a map"):
        small()(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match="depths and heads"):
        LSNet((16, 32), (1,))
