"""Tokens of latents, and the flow that FiTv2 learns: path, loss, guidance, sampling."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.zoo.fitv2.network import FiT


def patchify(latent: Tensor, patch: int) -> Tensor:
    """(C, h, w) -> (h w / patch², C patch²), rows first, the channel slowest within a token."""
    c, h, w = latent.shape
    if h % patch or w % patch:
        raise ValueError(f"latent must have sides that are multiples of {patch}, not {(h, w)!r}")
    return latent.reshape(c, h // patch, patch, w // patch, patch).permute(1, 3, 0, 2, 4).reshape(-1, c * patch * patch)


def unpatchify(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """The reverse of `patchify`; height and width in tokens."""
    return tokens.view(height, width, -1, patch, patch).permute(2, 0, 3, 1, 4).reshape(-1, height * patch, width * patch)


def collate(rows: Sequence[Sequence[Tensor]], length: int, patch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of one or more (packed) latents -> x (B, length, C patch²), grid (B, 2, length), ids (B, length), size (B, length, 2)."""
    first = rows[0][0]
    x = first.new_zeros(len(rows), length, len(first) * patch * patch)
    grid, ids = (torch.zeros(len(rows), *shape, dtype=torch.long, device=first.device) for shape in ((2, length), (length,)))
    size = torch.ones(len(rows), length, 2, dtype=torch.long, device=first.device)
    for b, row in enumerate(rows):
        start = 0
        for number, latent in enumerate(row, 1):
            part = patchify(latent, patch)
            h, w = latent.shape[1] // patch, latent.shape[2] // patch
            end = start + len(part)
            if end > length:
                raise ValueError(f"length must be at least the {end} tokens of row {b}, not {length!r}")
            place = torch.arange(h * w, device=first.device)
            x[b, start:end], ids[b, start:end] = part, number
            grid[b, :, start:end] = torch.stack((place % w, place // w))
            size[b, start:end] = torch.tensor((h, w), device=first.device)
            start = end
    return x, grid, ids, size


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the velocity; t broadcasts."""
    return t * data + (1 - t) * noise, data - noise


def velocity_to_noise(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """x_0 = x_t - t u; the data is x_t + (1 - t) u."""
    return x - t * velocity


def velocity_to_score(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The gradient of the log density of x_t, - x_0 / (1 - t), for t < 1."""
    return -velocity_to_noise(x, velocity, t) / (1 - t)


def flow_loss(model: nn.Module, data: Tensor, y: Tensor, grid: Tensor, ids: Tensor, size: Tensor | None = None) -> Tensor:
    """Squared error of the velocity over valid tokens, one t a sample; noise is drawn here."""
    t = torch.randn(len(data), device=data.device).sigmoid()
    x, u = interpolate(data, torch.randn_like(data), t.view(-1, 1, 1))
    valid = (ids != 0).unsqueeze(-1)
    error: Tensor = (model(x, t, y, grid, ids, size) - u).square() * valid
    return error.sum() / (valid.sum() * data.shape[-1])


def guided(model: FiT, scale: float) -> Callable[..., Tensor]:
    """A model's velocity with classifier-free guidance, on the first three channels as the authors do."""

    def velocity(x: Tensor, t: Tensor, y: Tensor, grid: Tensor, ids: Tensor, size: Tensor | None = None) -> Tensor:
        with_class = model(x, t, y, grid, ids, size)
        without = model(x, t, torch.full_like(y, model.y_embedder.classes), grid, ids, size)
        n = min(3, model.channels) * model.patch**2
        return torch.cat(((without + scale * (with_class - without))[..., :n], with_class[..., n:]), -1)

    return velocity


@torch.no_grad()
def sample(
    velocity: Callable[..., Tensor], noise: Tensor, y: Tensor, grid: Tensor, ids: Tensor, size: Tensor | None = None, *, steps: int = 50,
    method: Literal["euler", "heun", "sde"] = "euler",
) -> Tensor:
    """From noise at t = 0 to data at t = 1. ``sde``: Euler-Maruyama with diffusion 1 - t."""
    if method not in ("euler", "heun", "sde"):
        raise ValueError(f"method must be euler, heun or sde, not {method!r}")
    x, dt = noise, 1 / steps

    def at(x: Tensor, k: int) -> Tensor:
        found: Tensor = velocity(x, x.new_full((len(x),), k * dt), y, grid, ids, size)
        return found

    for k in range(steps):
        v = at(x, k)
        if method == "heun":
            v = (v + at(x + dt * v, k + 1)) / 2
        elif method == "sde":
            t = x.new_tensor(k * dt)
            v = v + (1 - t) / 2 * velocity_to_score(x, v, t) + torch.randn_like(x) * ((1 - t) / dt).sqrt()
        x = x + dt * v
    return x
