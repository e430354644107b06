import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from small_scripts import REPO, SMALL, run_in_turn

from rarezoo.clustering.settings import ClusterSettings
from rarezoo.config import EmbedSettings, SimilaritySettings, validated
from rarezoo.models.settings import TrainSettings
from rarezoo.votes.schema import resolve_schema

CONF = REPO / "conf"
COMMANDS = {
    "train": TrainSettings,
    "embed": EmbedSettings,
    "cluster": ClusterSettings,
    "similarity": SimilaritySettings,
}
GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml") if not path.stem.startswith("_"))
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name not in ("experiment", "hydra")
}
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))
LAUNCHERS = sorted(path.stem for path in CONF.glob("hydra/launcher/*.yaml"))
# What the comparison of two sources needs wherever no experiment names them.
COMPARED = ["similarity.a=x.ckpt", "similarity.b=y.ckpt"]
# Values that a file leaves to the user, or that another option has to have with it.
GIVEN = {
    "data=catalog": ["data.catalog=galaxies.csv"],
    "data=hdf5": ["data.images=galaxies.h5"],
    "data=shards": ["data.shards=packed"],
    "experiment=paper": ["data.catalog=galaxies.csv"],
    "experiment=paper_artifacts": ["data.catalog=galaxies.csv"],
    "experiment=paper_classes": ["data.catalog=galaxies.csv"],
    "retrain=head": ["backbone.weights=encoder.pt"],
    "retrain=last_blocks": ["backbone.weights=encoder.pt"],
    "schema=from_file": ["schema.path=tree.yaml"],
    "trainer=slurm": ["trainer.num_nodes=2", "trainer.devices=4"],
}

OWN_TREE = "ring: {answers: ['yes', 'no']}\n"
OWN_CATALOG = (
    "data=catalog",
    "data.catalog=galaxies.csv",
    "schema=from_file",
    "schema.path=tree.yaml",
    "data.image_size=32",
    "backbone=tiny",
)


@pytest.fixture(scope="module", autouse=True)
def hydra_at_hand():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(command, *overrides):
    return OmegaConf.to_container(compose(command, list(overrides)), resolve=True)


def rounds_of_choices():
    """Commands, and one choice of each group at a time, so that every choice has its turn with every command.

    A composition takes long: as many as the largest group has files, rather than one for each file. The trees of
    training are the largest group by far, and no other command reads them.
    """
    for command in COMMANDS:
        groups = {name: files for name, files in GROUPS.items() if command == "train" or name != "schema"}
        for turn in range(max(map(len, groups.values()))):
            choices = [f"{name}={files[turn % len(files)]}" for name, files in groups.items()]
            yield pytest.param(command, choices, id=f"{command}-{turn}")


@pytest.mark.parametrize(("command", "choices"), rounds_of_choices())
def test_every_choice_of_every_group_composes_into_valid_settings(command, choices):
    needed = [override for choice in choices for override in GIVEN.get(choice, [])]
    needed += COMPARED if command == "similarity" else []
    settings = validated(COMMANDS[command], composed(command, *choices, *needed), f"{command}.py")
    if command == "train" and "schema=from_file" not in choices:
        assert resolve_schema(settings.tree).label_cols


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_into_valid_settings(command, name):
    choice = f"experiment={name}"
    names_sources = "similarity" in yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    needed = COMPARED if command == "similarity" and not names_sources else []
    validated(COMMANDS[command], composed(command, choice, *GIVEN.get(choice, []), *needed), f"{command}.py")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_of_ours_changes_options_that_its_plugin_has(name):
    config = compose("train", [f"hydra/launcher={name}"], return_hydra_config=True)
    own = yaml.safe_load((CONF / "hydra/launcher" / f"{name}.yaml").read_text())
    (plugin,) = (base for base in own.pop("defaults") if base != "_self_")
    offered = compose("train", [f"hydra/launcher={plugin}"], return_hydra_config=True).hydra.launcher
    assert own.keys() <= offered.keys()
    assert own.items() <= OmegaConf.to_container(config.hydra.launcher).items()


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


def test_outputs_of_the_stages_follow_the_name():
    config = composed("cluster", "name=mine")
    assert config["embeddings"] == "outputs/mine/embed/embeddings.h5"
    assert config["checkpoint"] == "outputs/mine/train/best.ckpt"


WRONG_OPTIONS = [
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
]
BAD_CATALOGS = {
    "misspelt column": ("id_str,file_lc\na,a.jpg\n", "'file_loc' (did you mean 'file_lc'?)"),
    "empty": ("id_str,file_loc,ring_yes,ring_no\n", "the catalog has no rows"),
    "duplicate id": ("id_str,file_loc,ring_yes,ring_no\na,a.jpg,1,2\na,a.jpg,1,2\n", "duplicate"),
    "negative votes": ("id_str,file_loc,ring_yes,ring_no\na,a.jpg,-1,2\n", "ring_yes"),
    "one galaxy": ("id_str,file_loc,ring_yes,ring_no\na,a.jpg,1,2\n", "split"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What each of these commands ended with and said: option or name of the catalog -> (status, standard error)."""
    commands = {}
    for script, option, _ in WRONG_OPTIONS:
        extra = ("data.validation_share=0.5", "data.test_share=0.6") if "validation_share" in option else (option,)
        commands[option] = (tmp_path_factory.mktemp("option"), script, *SMALL[script], *extra)
    for name, (content, _) in BAD_CATALOGS.items():
        folder = tmp_path_factory.mktemp("catalog")
        (folder / "galaxies.csv").write_text(content)
        (folder / "tree.yaml").write_text(OWN_TREE)
        Image.new("RGB", (32, 32)).save(folder / "a.jpg")
        commands[name] = (folder, "train.py", *OWN_CATALOG)
    (in_the_way := tmp_path_factory.mktemp("file") / "outputs").write_text("a file")
    commands["outputs is a file"] = (in_the_way.parent, "cluster.py", *SMALL["cluster.py"])
    ends = dict(zip(commands, run_in_turn(commands.values()), strict=True))
    assert not [path for folder, *_ in commands.values() for path in folder.rglob("*.ckpt")]
    return ends


@pytest.mark.script
@pytest.mark.parametrize(("option", "shown"), [wrong[1:] for wrong in WRONG_OPTIONS])
def test_a_wrong_option_is_named_with_the_fix(refused, option, shown):
    status, said = refused[option]
    assert status == 2, said
    assert shown in said
    assert "Traceback" not in said


@pytest.mark.script
@pytest.mark.parametrize("name", BAD_CATALOGS)
def test_a_bad_catalog_is_refused_before_any_training(refused, name):
    status, said = refused[name]
    assert status == 2, said
    assert BAD_CATALOGS[name][1] in said
    assert "Traceback" not in said


@pytest.mark.script
def test_an_output_folder_that_is_a_file_is_named(refused):
    status, said = refused["outputs is a file"]
    assert status == 2, said
    assert "outputs" in said
    assert "Choose another folder with output_dir=..." in said
    assert "Traceback" not in said
