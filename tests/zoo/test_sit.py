"""Self-slimmed ViT: figures of students and teachers, slimming, and the distillation loss."""
from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import sit as demonstration
from models.zoo.sit import FRD, RTSM, SYSTEM, TSM, Block, SiT

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("sit_t", 15_872_934, 183_534, 0.987), ("sit_xs", 25_625_774, 257_070, 1.482), ("sit_s", 25_625_774, 257_070, 4.016),
    ("sit_m", 55_642_302, 441_006, 8.019), ("sit_l_288", 148_168_398, 999_454, 34.31), ("lvvit_t", 15_689_400, 0, 3.457),
    ("lvvit_s", 25_368_704, 0, 5.532), ("lvvit_m", 55_201_296, 0, 11.839), ("lvvit_l_288", 147_168_944, 0, 55.97),
]  # fmt: skip


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def small(stages: tuple[int, ...] = (1, 2, 1), **options: Any) -> SiT:
    torch.manual_seed(0)
    return SiT(16, 2, stages, size=(32, 64), classes=3, **options)


@pytest.mark.parametrize(("variant", "count", "slimming", "giga"), FIGURES)
def test_published_figures(variant: str, count: int, slimming: int, giga: float) -> None:
    with torch.device("meta"):
        model: Any = SYSTEM.variants[variant]().eval()
        assert parameters(model) == count and parameters(model.slim) == slimming
        assert macs(model, torch.empty(1, 3, *model.size)) / 1e9 == pytest.approx(giga, abs=5.1e-3 if giga > 30 else 5.1e-4)
    if variant.startswith("sit"):
        assert model.kept == ([324, 162, 81, 40] if "288" in variant else [196, 98, 49, 24])


def test_columns_sum_to_one_and_one_hot_selects() -> None:
    layer, x = shaken(TSM(8, 3)).double(), torch.randn(2, 7, 8, dtype=torch.float64)
    w = layer.weights(x)
    assert w.shape == (2, 7, 3) and (w > 0).all()
    torch.testing.assert_close(w.sum(1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-12, atol=0)
    wanted = torch.stack([sum(w[:, n, m, None] * x[:, n] for n in range(7)) for m in range(3)], 1)  # type: ignore[misc]
    torch.testing.assert_close(layer(x), wanted, rtol=1e-10, atol=1e-12)
    layer.scale.data.fill_(1e6)
    largest = layer.weights(x).argmax(1)
    torch.testing.assert_close(layer(x), x.gather(1, largest[..., None].expand(-1, -1, 8)), rtol=1e-10, atol=1e-12)
    layer.scale.data.zero_()
    torch.testing.assert_close(layer(x), x.mean(1, keepdim=True).expand(-1, 3, -1), rtol=1e-10, atol=1e-12)


def test_constant_tokens_stay_and_order_does_not_matter() -> None:
    layer, x = shaken(TSM(8, 3)).double(), torch.randn(2, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x.expand(-1, 9, -1)), x.expand(-1, 3, -1), rtol=1e-10, atol=1e-12)
    tokens = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens[:, torch.randperm(6)]), layer(tokens), rtol=1e-10, atol=1e-12)


def test_reverse_module_restores_the_count() -> None:
    layer, x = shaken(RTSM(8, 3, 10)).double(), torch.randn(2, 3, 8, dtype=torch.float64)
    y = layer(x)
    mixed = layer.tokens(layer.norm1(x).transpose(1, 2)).transpose(1, 2)
    assert y.shape == mixed.shape == (2, 10, 8)
    torch.testing.assert_close(y, mixed + layer.channels(layer.norm2(mixed)))
    assert parameters(layer) == 2 * 16 + (3 * 40 + 40 + 40 * 10 + 10) + (8 * 32 + 32 + 32 * 8 + 8)


def test_tokens_of_every_layer() -> None:
    model, x = small().eval(), torch.randn(2, 3, 32, 64)
    scores, layers = model.features(x)
    assert model.kept == [8, 4, 2] and model.tokens == [8, 4, 4, 2]
    assert [len(t[0]) for t in layers] == model.tokens and scores.shape == (2, 3) and sorted(model.slim) == ["0", "2"]
    assert small(keep=0.7).kept == [8, 5, 3]


def test_one_stage_is_the_teacher_and_its_weights_load() -> None:
    teacher, student, x = shaken(small((4,))).eval(), small().eval(), torch.randn(2, 3, 32, 64)
    student.start_from(teacher)
    own, full = student.features(x)[1], teacher.features(x)[1]
    torch.testing.assert_close(own[0], full[0])  # alike up to the first slimming
    assert own[1].shape != full[1].shape
    with pytest.raises(ValueError, match="teacher must be"):
        small((2,)).start_from(teacher)


