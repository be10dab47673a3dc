"""Scales, floors, folding, calibration: what the contract asks of the fake-quantized network."""
from __future__ import annotations

import dataclasses

import brevitas.nn as qnn
import pytest
import torch
from torch import nn

from models.detectors.codenet import Codenet, CodenetConfig
from models.losses import Targets, detection_loss
from models.qat import HEAD_LIMIT, Bits, calibrate, fold_batch_norm, pack, prepare, quant_layers, settle_heads, unpack
from models.quant_layers import BIAS_LIMIT, LeanIdentity, LeanReLU, QuantConv, QuantDeform, quantizer_of
from models.quantizers import PowerOfTwo, snap

CONFIG = CodenetConfig(size=(32, 32), classes=("a", "b"), decoder=(16, 8, 8), head_channels=8, stem="stride4")


def trained_like(config: CodenetConfig = CONFIG) -> Codenet:
    """Random weights, batch norm statistics that fit random images."""
    torch.manual_seed(1)
    model = Codenet(config).train()
    with torch.no_grad():
        for _ in range(15):
            model(torch.rand(4, 3, *config.size))
    return model.eval()


def prepared(model: Codenet | None = None) -> Codenet:
    model = prepare(model or trained_like())
    calibrate(model, [torch.rand(4, 3, *CONFIG.size)])
    return model


def test_snapped_scales_are_odd_16_bit_and_near() -> None:
    torch.manual_seed(0)
    scale = torch.exp2(torch.rand(10_000) * 60 - 40)
    m, k = snap(scale)
    assert bool((m % 2 == 1).all()) and m.min() > 2**15 and m.max() < 2**16
    snapped = torch.ldexp(m, -k)
    assert ((snapped / scale - 1).abs() <= 2.0**-15).all()
    again, same = snap(snapped)
    assert torch.equal(again, m) and torch.equal(same, k)
    exact = torch.ldexp(torch.tensor([2.0**15, 2.0**16]), torch.tensor([-20]))  # powers of two: no odd m, the next one up
    assert snap(exact)[0].tolist() == [2**15 + 1, 2**15 + 1]


def test_power_of_two_rounds_half_to_even_and_saturates() -> None:
    quantizer = PowerOfTwo(8, True, start_exponent=2)
    y, scale, zero, bits = quantizer(torch.tensor([0.125, 0.375, -0.125, 0.2, 100.0, -100.0]))
    assert y.tolist() == [0.0, 0.5, 0.0, 0.25, 127 / 4, -32.0]
    assert (scale.item(), zero.item(), bits.item()) == (0.25, 0.0, 8.0)
    assert PowerOfTwo(8, False)(torch.tensor([-3.0, 300.0]))[0].tolist() == [0.0, 255.0]


def test_calibration_prefers_the_smaller_error_to_the_range() -> None:
    quantizer = PowerOfTwo(8, False)
    quantizer.observed = [torch.rand(5000) * 1.9, torch.tensor([33.0])]
    quantizer.calibrate()
    assert int(quantizer.exponent) == 3, "one outlier beyond 255 / 8 must not cost all the others their precision"
    quantizer.observed = [torch.rand(5000) * 1.9]
    quantizer.calibrate()
    assert int(quantizer.exponent) == 7
    with pytest.raises(ValueError, match="must see values"):
        PowerOfTwo(8, False).calibrate()


def test_folding_is_exact_also_for_dead_channels() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
        conv.weight[2] = 0
        norm.running_var[2] = norm.running_mean[2] = 0
        x = torch.randn(2, 3, 5, 5)
        folded = fold_batch_norm(conv, norm)
        torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(folded.weight).all() and folded.bias is not None


