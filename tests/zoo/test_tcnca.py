"""TCNCA: what the TCN sees, how chunks are joined, and MEGA's layer around them."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.tcnca import EMA, SYSTEM, TCN, TCNCA, ChunkedAttention, TCNCALayer, receptive_field


def layer(**options: Any) -> TCNCALayer:
    torch.manual_seed(0)
    made = TCNCALayer(6, **({"keys": 4, "values": 5, "chunk": 4} | options)).double().eval()
    made.gamma.data.normal_()
    made.beta.data.normal_()
    made.attention.bias.data.normal_()
    return made


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def changed(model: nn.Module, x: Tensor, step: int) -> list[int]:
    """Steps of the output that a change of one step of the input changes."""
    other = x.clone()
    other[:, step] += torch.arange(1, x.shape[-1] + 1)  # a constant would be lost in a layer norm
    steps: list[int] = (model(other) != model(x)).any(2).any(0).nonzero().flatten().tolist()
    return steps


@pytest.mark.parametrize(("kernel", "factor", "layers", "field"), [(3, 2, 3, 15), (17, 4, 4, 1361), (5, 3, 3, 53), (4, 1, 3, 10)])
def test_receptive_field_by_formula_and_by_impulse(kernel: int, factor: int, layers: int, field: int) -> None:
    assert receptive_field(kernel, factor, layers) == field
    closed = 1 + layers * (kernel - 1) if factor == 1 else 1 + (kernel - 1) * (factor**layers - 1) // (factor - 1)
    model = TCN(1, kernel, factor, layers).double()
    assert closed == model.receptive_field == field
    for conv in model.convs:
        nn.init.constant_(conv.weight, 1.0)  # type: ignore[arg-type]  # an impulse stays far above rounding
    seen = changed(model, torch.zeros(1, field + 20, 1, dtype=torch.float64), 5)
    assert seen == list(range(5, 5 + field))


@pytest.mark.parametrize("mixing", [False, True])
def test_stream_is_the_whole_sequence(mixing: bool) -> None:
    model, x = TCN(4, 3, 2, 3, mixing=mixing).double(), double(2, 30, 4)
    state = model.start(x[:, 0])
    assert [s.shape[-1] for s in state] == [2, 4, 8]
    steps = []
    for t in range(30):
        y, state = model.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), model(x), rtol=1e-11, atol=1e-13)


def test_mixing_joins_channels_and_depthwise_does_not() -> None:
    x = double(1, 9, 4)
    other = x.clone()
    other[..., 0] += 1
    assert not (TCN(4, mixing=True).double()(other) == (TCN(4).double()(x))).all()
    for mixing in (False, True):
        model = TCN(4, mixing=mixing).double()
        assert (model(other) != model(x))[..., 1:].any() == mixing


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("score", ["softmax", "laplace", "relu2"])
def test_causal_and_chunks_joined_only_by_the_tcn(score: str, simple: bool) -> None:
    x = double(1, 24, 6)
    options = {"score": score, "simple": simple}
    alone = changed(layer(move="none", **options), x, 5)
    assert set(alone) <= {5, 6, 7} and 5 in alone
    joined = changed(layer(**options), x, 5)
    assert min(joined) == 5 and max(joined) >= 5 + 14
    assert max(joined) <= (5 + 14) // 4 * 4 + 3  # through the keys, to the end of the chunk that the TCN reaches
    if not simple:  # in the simple form the first step of a chunk has only its own value
        assert set(joined) == set(range(5, max(joined) + 1))


def test_long_chunks_are_full_attention() -> None:
    q, k, v = double(2, 11, 3), double(2, 11, 3), double(2, 11, 5)
    for chunk in (11, 16):
        attention = ChunkedAttention(chunk).double()
        place = torch.arange(11)
        bias = attention.bias[place[None] - place[:, None] + chunk - 1].masked_fill(place[None] > place[:, None], -math.inf)
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        torch.testing.assert_close(attention(q, k, v), wanted, rtol=1e-11, atol=1e-13)


def test_a_chunk_is_alone_and_the_rest_may_be_short() -> None:
    attention = ChunkedAttention(4).double()
    q, k, v = double(1, 10, 3), double(1, 10, 3), double(1, 10, 5)
    parts = [attention(*(t[:, a : a + 4] for t in (q, k, v))) for a in (0, 4, 8)]
    torch.testing.assert_close(attention(q, k, v), torch.cat(parts, 1), rtol=1e-11, atol=1e-13)


def test_other_scores_as_in_the_equation() -> None:
    q, k, v = double(1, 5, 3), double(1, 5, 3), double(1, 5, 2)
    for score in ("relu2", "laplace"):
        attention = ChunkedAttention(8, score).double()
        wanted = torch.zeros_like(v)
        for i in range(5):
            for j in range(i + 1):
                s = q[0, i] @ k[0, j] / (i + 1) + attention.bias[j - i + 7]
                phi = s.relu() ** 2 if score == "relu2" else 0.5 * (1 + torch.erf((s - 0.5**0.5) / ((0.25 / math.pi) ** 0.5 * 2**0.5)))
                wanted[0, i] += phi * v[0, j]
        torch.testing.assert_close(attention(q, k, v), wanted, rtol=1e-10, atol=1e-12)


def test_moving_average_is_its_recurrence() -> None:
    model, x = EMA(3, 4).double(), double(2, 20, 3)
    p = model.delta.sigmoid()
    q = 1 - p * model.alpha.sigmoid()
    h, steps = torch.zeros(2, 3, 4, dtype=torch.float64), []
    for t in range(20):
        h = q * h + p * model.beta * x[:, t, :, None]
        steps.append(F.silu((h * model.gamma).sum(-1) / 2 + model.omega * x[:, t]))
    torch.testing.assert_close(model(x), torch.stack(steps, 1), rtol=1e-10, atol=1e-12)


def test_layer_as_in_the_equations() -> None:
    made, x = layer(feed=7), double(2, 4, 6)
    y = F.layer_norm(x, (6,), made.norm.weight, made.norm.bias)
    m = made.W_m(made.move(y))
    u, z, r, hx = m[..., :6].sigmoid(), F.silu(m[..., 6:10]), F.silu(m[..., 10:15]), m[..., 15:]
    q, k = z * made.gamma[0] + made.beta[0], z * made.gamma[1] + made.beta[1]
    a = made.attention(q, k, F.silu(made.W_v(y)))
    out = u * F.silu(hx + made.W_h(a * r)) + (1 - u) * x
    assert made.ffn is not None
    torch.testing.assert_close(made(x), out + made.ffn(out), rtol=1e-11, atol=1e-13)


def test_closed_form_of_parameters() -> None:
    d, z, e, f = 512, 128, 1024, 1024
    shared = 2 * d + (d * e + e) + (e * d + d) + 4 * z + (2 * 2048 - 1) + 2 * d + (d * f + f) + (f * d + d)
    gates, keys = (d + 1) * (2 * d + z + e), (d + 1) * z
    moves = {"tcnca_enwik8": 4 * d * 18 + gates, "tcnca_simple_enwik8": 4 * d * 18 + keys, "mega_chunk_enwik8": 4 * d * 16 + d + gates}
    for variant, own in moves.items():
        with torch.device("meta"):
            count = parameters(SYSTEM.variants[variant]())
        assert count == 12 * (shared + own) + 256 * d + 2 * d + (d + 1) * 256
        assert variant == "tcnca_simple_enwik8" or 38e6 < count < 40e6  # about 39 M, as recalled


def test_work_is_linear_in_the_length() -> None:
    with torch.device("meta"):
        model = TCNCA(16, 32, 1, chunk=64, values=32)
        counts = [macs(model, torch.empty(1, n, dtype=torch.long)) for n in (1024, 2048, 8192)]
    assert counts[1] == 2 * counts[0] and counts[2] == 8 * counts[0]
    with torch.device("meta"):
        assert macs(TCN(32, 5, 3, 3), torch.empty(1, 1000, 32)) == 1000 * 32 * 5 * 3


@pytest.mark.parametrize("options", [{}, {"move": "ema"}, {"simple": True}, {"score": "laplace"}])
def test_gradcheck(options: dict[str, Any]) -> None:
    made, x = layer(**options), double(1, 6, 6).requires_grad_()
    names = [n for n, _ in made.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *made.parameters()), fast_mode=True)


@pytest.mark.parametrize("move", ["tcn", "ema"])
def test_network_modes_batch_and_state(move: str) -> None:
    def made() -> TCNCA:
        return TCNCA(9, 8, 2, keys=4, values=8, chunk=4, move=move, feed=8)

    model, words = made().eval(), torch.randint(0, 9, (3, 14))
    y = model(words)
    assert y.shape == (3, 14, 9)
    torch.testing.assert_close(model(words[1:2]), y[1:2], rtol=1e-5, atol=1e-6)
    other = made()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.train()(words), y)  # nothing differs in training
    other(words).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(words).isfinite().all()
    half = layer(move=move).bfloat16()
    assert half(torch.randn(1, 9, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("move", ["tcn", "ema"])
def test_compiles_without_breaks(move: str) -> None:
    made, x = layer(move=move), double(2, 10, 6)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(x), made(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="factor must be"):
        TCN(4, 3, 0)
    with pytest.raises(ValueError, match="terms must be"):
        EMA(4, 0)
    with pytest.raises(ValueError, match="chunk must be"):
        ChunkedAttention(0)
    with pytest.raises(ValueError, match="score must be"):
        ChunkedAttention(4, "cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="move must be"):
        TCNCALayer(4, move="lstm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth must be"):
        TCNCA(4, 4, 0)
