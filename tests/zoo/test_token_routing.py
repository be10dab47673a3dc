"""Dynamic token routing: figures of the substrate, and what gates do to the grid."""
from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.token_routing import (
    MLP,
    SRA,
    SYSTEM,
    Block,
    Gate,
    PatchEmbed,
    PVTv2,
    Stage,
    TokenRouting,
    budget_loss,
)

Model = TypeVar("Model", bound=nn.Module)
SIZES: dict[str, Any] = {"heads": (1, 2, 2), "expand": (2, 3, 2), "reduce": (4, 2, 1), "classes": 3, "stem": (3, 2)}
FIGURES = [
    ("b0", 3_666_760, 0.566), ("b1", 14_009_000, 2.108), ("b2", 25_362_856, 4.027), ("b3", 45_238_696, 6.897),
    ("b4", 62_556_072, 10.101), ("b5", 81_956_008, 11.717),
]  # fmt: skip


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def grid(**options: Any) -> TokenRouting:
    torch.manual_seed(0)
    return shaken(TokenRouting((4, 6, 8), (1, 2, 1), **(SIZES | options))).eval()


def image(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 24, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("size", "count", "giga"), FIGURES)
def test_published_figures_of_the_substrate(size: str, count: int, giga: float) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[f"pvt_v2_{size}"]()
        assert parameters(model) == count
        assert macs(model, torch.empty(1, 3, 224, 224)) / 1e9 == pytest.approx(giga, abs=5.1e-4)


def twin(model: TokenRouting) -> PVTv2:
    """The PVTv2 of the grid's staircase, with its weights."""
    found = PVTv2((4, 6, 8), (1, 2, 1), **SIZES)
    found.embeds[0].load_state_dict(model.stem.state_dict())
    found.head.load_state_dict(model.head.state_dict())
    for i in range(3):
        found.stages[i].load_state_dict(model.stages[i][i].state_dict())  # type: ignore[index]
        if i:
            found.embeds[i].load_state_dict(model.embeds[i - 1][i].state_dict())  # type: ignore[index]
    return found.eval()


