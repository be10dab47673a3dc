"""The frozen network: the fake-quantized one in integers, exact, and within the contract."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import checkpoint
from models.detectors.codenet import Codenet, CodenetConfig, images_to_input
from models.exercise import DISTINCT, exercise_offsets
from models.freeze import freeze
from models.frozen import OUTPUTS, FrozenNetwork, check, exact_conv, largest_accumulator, shifts
from models.qat import calibrate, prepare

CONFIG = CodenetConfig(size=(64, 64), classes=("a", "b"), decoder=(32, 16, 8), head_channels=8)
IMAGES = np.random.default_rng(5).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def quantized() -> Codenet:
    torch.manual_seed(2)
    model = Codenet(CONFIG).train()
    x = images_to_input(IMAGES)
    with torch.no_grad():
        for stage in model.decoder:
            stage.offset.weight.normal_(std=0.3)  # type: ignore[operator, union-attr]
        for _ in range(20):
            model(x)
    prepared = prepare(model.eval())
    calibrate(prepared, [x])
    return prepared


@pytest.fixture(scope="module")
def frozen(quantized: Codenet) -> FrozenNetwork:
    return freeze(quantized)


def test_agrees_with_brevitas(quantized: Codenet, frozen: FrozenNetwork) -> None:
    """Layer by layer, on the frozen network's own input of each layer: float32 moves less than 1 of 10,000 values."""
    seen: dict[str, torch.Tensor] = {}
    slots = {step.slot: step.outputs[0] for step in frozen.steps if step.slot}
    hooks = []
    for slot, tensor in slots.items():
        hooks.append(quantized.get_submodule(slot).register_forward_hook(lambda _m, _i, y, name=tensor: seen.__setitem__(name, y.detach())))
    with torch.no_grad():
        quantized.eval()(images_to_input(IMAGES))
    for hook in hooks:
        hook.remove()
    exact = frozen.codes(IMAGES)
    different = total = 0
    for name, y in seen.items():
        steps = (y.double() * 2.0 ** frozen.ranges[name].exponent - exact[name]).abs()
        different, total = different + int((steps > 0.5).sum()), total + steps.numel()
    assert set(seen) == set(slots.values()) and total > 500_000
    assert different / total < 1e-4


def test_codes_are_integers_in_range(frozen: FrozenNetwork) -> None:
    for name, codes in frozen.codes(IMAGES[:1]).items():
        each = frozen.ranges[name]
        assert torch.equal(codes, codes.round()), name
        assert codes.min() >= each.low and codes.max() <= each.high, name
        assert each.low >= (-(2 ** (each.bits - 1)) if each.signed else 0) and each.high < 2 ** (each.bits - each.signed)
    assert frozen.ranges["decoder.0.offset"].bits == 6 and frozen.ranges["hm"].bits == 16


def test_values_are_codes_times_power_of_two(frozen: FrozenNetwork) -> None:
    codes, values = frozen.codes(IMAGES[:1]), frozen.tensors(IMAGES[:1])
    assert set(codes) == {name for step in frozen.steps for name in step.outputs} <= set(values)
    sums = {f"{step.name}.acc" for step in frozen.steps if step.op in ("conv", "deform")}
    assert sums <= set(values) and all(n.endswith((".acc", ".relu", ".bounded")) for n in set(values) - set(codes))
    step = next(step for step in frozen.steps if step.activation == "relu")
    wanted = np.clip(np.rint(values[f"{step.name}.relu"] * 2.0 ** frozen.ranges[step.outputs[0]].exponent), 0, 255)
    np.testing.assert_array_equal(codes[step.outputs[0]].numpy(), wanted)
    np.testing.assert_array_equal(values["input"], IMAGES[:1].transpose(0, 3, 1, 2) / 256)
    for name, map_ in zip(OUTPUTS, frozen.maps(IMAGES[:1]), strict=True):
        np.testing.assert_array_equal(map_.transpose(0, 3, 1, 2), values[name])


