"""The course of a training run: what watches over it, how it goes on after a break, and what comes out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.tuner.tuning import Tuner

from rarezoo.cli import UserError, console
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.data.prepare import make_datamodule, prepare_catalog
from rarezoo.models.checkpoints import load_vote_model
from rarezoo.models.keeping import MONITOR, BestCheckpoint, LastCheckpoint, PatientStopping, WholeFiles, newest_whole
from rarezoo.models.progress import progress_callback
from rarezoo.models.settings import OptimSettings, TrainSettings
from rarezoo.models.training import VoteTraining, make_training
from rarezoo.provenance import written_beside
from rarezoo.ranks import Ranks
from rarezoo.votes.schema import resolve_schema

_MOST_IN_A_BATCH = 8192


class VoteTask:
    """Training on volunteers' votes, from catalog to scores.

    Parameters
    ----------
    settings : all that decides it
    folder : of the run
    ranks : the processes that train together

    Attributes
    ----------
    inputs : what the result is made from, name -> content hash
    """

    def __init__(self, settings: TrainSettings, folder: Path, ranks: Ranks) -> None:
        self._settings, self._folder, self._ranks = settings, folder, ranks
        self._schema = schema = resolve_schema(settings.tree)
        catalog = ranks.leader_first(lambda: prepare_catalog(settings.data, schema.label_cols, schema.to_tree()))
        self._data = make_datamodule(settings.data, catalog, settings.seed)
        self.inputs = {"catalog": catalog.sha256, **settings.backbone.weights_sha256()}

    def callbacks(self) -> list[Callback]:
        """As `training_callbacks`."""
        return training_callbacks(self._folder, self._settings.optim, self._settings.save_every_minutes)

    def start(self, resume: bool) -> Callable[[Trainer], dict[str, float]]:
        """Build the network, and give what trains it, as `fit`, and scores it, as `evaluate`."""
        training = make_training(self._settings, self._schema, self._data)

        def train(trainer: Trainer) -> dict[str, float]:
            if self._settings.optim.find_batch_size and not resume:
                find_batch_size(trainer, training, self._data)
            best = fit(trainer, training, self._data, self._folder, resume, self._ranks)
            return evaluate(trainer, training, self._data, best)

        return train


def training_callbacks(folder: Path, optim: OptimSettings, save_every_minutes: float) -> list[Callback]:
    """Checkpoints of the best and the last epoch below `folder`, early stopping, averaging, and a progress bar."""
    callbacks: list[Callback] = [
        BestCheckpoint(folder / "checkpoints"),
        LastCheckpoint(folder / "checkpoints", save_every_minutes),
        progress_callback(),
    ]
    if optim.patience is not None:
        callbacks.append(PatientStopping(MONITOR, patience=optim.patience))
    if optim.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=optim.ema_decay))
    return callbacks


def fit(
    trainer: Trainer,
    training: LightningModule,
    datamodule: LightningDataModule,
    folder: Path,
    resume: bool,
    ranks: Ranks | None = None,
) -> Path:
    """Train, going on from the last checkpoint of an interrupted run, and put the best one in its final place.

    Parameters
    ----------
    folder : of the run; the result is folder/best.ckpt
    resume : go on from folder/checkpoints/last.ckpt where it is there
    ranks : the processes that train together; this one alone by default

    Raises
    ------
    KeyboardInterrupt
        if the run was interrupted
    UserError
        if the loss became infinite or not a number, too many images could not be read, or a checkpoint not be written
    """
    if not trainer.limit_val_batches:
        raise UserError("trainer.limit_val_batches=0: the best epoch is chosen by the validation loss. Leave it out.")
    ranks = ranks or Ranks()
    checkpoints = folder / "checkpoints"

    def start() -> Path | None:
        if not resume:
            shutil.rmtree(checkpoints, ignore_errors=True)
        return newest_whole(checkpoints)

    trainer.strategy.checkpoint_io = WholeFiles()
    newest = ranks.agree(start)
    try:
        trainer.fit(training, datamodule=datamodule, ckpt_path=newest, weights_only=True)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit of its own, with status 1 and without a word.
        raise KeyboardInterrupt from stop
    if trainer.state.status == TrainerStatus.INTERRUPTED:
        raise KeyboardInterrupt
    return ranks.agree(lambda: _keep_best(checkpoints / "best.ckpt", folder / "best.ckpt"))


def _keep_best(best: Path, final: Path) -> Path:
    if not best.is_file():
        raise UserError("training ended before an epoch was kept. Raise trainer.max_epochs; leave out fast_dev_run.")
    with written_beside(final) as temporary:
        shutil.copyfile(best, temporary)
    return final


def find_batch_size(trainer: Trainer, training: VoteTraining, datamodule: GalaxyDataModule) -> None:
    """Double the datamodule's batch size as long as a few steps fit into the memory of the device.

    Raises
    ------
    UserError
        on several devices, and on a CPU, where a process that takes too much memory is killed without being asked
    """
    if trainer.world_size > 1 or trainer.strategy.root_device.type == "cpu":
        raise UserError(
            "optim.find_batch_size=true: works on one GPU only. Set data.batch_size, and optim.find_batch_size=false."
        )
    search_batch_size(trainer, training, datamodule)


def search_batch_size(trainer: Trainer, training: VoteTraining, datamodule: GalaxyDataModule) -> None:
    """The search of `find_batch_size`, wherever it runs; no batch becomes larger than the training split."""
    most = min(_MOST_IN_A_BATCH, len(datamodule.rows("train")))
    found = Tuner(trainer).scale_batch_size(
        training, datamodule=datamodule, mode="power", init_val=datamodule.batch_size, max_val=most
    )
    # Lightning puts everything back as it was before the search, of the datamodule also what was found.
    datamodule.batch_size = min(found or datamodule.batch_size, most)
    console.print(f"batches of {datamodule.batch_size} images fit into memory", markup=False)


def evaluate(trainer: Trainer, training: VoteTraining, datamodule: GalaxyDataModule, best: Path) -> dict[str, float]:
    """Scores of the best checkpoint on the test split; empty where the catalog is too small to have one."""
    if not len(datamodule.rows("test")):
        return {}
    # Not through ckpt_path: after training with averaged weights, Lightning would load the ones that are not averaged.
    training.model.load_state_dict(load_vote_model(best).state_dict())
    metrics = trainer.test(training, datamodule=datamodule, verbose=False)[0]
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
