"""UniRepLKNet: figures of the variants, and that merging changes nothing."""
from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.demos import unireplknet as demonstration
from models.zoo.layers import GRN, DilatedReparam, SqueezeExcite
from models.zoo.unireplknet import BRANCHES, SYSTEM, Block, UniRepLKNet, drb, from_published, merge_, mosaic

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("a", 4_649_060, 4_437_300, 0.640, 224), ("f", 6_489_328, 6_235_216, 0.905, 224), ("p", 11_080_520, 10_741_704, 1.573, 224),
    ("n", 18_818_880, 18_318_560, 2.767, 224), ("t", 31_693_420, 31_037_980, 4.899, 224), ("s", 56_456_704, 55_645_984, 9.094, 224),
    ("b", 99_089_416, 98_008_456, 47.18, 384), ("l", 220_076_056, 218_454_616, 105.42, 384), ("xl", 388_690_984, 386_529_064, 186.77, 384),
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


def small(**options: int) -> UniRepLKNet:
    torch.manual_seed(0)
    return UniRepLKNet(8, (1, 1, 2), ((3,), (7,), (13, 0)), classes=3, **options)


@pytest.mark.parametrize(("variant", "train", "deploy", "giga", "side"), FIGURES)
def test_published_figures(variant: str, train: int, deploy: int, giga: float, side: int) -> None:
    with torch.device("meta"):
        model, image = SYSTEM.variants[f"unireplknet_{variant}"](), torch.empty(1, 3, side, side)
        assert parameters(model) == train
        merge_(model)
        assert parameters(model) == deploy
        assert macs(model, image) / 1e9 == pytest.approx(giga, abs=5.1e-3 if side == 384 else 5.1e-4)
        if variant == "s":  # also published at 384
            assert macs(model, torch.empty(1, 3, 384, 384)) / 1e9 == pytest.approx(26.7, abs=0.05)


@pytest.mark.parametrize("kernel", sorted(BRANCHES))
def test_merged_is_unmerged(kernel: int) -> None:
    layer = shaken(drb(4, kernel)).eval()
    x = torch.randn(2, 4, 20, 19)
    y = layer(x)
    merged = layer.merged()
    assert merged.kernel_size == (kernel, kernel) and merged.bias is not None
    assert ((merged(x) - y).norm() / y.norm()).item() < 1e-6
    double = layer.double()
    torch.testing.assert_close(double.merged()(x.double()), double(x.double()), rtol=1e-10, atol=1e-12)


