"""Training batches: which samples, in which order, seen how. All randomness depends on seed, epoch and index alone."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from models.data.folder import Folder
from models.data.transforms import augment, letterbox
from models.data.voc import Sample
from models.detectors.codenet import CodenetConfig
from models.distributed import ALONE, Group
from models.losses import Targets, make_targets

#: Samples are kept decoded up to this many bytes.
CACHE_BYTES = 2**30
Batch = tuple[npt.NDArray[np.uint8], Targets]


class Views(Dataset[Sample]):
    """Samples as the network sees them: with probability ``random`` a random view, which depends on seed, epoch and index alone, else
    letterboxed."""

    def __init__(self, folder: Folder, size: tuple[int, int], *, random: float, flip: bool = False, seed: int = 0) -> None:
        self.folder, self.size, self.random, self.flip, self.seed = folder, size, random, flip, seed
        self.epoch = 0
        self._cache: dict[int, Sample] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.folder)

    def fill(self) -> None:
        """Decode as many samples as fit in memory, before worker processes copy this object."""
        for index in range(len(self)):
            if self._cached_bytes > CACHE_BYTES:
                break
            self._cache[index] = self.folder[index]
            self._cached_bytes += self._cache[index].image.nbytes

    def __getitem__(self, index: int) -> Sample:
        sample = self._cache.get(index) or self.folder[index]
        if not self.folder.teaches_difficult and sample.difficult.any():
            keep = ~sample.difficult
            taught = {name: getattr(sample, name)[keep] for name in ("boxes", "labels", "difficult", "truncated")}
            sample = replace(sample, areas=None, **taught)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if rng.random() >= self.random:
            return letterbox(sample, self.size)[0]
        return augment(sample, self.size, rng, flip=self.flip)


class Collate:
    """Samples to a batch: raw images (N, H, W, 3) uint8 and targets. Difficult objects are trained on like others."""

    def __init__(self, config: CodenetConfig, box_area: float = 0.0) -> None:
        self.config, self.box_area = config, box_area

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        images = np.stack([s.image for s in samples])
        boxes, labels = [s.boxes for s in samples], [s.labels for s in samples]
        return images, make_targets(boxes, labels, classes=len(self.config.classes), size=self.config.size, box_area=self.box_area)


class Order(torch.utils.data.Sampler[list[int]]):
    """Batches of indices in the random order of one epoch; the last, smaller batch is dropped unless it is the only one.

    Of several processes each takes every n-th index of each batch, so that ``batch`` is the whole group's.
    """

    def __init__(self, length: int, batch: int, seed: int, group: Group = ALONE) -> None:
        self.length, self.batch, self.seed, self.epoch, self.group = length, min(batch, length), seed, 0, group
        if self.batch < group.size:
            raise ValueError(f"batch must be at least one image for each of {group.size} processes, not {self.batch!r}")

    def __len__(self) -> int:
        return self.length // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch, self.length)).permutation(self.length)
        for first in range(0, len(self) * self.batch, self.batch):
            yield order[first : first + self.batch][self.group.rank :: self.group.size].tolist()


class Batches:
    """Training batches, epoch by epoch, prepared by ``workers`` processes (0: inline)."""

    def __init__(
        self, views: Views, config: CodenetConfig, *, batch: int, seed: int, workers: int, box_area: float = 0.0, group: Group = ALONE
    ) -> None:
        self.views, self.workers = views, workers
        self.order, self.collate = Order(len(views), batch, seed, group), Collate(config, box_area)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> DataLoader[Batch]:
        self.views.epoch = self.order.epoch = epoch
        return DataLoader(self.views, batch_sampler=self.order, collate_fn=self.collate, num_workers=self.workers)  # type: ignore[arg-type]
