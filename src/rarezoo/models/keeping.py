"""Checkpoints of a training run: the best, the last, and one in time when the run is told to end."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rarezoo.cli import console
from rarezoo.models.plain import read_plain
from rarezoo.provenance import written_beside
from rarezoo.signals import requeue

MONITOR = "validation/loss"
_GO_ON, _SAVE, _STOP, _REQUEUE = range(4)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch of the lowest validation loss as `best.ckpt`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "best", monitor=MONITOR, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the best checkpoint and its loss again where the folder of the interrupted run was moved."""
        path, score = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt"), state_dict["best_model_score"]
        own = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path, "last_model_path": ""}
        super().load_state_dict({**state_dict, **own, "best_k_models": {} if score is None else {path: score}})


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` after each epoch, every few minutes, and when the run is told to end.

    SIGTERM saves and ends the run. SIGUSR1 does too, and asks SLURM to put the job back into its queue. Lightning's own
    handler saves wherever the signal finds the run, also in the middle of a step; this one waits for the step's end, so
    that what is saved is what an unbroken run has there. All ranks end at the same step.

    Parameters
    ----------
    folder : of the checkpoint
    every_minutes : between two checkpoints within an epoch
    """

    def __init__(self, folder: Path, every_minutes: float) -> None:
        self._path = folder / "last.ckpt"
        self._seconds = 60 * every_minutes
        self._saved_at = 0.0
        self._wish = _GO_ON
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; Lightning has set its own by now."""
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._handlers[number] = signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, once the optimiser has taken its step; the last batch leaves it to the epoch."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or batch_idx + 1 >= trainer.num_training_batches:
            return
        due = self._wish or (_SAVE if time.monotonic() - self._saved_at > self._seconds else _GO_ON)
        agreed = _most_urgent(trainer, due)
        if agreed != _GO_ON:
            self._save(trainer)
        _end(trainer, agreed)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; validation is over by then."""
        self._save(trainer)
        _end(trainer, _most_urgent(trainer, self._wish))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._wish = max(self._wish, _REQUEUE if number == signal.SIGUSR1 else _STOP)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved_at = time.monotonic()


def _most_urgent(trainer: Trainer, wish: int) -> int:
    if trainer.world_size == 1:
        return wish
    agreed = torch.tensor(wish, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
    return int(agreed)


def _end(trainer: Trainer, wish: int) -> None:
    if wish < _STOP:
        return
    if wish == _REQUEUE and trainer.is_global_zero:
        requeue()
    raise KeyboardInterrupt


class PatientStopping(EarlyStopping):
    """Early stopping that also holds where the run that is resumed had stopped already."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch in that case."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class WholeFiles(TorchCheckpointIO):
    """Saves beside and renames: Lightning itself copies from the folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save, whole or not at all."""
        with written_beside(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def newest_whole(checkpoints: Path) -> Path | None:
    """The checkpoint that an interrupted run goes on from; one that is damaged is passed over with a note."""
    for path in (checkpoints / "last.ckpt", checkpoints / "best.ckpt"):
        if path.is_file():
            try:
                read_plain(path)
            except ValueError as error:
                console.print(f"note: {path} is damaged ({error}); resuming without it", style="yellow", markup=False)
            else:
                return path
    return None
