"""Troublemaker learning: figures of the networks, what GDC computes, and which network learns when."""
from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.tml import GDC, SYSTEM, TML, UNet, denormalize, normalize, tml, ugdc

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("ugdc", 17_584_711, 163.3), ("unet", 31_037_763, 188.2), ("ugdc_enhance", 4_722_983, 44.2), ("unet_enhance", 7_763_107, 47.2),
]  # fmt: skip


def shaken(model: Model) -> Model:
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_()
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model


def small() -> UNet:
    torch.manual_seed(0)
    return ugdc(2, size=(32, 48), patch=1)


@pytest.mark.parametrize(("variant", "count", "giga"), FIGURES)
def test_published_figures(variant: str, count: int, giga: float) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) == count
        image = torch.empty(1, 3, 400, 640)
        assert macs(model, image) / 1e9 == pytest.approx(giga, abs=0.051)
        assert model(image).shape == (1, 3, 400, 640)


@pytest.mark.parametrize(("dim", "size", "count"), [(256, (50, 80), 102_657), (512, (25, 40), 82_433), (512, (100, 160), 696_833)])
def test_parameters_of_gdc(dim: int, size: tuple[int, int], count: int) -> None:
    with torch.device("meta"):
        assert parameters(GDC(dim, size)) == count


def test_gdc_as_in_the_equations() -> None:
    layer, x = shaken(GDC(4, (6, 9), patch=3)).double().eval(), torch.randn(2, 4, 6, 9, dtype=torch.float64)
    q = F.conv2d(x, layer.query.weight, layer.query.bias, stride=3, groups=4) + layer.d
    q = F.gelu((q - q.mean(1, keepdim=True)) / (q.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt() * layer.norm.weight.view(-1, 1, 1)
               + layer.norm.bias.view(-1, 1, 1))
    k = F.conv2d(x, layer.key.weight, layer.key.bias, padding=3, groups=4)
    a = torch.einsum("ncp,ncyx->npyx", q.flatten(2), k) + layer.b
    assert a.shape == (2, 6, 6, 9)
    torch.testing.assert_close(layer.attend(x), a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x), x + layer.project(a), rtol=1e-10, atol=1e-12)
    for n in range(2):  # a 1 × 1 convolution whose weights are the queries of that image
        weight = q[n].flatten(1).mT[..., None, None]
        torch.testing.assert_close(a[n], F.conv2d(k[n : n + 1], weight)[0] + layer.b, rtol=1e-10, atol=1e-12)


def test_without_projection_it_is_the_identity() -> None:
    layer, x = GDC(4, (10, 10)), torch.randn(2, 4, 10, 10)
    nn.init.zeros_(layer.project.weight)
    nn.init.zeros_(layer.project.bias)  # type: ignore[arg-type]
    assert torch.equal(layer(x), x)


def test_cost_of_the_dynamic_part() -> None:
    """2 C (HW)^2 / s^2 and the two depthwise layers; twice the sides is 16 times the dynamic part."""
    def dynamic(side: int) -> int:
        with torch.device("meta"):
            found = macs(GDC(8, (side, side)), torch.empty(1, 8, side, side))
        return found - 8 * side * side - 49 * 8 * side * side

    assert dynamic(20) == 2 * 8 * 20**4 // 25
    assert dynamic(40) == 16 * dynamic(20)


def test_drop_path() -> None:
    layer, x = GDC(4, (5, 5), drop=0.5).train(), torch.randn(64, 4, 5, 5)
    same = (layer(x) == x).flatten(1).all(1)
    assert 10 < int(same.sum()) < 54
    assert not (layer.eval()(x) == x).flatten(1).all(1).any()


def test_network_modes_batch_and_state() -> None:
    model, x = shaken(small()).double().eval(), torch.randn(3, 3, 32, 48, dtype=torch.float64)
    y = model(x)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-8, atol=1e-8)
    other = small().double().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    model.train()(x).sum().backward()
    used = {n: p for n, p in model.named_parameters() if ".ln." not in n}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used.values())
    assert all(p.grad is None for n, p in model.named_parameters() if n not in used) and len(used) < len([*model.parameters()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(x.float()).isfinite().all()
    assert UNet(2).eval()(torch.randn(1, 3, 16, 48)).shape == (1, 3, 16, 48)
    kinds = [isinstance(s[0], GDC) for s in (*model.down, *model.merge)]
    assert kinds == [False, False, True, True, True, True, False, False]


def learner() -> TML:
    torch.manual_seed(0)
    return TML(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3)))


def test_stages_train_one_network_each() -> None:
    model, x, low = learner(), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        for _ in range(3):
            model.stage_(1).tm(x)  # statistics that are not those of a batch
    for stage, name in enumerate(("tm", "pm", "em"), 1):
        model.stage_(stage).zero_grad()
        before = {n: b.clone() for n, b in model.named_buffers()}
        loss = model.loss(x, low if stage == 1 else None)
        loss.backward()  # type: ignore[no-untyped-call]
        assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {name}
        assert {n.split(".")[0] for n, b in model.named_buffers() if not torch.equal(b, before[n])} == {name}
    model.eval()
    p = model.pm(x)
    torch.testing.assert_close(model(x), p - model.em(p))
    dark = model.tm(x)
    wanted = F.smooth_l1_loss(model(dark), x)
    torch.testing.assert_close(model.loss(x), wanted)
    model.stage = 2
    torch.testing.assert_close(model.loss(x), F.smooth_l1_loss(model.pm(dark), x))
    model.stage = 1
    torch.testing.assert_close(model.loss(x, low), F.smooth_l1_loss(dark, low))


def test_normalization() -> None:
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(denormalize(normalize(x)), x)
    colour = normalize(torch.tensor([0.485, 0.456, 0.631]).view(3, 1, 1)).flatten()
    torch.testing.assert_close(colour, torch.tensor([0.0, 0.0, 1.0]))
    with torch.device("meta"):
        assert parameters(tml()) == 2 * 17_584_711 + 4_722_983


def test_gradcheck() -> None:
    layer = shaken(GDC(3, (4, 4), patch=2, drop=0.0)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters() if not n.startswith("ln.")]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    parts = [layer.get_parameter(n) for n in names]
    assert torch.autograd.gradcheck(run, (x, *parts), fast_mode=True)


def test_compiles_without_breaks() -> None:
    layer, x = GDC(4, (10, 5)).eval(), torch.randn(2, 4, 10, 5)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="patch must be"):
        GDC(4, (10, 12))
    with pytest.raises(ValueError, match="x must be a map"):
        GDC(4, (10, 10))(torch.zeros(1, 4, 10, 15))
    with pytest.raises(ValueError, match="size must be"):
        ugdc(2, size=(80, 96))
    with pytest.raises(ValueError, match="stem must be"):
        UNet(0)
    with pytest.raises(ValueError, match="x must have sides"):
        UNet(2)(torch.zeros(1, 3, 24, 16))
    with pytest.raises(ValueError, match="x must be a map"):
        small()(torch.zeros(1, 3, 64, 48))
    with pytest.raises(ValueError, match="stage must be"):
        learner().stage_(4)
    with pytest.raises(ValueError, match="low must be"):
        learner().loss(torch.zeros(1, 3, 2, 2))
