"""Batches of a biased data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rarezoo.data.batches import EpochBatches, ResumableLoader
from rarezoo.data.biased.kept import BiasedData, BiasedImages


class BiasedBatch(TypedDict):
    """Images uint8 (B, 3, S, S), classes int64 (B,), and values of the attribute int64 (B,)."""

    image: Tensor
    target: Tensor
    attribute: Tensor


class _Rows(Dataset[BiasedBatch]):
    """A split that gives the images of a batch with one copy out of the file."""

    def __init__(self, split: BiasedImages) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split.target)

    def __getitems__(self, rows: Sequence[int]) -> BiasedBatch:
        arrays = (self._split.images, self._split.target, self._split.attribute)
        image, target, attribute = (torch.from_numpy(np.array(values[rows])) for values in arrays)
        return {"image": image, "target": target, "attribute": attribute}


class BiasedDataModule(lightning.LightningDataModule):
    """Loaders of the splits of a biased data set; a run that was interrupted goes on within the epoch.

    Parameters
    ----------
    data : of `prepare_biased`
    batch_size : images per batch and device
    seed : of the order of training, which is another one in each epoch
    """

    def __init__(self, data: BiasedData, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data = data
        self._batch_size = batch_size
        self._seed = seed
        self._train_loader: ResumableLoader | None = None
        self._broken_off: dict[str, Any] | None = None

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled anew each epoch; the last, smaller batch is left out unless it is the only one."""
        self._train_loader = self._loader("train", self._seed)
        if self._broken_off:
            self._train_loader.load_state_dict(self._broken_off)
            self._broken_off = None
        return self._train_loader

    def val_dataloader(self) -> ResumableLoader:
        """All of the validation split, in its order."""
        return self._loader("validation")

    def test_dataloader(self) -> ResumableLoader:
        """All of the test split, in its order."""
        return self._loader("test")

    def state_dict(self) -> dict[str, Any]:
        """How many batches training has read."""
        return {"train_loader": self._train_loader.state_dict() if self._train_loader else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as an interrupted run would have; Lightning has not made the loader yet."""
        self._broken_off = state["train_loader"]

    def _loader(self, split: str, seed: int | None = None) -> ResumableLoader:
        rank, n_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        images = self.data.splits[split]
        batches = EpochBatches(len(images.target), self._batch_size, seed, rank, n_ranks)
        # The arrays are mapped: worker processes would only copy them once more.
        reading: dict[str, Any] = {"dataset": _Rows(images), "batch_sampler": batches, "collate_fn": _as_it_is}
        return ResumableLoader(**reading)


def _as_it_is(batch: BiasedBatch) -> BiasedBatch:
    return batch
