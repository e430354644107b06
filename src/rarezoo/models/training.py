"""What a training step on vote counts is, and how it is scored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from rarezoo.cli import UserError
from rarezoo.data.augment import TrainTransform
from rarezoo.data.datamodule import FailureLog, GalaxyDataModule
from rarezoo.models.checkpoints import KEY, checkpoint_header
from rarezoo.models.optim import adamw, freeze_all_but_last, warmup_cosine
from rarezoo.models.scores import VoteResult, VoteScores
from rarezoo.models.settings import OptimSettings, RetrainSettings, TrainSettings
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.votes import Schema, vote_nll

N_EXAMPLES = 12


class VoteTraining(LightningModule):
    """What a training step is: transform, predict, and the likelihood of the votes.

    The loss is the mean over galaxies of the sum over questions of the negative log-likelihood in nats, as Zoobot's
    published models report it.

    Attributes
    ----------
    results : scores of the last validation and test, by split
    examples : images, concentrations and counts of the first galaxies of the last evaluation, on this rank
    """

    def __init__(
        self,
        model: VoteModel,
        train_transform: nn.Module,
        failures: FailureLog,
        n_images: int,
        optim: OptimSettings,
        retrain: RetrainSettings,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_transform = train_transform
        self.failures = failures
        self.n_images = n_images
        self.optim = optim
        self.retrain = retrain
        self.seed = seed
        self.scores = nn.ModuleDict({split: VoteScores(model.schema) for split in ("validation", "test")})
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.results: dict[str, VoteResult] = {}
        self.examples: tuple[Tensor, Tensor, Tensor] | None = None
        freeze_all_but_last(model.backbone, retrain.n_blocks)
        if optim.compile:
            # In place: torch.compile(module) would put _orig_mod into the names of the weights.
            model.backbone.compile()

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Let seed, epoch and batch decide views and dropout, so that a resumed run goes on as it would have."""
        own = np.random.SeedSequence((self.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Loss of one batch; without a gradient where fewer than two images of the batch could be read."""
        predicted = self._predict(batch, self.train_transform)
        losses = None if predicted is None else predicted[1].sum(1)
        if losses is not None:
            # One for each galaxy: this mode of torchmetrics 1.9 leaves weights out of the mean.
            self.train_loss.update(losses.detach())
        # Also where there is nothing to add: ranks that log different names wait for each other.
        self.log("train/loss", self.train_loss, prog_bar=True, on_step=False, on_epoch=True)
        return self._nothing_to_learn() if losses is None else losses.mean()

    def on_validation_epoch_start(self) -> None:
        """Forget the galaxies of the validation before."""
        self._begin("validation")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the scores."""
        self._evaluate(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and stop where the loss is not finite, from which training does not come back.

        Raises
        ------
        UserError
            if the loss is not finite, or no image of the validation split could be read
        """
        loss = self._finish("validation").loss
        if not np.isfinite(loss):
            raise UserError(
                f"validation loss is {loss} after epoch {self.current_epoch + 1}. "
                f"Lower optim.lr={self.optim.lr}, and check the vote columns."
            )

    def on_test_epoch_start(self) -> None:
        """Forget the galaxies of the test before."""
        self._begin("test")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation, on galaxies that neither training nor early stopping saw."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._finish("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and a schedule that steps with every step of the optimiser."""
        rest = nn.ModuleList([self.model.bottleneck, self.model.head])
        optim = self.optim
        optimizer = adamw(self.model.backbone, rest, optim.lr, optim.weight_decay, self.retrain.layer_decay)
        n_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(n_steps):
            raise UserError(
                "trainer.max_epochs=-1: the learning rate falls to zero by the last epoch, so there has to be one. "
                "Give a number; optim.patience ends the run where the loss no longer falls."
            )
        schedule = warmup_cosine(optimizer, int(n_steps), optim.warmup_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the model be built again from the file alone."""
        checkpoint[KEY] = checkpoint_header(self.model.spec)

    def _predict(self, batch: dict[str, Any], transform: nn.Module) -> tuple[Tensor, Tensor] | None:
        """Concentrations (batch, answers) and losses (batch, questions); None where too few images could be read."""
        self.failures.add(batch["failed"])
        self.failures.check(self.n_images)
        # A single image has no variance for batch normalisation to train on.
        if len(batch["image"]) < (2 if self.training else 1):
            return None
        concentrations = self.model(transform(batch["image"]))
        return concentrations, vote_nll(concentrations, batch["counts"], self.model.schema)

    def _nothing_to_learn(self) -> Tensor | None:
        if self.trainer.world_size == 1:
            return None
        # The other ranks wait for this one's gradients.
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.stack([parameter.sum() * 0 for parameter in learning]).sum()

    def _begin(self, split: str) -> None:
        self._scores(split).reset()
        self.examples = None

    def _evaluate(self, batch: dict[str, Any], split: str) -> None:
        predicted = self._predict(batch, self.model.eval_transform)
        if predicted is None:
            return
        concentrations, per_question = predicted
        self._scores(split).update(per_question, concentrations, batch["counts"])
        if self.examples is None:
            shown = (batch["image"], concentrations, batch["counts"])
            self.examples = tuple(values[:N_EXAMPLES].detach().cpu() for values in shown)  # type: ignore[assignment]

    def _finish(self, split: str) -> VoteResult:
        scores = self._scores(split)
        # An empty rank is in order, and torchmetrics would warn of it.
        scores._update_count = max(1, scores._update_count)
        result = self.results[split] = scores.result()
        if not result.n_galaxies:
            raise UserError(
                f"none of the {split} images could be read, so there is no loss to judge the model by. "
                f"Repair the files, or raise data.{split}_share."
            )
        numbers = result.numbers(self.model.schema)
        # Computed from sums over all ranks: what is the same everywhere needs no exchange.
        self.log_dict({f"{split}/{name}": value for name, value in numbers.items()}, rank_zero_only=False)
        return result

    def _scores(self, split: str) -> VoteScores:
        scores = self.scores[split]
        assert isinstance(scores, VoteScores)
        return scores


def make_training(settings: TrainSettings, schema: Schema, data: GalaxyDataModule) -> VoteTraining:
    """Model, transforms and optimiser as the settings say."""
    optim = settings.optim
    transform = TrainTransform(**settings.augment.model_dump(), mean=settings.backbone.mean, std=settings.backbone.std)
    spec = ModelSpec(
        tree=schema.to_tree(),
        backbone=settings.backbone.name,
        bottleneck_dim=settings.bottleneck.dim,
        bottleneck_activation=settings.bottleneck.activation,
        bottleneck_norm=settings.bottleneck.norm,
        image_size=settings.data.image_size,
        channels=settings.data.channels,
        crop=settings.data.crop,
        zoom=transform.for_evaluation().zoom,
        mean=settings.backbone.mean,
        std=settings.backbone.std,
        head_activation=settings.head.activation,
        head_dropout=settings.head.dropout,
        drop_path_rate=settings.backbone.drop_path_rate,
        channels_last=settings.backbone.channels_last,
    )
    model = VoteModel(spec, settings.backbone.weights)
    return VoteTraining(model, transform, data.failure_log(), len(data.catalog), optim, settings.retrain, settings.seed)