def test_merged_kernel_tap_by_tap() -> None:
    """Batch norms that do nothing: the merged kernel is the large one plus the dilated taps at their places."""
    layer = drb(2, 7).double().eval()
    for m in layer.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 0.0
    wanted = layer.main[0].weight.clone()  # type: ignore[operator]
    for k, r in BRANCHES[7]:
        weight = layer.branches[f"k{k}_{r}"][0].weight  # type: ignore[index]
        for i in range(k):
            for j in range(k):
                wanted[:, :, 3 + r * (i - k // 2), 3 + r * (j - k // 2)] += weight[:, :, i, j]
    torch.testing.assert_close(layer.merged().weight, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kernel", [0, 3, 5, 7, 13])
def test_block_as_in_the_equation_and_merged(kernel: int) -> None:
    block = shaken(Block(8, kernel, scale=0.5)).double().eval()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    y = block.se(block.norm(block.dwconv(x)))
    h = nn.functional.gelu(block.pwconv1(y))
    g = h.square().sum((2, 3), keepdim=True).sqrt()
    h = h * (block.grn.weight.view(-1, 1, 1) * g / (g.mean(1, keepdim=True) + 1e-6) + 1) + block.grn.bias.view(-1, 1, 1)
    assert block.gamma is not None
    wanted = x + block.gamma.view(-1, 1, 1) * block.norm2(block.pwconv2(h))
    torch.testing.assert_close(block(x), wanted, rtol=1e-10, atol=1e-12)
    block.merge_().merge_()
    assert not any(isinstance(m, nn.BatchNorm2d | DilatedReparam) for m in block.modules())
    torch.testing.assert_close(block(x), wanted, rtol=1e-9, atol=1e-10)


def test_fresh_shared_parts() -> None:
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(GRN(8)(x), x)
    se = SqueezeExcite(8, 2)
    nn.init.zeros_(se.up.weight)
    nn.init.constant_(se.up.bias, 20.0)  # type: ignore[arg-type]
    torch.testing.assert_close(se(x), x)
    block = Block(8, 7)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)


def test_a_block_sees_half_its_kernel() -> None:
    layer = drb(2, 13).eval()
    x = torch.zeros(1, 2, 21, 21)
    moved = x.clone()
    moved[..., 10, 10] = 1
    changed = (layer(moved) != layer(x)).any(1)[0].nonzero()
    assert changed.min() == 4 and changed.max() == 16


def test_network_merged_modes_batch_and_state() -> None:
    model, x = shaken(small()).eval(), torch.randn(3, 3, 33, 26)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = small().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merge_(other)(x), y, rtol=1e-4, atol=1e-4)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()


def test_published_names() -> None:
    """A state dict under the published names, of the published shapes, loads and gives the same network."""
    model = shaken(small()).eval()
    theirs: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        part = key.split(".")
        if ".grn." in key:
            key = ".".join([*part[:3], "act.1", {"weight": "gamma", "bias": "beta"}[part[-1]]])
            value = value.view(1, 1, 1, -1)
        elif ".branches." in key:
            key = ".".join([*part[:4], f"dil_{'conv' if part[6] == '0' else 'bn'}_{part[5]}", part[7]])
        elif ".main." in key:
            key = ".".join([*part[:4], "lk_origin" if part[5] == "0" else "origin_bn", part[6]])
        elif ".norm2." in key:
            key = ".".join([*part[:3], "pwconv2.2", part[-1]])
        elif ".pwconv" in key:
            key = ".".join([*part[:3], "pwconv1.1" if part[3] == "pwconv1" else "pwconv2.0", part[-1]])
            value = value[..., 0, 0] if value.ndim == 4 else value
        theirs[key] = value
    assert "stages.1.0.dwconv.dil_bn_k3_2.running_var" in theirs and "stages.0.0.act.1.gamma" in theirs
    other = small().eval()
    other.load_state_dict(from_published(theirs))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(x), model(x))


def test_other_modalities() -> None:
    frames = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(2, 3, 16, 5, 6)
    picture = mosaic(frames)
    assert picture.shape == (2, 3, 20, 24)
    for f in range(16):
        row, column = divmod(f, 4)
        assert (picture[..., 5 * row : 5 * row + 5, 6 * column : 6 * column + 6] == f).all()
    assert small(inputs=1).eval()(torch.randn(2, 1, 64, 40)).shape == (2, 3)


def test_gradcheck() -> None:
    block = shaken(Block(4, 7, scale=0.5)).double().eval()
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    ours, plain = (merge_(demonstration.network(*size)) for size in (demonstration.WIDE, demonstration.NARROW))
    x = torch.zeros(1, 1, demonstration.SIDE, demonstration.SIDE)
    assert macs(plain, x) >= macs(ours, x)


@pytest.mark.parametrize("kernel", [3, 13])
def test_compiles_without_breaks(kernel: int) -> None:
    block, x = Block(8, kernel, scale=1.0).eval(), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), block(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kernel must be"):
        drb(8, 6)
    with pytest.raises(ValueError, match="kernel must be"):
        DilatedReparam(8, 6, ())
    with pytest.raises(ValueError, match="branches must be"):
        DilatedReparam(8, 7, ((5, 2),))
    with pytest.raises(ValueError, match="hidden must be"):
        SqueezeExcite(8, 0)
    with pytest.raises(ValueError, match="dim must be"):
        Block(6, 3)
    with pytest.raises(ValueError, match="kernels must be"):
        UniRepLKNet(8, (1, 1), ((3,),))
    with pytest.raises(ValueError, match="inputs must be"):
        small(inputs=0)
    with pytest.raises(ValueError, match="video must be"):
        mosaic(torch.zeros(1, 3, 15, 4, 4))
