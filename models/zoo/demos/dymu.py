"""Tokens where the image needs them: simple images leave few, complex ones many, and errors shrink at the same mean.

Nothing is trained: a small ViT with random weights of each seed. Images have 144 patches, drawn from 2, 8, 32 or 144 different ones with
a little noise. Thresholds are calibrated on mixed batches for 48 tokens on average; the baseline is ToMe, which leaves 48 of every image.
Rows: tokens of the simplest images; mean over the mix, which must stay within 5 of 48; relative squared error of the features of the most
complex images, put back in place, against the encoder without merging; and the last part, virtual unmerging: relative squared error of
a causal rotary attention over the full sequence, against giving it the merged tokens as a shorter sequence. The price: the simplest
images, with 14 tokens instead of 48, have a slightly larger error than with ToMe. Margins were set on seeds 7 and 8, not in the table.
"""
from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.dymu import DyMUEncoder, Merged, VirtualAttention, schedule

SEEDS = (0, 1, 2)
KINDS = (2, 8, 32, 144)
TARGET = 48
IMAGES, BATCHES = 6, 4  # of each kind in a batch; batches to calibrate on


def images(kinds: int, n: int, generator: torch.Generator) -> Tensor:
    """(n, 3, 48, 48) of 4 × 4 patches, ``kinds`` different ones an image, each at least once, with noise of 0.05."""
    prototypes = torch.randn(n, kinds, 3, 4, 4, generator=generator)
    pick = torch.stack([torch.arange(144)[torch.randperm(144, generator=generator)] % kinds for _ in range(n)])
    patches = prototypes[torch.arange(n)[:, None], pick].view(n, 12, 12, 3, 4, 4)
    x = patches.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, 48, 48)
    return x + 0.05 * torch.randn(x.shape, generator=generator)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().sum() / wanted.square().sum())


@torch.no_grad()
def experiment(seed: int, tick: Callable[[], None]) -> dict[str, float]:
    """The figures of one seed, by name."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = DyMUEncoder(48, 4, 64, 4, 4, r=schedule(144 - TARGET, 4)).eval()
    attention = VirtualAttention(64, 4).eval()
    everything = torch.arange(144)
    whole: dict[int, Tensor] = {}
    test = {kinds: images(kinds, IMAGES, generator) for kinds in KINDS}
    for kinds, x in test.items():
        whole[kinds] = model(x).unmerged()  # thresholds are still 1
        tick()
    for _ in range(BATCHES):
        model.calibrate(torch.cat([images(kinds, IMAGES, generator) for kinds in KINDS]))
        tick()
    result: dict[str, float] = {}
    full, virtual, short = [], [], []
    for kinds, x in test.items():
        ways: dict[str, Merged] = {"ours": model(x), "fixed": model.fixed(x)}
        for way, merged in ways.items():
            result[f"{way} tokens {kinds}"] = float(merged.counts().float().mean())
            result[f"{way} error {kinds}"] = error(merged.unmerged(), whole[kinds])
        merged = ways["ours"]
        expanded = merged.unmerged()
        full.append(attention(expanded, everything.expand(len(x), -1)))
        virtual.append(merged._replace(tokens=attention(merged.tokens, merged.index)).unmerged())
        lone = [attention(t[None, :n], everything[None, :n])[0] for t, n in zip(merged.tokens, merged.counts().tolist(), strict=True)]
        short.append(torch.stack([t[i] for t, i in zip(lone, merged.index, strict=True)]))
        tick()
    result["virtual"], result["short"] = error(torch.cat(virtual), torch.cat(full)), error(torch.cat(short), torch.cat(full))
    return result


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Tokens and errors of DToMe against ToMe, of VTU against a shorter sequence."""
    tick = ticks(progress, len(SEEDS) * (2 * len(KINDS) + BATCHES))

    results = [experiment(seed, tick) for seed in SEEDS]

    def values(name: str) -> list[float]:
        return [r[name] for r in results]

    mean = [fmean(r[f"ours tokens {kinds}"] for kinds in KINDS) for r in results]
    tokens = [[r[f"{way} tokens {kinds}"] for kinds in KINDS] for way in ("ours", "fixed") for r in results[:1]]
    return DemoResult(
        rows=(
            Row(name="tokens, 2 prototypes", ours=values("ours tokens 2"), baseline=values("fixed tokens 2"), expected="lower", margin=20),
            Row(name="tokens, mean of the mix (48 wanted)", ours=mean, baseline=[float(TARGET)] * len(SEEDS), expected="lower", margin=-5),
            Row(
                name="feature error, 144 prototypes", ours=values("ours error 144"), baseline=values("fixed error 144"),
                expected="lower", margin=0.2,
            ),
            Row(name="attention error, VTU against short", ours=values("virtual"), baseline=values("short"), expected="lower", margin=0.1),
        ),
        curves={"DToMe, tokens by kind": tokens[0], "ToMe, tokens by kind": tokens[1]},
    )
