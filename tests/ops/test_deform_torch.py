"""CoDeNet's case of the deformable operator: fast path = definition; gradients. The general one: test_deform_options.py."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.deform import OFFSET_MAX, OFFSET_MIN, SquareDeform, square_deform, square_deform_exact


def case(n: int, c: int, h: int, w: int, *, frac_bits: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Integers x and weights, offsets over the whole range with both ends; float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (n, c, h, w), generator=generator).double()
    steps = 2**frac_bits
    o = torch.randint(OFFSET_MIN * steps, OFFSET_MAX * steps + 1, (n, 1, h, w), generator=generator).double() / steps
    o.view(-1)[0], o.view(-1)[-1] = OFFSET_MIN, OFFSET_MAX
    return x, o, torch.randint(-7, 8, (c, 1, 3, 3), generator=generator).double()


@pytest.mark.parametrize("frac_bits", [0, 1, 4])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 12), (20, 3)])
def test_fast_path_is_the_definition(size: tuple[int, int], frac_bits: int) -> None:
    x, o, weight = case(2, 3, *size, frac_bits=frac_bits)
    torch.testing.assert_close(square_deform(x, o, weight), square_deform_exact(x, o, weight), rtol=0, atol=1e-8)


def test_fast_path_in_float32_is_close() -> None:
    x, o, weight = case(2, 8, 16, 16)
    fast = square_deform(x.float(), o.float(), weight.float())
    torch.testing.assert_close(fast.double(), square_deform_exact(x, o, weight), rtol=0, atol=2e-2)  # of sums up to 8000


def test_offset_zero_is_the_plain_convolution() -> None:
    x, o, weight = case(2, 5, 7, 9)
    assert torch.equal(square_deform_exact(x, o * 0, weight), F.conv2d(x, weight, padding=1, groups=5))


def test_dilation_is_offset_plus_one() -> None:
    x, o, weight = case(1, 2, 12, 12)
    for s in (-7, -1, 0, 2, 8):
        got = square_deform_exact(x, torch.full_like(o, s - 1), weight)
        expected = weight.sum((1, 2, 3)).view(1, -1, 1, 1) * x
        if s:
            flipped = weight.flip(2, 3) if s < 0 else weight
            expected = F.conv2d(x, flipped, padding=abs(s), dilation=abs(s), groups=2)
        assert torch.equal(got, expected), s


def test_a_neighbour_outside_counts_zero_by_itself() -> None:
    x = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 1, 0] = 1  # the tap to the left, at column x - s
    got = square_deform_exact(x, torch.full((1, 1, 1, 2), -0.75, dtype=torch.float64), weight)  # s = 0.25
    assert got.flatten().tolist() == [0.75, 1.0]


def test_exact_path_is_exact() -> None:
    """Sums of integer * integer * share at 1/256 come out as multiples of 1/256: nothing was rounded."""
    x, o, weight = case(2, 4, 6, 6, frac_bits=4)
    y = square_deform_exact(x, o, weight) * 256
    assert torch.equal(y, y.round()) and not torch.equal(y, (y / 256).round() * 256)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    o = (torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()  # away from the kinks
    weight = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(square_deform, (x, o, weight), fast_mode=True)
    assert torch.autograd.gradcheck(square_deform_exact, (x, o, weight), fast_mode=True)


def test_module_trains() -> None:
    x, o, _ = case(1, 4, 6, 6)
    module = SquareDeform(4)
    module(x.float(), o.float().requires_grad_()).square().sum().backward()
    assert module.weight.grad is not None and module.weight.grad.abs().sum() > 0


def test_wrong_shapes_are_refused() -> None:
    x, o, weight = case(1, 4, 6, 6)
    with pytest.raises(ValueError, match="one number a pixel"):
        square_deform(x, o.expand(1, 18, 6, 6), weight)
    with pytest.raises(ValueError, match=r"weight must be \(OC, 1, 3, 3\)"):
        square_deform_exact(x, o, weight[:3])
