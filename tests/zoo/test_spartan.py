"""SpaRTAN: its figures, and what its two mixers compute."""
from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import spartan as demonstration
from models.zoo.layers import SqueezeExcite
from models.zoo.spartan import SYSTEM, Block, CMixer, SMixer, SpaRTAN

Model = TypeVar("Model", bound=nn.Module)


def shaken(model: Model) -> Model:
    """Every parameter and running statistic away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_()
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model


def small(**options: float) -> SpaRTAN:
    torch.manual_seed(0)
    return SpaRTAN((8, 16), (1, 2), (4, 2), classes=3, **options)  # type: ignore[arg-type]


def test_published_figures() -> None:
    with torch.device("meta"):
        model = SYSTEM.variants["spartan"]()
        assert parameters(model) == 3_820_296
        assert macs(model, torch.empty(1, 3, 256, 256)) / 1e9 == pytest.approx(1.044, abs=5e-4)
        assert macs(model, torch.empty(1, 3, 224, 224)) / 1e9 == pytest.approx(0.800, abs=5e-4)
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1}
    early = [m.groups for n, m in convolutions.items() if n.startswith("stages.0.") and "smixer" in n]
    late = [m.groups for n, m in convolutions.items() if n.startswith("stages.2.") and "smixer" in n]
    assert set(early) == {1} and set(late) == {64}
    assert convolutions["stages.1.1.cmixer.conv.0.0"].groups == 256 and convolutions["stages.3.1.cmixer.conv.0.0"].groups == 256
    assert convolutions["stages.3.1.cmixer.conv.0.0"].in_channels == 512
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert {m.eps for m in norms} == {1e-6}


def test_smixer_as_in_the_equations() -> None:
    layer, x = shaken(SMixer(8, False)).double().eval(), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    h = layer.reduce(x)
    h = h + layer.g.view(-1, 1, 1) * (h - h.mean((2, 3), keepdim=True))
    conv, bn = layer.a[0][0]  # type: ignore[index]
    a = layer.a[1](F.gelu(bn(F.conv2d(h, conv.weight, padding=1, groups=4))))
    conv, bn = layer.b[1][0]  # type: ignore[index]
    b = F.conv2d(h, layer.b[0].weight, padding=2, dilation=2, groups=4)  # type: ignore[arg-type]
    b = layer.b[2](F.gelu(bn(F.conv2d(b, conv.weight, padding=2, dilation=2, groups=4))))
    torch.testing.assert_close(layer(x), layer.project(torch.cat((a, b), 1)), rtol=1e-10, atol=1e-12)
    assert [m.down.out_channels for m in layer.modules() if isinstance(m, SqueezeExcite)] == [1, 1]


def test_g_of_zero_leaves_h() -> None:
    layer, x = shaken(SMixer(16, True)).eval(), torch.randn(1, 16, 6, 6)
    nn.init.zeros_(layer.g)
    seen: list[Tensor] = []
    layer.a.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    layer(x)
    assert torch.equal(seen[0], layer.reduce(x))
    nn.init.constant_(layer.g, -1.0)
    layer(x)
    torch.testing.assert_close(seen[1], layer.reduce(x).mean((2, 3), keepdim=True).expand_as(seen[1]), rtol=1e-5, atol=1e-6)


def test_gather_pixel_by_pixel() -> None:
    layer, x = CMixer(4, 2, True).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    f = layer.mix(x)
    gated = F.gelu(layer.t(x)) * layer.v(x)
    for n in range(2):
        for i in range(3):
            for j in range(5):
                best = int(x[n, :, i, j].argmax())
                torch.testing.assert_close(f[n, :, i, j], gated[n, :, i, j] + gated[n, best, i, j], rtol=1e-12, atol=1e-14)
    layer.gather = False
    assert torch.equal(layer.mix(x), gated)


def test_no_gradient_through_the_argmax() -> None:
    """The gradient equals that with the indices held fixed, and finite differences where no index changes."""
    layer = CMixer(4, 2, True).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    own, = torch.autograd.grad((layer.mix(x) * weight).sum(), x)
    index = x.detach().argmax(1, keepdim=True)
    gated = F.gelu(layer.t(x)) * layer.v(x)
    wanted, = torch.autograd.grad(((gated + gated.gather(1, index)) * weight).sum(), x)
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(layer.mix, (x,))


def test_turning_pairs() -> None:
    layer, f = CMixer(4, 3, True).double(), torch.randn(2, 12, 3, 3, dtype=torch.float64)
    turned = layer.rotate(f)
    pairs = torch.view_as_complex(f.view(2, 6, 2, 3, 3).movedim(2, -1).contiguous())
    wanted = pairs * torch.view_as_complex(layer.turn.detach()).view(-1, 1, 1)
    torch.testing.assert_close(turned[:, ::2], wanted.real, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(turned[:, 1::2], wanted.imag, rtol=1e-12, atol=1e-14)
    angle = torch.rand(6, dtype=torch.float64) * 6
    layer.turn.data = torch.stack((angle.cos(), angle.sin()), 1)
    norm = f.view(2, 6, 2, 3, 3).square().sum(2)
    torch.testing.assert_close(layer.rotate(f).view(2, 6, 2, 3, 3).square().sum(2), norm, rtol=1e-12, atol=1e-14)
    layer.turn.data = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(6, -1).clone()
    assert torch.equal(layer.rotate(f), f)


def test_blocks() -> None:
    x = torch.randn(2, 8, 6, 6)
    block = Block(8, 2, True)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-3)
    assert not torch.equal(block(x), x)
    block = shaken(Block(8, 2, False)).eval()
    y = x + block.s1.view(-1, 1, 1) * block.smixer(F.group_norm(x, 1, block.norm1.weight, block.norm1.bias, 1e-6))
    y = y + block.s2.view(-1, 1, 1) * block.cmixer(F.group_norm(y, 1, block.norm2.weight, block.norm2.bias, 1e-6))
    torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("early", [True, False])
def test_gradcheck(early: bool) -> None:
    block = shaken(Block(8, 1, early, scale=0.5)).double().eval()
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_network_modes_batch_and_state() -> None:
    model, x = shaken(small()).eval(), torch.randn(3, 3, 37, 24)
    y = model(x)
    assert y.shape == (3, 3)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = small().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    dropped = small(drop=0.9, scale=1.0).train()
    assert not torch.equal(dropped(x), dropped(x)) and torch.equal(dropped.eval()(x), dropped(x))
    assert small(inputs=1).eval()(torch.randn(1, 1, 5, 5)).shape == (1, 3)


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    ours, plain = demonstration.network(True), demonstration.network(False)
    x = torch.zeros(1, 8, 10, 10)
    assert parameters(plain) > parameters(ours) and macs(plain, x) > macs(ours, x)


def test_compiles_without_breaks() -> None:
    block, x = Block(8, 2, False, scale=1.0).eval(), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), block(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="dim must be"):
        SMixer(12, True)
    with pytest.raises(ValueError, match="dim and ratio"):
        CMixer(8, 0, True)
    with pytest.raises(ValueError, match="dims must be"):
        SpaRTAN((8, 12), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="depths and ratios"):
        SpaRTAN((8, 16), (1,), (1, 1))
    with pytest.raises(ValueError, match="x must have sides"):
        small()(torch.zeros(1, 3, 4, 4))
