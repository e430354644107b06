"""Find classes among the embedded galaxies and show them."""

from pathlib import Path
from typing import Any, cast

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rarezoo.cli import announce, closing_lines, print_table, run_script, settle_in
from rarezoo.clustering.settings import ClusterSettings
from rarezoo.config import validated
from rarezoo.provenance import RunFolder, sha256_of_file

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="cluster")
def main(config: DictConfig) -> None:
    """Search one file of embeddings, or say that this search is done already."""
    settle_in()
    job = HydraConfig.get()
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = validated(ClusterSettings, resolved, "cluster.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    # torch and umap take seconds to import: a mistyped option is answered without.
    from rarezoo.embeddings import open_embeddings
    from rarezoo.report.results import OUTPUTS, is_up_to_date, read_given, search_and_write
    from rarezoo.report.search_sweep import note_in_search_sweep
    from rarezoo.report.truth import read_recovery, recovery_sentence
    from rarezoo.report.wandb import tracked_run

    with open_embeddings(settings.embeddings) as embeddings:
        inputs = {"embeddings": sha256_of_file(settings.embeddings)}
        with RunFolder(folder, "cluster", settings.decisive(), inputs, settings.overwrite) as run:
            # Decisions are applied anew whenever they change: the stages are in the store, and it takes seconds.
            done_before = run.complete and is_up_to_date(folder, settings, run.summary)
            if not done_before:
                given = read_given(settings, embeddings)
                about: dict[str, Any] = {"group": settings.name, "job_type": "cluster", "config": resolved}
                with tracked_run(**settings.logger.model_dump(), folder=folder, **about) as tracked:
                    results = search_and_write(folder, embeddings, settings, given, inputs, announce)
                    run.finish(results.summary)
                    tracked.summary(results.summary)
                    tracked.log_table("cuts", results.cuts)
                    tracked.log_class_table(results.classes, {c: found.path for c, found in results.montages.items()})
                    # Under names of their own: cuts is a table, and recovery are figures of the summary.
                    tracked.log_images({f"figures/{name}": path for name, path in results.figures.items()})
                    if compared := note_in_search_sweep(folder):
                        tracked.log_table("sweep", pd.read_parquet(compared["sweep"]))
    if settings.truth is not None:
        print_table(read_recovery(folder), recovery_sentence(run.summary["recovery"]))
    outputs = {name: folder / name for name in OUTPUTS} | note_in_search_sweep(folder)
    closing_lines(outputs, run.summary, f"open {outputs['report.html']} in a browser", done_before)


if __name__ == "__main__":
    run_script(main, CONF)
