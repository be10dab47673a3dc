"""LRCN: figures of the activity network, and the equalities that define its LSTM."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.lrcn import SYSTEM, Captioner, Lrcn, LrcnLSTM, SingleFrame, caffe_convolutions, caffe_features, clip_probabilities


def layer(inputs: int = 5, hidden: int = 4, static: int = 0) -> LrcnLSTM:
    torch.manual_seed(0)
    made = LrcnLSTM(inputs, hidden, static=static)
    made.reset_parameters(0.5)
    nn.init.normal_(made.b_c)
    return made.double()


def small() -> Lrcn:
    torch.manual_seed(0)
    return Lrcn(8, 3, features=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 6)), width=6)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_published_figures() -> None:
    with torch.device("meta"):
        model = Lrcn()
        assert parameters(model.phi) == 4_310_656 + 56_627_200
        assert parameters(model.phi[0]) == 4_310_656  # type: ignore[index]
        assert [parameters(LrcnLSTM(4096, h)) for h in (256, 512, 1024)] == [4_457_472, 9_439_232, 20_975_616]
        assert parameters(model.fc8) == 25_957 and parameters(model) == 65_421_285
        assert parameters(SingleFrame()) == 78_132_965
        assert parameters(SYSTEM.variants["lrcn_fc7_256"]()) == 65_421_285 + 4096 * 4097
        assert model(torch.empty(2, 1, 3, 227, 227)).shape == (2, 1, 101)


def test_shapes_and_macs_of_the_caffe_network() -> None:
    with torch.device("meta"):
        phi, x = caffe_convolutions(), torch.empty(1, 3, 227, 227)
        sides = []
        for module in phi:
            x = module(x)
            if isinstance(module, nn.Conv2d | nn.MaxPool2d):
                sides.append(x.shape[-1])
        assert sides == [111, 55, 26, 13, 13, 13, 13, 6] and x.numel() == 13824
        work = [96 * 147 * 111**2, 384 * 48 * 25 * 26**2, 512 * 384 * 9 * 169, 512 * 256 * 9 * 169, 384 * 256 * 9 * 169]
        assert macs(phi, torch.empty(1, 3, 227, 227)) == sum(work)


def test_is_the_lstm_of_torch_with_gates_permuted() -> None:
    ours, x = layer(), double(7, 3, 5)
    cont = torch.ones(7, 3)
    cont[0] = 0
    wanted, (h, c) = ours.to_torch()(x)
    found, state = ours(x, cont)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.stack(state), torch.cat((h, c)), rtol=1e-12, atol=1e-14)


def test_cont_flushes_both_states() -> None:
    ours, x = layer(), double(6, 2, 5)
    cont = torch.ones(6, 2)
    cont[3, 0] = 0
    found = ours(x, cont)[0]
    other = x.clone()
    other[:3] += 1
    moved = ours(other, cont)[0]
    assert torch.equal(moved[3:, 0], found[3:, 0]) and not torch.equal(moved[3:, 1], found[3:, 1])


def test_clips_joined_in_time_are_two_runs() -> None:
    ours, a, b = layer(), double(4, 2, 5), double(3, 2, 5)
    cont = torch.ones(7, 2)
    cont[0] = cont[4] = 0
    joined = ours(torch.cat((a, b)), cont)[0]
    torch.testing.assert_close(joined, torch.cat((ours(a)[0], ours(b)[0])), rtol=1e-12, atol=1e-14)
    whole = ours(a)[0]
    _, state = ours(a[:2])
    torch.testing.assert_close(ours(a[2:], state=state)[0], whole[2:], rtol=1e-12, atol=1e-14)  # goes on from a state


def test_causal() -> None:
    model = small().eval()
    x = torch.randn(5, 2, 3, 6, 6)
    y = model(x)
    x[3] += 1
    moved = model(x)
    assert torch.equal(moved[:3], y[:3]) and not torch.equal(moved[3:], y[3:])


def test_per_frame_when_nothing_is_remembered() -> None:
    ours, x = layer(), double(4, 2, 5)
    ours.W_hc.data.zero_()
    ours.b_c.data[4:8] = -1e9  # the forget gate
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(ours(x[order])[0], ours(x)[0][order])


def test_static_input_is_seen_at_every_step() -> None:
    ours, x, image = layer(static=3), double(4, 2, 5), double(2, 3)
    plain = LrcnLSTM(8, 4).double()
    plain.load_state_dict({"W_xc": torch.cat((ours.W_xc, ours.W_xc_static), 1), "W_hc": ours.W_hc, "b_c": ours.b_c})  # type: ignore[arg-type]
    wanted = plain(torch.cat((x, image.expand(4, 2, 3)), 2))[0]
    torch.testing.assert_close(ours(x, static=image)[0], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", ["1u", "2u", "2f"])
def test_captioner_sees_the_image_and_no_later_word(form: str) -> None:
    torch.manual_seed(0)
    model = Captioner(11, form, hidden=6, embedding=5, image=4)  # type: ignore[arg-type]
    for p in model.parameters():
        nn.init.normal_(p)
    image, words = torch.randn(2, 4), torch.randint(0, 11, (5, 2))
    y = model(image, words)
    assert y.shape == (5, 2, 11) and not torch.equal(model(image + 1, words), y)
    words[3] = (words[3] + 1) % 11
    assert torch.equal(model(image, words)[:3], y[:3])


def test_gradcheck() -> None:
    ours, x = layer(3, 2, static=2), double(3, 2, 3).requires_grad_()
    cont, image = torch.tensor([[0, 0], [1, 0], [1, 1]]), double(2, 2)
    names = [n for n, _ in ours.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        out: tuple[Tensor, object] = torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x, cont, image))
        return out[0]

    assert torch.autograd.gradcheck(run, (x, *ours.parameters()))


def test_network_modes_batch_and_state() -> None:
    model, x = small().eval(), torch.randn(4, 3, 3, 6, 6)
    y = model(x)
    torch.testing.assert_close(model(x[:, 1:2]), y[:, 1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip_probabilities(y).sum(1), torch.ones(3))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    other = small().eval()
    nn.init.zeros_(other.fc8.weight)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.train()(x), model(x)), "dropout"
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()


def test_compiles_without_breaks() -> None:
    ours, x, cont = layer(), double(3, 2, 5), torch.ones(3, 2)
    torch.testing.assert_close(torch.compile(ours, fullgraph=True, backend="eager")(x, cont)[0], ours(x, cont)[0])


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="hidden must be"):
        LrcnLSTM(4, 0)
    with pytest.raises(ValueError, match="cont must have"):
        layer()(double(3, 2, 5), torch.ones(2, 2))
    with pytest.raises(ValueError, match="static must be"):
        layer(static=2)(double(3, 2, 5))
    with pytest.raises(ValueError, match="static must be 0"):
        layer(static=2).to_torch()
    with pytest.raises(ValueError, match="depth must be"):
        caffe_features("fc8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form must be"):
        Captioner(5, "3u")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames must be"):
        small()(torch.zeros(2, 3, 6, 6))
