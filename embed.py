"""Write each galaxy's representation and predicted votes to one HDF5 file."""

from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rarezoo.cli import closing_lines, next_command, run_script, settle_in
from rarezoo.config import CLUSTER_READS, EmbedSettings, validated
from rarezoo.provenance import RunFolder, canonical_json, sha256_of_file

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="embed")
def main(config: DictConfig) -> None:
    """Embed one catalog, or say that it is embedded already."""
    settle_in()
    job = HydraConfig.get()
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = validated(EmbedSettings, resolved, "embed.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    # torch takes seconds to import: a mistyped option is answered, and a worker process starts, without.
    from rarezoo.data.prepare import make_datamodule, prepare_catalog
    from rarezoo.embeddings.embed import embed_catalog, feature_moments
    from rarezoo.models.checkpoints import load_vote_model
    from rarezoo.report.redundancy import say_redundancy, write_redundancy
    from rarezoo.report.wandb import tracked_run

    path = folder / "embeddings.h5"
    model = load_vote_model(settings.checkpoint)
    catalog = prepare_catalog(settings.data, (), model.schema.to_tree())
    inputs = {"checkpoint": sha256_of_file(settings.checkpoint), "catalog": catalog.sha256}
    with RunFolder(folder, "embed", settings.decisive(), inputs, settings.overwrite) as run:
        done_before = run.complete
        if not done_before:
            batch_size = settings.embedding.batch_size
            data = make_datamodule(settings.data, catalog, settings.seed, **model.spec.reading, batch_size=batch_size)
            provenance = {
                "config": canonical_json(resolved),
                "image_root": str((settings.data.image_root or settings.data.catalog.parent).resolve()),
                **{f"{name}_sha256": value for name, value in inputs.items()},
            }
            about: dict[str, Any] = {"group": settings.name, "job_type": "embed", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **about) as tracked:
                moments = feature_moments(model, settings.embedding.redundancy)
                summary = embed_catalog(model, catalog, data, path, settings.embedding, provenance, moments)
                run.finish(summary | write_redundancy(folder, moments))
                tracked.summary(run.summary)
    elsewhere = {} if path == Path(resolved["embeddings"]).resolve() else {"embeddings": path}
    following = next_command("cluster.py", job.overrides.task, CLUSTER_READS, elsewhere)
    outputs = {"embeddings": path, **say_redundancy(run.summary, folder)}
    closing_lines(outputs, run.summary, following, done_before)


if __name__ == "__main__":
    run_script(main, CONF)
