import hashlib
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rarezoo.cli import UserError
from rarezoo.votes import Schema, load_schema
from rarezoo.votes.schema import resolve_schema
from rarezoo.votes.tree_files import SCHEMA_FOLDER, tree_names

# Questions, answers, and the start of the sha256 of the label columns, one a line, as galaxy-datasets 0.0.25 has them.
PUBLISHED = {
    "rings": (1, 2, "257494d6870a61ff"),
    "gz2": (10, 30, "67e3d365aee2d35b"),
    "decals_dr12": (10, 30, "b424a35124b9d309"),
    "decals_dr5": (10, 34, "61e3a97be1cee462"),
    "decals_dr8": (10, 34, "523cfd1d055a9aa2"),
    "decals_all_campaigns": (30, 98, "80b114ffb63bb168"),
    "desi": (10, 34, "23221b7aed4f23b7"),
    "hubble": (12, 34, "e9cfaab188d7213d"),
    "hubble_v2": (9, 28, "a28ce802430e1fa6"),
    "candels": (11, 32, "23eecade7db56642"),
    "cosmic_dawn": (13, 45, "93693edf01e9bb0e"),
    "ukidss": (10, 30, "6e2d63d8090814d8"),
    "euclid": (13, 46, "52ff10b660d7a746"),
    "jwst_ceers": (12, 39, "8c6e739f0c02397b"),
    "jwst_cosmos": (11, 36, "7549f968d3d20eee"),
    "gz_evo_v1": (76, 239, "ddd7e0b711454782"),
    "gz_evo_v1_public": (63, 194, "d222d2f6a270e181"),
    "gz_evo_v2": (86, 279, "d06a8ec434e33149"),
    "gz_evo_v2_public": (60, 188, "14ac9723f14fbd24"),
}
# Where galaxy-datasets does not add "ortho" to the name.
THEIR_NAMES = {name: name for name in PUBLISHED if name.startswith("gz_evo")} | {
    "rings": "rings",
    "desi": "desi",
    "jwst_ceers": "jwst_ortho",
}
DOCS = (Path(__file__).parents[2] / "docs" / "decision_trees.md").read_text(encoding="utf-8")


def parents(schema):
    return {question.name: set(question.asked_after) for question in schema.questions}


def published(name):
    return f"{name}_published" if name != "rings" else name


def test_every_published_tree_is_there():
    assert set(tree_names()) == set(PUBLISHED) | {published(name) for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_label_columns_are_the_published_ones_in_name_and_order(name):
    for variant in (name, published(name)):
        schema = load_schema(variant)
        digest = hashlib.sha256("\n".join(schema.label_cols).encode()).hexdigest()[:16]
        assert (len(schema.questions), len(schema.label_cols), digest) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_variant_is_the_published_tree(name):
    metadata = pytest.importorskip("galaxy_datasets.shared.label_metadata", reason="galaxy-datasets is not installed")
    theirs = THEIR_NAMES.get(name, f"{name}_ortho")
    campaigns = "decals_ortho" if name.startswith("decals") else theirs
    parent = getattr(metadata, f"{campaigns}_dependencies")
    tree = {
        question: {"answers": [answer.removeprefix("_") for answer in answers], "asked_after": parent[question]}
        for question, answers in getattr(metadata, f"{theirs}_pairs").items()
    }
    assert load_schema(published(name)) == Schema.from_tree(tree)


@pytest.fixture(scope="module")
def _hydra():
    with initialize_config_dir(str(SCHEMA_FOLDER.parent), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("name", tree_names())
def test_a_tree_composes_with_hydra_as_it_loads(name):
    config = OmegaConf.to_container(compose(f"schema/{name}"), resolve=True)["schema"]
    assert resolve_schema(config) == load_schema(name)


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("name", ["gz2_published", "gz_evo_v2"])
def test_a_tree_is_chosen_for_training_as_it_loads(name):
    config = OmegaConf.to_container(compose("train", [f"schema={name}"]), resolve=True)["schema"]
    assert resolve_schema(config) == load_schema(name)


@pytest.mark.parametrize("name", ["gz_evo_v1", "gz_evo_v2", "decals_all_campaigns"])
def test_a_tree_of_many_campaigns_knows_which_questions_are_whose(name):
    schema = load_schema(name)
    assert sorted(i for indices in schema.campaigns.values() for i in indices) == list(range(len(schema.questions)))
    for campaign, indices in schema.campaigns.items():
        assert all(schema.questions[i].name.endswith(f"-{campaign}") for i in indices)


def test_campaigns_of_the_trees_are_their_suffixes():
    assert list(load_schema("gz_evo_v2").campaigns) == [
        "dr12",
        "dr5",
        "dr8",
        "gz2",
        "candels",
        "hubble",
        "cd",
        "euclid",
    ]
    assert load_schema("gz_evo_v2").campaigns["dr5"] == tuple(range(10, 20))
    assert load_schema("jwst_cosmos").campaigns == {"jwst": tuple(range(11))}


@pytest.mark.parametrize("name", ["desi", "rings"])
def test_a_tree_without_suffixes_has_no_campaigns(name):
    assert load_schema(name).campaigns == {}


def test_a_suffix_of_two_questions_is_part_of_their_names():
    tree = {f"{name}-{part}": {"answers": ["yes", "no"]} for part in ("arms", "size") for name in ("bulge", "bar")}
    assert Schema.from_tree(tree).campaigns == {}


@pytest.mark.parametrize("name", ["gz2", "ukidss"])
def test_an_edge_on_galaxy_is_not_asked_about_bars(name):
    schema = load_schema(name)
    assert parents(schema)[f"bar-{name}"] == {f"disk-edge-on-{name}_no"}
    assert parents(load_schema(f"{name}_published"))[f"bar-{name}"] == {f"smooth-or-featured-{name}_featured-or-disk"}


def test_docs_list_every_tree():
    for name in PUBLISHED:
        questions, answers, _ = PUBLISHED[name]
        assert f"| `{name}` | {questions} | {answers} |" in DOCS


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("gz_evo")])
def test_docs_tell_each_difference_from_the_published_tree(name):
    ours, theirs = parents(load_schema(name)), parents(load_schema(published(name)))
    differing = sorted(question for question in ours if ours[question] != theirs[question])
    listed = [row for row in DOCS.splitlines() if row.startswith(f"| `{name}` | `")]
    assert name == "decals_all_campaigns" or sorted(row.split("`")[3] for row in listed) == differing
    for row in listed:
        question, our, their = (set(re.findall("`([^`]+)`", cell)) for cell in row.split("|")[2:5])
        assert (our, their) == (ours[min(question)], theirs[min(question)])


