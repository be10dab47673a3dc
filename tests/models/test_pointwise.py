"""1x1 convolutions with the cheaper backward pass: nn.Conv2d's values, its gradients, and where it is taken."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from models.ops.pointwise import FEW, LARGE, Pointwise, pays


def pair(inputs: int, outputs: int, bias: bool, kernel: int = 1, stride: int = 1, groups: int = 1) -> tuple[Pointwise, nn.Conv2d]:
    torch.manual_seed(0)
    mine, theirs = (kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias) for kind in (Pointwise, nn.Conv2d))
    theirs.load_state_dict(mine.state_dict())
    assert isinstance(mine, Pointwise)
    return mine, theirs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (1, 1, 2)])
def test_values_and_gradients(kernel: int, stride: int, groups: int, bias: bool, layout: torch.memory_format) -> None:
    mine, theirs = pair(6, 4, bias, kernel, stride, groups)
    x = torch.randn(3, 6, 5, 7).contiguous(memory_format=layout).requires_grad_()
    found = []
    for module in (mine, theirs):
        y = module(x)
        found.append((y, torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert ("_Pointwise" in type(found[0][0].grad_fn).__name__) == (kernel == stride == groups == 1)


def test_it_is_taken_where_it_pays() -> None:
    small, wide = torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 64, LARGE // 64**3)
    assert pays(small, torch.zeros(64, 64, 1, 1)) and pays(wide, torch.zeros(FEW - 1, 64, 1, 1))
    assert not pays(wide, torch.zeros(64, 64, 1, 1)) and not pays(small.double(), torch.zeros(64, 64, 1, 1))
    with torch.no_grad():
        assert not pays(small, torch.zeros(64, 64, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(small, torch.zeros(64, 64, 1, 1))


def test_compiled_graphs_have_pytorchs_own() -> None:
    mine, theirs = pair(6, 4, True)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(torch.compile(mine, fullgraph=True, backend="eager")(x), theirs(x))
