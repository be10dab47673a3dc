"""TVConv: counts, equivalences, gradients and the conditions it runs under."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.zoo.tvconv import SHUFFLE_WIDTHS, SYSTEM, AMSoftmax, StoredTVConv, TVConv, deploy, mobilenet_v2, shufflenet_v2, vary

#: width: parameters of base, in training, deployed; stored map values; published millions of MACs.
MOBILE = {
    0.1: (324_672, 16_369_368, 315_096, 4_084_992, 21.08),
    0.2: (404_352, 19_678_248, 389_160, 4_567_104, 26.49),
    0.3: (526_656, 23_816_352, 504_480, 6_272_640, 42.29),
    0.5: (827_968, 30_079_264, 795_424, 8_232_192, 71.59),
    1.0: (2_241_280, 49_708_576, 2_177_056, 15_220_224, 221.25),
}
SHUFFLE = {0.5: (869_664, 10_602_984, 860_376, 1_337_472), 1.0: (1_781_476, 18_904_696, 1_759_336, 3_055_968)}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _maps(model: nn.Module) -> int:
    return sum(module.weights.numel() for module in model.modules() if isinstance(module, StoredTVConv))


def _published_macs(model: nn.Module) -> int:
    """As the figures count: convolutions, linear layers, stored maps, and two for every element of a batch norm."""
    total = 0

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, StoredTVConv):
            total += module.macs()
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            total += 2 * output.numel()

    for module in model.modules():
        module.register_forward_hook(hook)
    model.eval()(torch.empty(1, 3, 96, 96, device="meta"))
    return total


def _layer(**options: Any) -> TVConv:
    torch.manual_seed(0)
    layer = TVConv(4, (6, 7), hidden=8, layers=1, **options)
    nn.init.normal_(layer.affinity)
    return layer


@pytest.mark.parametrize("width", MOBILE)
def test_mobilenet_counts(width: float) -> None:
    base, train, stored, maps, macs = MOBILE[width]
    with torch.device("meta"):
        plain, model = mobilenet_v2(width, atom="base"), mobilenet_v2(width)
    deployed = deploy(model)
    assert (_parameters(plain), _parameters(model), _parameters(deployed), _maps(deployed)) == (base, train, stored, maps)
    assert round(_published_macs(plain) / 1e6, 2) == macs
    assert _published_macs(deployed) == _published_macs(plain)


@pytest.mark.parametrize("width", SHUFFLE)
def test_shufflenet_counts(width: float) -> None:
    with torch.device("meta"):
        plain, model = shufflenet_v2(width, atom="base"), shufflenet_v2(width)
    deployed = deploy(model)
    assert (_parameters(plain), _parameters(model), _parameters(deployed), _maps(deployed)) == SHUFFLE[width]


def test_every_variant_gives_an_embedding() -> None:
    assert len(SYSTEM.variants) == len(MOBILE) + len(SHUFFLE_WIDTHS)
    with torch.device("meta"):
        for build in SYSTEM.variants.values():
            assert build().eval()(torch.empty(2, 3, 96, 96)).shape == (2, 512)


def test_one_layer_count() -> None:
    with torch.device("meta"):
        layer = TVConv(96, (24, 24))
    assert _parameters(layer) == 907_776 == 2_304 + 76_032 + 3 * 110_592 + 497_664
    assert layer.macs() == 9 * 96 * 24 * 24


def test_constant_weights_are_a_depthwise_convolution() -> None:
    x, kernel = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    maps = kernel.view(1, 4, 9, 1, 1).expand(1, 4, 9, 8, 8)
    torch.testing.assert_close(vary(x, maps), nn.functional.conv2d(x, kernel, padding=1, groups=4), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stride", "kernel", "size"), [(1, 3, (9, 7)), (2, 3, (5, 4)), (2, 5, (5, 4)), (3, 1, (3, 3))])
def test_sum_equals_unfold(stride: int, kernel: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    maps = torch.randn(1, 3, kernel**2, *size, dtype=torch.float64)
    wanted = (nn.functional.unfold(x, kernel, padding=kernel // 2, stride=stride).view(2, 3, kernel**2, *size) * maps).sum(2)
    torch.testing.assert_close(vary(x, maps, stride), wanted, rtol=1e-10, atol=1e-10)


def test_fresh_interior_is_constant_and_border_is_not() -> None:
    torch.manual_seed(0)
    weights = TVConv(2, (16, 16), hidden=8, layers=1).weights().detach()
    inner = weights[..., 3:-3, 3:-3]
    assert (inner.amax((-2, -1)) - inner.amin((-2, -1))).abs().max() < 1e-5
    assert (weights.amax((-2, -1)) - weights.amin((-2, -1))).max() > 1e-2


def test_not_translation_equivariant() -> None:
    layer, x = _layer(), torch.randn(1, 4, 6, 7)
    moved = layer(x.roll(1, 3)).roll(-1, 3)
    assert (layer(x) - moved)[..., 2:4, 2:4].abs().max() > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_stored_equals_trained(bias: bool) -> None:
    layer, x = _layer(bias=bias), torch.randn(2, 4, 6, 7)
    stored = deploy(layer)
    assert _parameters(stored) == 0
    torch.testing.assert_close(stored(x), layer(x), rtol=0, atol=0)


def test_stored_network_equals_trained_one() -> None:
    torch.manual_seed(0)
    model, x = shufflenet_v2(0.5, size=16).eval(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(deploy(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_gradients() -> None:
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(1, 2, 9, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: vary(a, b, 2), (x, maps))
    layer = _layer(bias=True)
    layer(torch.randn(2, 4, 6, 7)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_modes_batches_and_state() -> None:
    torch.manual_seed(0)
    model, x = mobilenet_v2(0.1, size=16), torch.randn(3, 3, 16, 16)
    assert not torch.equal(model.train()(x), model.eval()(x))
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-5, atol=1e-5)
    other = mobilenet_v2(0.1, size=16).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_layouts_precision_and_compilation() -> None:
    layer, x = _layer(), torch.randn(2, 4, 6, 7)
    wanted = layer(x)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), wanted, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), wanted, rtol=0.1, atol=0.1)


def test_margin_makes_the_loss_harder() -> None:
    torch.manual_seed(0)
    loss, x, labels = AMSoftmax(8, 5), torch.randn(6, 8), torch.arange(6) % 5
    plain = AMSoftmax(8, 5, margin=0.0)
    plain.load_state_dict(loss.state_dict())
    cosine = nn.functional.cosine_similarity(x[:, None], plain.weight[None], dim=2)
    torch.testing.assert_close(plain(x, labels), nn.functional.cross_entropy(32 * cosine, labels), rtol=1e-5, atol=1e-5)
    assert loss(x, labels) > plain(x, labels)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"channels": 0}, "channels"), ({"size": (0, 3)}, "size"), ({"kernel": 2}, "kernel"), ({"stride": 0}, "stride"),
     ({"layers": -1}, "layers"), ({"hidden": 0}, "hidden"), ({"affinity": 0}, "affinity")],
)
def test_illegal_options(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        TVConv(**{"channels": 2, "size": (4, 4), **options})


def test_illegal_inputs() -> None:
    with pytest.raises(ValueError, match=r"^x must have shape"):
        _layer()(torch.randn(1, 3, 6, 7))
    with pytest.raises(ValueError, match=r"^x must be a map"):
        _layer()(torch.randn(1, 4, 7, 7))
    with pytest.raises(ValueError, match=r"^atom must be"):
        mobilenet_v2(atom="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^size must be"):
        mobilenet_v2(size=20)
    with pytest.raises(ValueError, match=r"^width must be"):
        shufflenet_v2(0.7)