def test_staircase_is_the_substrate() -> None:
    model, x = grid().double(), image().double()
    scores, share, gates = model.routed(x, *model.staircase())
    torch.testing.assert_close(scores, twin(model).double()(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.train().routed(x, *model.staircase())[0], scores, rtol=1e-10, atol=1e-12)  # nothing skipped
    whole = model.routed(x, torch.ones(3, 3), torch.ones(2, 4))
    assert 0 < share < 0.6 and whole[1] == 1 and len(gates) == 9
    assert not torch.allclose(whole[0], scores)


def test_closed_row_gates_leave_patch_embeddings() -> None:
    model, x = grid().double(), image().double()
    rows, scales = model.staircase()
    y = model.stem(x.permute(0, 2, 3, 1))
    for i in range(2):
        y = model.embeds[i][i + 1](y)  # type: ignore[index]
    torch.testing.assert_close(model.routed(x, 0 * rows, scales)[0], model.head(y.mean((1, 2))), rtol=1e-10, atol=1e-12)


def test_node_as_in_the_equation() -> None:
    """Two rows, one column, learned gates."""
    torch.manual_seed(0)
    sizes = {"heads": (1, 2), "expand": (2, 2), "reduce": (2, 1), "classes": 3, "stem": (3, 2)}
    model = shaken(TokenRouting((4, 6), (1, 1), columns=1, **sizes)).eval().double()  # type: ignore[arg-type]
    x = image().double()

    def at(grid: nn.ModuleList, j: int, y: Tensor, i: int = 0) -> Tensor:
        return grid[i][j](y)  # type: ignore[index, no-any-return]

    def down(c: Tensor) -> Tensor:
        b, height, width, _ = c.shape
        return c.reshape(b, height // 2, 2, width // 2, 2, 1).amax((2, 4))

    f00 = model.stem(x.permute(0, 2, 3, 1))
    f10 = down(at(model.scale_gates, 0, f00)) * at(model.embeds, 0, f00)
    g = at(model.row_gates, 0, f00)
    f01 = g * at(model.stages, 0, f00) + (1 - g) * f00
    h = at(model.row_gates, 0, f10, 1)
    f11 = h * at(model.stages, 0, f10, 1) + (1 - h) * f10 + down(at(model.scale_gates, 1, f01)) * at(model.embeds, 1, f01)
    scores, _, gates = model.routed(x)
    torch.testing.assert_close(scores, model.head(f11.mean((1, 2))), rtol=1e-10, atol=1e-12)
    assert torch.equal(gates[0], g) and set(torch.cat([t.flatten() for t in gates]).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("reduce", [1, 2])
def test_gathered_is_masked(reduce: int) -> None:
    torch.manual_seed(0)
    keep = torch.tensor([0, 5, 6, 11, 23])
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    mask = torch.zeros(24, dtype=torch.bool)
    mask[keep] = True
    for layer in (shaken(SRA(8, 2, reduce)).double(), shaken(MLP(8, 12)).double()):
        whole = layer(x)
        torch.testing.assert_close(layer(x, keep), whole.flatten(1, 2)[:, mask], rtol=1e-10, atol=1e-12)


def test_attention_as_in_the_equation() -> None:
    layer, x = shaken(SRA(6, 2, 2)).double(), torch.randn(1, 4, 4, 6, dtype=torch.float64)
    sr = layer.sr
    assert sr is not None
    small = nn.functional.conv2d(x.permute(0, 3, 1, 2), sr.proj.weight, sr.proj.bias, 2).permute(0, 2, 3, 1)
    k, v = layer.kv(sr.norm(small).flatten(1, 2)).split(6, 2)
    q = layer.q(x.flatten(1, 2))
    heads = [(q[..., h] @ k[..., h].transpose(1, 2) / 3**0.5).softmax(-1) @ v[..., h] for h in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(layer(x).flatten(1, 2), layer.proj(torch.cat(heads, -1)), rtol=1e-10, atol=1e-12)


def test_costs_are_those_counted() -> None:
    with torch.device("meta"):  # the counter does not know the CPU's own attention
        x = torch.empty(1, 8, 12, 6)
        for layer in (Stage(6, 2, 2, 4, 3.0), Stage(6, 1, 1, 1, 2.0), PatchEmbed(6, 9)):
            assert layer.macs(8, 12) == macs(layer, x)
        assert PatchEmbed(6, 9).macs(7, 9) == macs(PatchEmbed(6, 9), torch.empty(1, 7, 9, 6))


def test_share_is_linear_in_the_gates_and_the_budget_is_met() -> None:
    model, x = grid(), image(1)
    shares = []
    for level in (0.0, 0.5, 1.0):
        rows, scales = torch.full((3, 3), level), torch.full((2, 4), level)
        shares.append(model.routed(x, rows, scales)[1].item())
    assert shares == pytest.approx([0, 0.5, 1])
    rows, scales = model.staircase()
    share = model.routed(x, rows, scales)[1]
    counted = macs(twin(model).to("meta"), x.to("meta")) - model.stem.macs(32, 24) - 8 * 3  # the stem and the head are always on
    whole = sum(model.stages[i][j].macs(16 >> i, 12 >> i) for i in range(3) for j in range(3))  # type: ignore[index]
    whole += sum(model.embeds[i][j].macs(16 >> i, 12 >> i) for i in range(2) for j in range(4))  # type: ignore[index]
    assert share.item() == pytest.approx(counted / whole)
    assert budget_loss(share, share.item()) == 0 and budget_loss(share, 0.9) > 0


def test_empty_nodes_are_skipped() -> None:
    model, x = grid(), image()
    rows, scales = model.staircase()
    seen: list[nn.Module] = []
    for row in model.stages:
        for stage in row:  # type: ignore[attr-defined]
            stage.register_forward_hook(lambda m, a, b: seen.append(m))
    model.routed(x, rows, scales)
    assert len(seen) == 3
    seen.clear()
    model.train().routed(x, rows, scales)
    assert len(seen) == 9


def test_gate() -> None:
    torch.manual_seed(0)
    gate, x = shaken(Gate(4)), torch.randn(500, 2, 2, 4)
    logit = gate.linear(gate.norm(x)) + gate.open
    assert torch.equal(gate.eval()(x), (logit > 0).float())
    gate.train()
    tries = torch.stack([gate(x[:8]) for _ in range(800)])
    assert set(tries.flatten().round(decimals=5).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(tries.mean(0), logit[:8].sigmoid(), rtol=0, atol=0.08)  # open as often as the sigmoid says
    gate.noise = 0.0
    assert torch.equal(gate(x), (logit > 0).float())
    gate.eval()
    x = x[:2].requires_grad_()
    (found,) = torch.autograd.grad(gate(x).sum(), x)
    (wanted,) = torch.autograd.grad((gate.linear(gate.norm(x)) + gate.open).sigmoid().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_gradcheck() -> None:
    block = shaken(Block(4, 2, 2, 1.5)).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), fast_mode=True)


def test_modes_batch_and_state() -> None:
    model, x = grid(), image(3)
    y = model(x)
    assert torch.equal(model(x), y)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = grid()
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    scores, share, _ = model.train().routed(x)
    assert not torch.equal(model.routed(x)[0], scores)  # the noise of the gates
    model.set_noise(0.0)
    torch.testing.assert_close(model.routed(x)[0], y, rtol=1e-5, atol=1e-5)
    (scores.square().sum() + budget_loss(share, 0.2)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.eval()(x).isfinite().all()
    assert PVTv2((4, 6, 8), (1, 1, 1), **SIZES)(torch.randn(1, 3, 21, 27)).shape == (1, 3)
    assert model(torch.randn(1, 3, 21, 27)).shape == (1, 3)


@pytest.mark.parametrize("which", ["block", "gate"])
def test_compiles_without_breaks(which: str) -> None:
    layer = (Block(8, 2, 2, 2.0) if which == "block" else Gate(8)).eval()
    x = torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="heads must be"):
        SRA(6, 4, 1)
    with pytest.raises(ValueError, match="x must have sides"):
        SRA(6, 2, 8)(torch.zeros(1, 4, 4, 6))
    with pytest.raises(ValueError, match="depths, heads, expand and reduce"):
        PVTv2((4, 6), (1,))
    with pytest.raises(ValueError, match="depths, heads, expand and reduce"):
        TokenRouting((4, 6), (1,))
    with pytest.raises(ValueError, match="columns must be positive"):
        grid(columns=0)
    with pytest.raises(ValueError, match="columns must be at least"):
        grid(columns=2).staircase()
    with pytest.raises(ValueError, match="rows must be"):
        grid().routed(image(), torch.ones(2, 2))
    with pytest.raises(ValueError, match="scales must be"):
        grid().routed(image(), None, torch.ones(2, 2))
    with pytest.raises(ValueError, match="mu must be"):
        budget_loss(torch.tensor(0.5), 1.5)
