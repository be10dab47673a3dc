"""The Triton kernels against the CPU code, on a GPU where there is one, else (where triton is installed) in Triton's interpreter."""
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

#: Compares values and all gradients for every kind of option; prints how many cases it compared.
PROGRAM = """
import torch
from models.ops.deform import Taps, deform_conv
from models.ops.deform_triton import deform_conv_triton

cases = [
    (Taps(), (5, 6), 4, 4, 1, True), (Taps(square=True, bounds=(-8, 7), frac_bits=2), (9, 8), 20, 20, 1, False),
    (Taps(stride=2, dilation=2), (7, 6), 1, 4, 2, True), (Taps(kernel=5, frac_bits=0), (4, 5), 2, 6, 1, False),
    (Taps(square=True, kernel=5), (1, 3), 4, 4, 1, True), (Taps(), (6, 5), 4, 8, 4, True),
]
device = "cuda" if torch.cuda.is_available() else "cpu"
for seed, (taps, size, groups, outputs, parts, masked) in enumerate(cases):
    rng = torch.Generator().manual_seed(seed)
    channels, out = (20 if groups == 20 else 4), taps.out_size(*size)
    shapes = [(2, channels, *size), (2, 1 if taps.square else parts * 2 * taps.kernel**2, *out),
              (outputs, channels // groups, taps.kernel, taps.kernel), (outputs,), (2, parts * taps.kernel**2, *out)]
    values = [torch.randn(s, generator=rng, dtype=torch.float64).to(device) for s in shapes]
    values[1] = values[1] * 2 + 0.01
    if not masked:
        values.pop()
    results = []
    for run in (deform_conv, deform_conv_triton):
        tensors = [v.clone().requires_grad_() for v in values]
        y = run(*tensors, groups=groups, taps=taps)
        results.append((y, *torch.autograd.grad((y * torch.arange(y.numel(), device=device).view_as(y).sin()).sum(), tensors)))
    for k, (mine, theirs) in enumerate(zip(*results, strict=True)):
        if k == 2 and taps.frac_bits is not None:
            continue  # rounded positions lie on kinks, where the slope of either side is right
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-8)
print(len(cases))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed; it comes with PyTorch's builds for GPUs")
def test_kernels_agree_with_the_cpu_code_in_values_and_gradients() -> None:
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "6"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_module_on_a_gpu_is_the_module_on_the_cpu() -> None:
    from models.ops.deform import Deform, Taps

    module = Deform(64, 64, Taps(square=True, bounds=(-8, 7), frac_bits=2), groups=64, kernels="torch")
    x, offset = torch.randn(2, 64, 33, 40), torch.randn(2, 1, 33, 40) * 5
    expected = module(x, offset)
    module.kernels = "triton"
    torch.testing.assert_close(module.cuda()(x.cuda(), offset.cuda()).cpu(), expected, rtol=0, atol=1e-4)
