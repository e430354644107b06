"""Train an encoder with a bottleneck on volunteers' votes."""

from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rarezoo.cli import closing_lines, next_command, on_terminal, run_script, same_job, settle_in
from rarezoo.config import EMBED_READS, validated
from rarezoo.models.biased_settings import BiasedSettings
from rarezoo.models.settings import TrainSettings
from rarezoo.provenance import RunFolder, sweep_of

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Train one model, or say that it is trained already."""
    settle_in()
    job = HydraConfig.get()
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    if config.task == "biased":
        return train_biased(config, resolved)
    settings = validated(TrainSettings, resolved, "train.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    # torch and Lightning take seconds to import: a mistyped option is answered, and a worker process starts, without.
    from lightning import seed_everything

    from rarezoo.data.prepare import make_datamodule, prepare_catalog
    from rarezoo.models.fitting import evaluate, find_batch_size, fit, training_callbacks
    from rarezoo.models.training import make_training
    from rarezoo.ranks import count_ranks, join_ranks, lightning_plugins, start_ranks
    from rarezoo.report.sweep import note_in_sweep
    from rarezoo.report.training import EvaluationFigures
    from rarezoo.report.wandb import lightning_loggers, tracked_run
    from rarezoo.votes.schema import resolve_schema

    n_ranks = count_ranks(settings.trainer)
    ranks = join_ranks(n_ranks)
    if ranks is None:
        return start_ranks(n_ranks, same_job(__file__, job.overrides.task, folder))
    schema = resolve_schema(settings.tree)
    catalog = ranks.leader_first(lambda: prepare_catalog(settings.data, schema.label_cols, schema.to_tree()))
    data = make_datamodule(settings.data, catalog, settings.seed)
    inputs = {"catalog": catalog.sha256, **settings.backbone.weights_sha256()}
    about = (
        folder,
        "train",
        settings.decisive(),
        inputs,
        settings.overwrite,
        "checkpoints/last.ckpt",
        folder / "best.ckpt",
    )
    with ranks.claimed(lambda: RunFolder(*about)) as run:
        done_before = run.complete
        if not done_before:
            seed_everything(settings.seed, workers=True, verbose=False)
            training = make_training(settings, schema, data)
            group: dict[str, Any] = {"group": settings.name, "job_type": "train", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **group) as tracked:
                watching = training_callbacks(folder, settings.optim, settings.save_every_minutes)
                trainer = hydra.utils.instantiate(
                    config.trainer,
                    callbacks=[*watching, EvaluationFigures(tracked, folder / "figures")],
                    logger=lightning_loggers(tracked, folder),
                    plugins=lightning_plugins(n_ranks),
                    default_root_dir=str(folder),
                    enable_progress_bar=on_terminal() and ranks.leads,
                )
                if settings.optim.find_batch_size and not run.resumable:
                    find_batch_size(trainer, training, data)
                fitted = fit(trainer, training, data, folder, run.resumable, ranks)
                run.finish(evaluate(trainer, training, data, fitted))
                tracked.summary(run.summary)
                tracked.log_model(fitted, settings.name)
    if ranks.leads:
        best = folder / "best.ckpt"
        elsewhere: dict[str, Path | str] = (
            {} if best == Path(resolved["checkpoint"]).resolve() else {"checkpoint": best}
        )
        if job.mode == RunMode.MULTIRUN:
            elsewhere["hydra.mode"] = "RUN"
        following = next_command("embed.py", job.overrides.task, EMBED_READS, elsewhere)
        outputs = {"checkpoint": best, "figures": folder / "figures", **note_in_sweep(folder)}
        closing_lines(outputs, run.summary, following, done_before)


def train_biased(config: DictConfig, resolved: dict[str, Any]) -> None:
    """Train a classifier on a biased data set (docs/objectives.md)."""
    job = HydraConfig.get()
    settings = validated(BiasedSettings, resolved, "train.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    from lightning import seed_everything

    from rarezoo.data.biased.datamodule import BiasedDataModule
    from rarezoo.data.biased.prepare import prepare_biased
    from rarezoo.models.biased import biased_callbacks, fit_biased, make_biased_training
    from rarezoo.ranks import count_ranks, join_ranks, lightning_plugins, start_ranks
    from rarezoo.report.biased import write_objectives
    from rarezoo.report.wandb import lightning_loggers, tracked_run

    n_ranks = count_ranks(settings.trainer)
    ranks = join_ranks(n_ranks)
    if ranks is None:
        return start_ranks(n_ranks, same_job(__file__, job.overrides.task, folder))
    found = ranks.leader_first(lambda: prepare_biased(settings.bias))
    data = BiasedDataModule(found, settings.classifier.batch_size, settings.seed)
    resumed, best = "checkpoints/last.ckpt", folder / "best.ckpt"
    about = (folder, "train", settings.decisive(), {"bias": found.sha256}, settings.overwrite, resumed, best)
    with ranks.claimed(lambda: RunFolder(*about)) as run:
        done_before = run.complete
        if not done_before:
            seed_everything(settings.seed, workers=True, verbose=False)
            training = make_biased_training(settings, data)
            group: dict[str, Any] = {"group": settings.name, "job_type": "train", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **group) as tracked:
                trainer = hydra.utils.instantiate(
                    config.trainer,
                    callbacks=biased_callbacks(folder, settings),
                    logger=lightning_loggers(tracked, folder),
                    plugins=lightning_plugins(n_ranks),
                    default_root_dir=str(folder),
                    enable_progress_bar=on_terminal() and ranks.leads,
                )
                run.finish(fit_biased(trainer, training, data, folder, run.resumable, ranks))
                tracked.summary(run.summary)
    if ranks.leads:
        sweep = sweep_of(folder)
        tables = write_objectives(sweep) if sweep else {}
        closing_lines({"checkpoint": best, **tables}, run.summary, None, done_before)


if __name__ == "__main__":
    run_script(main, CONF)
