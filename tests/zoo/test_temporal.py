"""TS-LSTM and Temporal-Inception: figures of the variants, and what each keeps of the order of frames."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.temporal import SYSTEM, TSLSTM, InceptionModule, PeepholeLSTM, TemporalInception, TwoStream, clamp_gradients_, two_stream

FIGURES = {
    "ts_lstm_ucf101": 9_520_229, "ts_lstm_hmdb51": 9_520_229 - 50 * 513, "ts_lstm_one_stream": 5_313_637,
    "temporal_inception_ucf101": 4_302_106, "temporal_inception_hmdb51": 4_250_856, "temporal_inception_one_stream": 2_204_954,
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """In eval mode, float64, every parameter and running statistic away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_()
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model.double().eval()


def lstm_net(segments: int = 3) -> TSLSTM:
    made = shaken(TSLSTM(6, 4, segments=segments, hidden=5))
    assert isinstance(made, TSLSTM)
    return made


def inception() -> TemporalInception:
    made = shaken(TemporalInception(6, 4, hidden=8))
    assert isinstance(made, TemporalInception)
    for layer in made.squeeze:  # one map at the end: its ReLU must not be closed
        if isinstance(layer, nn.BatchNorm2d):
            layer.bias.data += 1.5
            layer.running_mean.zero_()  # type: ignore[union-attr]
    return made


def video(n: int = 2, frames: int = 25) -> Tensor:
    return torch.randn(n, frames, 6, dtype=torch.float64)


@pytest.mark.parametrize(("variant", "count"), FIGURES.items())
def test_published_figures(variant: str, count: int) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) == count
        if isinstance(model, TemporalInception):
            assert parameters(model.modules_) + parameters(model.squeeze) == 1_205


def test_parameters_without_peepholes_and_of_the_streams() -> None:
    with torch.device("meta"):
        assert parameters(PeepholeLSTM(4096, 512)) - parameters(nn.LSTM(4096, 512)) == 9_520_229 - 9_518_693
        model = two_stream("ts_lstm")
        assert parameters(model.rgb) == 42_500_160  # the well-known ResNet-101 without its classifier
        assert parameters(model.flow) == 42_500_160 + 17 * 64 * 49
        assert model(torch.empty(2, 3, 3, 32, 32), torch.empty(2, 3, 20, 32, 32)).shape == (2, 101)


def test_shapes_and_macs() -> None:
    model, x = TemporalInception(6, 4, hidden=8).eval(), torch.randn(2, 25, 6)
    shapes = []
    for module in model.modules_:
        assert isinstance(module, InceptionModule)
        module.register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape)))
    model(x)
    assert shapes == [(2, 2, 6, 12), (2, 4, 6, 6), (2, 8, 6, 3), (2, 16, 6, 1)]
    work = 6 * 12 * (25 + 4 * 12 + 16 * 6 + 64 * 3) + 6 * (64 + 8 + 2) + 6 * 8 + 8 * 4
    assert macs(model, x[:1]) == work
    assert macs(TSLSTM(6, 4, hidden=5).eval(), x[:1]) == 3 * 20 * (6 + 5) + 5 * 4


def test_order_inside_a_segment_is_lost_between_segments_kept() -> None:
    x = video(6)
    for model in (lstm_net(), lstm_net().train()):
        inside = torch.cat((x[:, :8].flip(1), x[:, 8:]), 1)
        torch.testing.assert_close(model(inside), model(x), rtol=1e-12, atol=1e-12)
        swapped = torch.cat((x[:, 8:16], x[:, :8], x[:, 16:]), 1)
        assert (model(swapped) - model(x)).abs().max() > 1e-3
        other_end = x.clone()
        other_end[:, 24] = 100.0
        assert torch.equal(model(other_end), model(x))
    assert inception()(inside).sub(inception()(x)).abs().max() > 1e-4


def test_one_segment_is_the_maximum_and_one_step() -> None:
    model, x = lstm_net(segments=1), video()
    top = model.norms[0](x.flatten(0, 1)).view(2, 25, 6).amax(1)
    i, _, g, o = (top @ model.lstm.weight_ih.T + model.lstm.bias_ih + model.lstm.bias_hh).chunk(4, 1)
    c = i.sigmoid() * g.tanh()
    h = (o + model.lstm.peep_o * c).sigmoid() * c.tanh()
    torch.testing.assert_close(model(x), model.fc(model.norm(h)).log_softmax(-1), rtol=1e-12, atol=1e-13)