OWN = "arms: {answers: ['yes', 'no']}\n"


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_files_are_put_together_in_the_order_of_their_defaults(tmp_path):
    write(tmp_path, a=OWN, b="bar: {answers: [strong]}\n", both="defaults: [b, a]\n")
    assert load_schema(tmp_path / "both.yaml").label_cols == ("bar_strong", "arms_yes", "arms_no")


@pytest.mark.parametrize(
    ("defaults", "answers"), [("[a]", ["2"]), ("[a, _self_]", ["2"]), ("[_self_, a]", ["yes", "no"])]
)
def test_what_comes_later_overrides_what_comes_earlier(tmp_path, defaults, answers):
    write(tmp_path, a=OWN, mine=f"defaults: {defaults}\narms: {{answers: ['2'], asked_after: null}}\n")
    assert load_schema(tmp_path / "mine.yaml").questions[0].answers == tuple(answers)


def test_an_override_keeps_the_place_of_its_question(tmp_path):
    write(tmp_path, a=OWN + "bar: {answers: [strong], asked_after: arms_yes}\n")
    write(tmp_path, mine="defaults: [a]\nring: {answers: ['yes']}\narms: {asked_after: ring_yes}\n")
    schema = load_schema(tmp_path / "mine.yaml")
    assert [question.name for question in schema.questions] == ["arms", "bar", "ring"]
    assert schema.questions[0].asked_after == ("ring_yes",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"mine": "defaults: [other]\n", "other": "defaults: [mine]\n"}, r"circle \(mine -> other -> mine\)"),
        ({"mine": "defaults: [mine]\n"}, r"circle \(mine -> mine\)"),
        ({"mine": "defaults: [spirol]\n", "spiral": OWN}, "'spirol'. Did you mean 'spiral'"),
        ({"mine": "defaults: [{override: spiral}]\n", "spiral": OWN}, "list of names"),
        ({"mine": "defaults: spiral\n", "spiral": OWN}, "list of names"),
        ({"mine": "defaults: [../mine]\n"}, "'../mine'"),
        ({"mine": "defaults: []\n"}, "holds no questions"),
        ({"mine": "defaults: [other]\n", "other": "- arms\n"}, r"other\.yaml: holds no questions"),
        ({"mine": "defaults: [other]\n", "other": "arms: [\n"}, r"other\.yaml: is not readable as YAML"),
    ],
)
def test_defaults_that_lead_nowhere_are_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        load_schema(write(tmp_path, **files) / "mine.yaml")


def test_a_question_that_is_there_twice_is_refused_before_one_replaces_the_other(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ring: {answers: ['yes']}\nbar: {answers: ['yes']}\nring: {answers: ['no']}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: is not readable as YAML \('ring' is there twice"):
        load_schema(path)
