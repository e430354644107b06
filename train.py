"""Train an encoder with a bottleneck on volunteers' votes, or a classifier on a biased data set."""

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
    kind: type[TrainSettings | BiasedSettings] = BiasedSettings if config.task == "biased" else TrainSettings
    settings = validated(kind, resolved, "train.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    # torch and Lightning take seconds to import: a mistyped option is answered, and a worker process starts, without.
    from lightning import seed_everything

    from rarezoo.models.biased import BiasedTask
    from rarezoo.models.fitting import VoteTask
    from rarezoo.ranks import count_ranks, join_ranks, lightning_plugins, start_ranks
    from rarezoo.report.biased import write_objectives
    from rarezoo.report.sweep import note_in_sweep
    from rarezoo.report.training import EvaluationFigures
    from rarezoo.report.wandb import lightning_loggers, tracked_run

    n_ranks = count_ranks(settings.trainer)
    ranks = join_ranks(n_ranks)
    if ranks is None:
        return start_ranks(n_ranks, same_job(__file__, job.overrides.task, folder))
    task: VoteTask | BiasedTask
    if isinstance(settings, TrainSettings):
        task = VoteTask(settings, folder, ranks)
    else:
        task = BiasedTask(settings, folder, ranks)
    resumed, best = "checkpoints/last.ckpt", folder / "best.ckpt"
    about = (folder, "train", settings.decisive(), task.inputs, settings.overwrite, resumed, best)
    with ranks.claimed(lambda: RunFolder(*about)) as run:
        done_before = run.complete
        if not done_before:
            seed_everything(settings.seed, workers=True, verbose=False)
            train = task.start(run.resumable)
            group: dict[str, Any] = {"group": settings.name, "job_type": "train", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **group) as tracked:
                trainer = hydra.utils.instantiate(
                    config.trainer,
                    # The figures draw votes; of a biased data set they draw nothing.
                    callbacks=[*task.callbacks(), EvaluationFigures(tracked, folder / "figures")],
                    logger=lightning_loggers(tracked, folder),
                    plugins=lightning_plugins(n_ranks),
                    default_root_dir=str(folder),
                    enable_progress_bar=on_terminal() and ranks.leads,
                )
                run.finish(train(trainer))
                tracked.summary(run.summary)
                tracked.log_model(best, settings.name)
    if ranks.leads and isinstance(task, VoteTask):
        outputs = {"checkpoint": best, "figures": folder / "figures", **note_in_sweep(folder)}
        closing_lines(outputs, run.summary, embedding_command(best, Path(resolved["checkpoint"])), done_before)
    elif ranks.leads:
        sweep = sweep_of(folder)
        tables = write_objectives(sweep) if sweep else {}
        closing_lines({"checkpoint": best, **tables}, run.summary, None, done_before)


def embedding_command(best: Path, expected: Path) -> str:
    """Command that embeds with this network, which embed.py by itself expects elsewhere after some options."""
    job = HydraConfig.get()
    elsewhere: dict[str, Path | str] = {} if best == expected.resolve() else {"checkpoint": best}
    if job.mode == RunMode.MULTIRUN:
        elsewhere["hydra.mode"] = "RUN"
    return next_command("embed.py", job.overrides.task, EMBED_READS, elsewhere)


if __name__ == "__main__":
    run_script(main, CONF)
