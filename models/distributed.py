"""Several processes, on one machine or many, as torchrun starts them; one process where it did not."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Group:
    """This process' number and how many there are. The first one writes the files."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: float) -> float:
        """The first process' number, for all."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.broadcast(box, 0)
        return float(box)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over all processes, name by name."""
        if self.size == 1:
            return values
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        box = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        distributed.all_reduce(box)
        return dict(zip(values, (box / self.size).tolist(), strict=True))


ALONE = Group()


def pick_device(name: str) -> torch.device:
    """"auto" is the process' own GPU where there is one, else the CPU. ValueError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device must be cpu: this PyTorch sees no GPU")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Group]:
    """Join the group that torchrun described in the environment (gloo on CPUs, NCCL on GPUs); alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