@pytest.mark.parametrize(("stride", "pad", "groups", "kernel"), [(1, 0, 1, 1), (2, 1, 1, 3), (4, 1, 1, 3), (2, 1, 6, 3), (1, 1, 6, 3)])
def test_exact_convolution(stride: int, pad: int, groups: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 256, (2, 6, 9, 12), generator=generator).double()
    weight = torch.randint(-7, 8, (6, 6 // groups, kernel, kernel), generator=generator).double()
    expected = F.conv2d(x, weight, stride=stride, padding=pad, groups=groups)
    assert torch.equal(exact_conv(x, weight, stride=stride, pad=pad, groups=groups), expected.round())


def test_integers_keep_the_contract(frozen: FrozenNetwork) -> None:
    assert {name.rsplit(".", 1)[0] for name in frozen.integers} == {s.name for s in frozen.steps if s.op in ("conv", "deform")}
    for step in frozen.steps:
        if step.op not in ("conv", "deform"):
            continue
        m, s = frozen.integers[f"{step.name}.m"], shifts(frozen, step)
        assert bool((m % 2 == 1).all()) and int(m.min()) > 2**15 and int(m.max()) < 2**16 and int(s.min()) >= 1
        high = 127 if step.name == "conv1.0" else 7
        assert int(frozen.integers[f"{step.name}.weight"].abs().max()) <= high


def test_largest_accumulator_is_reached_by_the_worst_input(frozen: FrozenNetwork) -> None:
    step = next(step for step in frozen.steps if step.name == "stage2.1.branch2.0")
    weight, bias = frozen.integers[f"{step.name}.weight"].double(), frozen.integers[f"{step.name}.bias"].double()
    bound = largest_accumulator(frozen, step)
    worst = [(sign * weight.flatten(1)).clamp(min=0).sum(1) * 255 for sign in (1, -1)]
    assert bool((torch.maximum((worst[0] + bias).abs(), (-worst[1] + bias).abs()) <= bound).all())
    assert int(bound.max()) < 2**24


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hm.6.m", 2**15 + 2, "m must be odd"),
        ("hm.6.k", -30, "shift must be at least 1"),
        ("hm.6.k", 8, "could be a tie"),
        ("hm.6.weight", -8, "weights must be within"),
        ("conv5.0.bias", 2**22, "must be below"),
    ],
)
def test_broken_contracts_are_found(frozen: FrozenNetwork, name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name.rsplit('.', 1)[0]}: .*{message}"):
        check(dataclasses.replace(frozen, integers=frozen.integers | {name: torch.full_like(frozen.integers[name], value)}))


def test_files_keep_everything(frozen: FrozenNetwork, tmp_path: Path) -> None:
    frozen.save(tmp_path / "frozen.pt")
    again = FrozenNetwork.load(tmp_path / "frozen.pt")
    assert (again.config, again.steps, again.ranges) == (frozen.config, frozen.steps, frozen.ranges)
    assert all(torch.equal(value, again.integers[name]) for name, value in frozen.integers.items())
    checkpoint.save(tmp_path / "other.pt", {"frozen": "{}", "integers": {}})
    with pytest.raises(ValueError, match="must be a frozen network"):
        FrozenNetwork.load(tmp_path / "other.pt")


def offsets(network: FrozenNetwork, images: Any) -> dict[str, Any]:
    found = network.codes(images)
    return {step.name: found[step.inputs[1]].unique() for step in network.steps if step.op == "deform"}  # type: ignore[no-untyped-call]


def test_second_set_of_weights_reaches_both_ends(frozen: FrozenNetwork) -> None:
    changed = exercise_offsets(frozen, IMAGES)
    for name, codes in offsets(changed, IMAGES).items():
        assert len(codes) >= DISTINCT and int(codes[0]) == -32 and int(codes[-1]) == 28, name
    kept = [name for name in frozen.integers if ".offset." not in name]
    assert all(changed.integers[name] is frozen.integers[name] for name in kept)
    with pytest.raises(ValueError, match="sees fewer than"):
        exercise_offsets(frozen, np.zeros((1, 64, 64, 3), np.uint8))
