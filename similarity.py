"""Compare the representations of two networks, layer by layer, or those of two surveys' embeddings."""

from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rarezoo.cli import closing_lines, run_script, settle_in
from rarezoo.config import SimilaritySettings, validated
from rarezoo.provenance import RunFolder

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="similarity")
def main(config: DictConfig) -> None:
    """Compare two networks or two files, or say that they are compared already."""
    settle_in()
    job = HydraConfig.get()
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    settings = validated(SimilaritySettings, resolved, "similarity.py", job.overrides.task)
    folder = Path(job.runtime.output_dir)
    # torch takes seconds to import: a mistyped option is answered without.
    from rarezoo.report.similarity import most_similar, write_similarity
    from rarezoo.report.wandb import tracked_run
    from rarezoo.similarity.compare import compare
    from rarezoo.similarity.embedding_pair import EmbeddingComparison
    from rarezoo.similarity.network_pair import NetworkComparison

    comparison = (EmbeddingComparison if settings.similarity.of_embeddings else NetworkComparison)(settings)
    about = (folder, "similarity", settings.decisive(), comparison.inputs, settings.overwrite, None, folder / "cka.npz")
    with RunFolder(*about) as run:
        done_before = run.complete
        if not done_before:
            group: dict[str, Any] = {"group": settings.name, "job_type": "similarity", "config": resolved}
            with tracked_run(**settings.logger.model_dump(), folder=folder, **group) as tracked:
                found = compare(settings, comparison)
                run.finish(write_similarity(folder, found))
                tracked.summary(run.summary)
                tracked.log_images({"cka": folder / "cka.png"})
                tracked.log_table("most_similar", most_similar(found))
    outputs = {name: folder / name for name in ("cka.npz", "cka.png")}
    closing_lines(outputs, run.summary, None, done_before)


if __name__ == "__main__":
    run_script(main, CONF)