def test_norm_takes_the_statistics_of_each_frame() -> None:
    model, x = lstm_net().train(), video(4)
    norm = model.norms[1]
    frames = [(x[:, t] - x[:, t].mean(0)) / (x[:, t].var(0, correction=0) + 1e-5).sqrt() for t in range(8, 16)]
    wanted = (torch.stack(frames, 1) * norm.weight + norm.bias).amax(1)  # type: ignore[operator]
    torch.testing.assert_close(model.pooled(x)[:, 1], wanted, rtol=1e-10, atol=1e-12)


def test_without_peepholes_is_the_lstm_of_torch() -> None:
    layer = PeepholeLSTM(6, 5).double()
    for p in (layer.peep_i, layer.peep_f, layer.peep_o):
        nn.init.zeros_(p)
    other = nn.LSTM(6, 5, batch_first=True).double()
    other.load_state_dict({f"{k}_l0": v for k, v in layer.state_dict().items() if not k.startswith("peep")})
    x = video(3, 7)
    torch.testing.assert_close(layer(x), other(x)[0], rtol=1e-12, atol=1e-14)
    for p in (layer.peep_i, layer.peep_f, layer.peep_o):  # each peephole does something
        nn.init.ones_(p)
        assert not torch.allclose(layer(x), other(x)[0], atol=1e-4)
        nn.init.zeros_(p)


def test_inception_commutes_with_permutations_of_features() -> None:
    model, x = inception(), video()
    order = torch.randperm(6)
    found = model.features(x)
    assert found.std() > 1e-4
    torch.testing.assert_close(model.features(x[..., order]), found[:, order], rtol=1e-12, atol=1e-14)


def test_gradcheck() -> None:
    x = video(1, 3).requires_grad_()
    layer = PeepholeLSTM(6, 3).double()
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))
    assert torch.autograd.gradcheck(lstm_net(), (video(1, 7).requires_grad_(),))
    assert torch.autograd.gradcheck(inception().features, (video(1).requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("make", [lstm_net, inception])
def test_modes_batch_and_state(make: type[nn.Module]) -> None:
    model, x = make(), video(3)
    y = model(x)
    torch.testing.assert_close(y.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-12, atol=1e-12)
    other = make()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    model.train()(x)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    clamp_gradients_(model, 1e-4)
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) <= 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(x.float()).isfinite().all()


def test_two_streams_are_joined_frame_by_frame() -> None:
    head = nn.Identity()
    model = TwoStream(head, rgb=nn.Conv2d(3, 4, 3), flow=nn.Conv2d(20, 5, 3)).eval()
    frames, flow = torch.randn(2, 3, 3, 6, 6), torch.randn(2, 3, 20, 6, 6)
    y = model(frames, flow)
    assert y.shape == (2, 3, 9)
    torch.testing.assert_close(y[1, 2, :4], model.rgb(frames[1, 2:3]).mean((2, 3))[0])
    torch.testing.assert_close(y[1, 2, 4:], model.flow(flow[1, 2:3]).mean((2, 3))[0])
    last = frames.to(memory_format=torch.preserve_format).flatten(0, 1).contiguous(memory_format=torch.channels_last).view(2, 3, 3, 6, 6)
    torch.testing.assert_close(model(last, flow), y)


@pytest.mark.parametrize("make", [lstm_net, inception])
def test_compiles_without_breaks(make: type[nn.Module]) -> None:
    model, x = make(), video()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="hidden must be"):
        PeepholeLSTM(4, 0)
    with pytest.raises(ValueError, match="segments must be"):
        TSLSTM(4, 2, segments=0)
    with pytest.raises(ValueError, match="x must be"):
        lstm_net()(video(1, 2))
    with pytest.raises(ValueError, match="x must be"):
        inception()(video(1, 12))
    with pytest.raises(ValueError, match="kind must be"):
        two_stream("vgg")
    with pytest.raises(ValueError, match="flow must be"):
        TwoStream(nn.Identity(), rgb=nn.Identity(), flow=nn.Identity())(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 3, 20, 4, 4))
