"""Train an encoder with a bottleneck on volunteers' votes."""

from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rarezoo.cli import closing_lines, next_command, on_terminal, run_script
from rarezoo.config import EMBED_READS, TrainSettings, validated
from rarezoo.provenance import RunFolder

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Train one model, or say that it is trained already."""
    job = HydraConfig.get()
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = validated(TrainSettings, resolved, "train.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    # torch and Lightning take seconds to import: a mistyped option is answered, and a worker process starts, without.
    from lightning import seed_everything
    from lightning.pytorch.loggers import CSVLogger

    from rarezoo.data.prepare import make_datamodule, prepare_catalog
    from rarezoo.models.training import evaluate, fit, make_training, training_callbacks
    from rarezoo.report.wandb import lightning_logger, tracked_run
    from rarezoo.votes.schema import resolve_schema

    schema = resolve_schema(settings.tree)
    catalog = prepare_catalog(settings.data, schema.label_cols, schema.to_tree())
    data = make_datamodule(settings.data, catalog, settings.seed)
    inputs = {"catalog": catalog.sha256}
    with RunFolder(folder, "train", settings.decisive(), inputs, settings.overwrite, "checkpoints/last.ckpt") as run:
        done_before = run.complete
        if not done_before:
            seed_everything(settings.seed, workers=True, verbose=False)
            training = make_training(settings, schema, data)
            about: dict[str, Any] = {"group": settings.name, "job_type": "train", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **about) as tracked:
                loggers = [CSVLogger(folder, "metrics"), lightning_logger(tracked)]
                trainer = hydra.utils.instantiate(
                    config.trainer,
                    callbacks=training_callbacks(folder, settings.optim.patience),
                    logger=[logger for logger in loggers if logger],
                    default_root_dir=str(folder),
                    enable_progress_bar=on_terminal(),
                )
                fitted = fit(trainer, training, data, folder, run.resumable)
                run.finish(evaluate(trainer, training, data, fitted))
                tracked.summary(run.summary)
    best = folder / "best.ckpt"
    elsewhere = {} if best == Path(resolved["checkpoint"]).resolve() else {"checkpoint": best}
    following = next_command("embed.py", job.overrides.task, EMBED_READS, elsewhere)
    closing_lines({"checkpoint": best, "metrics": folder / "metrics"}, run.summary, following, done_before)


if __name__ == "__main__":
    run_script(main, CONF)
