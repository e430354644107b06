"""similarity.py as it is run, and its configuration files."""

import copy
import json
import shutil

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from offline_runs import read_offline_run
from omegaconf import OmegaConf
from small_scripts import REPO, run_in_turn
from small_scripts import SURVEY as FINISHED_SURVEY

from rarezoo.cli import UserError
from rarezoo.config import SimilaritySettings, validated

CONF = REPO / "conf"
SURVEY = ("data.n_galaxies=60", "data.survey_size=32", "data.workers=0", "logger=none")
QUICK = ("similarity.orders=2", "similarity.batch_size=20", "similarity.device=cpu")
TIMM = ("similarity.a=test_resnet", "similarity.b=test_efficientnet", "similarity.weights=null")
SOME = ("similarity.layers_a=[layer?]", "similarity.layers_b=[blocks.?,conv_head]")


@pytest.fixture(scope="module")
def composed():
    """Resolved configurations, composed once for the whole module: overrides -> dict, as a user gives them."""
    found = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in (TIMM, ("experiment=architectures",), ("experiment=bottleneck_similarity",)):
            config = compose("similarity", list(overrides))
            found[overrides] = OmegaConf.to_container(config, resolve=True)
    return found


def checked(config, **changes):
    """Settings of a configuration in which dotted names, with __ for the dots, have other values."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *groups, option = name.split("__")
        group = config
        for each in groups:
            group = group[each]
        group[option] = value
    return validated(SimilaritySettings, config, "similarity.py")


def test_configuration_file_holds_every_option_and_no_other(composed):
    settings = checked(composed[TIMM])
    assert settings.similarity.layers_b == settings.similarity.layers_a == ["*"]
    assert composed[TIMM]["similarity"].keys() == settings.similarity.model_dump().keys()


@pytest.mark.parametrize("name", ["architectures", "bottleneck_similarity"])
def test_experiment_says_what_is_compared_and_how_it_is_made(composed, name):
    settings = checked(composed[f"experiment={name}",])
    assert settings.similarity.split == "test"
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    for path in (settings.similarity.a, settings.similarity.b):
        trained = path.removeprefix("outputs/").removesuffix("/train/best.ckpt")
        assert f"python train.py experiment={name} name={trained}" in text


@pytest.mark.parametrize(("name", "backbones"), [
    ("architectures", ("efficientnet_b0", "maxvit_tiny_rw_224")),
    ("bottleneck_similarity", ("tf_efficientnet_lite0", "tf_efficientnet_lite0")),
])  # fmt: skip
def test_patterns_of_an_experiment_match_layers_of_its_backbones(composed, name, backbones):
    import timm
    import torch

    from rarezoo.similarity.activations import find_layers

    options = checked(composed[f"experiment={name}",]).similarity
    for backbone, patterns in zip(backbones, (options.layers_a, options.layers_b), strict=True):
        of_backbone = [each.removeprefix("backbone.") for each in patterns if each.startswith("backbone.")]
        with torch.device("meta"):
            model = timm.create_model(backbone, num_classes=0)
        assert len(find_layers(model, of_backbone)) >= 12


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("batch_size", 3, "similarity.batch_size=3: input should be greater than or equal to 4"),
        ("n_images", 2, "similarity.n_images=2: input should be greater than or equal to 4"),
        ("layers_a", [], "similarity.layers_a=[]: list should have at least 1 item"),
        ("features", "max", "similarity.features='max': input should be 'flatten' or 'average'"),
        ("split", "none", "similarity.split='none': input should be 'all', 'train', 'validation' or 'test'"),
        ("orders", 0, "similarity.orders=0: input should be greater than or equal to 1"),
        ("batchsize", 9, "Did you mean 'batch_size'?"),
        ("b", "embeddings.h5", "similarity: a=test_resnet and b=embeddings.h5: a file of embeddings is compared"),
        ("a", "???", "option 'similarity.a' is missing. Give similarity.a=<value>."),
    ],
)
def test_wrong_option_is_named_with_what_is_allowed(composed, option, value, shown):
    with pytest.raises(UserError) as caught:
        checked(composed[TIMM], **{f"similarity__{option}": value})
    assert shown in str(caught.value)


def test_where_files_lie_and_what_computes_decides_nothing(composed):
    decisive = checked(composed[TIMM]).decisive()
    same = {"similarity__a": "x.ckpt", "similarity__device": "cuda", "data__workers": 3, "data__batch_size": 5}
    assert checked(composed[TIMM], **same).decisive() == decisive
    for option, value in (("orders", 1), ("features", "average"), ("layers_a", ["x"]), ("batch_size", 9)):
        assert checked(composed[TIMM], **{f"similarity__{option}": value}).decisive() != decisive
    assert checked(composed[TIMM], seed=1).decisive() != decisive


@pytest.mark.script
def test_runs_leave_what_they_say_and_are_not_repeated(tmp_path):
    tracked = ("logger=wandb", "logger.mode=offline")
    timm_pair = (tmp_path, "similarity.py", *SURVEY, *QUICK, *TIMM, *SOME, *tracked, "name=pair")
    ends = run_in_turn([timm_pair, timm_pair, (*timm_pair, "seed=1"), (*timm_pair, "similarity.b=resnet81", "name=no")])
    assert [status for status, _ in ends] == [0, 0, 2, 2], ends
    first, again, other, wrong = (said for _, said in ends)
    folder = tmp_path / "outputs/pair/similarity"
    with np.load(folder / "cka.npz") as file:
        assert file["cka"].shape == (2, 4, 6)
        assert file["layers_a"].tolist() == ["layer1", "layer2", "layer3", "layer4"]
        assert np.isfinite(file["cka"]).all()
    record = json.loads((folder / "run.json").read_text())
    assert record["complete"]
    assert record["summary"]["n_images"] == 60
    assert str(folder / "cka.png") in first
    assert "comparing" in first
    assert "complete before" in again
    assert "seed: 0 there, 1 now" in other
    assert "similarity.b: timm has no 'resnet81'" in wrong
    assert "Traceback" not in "".join(said for _, said in ends)
    with np.load(folder / "cka.npz") as file:
        is_tracked(folder, file["cka"].mean(0), file["layers_b"].tolist())


def is_tracked(folder, cka, layers_b):
    """Weights & Biases has what the folder has: the figure, the most similar layers, the settings as flat keys."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    tracked = read_offline_run(path)
    assert (tracked.group, tracked.job_type, tracked.exit_code) == ("pair", "similarity", 0)
    assert tracked.config["similarity.a"] == "test_resnet"
    assert tracked.summary["n_images"] == 60
    pairs = tracked.table("most_similar")
    assert [pair["layer_a"] for pair in pairs] == ["layer1", "layer2", "layer3", "layer4"]
    assert [pair["layer_b"] for pair in pairs] == [layers_b[column] for column in cka.argmax(1)]
    np.testing.assert_allclose([pair["cka"] for pair in pairs], cka.max(1), rtol=1e-6)
    (picture,) = {row["cka.path"] for row in tracked.history if "cka.path" in row}
    assert (path.parent / "files" / picture).read_bytes() == (folder / "cka.png").read_bytes()


