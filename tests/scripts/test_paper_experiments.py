"""The paper's two searches, as their experiments compose them."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_scripts import REPO

from rarezoo.clustering.settings import ClusterSettings
from rarezoo.config import validated

CUTS = {
    "smooth": ("smooth-or-featured*_smooth", 0.5),
    "edge_on": ("disk-edge-on*_yes", 0.3),
    "artifact": ("smooth-or-featured*_artifact", 0.3),
}
EXPERIMENTS = {
    "paper_classes": ("efficientnet_b0", ["smooth", "edge_on", "artifact"]),
    "paper_artifacts": ("maxvit_tiny_rw_224", ["smooth", "edge_on"]),
}


def composed(command, experiment):
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        config = compose(command, [f"experiment={experiment}", "data.catalog=galaxies.csv"])
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_searches_as_the_paper_did(experiment):
    """Walmsley & Scaife 2023: Sec. 2 for the cuts, Sec. 3 for the search, Sec. 4 for the sample with artifacts."""
    config = composed("cluster", experiment)
    settings = validated(ClusterSettings, config, "cluster.py")
    cuts = {name: (cut.answer, cut.below) for name, cut in settings.selection.cuts.items()}
    assert cuts == {name: CUTS[name] for name in EXPERIMENTS[experiment][1]}
    assert {cut.of for cut in settings.selection.cuts.values()} == {"fraction"}
    assert (settings.layout.method, settings.layout.n_neighbors, settings.layout.n_components) == ("umap", 50, 5)
    tree = settings.tree
    assert (tree.min_samples, tree.min_cluster_size, tree.method, tree.max_cluster_size) == (300, 10, "leaf", 0)
    # Of the bottleneck as it is: the paper rescales nothing.
    assert settings.neighbours.whitening == 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("command", ["train", "embed"])
def test_experiment_trains_and_embeds_with_the_papers_backbone_and_bottleneck(command, experiment):
    config = composed(command, experiment)
    assert config["backbone"]["name"] == EXPERIMENTS[experiment][0]
    assert config["bottleneck"]["dim"] == 128
    assert (config["data"]["catalog"], config["data"]["image_size"]) == ("galaxies.csv", 224)
