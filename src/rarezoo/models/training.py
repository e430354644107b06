"""Training on vote counts, with Lightning."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from rarezoo.cli import UserError, console
from rarezoo.config import TrainSettings
from rarezoo.data.augment import TrainTransform
from rarezoo.data.datamodule import FailureLog, GalaxyDataModule
from rarezoo.models.checkpoints import KEY, checkpoint_header
from rarezoo.models.optim import adamw, warmup_cosine
from rarezoo.models.plain import read_plain
from rarezoo.models.progress import progress_callback
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.provenance import written_beside
from rarezoo.votes import Schema, vote_nll

MONITOR = "validation/loss"


class VoteTraining(LightningModule):
    """What a training step is: transform, predict, and the likelihood of the votes.

    The loss is the mean over galaxies of the sum over questions of the negative log-likelihood in nats, as Zoobot's
    published models report it.
    """

    def __init__(
        self,
        model: VoteModel,
        train_transform: nn.Module,
        failures: FailureLog,
        n_images: int,
        lr: float,
        weight_decay: float,
        warmup_share: float,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_transform = train_transform
        self.failures = failures
        self.n_images = n_images
        self.optim = {"lr": lr, "weight_decay": weight_decay}
        self.warmup_share = warmup_share
        self.seed = seed

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Let seed, epoch and batch decide views and dropout, so that a resumed run goes on as it would have."""
        own = np.random.SeedSequence((self.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Loss of one batch; None, which skips the step, where no image of the batch could be read."""
        per_question = self._per_question(batch, self.train_transform)
        if per_question is None:
            return None
        loss = per_question.sum(1).mean()
        self.log("train/loss", loss, batch_size=len(per_question), prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the loss, and the loss of each question over the galaxies that were asked it."""
        self._evaluate(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        """Stop where the loss is not finite, from which training does not come back, before it is saved.

        Raises
        ------
        UserError
            if the loss is not finite, or no image of the validation split could be read
        """
        loss = self.trainer.callback_metrics.get(MONITOR)
        if loss is None:
            raise UserError(
                "none of the validation images could be read, so there is no loss to choose the best epoch by. "
                "Repair the files, or raise data.validation_share."
            )
        if not torch.isfinite(loss):
            raise UserError(
                f"validation loss is {float(loss)} after epoch {self.current_epoch + 1}. "
                f"Lower optim.lr={self.optim['lr']}, and check the vote columns."
            )

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation, on galaxies that neither training nor early stopping saw."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and a schedule that steps with every batch."""
        optimizer = adamw(self.model, **self.optim)
        schedule = warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches), self.warmup_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the model be built again from the file alone."""
        checkpoint[KEY] = checkpoint_header(self.model.spec)

    def _per_question(self, batch: dict[str, Any], transform: nn.Module) -> Tensor | None:
        self.failures.add(batch["failed"])
        self.failures.check(self.n_images)
        if len(batch["image"]) == 0:
            return None
        return vote_nll(self.model(transform(batch["image"])), batch["counts"], self.model.schema)

    def _evaluate(self, batch: dict[str, Any], split: str) -> None:
        per_question = self._per_question(batch, self.model.eval_transform)
        if per_question is None:
            return
        self.log(
            f"{split}/loss", per_question.sum(1).mean(), batch_size=len(per_question), prog_bar=True, sync_dist=True
        )
        asked = batch["counts"] @ self.model.schema.membership.to(batch["counts"]) > 0
        for index, question in enumerate(self.model.schema.questions):
            n_asked = int(asked[:, index].sum())
            # Logged with no weight where nobody was asked: processes that log different names wait for each other.
            mean = per_question[:, index].sum() / max(1, n_asked)
            self.log(f"{split}/loss_{question.name}", mean, batch_size=n_asked, sync_dist=True)


def make_training(settings: TrainSettings, schema: Schema, data: GalaxyDataModule) -> VoteTraining:
    """Model, transforms and optimiser as the settings say."""
    optim = settings.optim
    transform = TrainTransform(**settings.augment.model_dump(), mean=settings.backbone.mean, std=settings.backbone.std)
    spec = ModelSpec(
        tree=schema.to_tree(),
        backbone=settings.backbone.name,
        bottleneck_dim=settings.bottleneck.dim,
        bottleneck_activation=settings.bottleneck.activation,
        image_size=settings.data.image_size,
        channels=settings.data.channels,
        crop=settings.data.crop,
        zoom=transform.for_evaluation().zoom,
        mean=settings.backbone.mean,
        std=settings.backbone.std,
        head_dropout=optim.head_dropout,
        drop_path_rate=settings.backbone.drop_path_rate,
        channels_last=settings.backbone.channels_last,
    )
    model = VoteModel(spec, settings.backbone.weights)
    return VoteTraining(
        model,
        transform,
        data.failure_log(),
        len(data.catalog),
        optim.lr,
        optim.weight_decay,
        optim.warmup_share,
        settings.seed,
    )


def training_callbacks(folder: Path, patience: int | None) -> list[Callback]:
    """Checkpoints of the best and the last epoch below `folder`, early stopping, and a progress bar."""
    # Two of them: with save_last, Lightning saves the last epoch only where it is also the best so far.
    callbacks: list[Callback] = [
        _Checkpoint(folder / "checkpoints", "best", monitor=MONITOR, enable_version_counter=False),
        _Checkpoint(folder / "checkpoints", "last", enable_version_counter=False),
        progress_callback(),
    ]
    if patience is not None:
        callbacks.append(_EarlyStopping(MONITOR, patience=patience))
    return callbacks


class _Checkpoint(ModelCheckpoint):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the best checkpoint and its loss again where the folder of the interrupted run was moved."""
        path, score = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt"), state_dict["best_model_score"]
        own = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path, "last_model_path": ""}
        super().load_state_dict({**state_dict, **own, "best_k_models": {} if score is None else {path: score}})


class _WholeFiles(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save beside and rename: Lightning itself copies from the folder for temporary files."""
        with written_beside(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class _EarlyStopping(EarlyStopping):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch where the run that is resumed had stopped already."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def fit(trainer: Trainer, training: VoteTraining, datamodule: GalaxyDataModule, folder: Path, resume: bool) -> Path:
    """Train, going on from the last epoch of an interrupted run, and put the best checkpoint in its final place.

    Parameters
    ----------
    folder : of the run; the result is folder/best.ckpt
    resume : go on from folder/checkpoints/last.ckpt where it is there

    Raises
    ------
    KeyboardInterrupt
        if the run was interrupted
    UserError
        if the loss became infinite or not a number, too many images could not be read, or a checkpoint not be written
    """
    if not trainer.limit_val_batches:
        raise UserError("trainer.limit_val_batches=0: the best epoch is chosen by the validation loss. Leave it out.")
    checkpoints = folder / "checkpoints"
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer.strategy.checkpoint_io = _WholeFiles()
    try:
        trainer.fit(training, datamodule=datamodule, ckpt_path=_newest_whole(checkpoints), weights_only=True)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit of its own, with status 1 and without a word.
        raise KeyboardInterrupt from stop
    if trainer.state.status == TrainerStatus.INTERRUPTED:
        raise KeyboardInterrupt
    best = checkpoints / "best.ckpt"
    if not best.is_file():
        raise UserError("training ended before an epoch was kept. Raise trainer.max_epochs; leave out fast_dev_run.")
    final = folder / "best.ckpt"
    with written_beside(final) as temporary:
        shutil.copyfile(best, temporary)
    return final


def _newest_whole(checkpoints: Path) -> Path | None:
    for path in (checkpoints / "last.ckpt", checkpoints / "best.ckpt"):
        if path.is_file():
            try:
                read_plain(path)
            except ValueError as error:
                console.print(f"note: {path} is damaged ({error}); resuming without it", style="yellow", markup=False)
            else:
                return path
    return None


def evaluate(trainer: Trainer, training: VoteTraining, datamodule: GalaxyDataModule, best: Path) -> dict[str, float]:
    """Loss of the best checkpoint on the test split; empty where the catalog is too small to have one."""
    if not len(datamodule.rows("test")):
        return {}
    metrics = trainer.test(training, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)[0]
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