@pytest.mark.script
def test_checkpoints_and_embeddings_of_the_pipeline_are_compared(finished, tmp_path):
    folder, _ = finished
    whole = folder / "outputs/whole"
    shutil.copytree(folder / "outputs/simulated", tmp_path / "outputs/simulated")
    survey = [path.name for path in (tmp_path / "outputs/simulated").iterdir()]
    sizes = (*FINISHED_SURVEY, f"data.root=outputs/simulated/{survey[0]}", "data.workers=0")
    common = (*sizes, *QUICK, "logger=none")
    best, embedded = whole / "train/best.ckpt", whole / "embed/embeddings.h5"
    ends = run_in_turn(
        [
            (
                tmp_path,
                "similarity.py",
                *common,
                f"similarity.a={best}",
                f"similarity.b={best}",
                "similarity.layers_a=[backbone.layer?,bottleneck]",
                "similarity.split=test",
                "name=networks",
            ),
            (tmp_path, "similarity.py", *common, f"similarity.a={embedded}", f"similarity.b={embedded}", "name=files"),
        ]
    )
    assert [status for status, _ in ends] == [0, 0], ends
    for name, n_layers in (("networks", 5), ("files", 1)):
        with np.load(tmp_path / f"outputs/{name}/similarity/cka.npz") as file:
            found = file["cka"].mean(0)
        assert found.shape == (n_layers, n_layers)
        np.testing.assert_allclose(np.diagonal(found), 1, rtol=1e-9)
