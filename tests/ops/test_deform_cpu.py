"""Depthwise deformable convolution on a CPU: the compiled code, and the PyTorch code that stands in for it, against the definition."""
from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.ops import deform_cpu
from models.ops.deform import FREE, SQUARE, Deform, Taps, deform_conv, deform_conv_exact

#: Taps, channels, groups of offsets: slices of 64 channels that are full, cut, many; groups smaller and larger than a slice.
CASES = [
    (SQUARE, 3, 1), (Taps(square=True, bounds=(-8, 7), frac_bits=2), 64, 1), (FREE, 130, 1), (FREE, 12, 4), (FREE, 140, 2),
    (Taps(kernel=5, stride=2, dilation=2), 65, 1), (Taps(kernel=2, padding=1), 2, 2),
]  # fmt: skip


def case(taps: Taps, channels: int, parts: int, size: tuple[int, int] = (7, 9), scale: float = 4.0) -> dict[str, Tensor]:
    """Random float64 inputs whose positions keep off whole pixels, where the gradient jumps; many taps lie outside the map."""
    rng = torch.Generator().manual_seed(channels)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    out, k = taps.out_size(*size), taps.kernel
    offset = (draw(2, 1 if taps.square else parts * 2 * k * k, *out) * scale).floor() + 0.3
    values = {"x": draw(2, channels, *size), "offset": offset, "weight": draw(channels, 1, k, k), "bias": draw(channels)}
    return values | {"mask": torch.sigmoid(draw(2, parts * k * k, *out))}


def gradients(run: Any, given: dict[str, Tensor], taps: Taps, mask: bool) -> list[Tensor]:
    """The result and the gradient of each input, for a fixed gradient of the result."""
    inputs = {name: value.clone().requires_grad_() for name, value in given.items() if mask or name != "mask"}
    y = run(**inputs, groups=given["x"].shape[1], taps=taps)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, list(inputs.values()), grad)]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("taps", "channels", "parts"), CASES, ids=range(len(CASES)))
def test_results_and_gradients_follow_the_definition(
    taps: Taps, channels: int, parts: int, native: bool
) -> None:
    assert deform_cpu.available()
    given = case(taps, channels, parts)
    for mask in (True, False):
        found, expected = (gradients(run, given, taps, mask) for run in (partial(deform_conv, native=native), deform_conv_exact))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-9)


def test_threads_change_no_bit() -> None:
    given = {name: value.float() for name, value in case(SQUARE, 130, 1).items()}
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(gradients(deform_conv, given, SQUARE, True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_positions_that_are_no_numbers_see_nothing() -> None:
    given = case(SQUARE, 3, 1)
    for wrong in (float("nan"), float("inf"), 1e300):
        offset = torch.full_like(given["offset"], wrong)
        grads = gradients(deform_conv, {**given, "offset": offset}, SQUARE, False)
        centre = given["x"] * given["weight"][:, 0, 1, 1].view(1, -1, 1, 1) + given["bias"].view(1, -1, 1, 1)
        assert torch.equal(grads[0], centre if wrong == 1e300 else given["bias"].view(1, -1, 1, 1).expand_as(centre))


def test_a_tap_at_the_edge_of_sight_is_drawn_inwards() -> None:
    """At row -1 exactly a tap sees nothing, but moving it down would show it row 0: its offset has a gradient."""
    x, weight = torch.full((1, 1, 1, 1), 5.0), torch.full((1, 1, 1, 1), 3.0)
    offset = torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    y = deform_conv(x, offset, weight, taps=Taps(kernel=1))
    assert y.item() == 0 and torch.autograd.grad(y.sum(), offset)[0].flatten().tolist() == [15.0, 0.0]


def test_compiles_with_its_gradient_as_one_graph() -> None:
    module = Deform(6, 6, SQUARE, groups=6)
    given = {name: value.float() for name, value in case(SQUARE, 6, 1).items()}
    inputs = [given["x"].requires_grad_(), given["offset"].requires_grad_()]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.autograd.grad(run(*inputs).square().sum(), [*inputs, module.weight]) for run in (compiled, module))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
