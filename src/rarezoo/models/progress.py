"""How training shows that it goes on: a bar on a terminal, one line an epoch in a log."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from rarezoo.cli import console, on_terminal


class _Bar(TQDMProgressBar):
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Leave out the logger's version number, which tells a user nothing."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class EpochLines(Callback):
    """One line an epoch: losses, seconds, and the time left if every epoch is run."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time; an epoch that goes on after a break does not start anew."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line; validation is over by then."""
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        epoch, n_epochs = trainer.current_epoch + 1, trainer.max_epochs
        losses = [
            f"{name} {float(trainer.callback_metrics[name]):.3f}"
            for name in ("train/loss", "validation/loss")
            if name in trainer.callback_metrics
        ]
        left = f", at most {(n_epochs - epoch) * seconds / 60:.0f} min left" if n_epochs and n_epochs > 0 else ""
        total = n_epochs if n_epochs and n_epochs > 0 else "?"
        console.print(f"epoch {epoch}/{total}: {', '.join(losses)} ({seconds:.0f} s{left})", markup=False)


def progress_callback() -> Callback:
    """A bar where the output is a terminal, else lines."""
    return _Bar(leave=True) if on_terminal() else EpochLines()
