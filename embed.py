"""Write each galaxy's representation and predicted votes to one HDF5 file."""

from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rarezoo.cli import closing_lines, next_command, run_script, same_job, settle_in
from rarezoo.config import CLUSTER_READS, EmbedSettings, validated
from rarezoo.provenance import RunFolder, canonical_json, fingerprint, sha256_of_file

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="embed")
def main(config: DictConfig) -> None:
    """Embed one catalog, or say that it is embedded already."""
    settle_in()
    job = HydraConfig.get()
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = validated(EmbedSettings, resolved, "embed.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    path = (settings.output or folder / "embeddings.h5").resolve()
    # torch takes seconds to import: a mistyped option is answered, and a worker process starts, without.
    from rarezoo.data.prepare import make_datamodule, prepare_catalog
    from rarezoo.embeddings.embed import Embedding, describe_members, feature_moments, make_embedder
    from rarezoo.embeddings.parts import Parts, cut_into_blocks
    from rarezoo.ranks import count_ranks, join_ranks, start_ranks
    from rarezoo.report.fractions import write_fractions
    from rarezoo.report.redundancy import say_redundancy, write_redundancy
    from rarezoo.report.wandb import tracked_run
    from rarezoo.signals import back_to_the_queue

    n_ranks = count_ranks(settings.trainer)
    ranks = join_ranks(n_ranks)
    if ranks is None:
        return start_ranks(n_ranks, same_job(__file__, job.overrides.task, folder))
    embedder = make_embedder(settings.checkpoints, settings.embedding, settings.seed)
    catalog = ranks.leader_first(lambda: prepare_catalog(settings.data, (), embedder.schema.to_tree()))
    checkpoints = [sha256_of_file(each) for each in settings.checkpoints]
    inputs = {"checkpoint": ",".join(checkpoints), "catalog": catalog.sha256}
    about = (folder, "embed", settings.decisive(), inputs, settings.overwrite, "parts", path)
    with ranks.claimed(lambda: RunFolder(*about)) as run, back_to_the_queue(ranks.leads):
        done_before = run.complete
        parts = Parts(folder / "parts", cut_into_blocks(len(catalog)), fingerprint([settings.decisive(), inputs]))
        if not done_before:
            reading = {**embedder.reading, "batch_size": settings.embedding.batch_size}
            data = make_datamodule(settings.data, catalog, settings.seed, **reading)
            provenance = {
                "config": canonical_json(resolved),
                "image_root": str((settings.data.image_root or settings.data.catalog.parent).resolve()),
                "members": canonical_json(describe_members(embedder, checkpoints)),
                **{f"{name}_sha256": value for name, value in inputs.items()},
            }
            group: dict[str, Any] = {"group": settings.name, "job_type": "embed", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **group) as tracked:
                moments = feature_moments(embedder, settings.embedding.redundancy)
                embedding = Embedding(embedder, data, parts, settings.embedding, ranks, tracked.log, moments)
                summary = embedding.run(path, provenance, run.resumable)
                ranks.agree(lambda: write_fractions(path, folder, tracked))
                run.finish(summary | ranks.agree(lambda: write_redundancy(folder, moments)))
                tracked.summary(run.summary)
    if ranks.leads:
        parts.clear()
        elsewhere = {} if path == Path(resolved["embeddings"]).resolve() else {"embeddings": path}
        following = next_command("cluster.py", job.overrides.task, CLUSTER_READS, elsewhere)
        outputs = {"embeddings": path, **say_redundancy(run.summary, folder)}
        closing_lines(outputs, run.summary, following, done_before)


if __name__ == "__main__":
    run_script(main, CONF)
