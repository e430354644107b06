"""Training a classifier on a biased data set, and what it does where the bias does not help."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from rarezoo.cli import UserError
from rarezoo.data.biased.datamodule import BiasedBatch, BiasedDataModule
from rarezoo.data.biased.prepare import prepare_biased
from rarezoo.models.biased_settings import BiasedSettings
from rarezoo.models.classifier import KEY, Classifier, ClassifierSpec, classifier_header, load_classifier
from rarezoo.models.fitting import fit
from rarezoo.models.keeping import MONITOR, BestCheckpoint, LastCheckpoint, PatientStopping
from rarezoo.models.objectives import make_objective
from rarezoo.models.plain import read_plain
from rarezoo.models.progress import progress_callback
from rarezoo.provenance import written_beside
from rarezoo.ranks import Ranks

_WATCHED = {"loss": MONITOR, "accuracy": "validation/error"}
_GROUPS = ("", "_aligned", "_conflicting")


class Accuracies(nn.Module):
    """Share of images whose largest output is that of their class: of all, of the aligned, of the conflicting."""

    def __init__(self) -> None:
        super().__init__()
        # Nothing to warn of where a group has no images. Of torchmetrics 1.9, this mode leaves weights out of the mean:
        # none are given here.
        self.shares = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in _GROUPS)

    def update(self, outputs: Tensor, batch: BiasedBatch) -> None:
        """Add a batch; outputs (B, C)."""
        right = (outputs.argmax(1) == batch["target"]).float()
        aligned = batch["attribute"] == batch["target"]
        for share, group in zip(self.shares, (right, right[aligned], right[~aligned]), strict=True):
            share.update(group)  # type: ignore[operator, union-attr]

    def result(self) -> dict[str, float]:
        """accuracy, accuracy_aligned and accuracy_conflicting, from 0 to 1; NaN for a group without images."""
        found = (float(share.compute()) for share in self.shares)  # type: ignore[operator, union-attr]
        return {f"accuracy{group}": value for group, value in zip(_GROUPS, found, strict=True)}

    def reset(self) -> None:
        """Forget all batches."""
        for share in self.shares:
            share.reset()  # type: ignore[operator, union-attr]


class BiasedTraining(LightningModule):
    """What a training step is: classify, and the objective.

    Attributes
    ----------
    results : accuracies of the last validation and test, by split
    """

    def __init__(self, model: Classifier, settings: BiasedSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.objective = make_objective(settings.objective)
        self.train_loss, self.validation_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))
        self.accuracies = nn.ModuleDict({split: Accuracies() for split in ("validation", "test")})
        self.results: dict[str, dict[str, float]] = {}

    def on_train_batch_start(self, batch: BiasedBatch, batch_idx: int) -> None:
        """Let seed, epoch and batch decide dropout, so that a resumed run goes on as it would have."""
        own = np.random.SeedSequence((self.settings.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: BiasedBatch, batch_idx: int) -> Tensor:
        """Mean of the objective over the batch."""
        losses = self.objective(self.model(batch["image"]), batch["target"])
        self.train_loss.update(losses.detach())
        self.log("train/loss", self.train_loss, prog_bar=True, on_step=False, on_epoch=True)
        return losses.mean()

    def validation_step(self, batch: BiasedBatch, batch_idx: int) -> None:
        """Add a batch to the scores."""
        self.validation_loss.update(self.objective(self._classify("validation", batch), batch["target"]))

    def test_step(self, batch: BiasedBatch, batch_idx: int) -> None:
        """As validation, on images that neither training nor early stopping saw."""
        self._classify("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and stop where the loss is not finite, from which training does not come back.

        Raises
        ------
        UserError
            if the loss is not finite
        """
        loss = float(self.validation_loss.compute())
        self.validation_loss.reset()
        found = self._finish("validation")
        if not math.isfinite(loss):
            raise UserError(
                f"validation loss is {loss} after epoch {self.current_epoch + 1}. "
                f"Lower classifier.lr={self.settings.classifier.lr}, or choose another objective."
            )
        watched = {"validation/loss": loss, "validation/error": 1 - found["accuracy"]}
        self.log_dict(watched, rank_zero_only=False)

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._finish("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with its own weight decay, at a constant rate, as the paper's Setup names it."""
        classifier = self.settings.classifier
        return torch.optim.Adam(self.parameters(), lr=classifier.lr, weight_decay=classifier.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the classifier be built again from the file alone."""
        checkpoint[KEY] = classifier_header(self.model.spec)

    def _classify(self, split: str, batch: BiasedBatch) -> Tensor:
        outputs: Tensor = self.model(batch["image"])
        self._accuracies(split).update(outputs, batch)
        return outputs

    def _finish(self, split: str) -> dict[str, float]:
        found = self.results[split] = self._accuracies(split).result()
        self._accuracies(split).reset()
        # The same on all ranks, since torchmetrics has added them up.
        self.log_dict({f"{split}/{name}": value for name, value in found.items()}, rank_zero_only=False)
        return found

    def _accuracies(self, split: str) -> Accuracies:
        accuracies = self.accuracies[split]
        assert isinstance(accuracies, Accuracies)
        return accuracies


class BiasedTask:
    """Training on a biased data set, from its images to accuracies; as `VoteTask`."""

    def __init__(self, settings: BiasedSettings, folder: Path, ranks: Ranks) -> None:
        self._settings, self._folder, self._ranks = settings, folder, ranks
        found = ranks.leader_first(lambda: prepare_biased(settings.bias))
        self._data = BiasedDataModule(found, settings.classifier.batch_size, settings.seed)
        self.inputs = {"bias": found.sha256}

    def callbacks(self) -> list[Callback]:
        """As `biased_callbacks`."""
        return biased_callbacks(self._folder, self._settings)

    def start(self, resume: bool) -> Callable[[Trainer], dict[str, Any]]:
        """Build the network, and give what trains and tests it, as `fit_biased`."""
        training = make_biased_training(self._settings, self._data)
        return lambda trainer: fit_biased(trainer, training, self._data, self._folder, resume, self._ranks)


def make_biased_training(settings: BiasedSettings, data: BiasedDataModule) -> BiasedTraining:
    """Classifier, objective and optimiser as the settings say."""
    classifier = settings.classifier
    spec = ClassifierSpec(
        n_classes=settings.bias.n_classes,
        mean=data.data.mean,
        std=data.data.std,
        stem=classifier.stem,
        dropout=classifier.dropout,
        dropout_at=classifier.dropout_at,
    )
    return BiasedTraining(Classifier(spec), settings)


def biased_callbacks(folder: Path, settings: BiasedSettings) -> list[Callback]:
    """Checkpoints of the best and the last epoch below `folder`, early stopping, and a progress bar."""
    watched = _WATCHED[settings.classifier.watch]
    best = BestCheckpoint(folder / "checkpoints")
    best.monitor = watched
    callbacks = [best, LastCheckpoint(folder / "checkpoints", settings.save_every_minutes), progress_callback()]
    if settings.classifier.patience is not None:
        callbacks.append(PatientStopping(watched, patience=settings.classifier.patience))
    return callbacks


def fit_biased(
    trainer: Trainer,
    training: BiasedTraining,
    data: BiasedDataModule,
    folder: Path,
    resume: bool,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train, going on where an interrupted run was, and test the best epoch.

    Parameters
    ----------
    trainer : with the callbacks of `biased_callbacks`
    folder : of the run; the classifier is folder/best.ckpt, and is all that stays
    resume : go on from folder/checkpoints/last.ckpt where it is there
    ranks : the processes that train together; this one alone by default

    Returns
    -------
    summary : data set, objective and where the images come from; accuracies on the test split (`Accuracies.result`);
        the epochs that were trained, and the one that was kept. No losses: those of two objectives cannot be compared

    Raises
    ------
    UserError, KeyboardInterrupt
        as `fitting.fit`
    """
    ranks = ranks or Ranks()
    best = fit(trainer, training, data, folder, resume, ranks)
    n_epochs = trainer.current_epoch
    training.model.load_state_dict(load_classifier(best).state_dict())
    trainer.test(training, datamodule=data, verbose=False)
    epoch = ranks.agree(lambda: _keep_the_classifier_only(best, folder / "checkpoints"))
    settings = training.settings
    return {
        "bias": settings.bias.name,
        "objective": settings.objective.name,
        "origin": data.data.origin,
        **{f"test/{name}": value for name, value in training.results["test"].items() if not math.isnan(value)},
        "epochs": n_epochs,
        "best_epoch": epoch + 1,
    }


def _keep_the_classifier_only(best: Path, checkpoints: Path) -> int:
    """Leave out what only training needs, and say which epoch is kept.

    Adam's state and the checkpoints to resume from are 400 MB a run, and a sweep over this study has 54.
    """
    content = read_plain(best)
    with written_beside(best) as temporary:
        torch.save({name: content[name] for name in ("state_dict", "epoch", KEY)}, temporary)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return int(content["epoch"])