def test_loss_term_by_term() -> None:
    student, teacher = shaken(small()), shaken(small((4,)))
    method, x, label = FRD(student, teacher, tau=2.0).train(), torch.randn(2, 3, 32, 64), torch.tensor([0, 2])
    student.eval()
    scores, layers = student.features(x)
    wanted, targets = teacher.features(x)
    p, q = (wanted / 2).softmax(1), (scores / 2).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    apart = torch.stack([(r(own) - t).square().mean() for r, own, t in zip(method.reverse, layers, targets, strict=True)]).mean()
    hard = torch.randn(2, 5)[:, :3]
    loss = F.cross_entropy(scores, label) + 2 * apart + 2 * 4 * divergence
    torch.testing.assert_close(method(x, label), loss)
    torch.testing.assert_close(method(x, label, hard), loss + F.cross_entropy(scores, hard.argmax(1)))
    assert [isinstance(r, RTSM) for r in method.reverse] == [False, True, True, True]
    own_only = FRD(student, teacher, features=0.0, logits=0.0).train()
    student.eval()
    torch.testing.assert_close(own_only(x, label), F.cross_entropy(scores, label))


def test_teacher_gets_no_gradient_and_reverse_modules_rest_in_eval() -> None:
    student, teacher, x = shaken(small()), shaken(small((4,))), torch.randn(2, 3, 32, 64)
    method = FRD(student, teacher).train()
    assert student.training and not teacher.training
    before = {name: b.clone() for name, b in teacher.named_buffers()}
    method(x, torch.tensor([1, 0])).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(b, before[name]) for name, b in teacher.named_buffers())  # batch norms do not move
    for name, p in (*student.named_parameters(), *method.reverse.named_parameters()):
        assert name.startswith("aux_head") == (p.grad is None) and (p.grad is None or p.grad.isfinite().all())
    called: list[int] = []
    for module in method.reverse:
        module.register_forward_hook(lambda *_: called.append(1))
    assert torch.equal(method.eval()(x), student(x)) and not called
    assert not any("RTSM" in type(m).__name__ for m in student.modules())


@pytest.mark.parametrize("which", ["tsm", "rtsm", "block"])
def test_gradcheck(which: str) -> None:
    layers: dict[str, nn.Module] = {"tsm": TSM(4, 2), "rtsm": RTSM(4, 3, 2), "block": Block(4, 2, 2.0, 0.0)}
    layer = shaken(layers[which]).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_network_modes_batch_and_state() -> None:
    model, x = shaken(small(drop=0.5)).eval(), torch.randn(3, 3, 32, 64)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)
    other = small().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    assert not torch.equal(model(x), model(x))  # stochastic depth


def test_residual_branches_are_divided() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)
    one, three = Block(4, 2, 1.0, 0.0), Block(4, 2, 3.0, 0.0)
    three.load_state_dict(one.state_dict())
    for block in (one, three):
        nn.init.zeros_(block.mlp[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(block.mlp[2].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(3 * (three(x) - x), one(x) - x, rtol=1e-4, atol=1e-5)


def test_demonstration_tests_on_digits_it_did_not_train_on() -> None:
    data = demonstration.Digits(0, few=10)
    assert data.end - data.first == 10 and len(data.labels) > 4 * data.first - 4
    x, label = data.batch(3)
    assert x.shape == (3, 3, 64, 64) and label.shape == (3,)
    assert demonstration.work(demonstration.network(True)) < 0.6 * demonstration.work(demonstration.network(False))


def test_compiles_without_breaks() -> None:
    layer, x = nn.Sequential(shaken(TSM(8, 3)), Block(8, 2, 2.0, 0.0)).eval(), torch.randn(2, 6, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="keep must be positive"):
        TSM(8, 0)
    with pytest.raises(ValueError, match="dim must be"):
        SiT(12, 2, (1,))
    with pytest.raises(ValueError, match="size must be"):
        SiT(16, 2, (1,), size=(40, 32))
    with pytest.raises(ValueError, match="keep must be in"):
        small(keep=1.0)
    with pytest.raises(ValueError, match="stages must be"):
        small((1, 0))
    with pytest.raises(ValueError, match="x must be images"):
        small()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="teacher must have"):
        FRD(small(), small((3,)))
    with pytest.raises(ValueError, match="tau must be"):
        FRD(small(), small((4,)), tau=0.0)
    with pytest.raises(ValueError, match="label must be"):
        FRD(small(), small((4,))).train()(torch.zeros(1, 3, 32, 64))
