import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_scripts import REPO, run

from rarezoo.clustering.settings import ClusterSettings
from rarezoo.config import EmbedSettings, TrainSettings, validated
from rarezoo.votes.schema import resolve_schema

CONF = REPO / "conf"
COMMANDS = {"train": TrainSettings, "embed": EmbedSettings, "cluster": ClusterSettings}
GROUPS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "experiment" and not path.stem.startswith("_")
)
# Values that a file of its own leaves to the user.
GIVEN = {
    "data": "data.catalog=galaxies.csv",
    "schema": "schema.path=tree.yaml",
    "experiment": "data.catalog=galaxies.csv",
}

OWN_TREE = "ring: {answers: ['yes', 'no']}\n"
OWN_CATALOG = (
    "data=catalog",
    "data.catalog=galaxies.csv",
    "schema=from_file",
    "schema.path=tree.yaml",
    "backbone=tiny",
)


def composed(command, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(command, list(overrides)), resolve=True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("choice", [*GROUPS, "experiment=demo", "experiment=paper"])
def test_every_choice_of_every_group_composes_into_valid_settings(command, choice):
    group = choice.split("=")[0]
    needed = [GIVEN[group]] if choice in ("data=catalog", "schema=from_file", "experiment=paper") else []
    validated(COMMANDS[command], composed(command, choice, *needed), f"{command}.py")


def test_paper_settings_are_those_of_the_paper():
    config = composed("cluster", "experiment=paper", "data.catalog=galaxies.csv")
    assert config["data"]["image_size"] == 224
    assert config["backbone"]["name"] == "efficientnet_b0"
    assert config["bottleneck"]["dim"] == 128
    assert (config["layout"]["n_neighbors"], config["layout"]["n_components"]) == (50, 5)
    tree = config["tree"]
    assert (tree["min_samples"], tree["min_cluster_size"], tree["method"]) == (300, 10, "leaf")
    cuts = config["selection"]["cuts"]
    assert {name: cut["below"] for name, cut in cuts.items()} == {"smooth": 0.5, "edge_on": 0.3, "artifact": 0.3}


@pytest.mark.parametrize("path", sorted((CONF / "schema").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_schema_of_the_group_is_a_decision_tree(path):
    if path.stem != "from_file":
        assert resolve_schema(composed("train", f"schema={path.stem}")["schema"]).label_cols


def test_outputs_of_the_stages_follow_the_name():
    config = composed("cluster", "name=mine")
    assert config["embeddings"] == "outputs/mine/embed/embeddings.h5"
    assert config["checkpoint"] == "outputs/mine/train/best.ckpt"


@pytest.mark.script
@pytest.mark.parametrize(
    ("script", "option", "shown"),
    [
        ("train.py", "optm.lr=1", "Did you mean 'optim.lr'"),
        ("train.py", "backbone=efficentnet_b0", "Did you mean 'efficientnet_b0'"),
        ("train.py", "experiment=dmo", "Did you mean 'demo'"),
        ("train.py", "optim.lr=-1", "optim.lr=-1: input should be greater than 0"),
        ("train.py", "data.n_galaxies=many", "data.n_galaxies='many'"),
        ("train.py", "data.validation_share=0.9", "validation_share"),
        ("train.py", "backbone.name=resnet81", "timm has no 'resnet81'"),
        ("embed.py", "checkpoint=none.ckpt", "checkpoint=none.ckpt: there is no such file. Run train.py first"),
        ("embed.py", "embedding.dtype=float8", "embedding.dtype='float8'"),
        ("cluster.py", "embeddings=none.h5", "embeddings=none.h5: there is no such file. Run embed.py first"),
        ("cluster.py", "tree.method=leafs", "tree.method='leafs'"),
        ("cluster.py", "+tree.min_sample=3", "Did you mean 'min_samples'"),
    ],
)
def test_a_wrong_option_is_named_with_the_fix(tmp_path, script, option, shown):
    extra = ("data.validation_share=0.5", "data.test_share=0.6") if option.startswith("data.validation") else (option,)
    done = run(tmp_path, script, *extra, check=False)
    assert done.returncode == 2, done.stderr
    assert shown in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.script
@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("id_str,file_lc\na,a.jpg\n", "'file_loc' (did you mean 'file_lc'?)"),
        ("id_str,file_loc,ring_yes,ring_no\n", "the catalog has no rows"),
        ("id_str,file_loc,ring_yes,ring_no\na,a.jpg,1,2\na,a.jpg,1,2\n", "duplicate"),
        ("id_str,file_loc,ring_yes,ring_no\na,a.jpg,-1,2\n", "ring_yes"),
    ],
    ids=["misspelt column", "empty", "duplicate id", "negative votes"],
)
def test_a_bad_catalog_is_refused_before_any_training(tmp_path, content, shown):
    (tmp_path / "galaxies.csv").write_text(content)
    (tmp_path / "tree.yaml").write_text(OWN_TREE)
    done = run(tmp_path, "train.py", *OWN_CATALOG, small=False, check=False)
    assert done.returncode == 2, done.stderr
    assert shown in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.script
def test_a_catalog_of_one_galaxy_is_refused_with_what_to_do(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    (tmp_path / "galaxies.csv").write_text("id_str,file_loc,ring_yes,ring_no\na,a.jpg,1,2\n")
    (tmp_path / "tree.yaml").write_text(OWN_TREE)
    done = run(tmp_path, "train.py", *OWN_CATALOG, "data.image_size=32", small=False, check=False)
    assert done.returncode == 2, done.stderr
    assert "split" in done.stderr


@pytest.mark.script
def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    done = run(tmp_path, "cluster.py", check=False)
    assert done.returncode == 2, done.stderr
    assert "outputs" in done.stderr
    assert "Choose another folder with output_dir=..." in done.stderr
    assert "Traceback" not in done.stderr
