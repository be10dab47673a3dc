"""FiTv2: a diffusion transformer for images of any size.

Papers: Wang, Lu, Huang, Zhou, Ouyang and others, "FiTv2", arXiv 2410.13925; Lu, Wang, Huang and others, "FiT", arXiv 2402.12376.

Idea: an image's latent is a sequence of tokens with a place each, padded or packed to one length; rotary embedding of the two places makes
attention depend on distances only, so that sizes never seen in training can be sampled. FiTv2 adds QK norm, low-rank adaLN and flow.

Equations. Latent (C, h, w), patches p: x (B, N, p² C), grid (B, 2, N) with row 0 the column and row 1 the row of a token, ids (B, N): the
number of the image, 0 for padding. SwiGLU of hidden 4D * 2 // 3:

- c = MLP(sinusoid(t)) + table[y]; block: shift, scale, gate, twice, = Linear_r->6D(Linear_D->r(silu c)) + Linear_D->6D(silu c), the second
  shared by all blocks; x += gate_1 Attn(LN(x)(1 + scale_1) + shift_1); x += gate_2 SwiGLU(LN(x)(1 + scale_2) + shift_2)
- Attn: q and k through a layer norm a head without parameters, then turned: the first half of a head's dimensions by the row, the second by
  the column, pairs (a, b) -> a cos - b sin, b cos + a sin, frequency theta^(-2 j / (head / 2)); a token sees those of its id
- end: Linear(LN(x)(1 + scale) + shift), times (id != 0). All gates and the last layer start at 0
- flow: x_t = t x_1 + (1 - t) x_0, x_1 data, x_0 noise, velocity u = x_1 - x_0, t = sigmoid(N(0, 1)); loss: squared error over valid tokens

Larger sizes than in training (length s L): ``linear`` divides frequencies by s; ``ntk-aware`` takes theta s^(d / (d - 2)), d = head / 2,
with s of the longer side, or of each axis (decoupled: VisionNTK); ``ntk-by-parts`` and ``yarn`` blend; cos and sin are multiplied by
0.1 ln s + 1 (yarn) or, for 2 L' > L_train, by sqrt(ln(2 L') / ln L_train), L' the length (pro1) or the area (pro2).

How far this reference goes. Network, sizes, frequencies and the flow are the authors'; t and y may also be given per token, so that packed
images have their own. B/2's size is recalled. FiT (v1) is here as a network (adaLN a block, no QK norm, learned sigma); its noise schedule
is not, nor is the VAE. Sampling is by Euler or Heun steps and Euler-Maruyama; adaptive dopri5 is not here. Layers are named as the
authors' (and timm's SwiGLU), so that the key map is meant to be the identity; no published checkpoint was at hand to try it.

On hardware. Linear layers are pointwise on a 1 × N map, SwiGLU a table and a multiply, rotation a multiply and add by constants.
Attention's softmax and products of activations, layer norms and QK norm do not map: the host computes them.
"""
from __future__ import annotations

from functools import partial

import torch
from torch import nn

from models.zoo.base import BenchCase, Lowering, System
from models.zoo.fitv2.network import FiT, SwiGLU


def bench() -> BenchCase:
    """SwiGLU beside the plain feed-forward layer that it replaces."""
    return BenchCase(
        name="SwiGLU against 4-fold MLP, 384 channels, 256 tokens",
        ours=SwiGLU(384, 1024),
        baseline=nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)),
        inputs=(torch.randn(4, 256, 384),),
    )


SYSTEM = System(
    name="fitv2",
    title="FiTv2, flexible diffusion transformer",
    paper="arXiv 2410.13925; arXiv 2402.12376 (ICML 2024)",
    year=2024,
    kind="network",
    variants={
        "fitv2_b_2": partial(FiT, 768, 15, 12, rank=192),
        "fitv2_xl_2": partial(FiT, 1152, 36, 16, rank=288),
        "fitv2_3b_2": partial(FiT, 2304, 40, 24, rank=576),
        "fitv2_hr_xl_2": partial(FiT, 1152, 36, 16, rank=288, form="ntk-aware", decouple=True),
        "fit_xl_2": partial(FiT, 1152, 28, 16, hidden=4608, qk_norm=False, sigma=True),
    },
    checked=(
        "parameters of XL, 3B and FiT-XL to the digit, closed form", "MACs to the published digits", "fresh output is 0",
        "padding without influence; packed = separate; token order", "logits depend on distances; QK norm bounds them",
        "frequencies of seven forms",
        "velocity, score, noise; samplers on a known flow", "gradcheck",
    ),
    lowering=(
        Lowering(part="linear layers", verdict="as is", note="pointwise on a 1×N map"),
        Lowering(part="SwiGLU, SiLU", verdict="after a change", note="a table and a multiply"),
        Lowering(part="rotation", verdict="as is", note="multiply and add by constant tables"),
        Lowering(part="attention, layer norms, QK norm", verdict="no", note="softmax, products of activations, statistics a token: host"),
    ),
    demo="models.zoo.demos.fitv2:demo",
    bench=bench,
)
