"""Compiled fake quantization gives PyTorch's values and gradients, bit for bit."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.ops import fake_quantize as module
from models.ops.fake_quantize import fake_quantize
from sw import native

#: Scale, low, high, with a ReLU before.
FORMS = ((0.25, 0, 255, True), (2**-6, 0, 255, True), (2**-5, -128, 127, False), (0.25, -32, 28, False), (1 / 256, 0, 255, False))


def plain(x: Tensor, scale: float, low: int, high: int, relu: bool) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(torch.relu(x) if relu else x, scale, 0, low, high)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_values_and_gradients_are_pytorchs(form: tuple[float, int, int, bool], layout: torch.memory_format) -> None:
    assert native.load(module.SOURCE) is not None
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 70, 40, 21, generator=rng) * form[0] * 150).contiguous(memory_format=layout)
    # Ties, the ends of the range and half a step beyond, zeros of both signs.
    x[0, 0, 0, :8] = torch.tensor([0.5, 1.5, -0.5, form[1] - 0.5, form[2] + 0.5, form[2] + 0.75, 0.0, -0.0]) * form[0]
    grad = torch.randn(x.shape, generator=rng)
    for part in (x, x[:, :33], x[:, :, ::2]):  # parts of a split, gaps
        given = part.detach().requires_grad_()
        mine, theirs = fake_quantize(given, *form[:3], relu=form[3]), plain(given, *form)
        assert torch.equal(mine, theirs)
        above = grad[: part.shape[0], : part.shape[1], : part.shape[2]]
        assert torch.equal(*(torch.autograd.grad(y, given, above)[0] for y in (mine, theirs)))


def test_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda _: None)
    x = torch.linspace(-2, 9, 50)
    assert torch.equal(fake_quantize(x, 0.5, 0, 15, relu=True), plain(x, 0.5, 0, 15, True))


def test_other_types_and_wrong_ranges() -> None:
    x = torch.linspace(-2, 9, 50, dtype=torch.float64)
    assert torch.equal(fake_quantize(x, 0.5, 0, 15), plain(x, 0.5, 0, 15, False))
    with pytest.raises(ValueError, match="low must be 0"):
        fake_quantize(x, 0.5, -1, 15, relu=True)
