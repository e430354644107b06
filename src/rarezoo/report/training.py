"""What training shows of itself while it goes on: calibration and example predictions."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from rarezoo.models.training import VoteTraining
from rarezoo.provenance import written_beside
from rarezoo.report.calibration import calibration_figure, question_table
from rarezoo.report.predictions import predictions_figure
from rarezoo.report.wandb import TrackedRun


class EvaluationFigures(Callback):
    """Figures of every validation, and of the test with a table of the questions; from the leading process alone.

    Parameters
    ----------
    tracked : run that the figures are logged to as well
    folder : of the files `validation_*.png`, `test_*.png` and `test_questions.csv`
    """

    def __init__(self, tracked: TrackedRun, folder: Path) -> None:
        self._tracked = tracked
        self._folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test, and write its table."""
        self._draw(trainer, pl_module, "test")
        if trainer.is_global_zero and isinstance(pl_module, VoteTraining):
            result = pl_module.results["test"]
            table = question_table(result.per_question, result.calibration, pl_module.model.schema)
            with written_beside(self._folder / "test_questions.csv") as temporary:
                table.to_csv(temporary, index=False)
            self._tracked.log_table("test/questions", table)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, VoteTraining):
            return
        schema = pl_module.model.schema
        figures = {"calibration": calibration_figure(pl_module.results[split].calibration, schema)}
        if pl_module.examples is not None:
            images, concentrations, counts = (values.float().numpy() for values in pl_module.examples)
            figures["predictions"] = predictions_figure(images.astype("uint8"), concentrations, counts, schema)
        for name, figure in figures.items():
            with written_beside(self._folder / f"{split}_{name}.png") as temporary:
                temporary.write_bytes(figure)
        self._tracked.log_images({f"{split}/{name}": figure for name, figure in figures.items()})
