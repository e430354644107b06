"""Batches of a catalog for training, validation, test and embedding, and the account of images that failed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from rarezoo.cli import UserError
from rarezoo.data.batches import BlockBatches, EpochBatches, ResumableLoader
from rarezoo.data.catalog import Catalog
from rarezoo.data.images import GalaxyBatch, GalaxyImages
from rarezoo.data.splits import check_shares, split_by_id

_MAX_WORKERS = 16
# Below this many images the start of worker processes takes longer than decoding does.
_FEW_IMAGES = 256
_MIN_TRAIN = 2


class FailureLog:
    """Images of a catalog that could not be read, each counted once however often it was tried.

    Parameters
    ----------
    files : (N,) paths, of the whole catalog
    max_failed_share : share of the rows above which `check` stops the run
    """

    def __init__(self, files: Sequence[str], max_failed_share: float) -> None:
        self._files = files
        self._max_failed_share = max_failed_share
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, failed: Iterable[tuple[int, str]]) -> None:
        """Take over the failures of a batch, (row of the catalog, reason)."""
        self.reasons.update(failed)

    def check(self, n_rows: int) -> None:
        """Stop the run if too many images failed.

        Parameters
        ----------
        n_rows : rows that the share is taken of: all that the run is to read, so that one bad image in the first batch
            does not end it, and a run that is beyond rescue ends early

        Raises
        ------
        UserError
            naming the count, the first file and its reason
        """
        if len(self.reasons) <= self._max_failed_share * n_rows:
            return
        row = min(self.reasons)
        raise UserError(
            f"{len(self.reasons)} of {n_rows} images could not be read, more than "
            f"data.max_failed_share={self._max_failed_share} allows "
            f"(first: row {row}, {self._files[row]}: {self.reasons[row]}). "
            "Repair or replace the files, or raise data.max_failed_share."
        )


class GalaxyDataModule(lightning.LightningDataModule):
    """Loaders of the images of a catalog; batches are those of `GalaxyImages.collate`.

    Parameters
    ----------
    catalog : checked rows
    size, channels, crop : as in `read_image`
    batch_size : galaxies per batch and device
    workers : processes that decode; "auto" takes the cores there are, and none for few images
    validation_share, test_share : as in `split_by_id`
    seed : of the split and of the order of training
    max_failed_share : share of unreadable images above which a run stops

    Raises
    ------
    UserError
        naming the option whose value cannot be used; from `setup`, if a split has too few galaxies
    """

    def __init__(
        self,
        catalog: Catalog,
        size: int,
        channels: int = 3,
        batch_size: int = 64,
        workers: int | Literal["auto"] = "auto",
        validation_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        crop: float = 1.0,
        max_failed_share: float = 0.01,
    ) -> None:
        super().__init__()
        _check_settings(size, channels, batch_size, workers, crop, max_failed_share)
        self.catalog = catalog
        self.size = size
        self.channels = channels
        self.batch_size = batch_size
        self.crop = crop
        self.max_failed_share = max_failed_share
        self._workers = workers
        self._shares = {"validation": validation_share, "test": test_share}
        self._seed = seed
        self._train_loader: ResumableLoader | None = None
        self._broken_off: dict[str, Any] | None = None
        check_shares(validation_share, test_share)

    @cached_property
    def split(self) -> NDArray[np.str_]:
        """(N,) "train", "validation" or "test"; of no use to embed, and so not made for it."""
        return split_by_id(self.catalog.ids, self._shares["validation"], self._shares["test"], self._seed)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of the catalog in "train", "validation" or "test"."""
        return np.flatnonzero(self.split == split)

    def failure_log(self) -> FailureLog:
        """A new account of the images of this catalog that fail."""
        return FailureLog(self.catalog.files, self.max_failed_share)

    def setup(self, stage: str) -> None:
        """Refuse a split that is too small for what is asked."""
        n_ranks = self.trainer.world_size if self.trainer else 1
        needed = {
            "fit": {"train": _MIN_TRAIN * n_ranks, "validation": 1},
            "validate": {"validation": 1},
            "test": {"test": 1},
        }.get(stage, {})
        for split, at_least in needed.items():
            found = len(self.rows(split))
            if found < at_least:
                raise UserError(
                    f"{self.catalog.path}: {found} of {len(self.catalog)} galaxies fall in the {split} split, at least "
                    f"{at_least} must (data.validation_share={self._shares['validation']}, "
                    f"data.test_share={self._shares['test']}). {self._way_out(split)}"
                )

    def _way_out(self, split: str) -> str:
        if split == "train":
            return "Lower the shares, give more galaxies, or try another seed=..."
        return f"Raise data.{split}_share, give more galaxies, or try another seed=..."

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled anew each epoch; the last, smaller batch is left out unless it is the only one."""
        self._train_loader = self._loader(self.rows("train"), shuffle=True)
        if self._broken_off:
            self._train_loader.load_state_dict(self._broken_off)
            self._broken_off = None
        return self._train_loader

    def val_dataloader(self) -> ResumableLoader:
        """All of the validation split, in catalog order."""
        return self._loader(self.rows("validation"))

    def test_dataloader(self) -> ResumableLoader:
        """All of the test split, in catalog order."""
        return self._loader(self.rows("test"))

    def state_dict(self) -> dict[str, Any]:
        """Size of the batches, which may have been found rather than given, and how many training has read."""
        reading = self._train_loader.state_dict() if self._train_loader else None
        return {"batch_size": self.batch_size, "train_loader": reading}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as an interrupted run would have.

        Lightning restores the state of a loader too, but has made the loader by then, to count its steps.
        """
        self.batch_size = int(state["batch_size"])
        self._broken_off = state["train_loader"]

    def block_dataloader(self, blocks: Sequence[range]) -> DataLoader[GalaxyBatch]:
        """Blocks of rows of the whole catalog, in their order; no batch reaches from one block into the next."""
        batches = BlockBatches(blocks, self.batch_size)
        return DataLoader(**self._reading(np.arange(len(self.catalog)), sum(map(len, blocks)), batches))

    def _loader(self, rows: NDArray[np.int64], shuffle: bool = False) -> ResumableLoader:
        rank, n_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = EpochBatches(len(rows), self.batch_size, self._seed if shuffle else None, rank, n_ranks)
        return ResumableLoader(**self._reading(rows, len(rows), batches))

    def _reading(self, rows: NDArray[np.int64], n_images: int, batches: Sampler[list[int]]) -> dict[str, Any]:
        catalog = self.catalog
        images = GalaxyImages(catalog.files, self.size, self.channels, catalog.counts, rows, self.crop)
        n_workers = _n_workers(self._workers, n_images)
        return {
            "dataset": images,
            "batch_sampler": batches,
            "num_workers": n_workers,
            "persistent_workers": n_workers > 0,
            "collate_fn": images.collate,
            "pin_memory": torch.cuda.is_available(),
        }


def _n_workers(workers: int | Literal["auto"], n_images: int) -> int:
    if workers != "auto":
        return int(workers)
    if n_images < _FEW_IMAGES:
        return 0
    # A scheduler often grants a process fewer cores than the machine has, and the processes of a node share them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MAX_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _check_settings(
    size: int, channels: int, batch_size: int, workers: int | str, crop: float, max_failed_share: float
) -> None:
    if size < 1:
        raise UserError(f"data.image_size={size}: the side of an image is at least 1 pixel.")
    if not 1 <= channels <= 64:
        raise UserError(f"data.channels={channels}: images have 1 to 64 channels.")
    if batch_size < 1:
        raise UserError(f"data.batch_size={batch_size}: a batch holds at least 1 galaxy.")
    if workers != "auto" and not (isinstance(workers, int) and workers >= 0):
        raise UserError(f"data.workers={workers}: give a number of processes >= 0, or auto.")
    if not 0 < crop <= 1:
        raise UserError(f"data.crop={crop}: the share of the side that is kept is above 0 and at most 1.")
    if not 0 <= max_failed_share <= 1:
        raise UserError(f"data.max_failed_share={max_failed_share}: a share is between 0 and 1.")