def test_the_short_way_to_weights_and_biases_is_brevitas() -> None:
    """Values to the bit, gradients of weight, bias and scale to rounding; clamped weights and a floor that binds included."""
    torch.manual_seed(2)
    model = prepare(trained_like(), Bits(weights={"*": 4, "stage*": 3, "conv1.0": 8}))
    calibrate(model, [torch.rand(2, 3, *CONFIG.size)])
    layers = quant_layers(model.train())
    assert len(layers) == 74
    for layer in layers:
        learned = [layer.weight, *([] if layer.bias is None else [layer.bias]), layer.weight_quant.tensor_quant.scaling_impl.log2]
        with torch.no_grad():
            layer.weight.mul_(1.4)  # assigning makes Brevitas start anew
            if layer.bias is not None:
                layer.bias[0] = 3e4 * layer.input_quantizer.scale
        grads = [torch.randn_like(p) for p in learned[:-1]]
        found = []
        for short in (True, False):
            if short:
                values = [v for v in layer.values_quantized() if v is not None]
            elif layer.bias is None:
                layer.raise_floor()
                values = [layer.weight_quant(layer.weight).value]
            else:
                values = [each.value for each in layer.parameters_quantized(torch.zeros(1, layer.in_channels, 1, 1))]
            total = sum((v * g).sum() for v, g in zip(values, grads, strict=True))
            assert isinstance(total, torch.Tensor)
            found.append((values, torch.autograd.grad(total, learned)))
        (mine, my_grads), (theirs, their_grads) = found
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        for a, b in zip(my_grads[:-1], their_grads[:-1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # Brevitas multiplies by the scale and divides again
        # A scale's is a sum of differences of what value * gradient adds up to.
        terms = sum(float((v.detach() * g).abs().sum()) for v, g in zip(theirs, grads, strict=True))
        torch.testing.assert_close(my_grads[-1], their_grads[-1], rtol=1e-4, atol=1e-6 * terms)


def test_activations_are_quantized_as_brevitas_would() -> None:
    model = prepared()
    x = torch.randn(2, 8, 5, 5)
    kinds = set()
    for module in model.modules():
        if isinstance(module, (LeanIdentity, LeanReLU)):
            kinds.add(type(module))
            base = qnn.QuantReLU if isinstance(module, LeanReLU) else qnn.QuantIdentity
            whole = base.forward(module, x)
            assert torch.equal(module(x), whole if isinstance(whole, torch.Tensor) else whole.value)
    assert kinds == {LeanIdentity, LeanReLU}


@torch.no_grad()
def test_a_huge_bias_raises_the_floor_and_leaves_a_constant() -> None:
    model = prepared()
    layer = model.get_submodule("stage3.1.branch2.0")
    assert isinstance(layer, QuantConv)
    layer.weight[0] *= 1e-9
    layer.weight_quant.tensor_quant.scaling_impl.log2[0] = -40.0
    layer.bias[0] = 5.0
    weight, bias = layer.parameters_quantized(torch.zeros(1, layer.in_channels, 1, 1))
    assert not weight.int()[0].any() and weight.int()[1].any()
    assert BIAS_LIMIT / 2 < abs(int(bias.int()[0])) < BIAS_LIMIT
    assert bias.value[0].item() == pytest.approx(5.0, rel=1e-5)


def test_weights_are_narrow_and_the_stem_has_8_bits() -> None:
    model = prepared()
    for name, layer in model.named_modules():
        if isinstance(layer, (QuantConv, QuantDeform)):
            largest = int(layer.weight_quant(layer.weight).int().abs().max())
            assert largest <= (127 if name == "conv1.0" else 7), name
    stem = model.get_submodule("conv1.0")
    assert isinstance(stem, QuantConv) and int(stem.weight_quant(stem.weight).int().abs().max()) > 7


def test_scales_are_shared_within_a_stage_and_fixed_where_the_contract_says() -> None:
    model = prepared()
    joined = [quantizer_of(model.get_submodule(f"stage2.{i}.branch2.7")) for i in range(4)]
    assert all(each is joined[0] for each in joined) and quantizer_of(model.get_submodule("stage2.0.branch1.4")) is joined[0]
    assert quantizer_of(model.get_submodule("stage3.0.branch2.7")) is not joined[0]
    image, offset = quantizer_of(model.get_submodule("input")), quantizer_of(model.get_submodule("decoder.1.bound"))
    assert (image.bits, image.signed, image.scale) == (8, False, 2**-8)
    assert (offset.bits, offset.low, offset.high, offset.scale) == (6, -32, 28, 0.25)


@pytest.mark.parametrize("frac_bits", [0, 4])
def test_fraction_bits_of_the_offsets(frac_bits: int) -> None:
    model = prepare(trained_like(dataclasses.replace(CONFIG, frac_bits=frac_bits)))
    offset = quantizer_of(model.get_submodule("decoder.0.bound"))
    assert (offset.bits, offset.low, offset.high) == (4 + frac_bits, -8 << frac_bits, 7 << frac_bits)


@torch.no_grad()
def test_heads_cannot_reach_a_tie() -> None:
    model = prepared()
    head = model.get_submodule("hm.6")
    assert isinstance(head, QuantConv)
    head.weight *= 30
    settle_heads(model)
    weight, bias = head.parameters_quantized(torch.zeros(1, head.in_channels, 1, 1))
    worst = (weight.value.abs().flatten(1).sum(1) * 255 * head.input_quantizer.scale + bias.value.abs()).max() / head.output_quantizer.scale
    assert HEAD_LIMIT / 4 < worst < HEAD_LIMIT


@pytest.mark.parametrize("fresh", [True, False])
def test_every_parameter_is_trained(fresh: bool) -> None:
    """Offset convolutions, deformable weights, heads and scales included (the released CoDeNet code left some out)."""
    model = trained_like()
    if not fresh:  # a fresh network's offset convolutions are 0, and so are the gradients of their scales
        with torch.no_grad():
            for name, p in model.named_parameters():
                if ".offset.weight" in name:
                    p.normal_(std=0.05)
    model = prepared(model).train()
    where = torch.tensor([1, 2])
    targets = Targets(torch.rand(2, 2, 8, 8), torch.tensor([0, 1]), where, where, torch.ones(2, 2), torch.ones(2, 2), torch.ones(2), 2)
    detection_loss(model(torch.rand(2, 3, 32, 32)), targets)["loss"].backward()  # type: ignore[no-untyped-call]
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(fresh and ".offset.weight_quant" in name for name in silent), silent
    assert {"decoder.0.offset.weight", "decoder.2.deform.weight", "hm.6.bias"} <= {name for name, _ in model.named_parameters()}


def test_fake_quantization_stays_near_the_float_network() -> None:
    model = trained_like()
    x = torch.rand(4, 3, *CONFIG.size)
    quantized = prepare(model)
    calibrate(quantized, [x])
    with torch.no_grad():
        for exact, rough in zip(model(x), quantized(x), strict=True):
            noise = (rough - exact).square().mean().sqrt() / exact.std()
            assert noise < 1, "random 4-bit networks are noisy, but not that noisy"


def test_packed_models_are_the_same() -> None:
    model = prepared()
    again = unpack(pack(model))
    x = torch.rand(1, 3, *CONFIG.size)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.eval()(x), again(x), strict=True))
    with pytest.raises(ValueError, match="not a quantized checkpoint"):
        unpack({"config": CONFIG.to_json(), "state": {}})
