"""Dynamic Spectrum Mixer: the cosine transform, and what a filter of the spectrum does."""
from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.demos import dsm as demonstration
from models.zoo.dsm import DSM, SYSTEM, Block, DynamicSpectrumMixer, Method, Select, bands, dct2, dct_matrix, idct2

Model = TypeVar("Model", bound=nn.Module)
ONE = torch.zeros((), dtype=torch.float64)
SELECTS: tuple[Select, ...] = ("filters", "bands")


def shaken(model: Model, amount: float = 0.3) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += amount * torch.randn_like(p)
    return model


def small(**options: Any) -> DSM:
    torch.manual_seed(0)
    return DSM((1, 1), (8, 16), sizes=(4, 3), classes=3, **options)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 56])
def test_transform_is_orthonormal(n: int) -> None:
    d = dct_matrix(n, ONE)
    torch.testing.assert_close(d.T @ d, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    k, i = n // 2, n - 1
    assert float(d[k, i]) == pytest.approx(math.sqrt((1 if k == 0 else 2) / n) * math.cos(math.pi * (2 * i + 1) * k / (2 * n)), abs=1e-14)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 4), (7, 9), (16, 12)])
def test_fft_is_the_matrix_and_parseval(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    spectrum = dct2(x)
    torch.testing.assert_close(dct2(x, "fft"), spectrum, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(idct2(x, "fft"), idct2(x), rtol=1e-10, atol=1e-12)
    for method in ("matrix", "fft"):
        torch.testing.assert_close(idct2(spectrum, method), x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(spectrum.square().sum(), x.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(spectrum[..., 0, 0], math.sqrt(size[0] * size[1]) * x.mean((2, 3)), rtol=1e-10, atol=1e-12)


def test_reflection_flips_odd_coefficients() -> None:
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    sign = (-1.0) ** torch.arange(7, dtype=torch.float64)
    torch.testing.assert_close(dct2(x.flip(-1)), dct2(x) * sign, rtol=1e-10, atol=1e-12)
    layer = shaken(DynamicSpectrumMixer(2, size=(4, 4))).double()  # so a filter commutes with reflection
    torch.testing.assert_close(layer(x.flip(-1)), layer(x).flip(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("method", ["matrix", "fft"])
def test_fresh_mixer_is_the_identity(select: Select, method: Method) -> None:
    x = torch.randn(2, 4, 9, 6)
    layer = DynamicSpectrumMixer(4, select=select, method=method)
    torch.testing.assert_close(layer(x), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.double()(x.double()), x.double(), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(shaken(layer)(x.double()), x.double(), atol=0.01)


def test_low_pass_keeps_the_mean() -> None:
    layer, x = DynamicSpectrumMixer(3, size=(8, 8), dynamic=False).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layer.filters.data.zero_()
    layer.filters.data[..., 0, 0] = 1
    torch.testing.assert_close(layer(x), x.mean((2, 3), keepdim=True).expand_as(x), rtol=1e-10, atol=1e-12)


def test_linear_only_where_the_weights_are_fixed() -> None:
    x, z = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    fixed = shaken(DynamicSpectrumMixer(4, dynamic=False, size=(5, 5))).double()
    torch.testing.assert_close(fixed(2 * x - 3 * z), 2 * fixed(x) - 3 * fixed(z), rtol=1e-10, atol=1e-12)
    for select in SELECTS:
        layer = shaken(DynamicSpectrumMixer(4, select=select, size=(5, 5))).double()
        assert not torch.allclose(layer(2 * x - 3 * z), 2 * layer(x) - 3 * layer(z), rtol=1e-3, atol=1e-3)


def test_weights_are_of_the_image() -> None:
    """Filters: a convex mixture by alpha. Bands: one gate in 0..2 for all frequencies of a band and all channels."""
    x = torch.randn(3, 4, 8, 6, dtype=torch.float64)
    layer = shaken(DynamicSpectrumMixer(4, 3, size=(8, 6))).double()
    g = layer.weights(x, dct2(x))
    alpha = layer.generate(x.mean((2, 3))).softmax(1)
    torch.testing.assert_close(g[1], sum(alpha[1, k] * layer.filters[k] for k in range(3)), rtol=1e-10, atol=1e-12)
    gated = shaken(DynamicSpectrumMixer(4, 3, select="bands")).double()
    g = gated.weights(x, dct2(x)).expand(3, 4, 8, 6)
    assert g.min() > 0 and g.max() < 2 and (g[0] != g[1]).any()
    index = bands(8, 6, 3)
    for b in range(3):
        assert (g[:, :, index == b] == g[:, :1, index == b][..., :1]).all()
    quiet = idct2(dct2(x) * (index != 1))  # an empty band leaves the others' energies as they are
    assert quiet.isfinite().all() and gated(quiet).isfinite().all()


def test_bands_are_diagonals() -> None:
    index = bands(8, 8, 4)
    assert index[0, 0] == 0 and index[7, 7] == 3 and torch.equal(index, index.T)
    assert torch.equal(index[0], torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])) and (index.diff() >= 0).all()
    assert set(bands(4, 8, 4).flatten().tolist()) == {0, 1, 2, 3}


def test_cost_of_the_matrix_form() -> None:
    with torch.device("meta"):
        layer, x = DynamicSpectrumMixer(32, dynamic=False, size=(24, 20)), torch.empty(1, 32, 24, 20)
        assert macs(layer, x) == 2 * 32 * 24 * 20 * (24 + 20)
        dynamic = DynamicSpectrumMixer(32, 4, size=(24, 20))
        assert macs(dynamic, x) == 2 * 32 * 24 * 20 * 44 + 32 * 8 + 8 * 4 + 4 * 32 * 24 * 20


@pytest.mark.parametrize(("variant", "millions"), [("dsm_t", 11.8), ("dsm_s", 19.8), ("dsm_b", 48.3)])
def test_sizes_of_our_variants(variant: str, millions: float) -> None:
    """Against the sum of their parts; the published sizes are not known."""
    build: Any = SYSTEM.variants[variant]
    dims = build.args[1] if len(build.args) > 1 else (64, 128, 256, 512)
    wanted = 3 * 16 * dims[0] + dims[0] + 2 * dims[0] + 2 * dims[-1] + 1001 * dims[-1] - dims[-1] + 1000
    for a, b in pairwise(dims):
        wanted += 2 * a + 4 * a * b + b
    for depth, c, side in zip(build.args[0], dims, (14, 14, 14, 7), strict=True):
        generate = c * (c // 4) + c // 4 + 4 * (c // 4) + 4
        wanted += depth * (4 * c + 4 * c * side * side + generate + c * c + c + 8 * c * c + 5 * c)
    with torch.device("meta"):
        model = build()
        assert parameters(model) == wanted and wanted / 1e6 == pytest.approx(millions, abs=0.051)
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("method", ["matrix", "fft"])
def test_gradcheck(select: Select, method: Method) -> None:
    layer = shaken(DynamicSpectrumMixer(2, 2, size=(3, 3), select=select, method=method)).double()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("select", SELECTS)
def test_network_modes_batch_and_state(select: Select) -> None:
    model, x = shaken(small(select=select), 0.05).eval(), torch.randn(3, 3, 16, 24)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.train()(x), y, rtol=1e-5, atol=1e-5)
    other = small(select=select, method="fft").eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-5, atol=1e-5)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for each in (model, other):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert each(x).isfinite().all()


def test_fresh_networks_pass_every_band_whatever_the_initialisation() -> None:
    for select in SELECTS:
        model, x = small(select=select), torch.randn(1, 8, 7, 7)
        block = next(m for m in model.modules() if isinstance(m, Block))
        torch.testing.assert_close(block.mixer(x), x, rtol=1e-5, atol=1e-5)
    drop = small(drop=0.5)
    drop.stages[1][0].pw.weight.data.fill_(1.0)  # type: ignore[index]
    image = torch.randn(8, 3, 16, 16)
    assert not torch.equal(drop.train()(image), drop(image)) and torch.equal(drop.eval()(image), drop(image))


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    ours, plain = (demonstration.network(dynamic) for dynamic in (True, False))
    x = torch.zeros(1, 2, demonstration.SIDE, demonstration.SIDE)
    assert parameters(plain) >= parameters(ours) and macs(plain, x) >= macs(ours, x)
    x, label = demonstration.batch(4000, torch.Generator().manual_seed(3))
    assert abs(label.float().mean() - 0.5) < 0.04 and x[:, 0].mean((1, 2)).abs().max() < 1e-6
    energy = x[:, 0].square().mean((1, 2))
    for feature in (energy, x[:, 1, 0, 0]):
        assert abs(torch.corrcoef(torch.stack((feature, label.float())))[0, 1]) < 0.06  # neither tells the label


@pytest.mark.parametrize("select", SELECTS)
def test_compiles_without_breaks(select: Select) -> None:
    layer, x = shaken(DynamicSpectrumMixer(4, select=select)), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="dim and count"):
        DynamicSpectrumMixer(4, 0)
    with pytest.raises(ValueError, match="select must be"):
        DynamicSpectrumMixer(4, select="bands", dynamic=False)
    with pytest.raises(ValueError, match="method must be"):
        DynamicSpectrumMixer(4, method="dht")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be"):
        DynamicSpectrumMixer(4, size=(0, 4))
    with pytest.raises(ValueError, match="dims and sizes"):
        DSM((1, 1), (8,))
    with pytest.raises(ValueError, match="x must have sides"):
        small()(torch.zeros(1, 3, 20, 16))
