import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from known_truth import attributes, injected, runs, surveys
from known_truth import simulated as planting
from known_truth.representations import (
    RECIPES,
    networks_of,
    networks_with_features,
    pixel_components,
    random_encoder,
    representations_of,
)
from known_truth.simulated import membership, simulated, simulated_source
from omegaconf import OmegaConf
from PIL import Image
from sklearn.decomposition import PCA

from rarezoo.cli import UserError
from rarezoo.config import EmbedSettings, validated
from rarezoo.models.backbones import create_backbone
from rarezoo.models.pretrained import load_weights
from rarezoo.models.settings import TrainSettings

CONF = Path(__file__).parents[2] / "conf"
TEXT = h5py.string_dtype()
TREE = {
    "smooth-or-featured": {"answers": ["smooth", "featured", "artifact"], "asked_after": []},
    "disk-edge-on": {"answers": ["yes", "no"], "asked_after": []},
}
LABELS = [f"{question}_{answer}" for question, node in TREE.items() for answer in node["answers"]]
N_ROWS, N_EFIGI = 12, 900
# Smooth, edge-on, artifact: predicted shares of rows that a cut removes; the others pass all of them.
SMOOTH, EDGE_ON, ARTIFACT = (0, 1), (2,), (3, 4, 5)

# Stand-ins for the scripts: they keep what they were asked, and take a second where training takes hours.
TRAIN = """
import json, pathlib, sys
given = dict(each.lstrip("+").split("=", 1) for each in sys.argv[1:])
folder = pathlib.Path(given["output_dir"].strip('"')) / "train"
folder.mkdir(exist_ok=True)
(folder / "best.ckpt").touch()
(folder / "asked.json").write_text(json.dumps(sys.argv[1:]))
"""
EMBED = """
import json, pathlib, shutil, sys
given = dict(each.lstrip("+").split("=", 1) for each in sys.argv[1:])
folder = pathlib.Path(given["output_dir"].strip('"')) / "embed"
folder.mkdir(exist_ok=True)
default = str(folder.parent / "train" / "best.ckpt")
assert pathlib.Path(given.get("checkpoint", default).strip('"')).is_file()
shutil.copy("embeddings.h5", folder)
(folder / "asked.json").write_text(json.dumps(sys.argv[1:]))
"""


def write_embeddings(path, ids, image_root="images", files=None, with_features=True):
    """An embedding whose first column is the row, and the votes those of the rows named above."""
    n_rows = len(ids)
    votes = np.tile(np.array([10.0, 80, 10, 10, 90]), (n_rows, 1))
    for rows, column in ((SMOOTH, 0), (ARTIFACT, 2)):
        for row in rows:
            votes[row, :3] = np.roll([80, 10, 10], column)
    for row in EDGE_ON:
        votes[row, 3:] = 90, 10
    numbers = np.random.default_rng(0).normal(size=(n_rows, 6)).astype(np.float32)
    numbers[:, 0] = np.arange(n_rows)
    with h5py.File(path, "w") as file:
        file["id"] = np.array(ids, dtype=TEXT)
        file["file_loc"] = np.array(files if files is not None else [f"{each}.png" for each in ids], dtype=TEXT)
        file["representation"] = numbers
        file["concentrations"] = votes.astype(np.float32)
        if with_features:
            file["features"] = np.hstack([numbers, -numbers]).astype(np.float16)
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", data=np.array([], dtype=TEXT))
        config = {"data": {"truth": str(path.parent / "truth.parquet")}}
        file.attrs.update({"format": 1, "complete": True, "schema": json.dumps(TREE), "n_failed": 0})
        file.attrs.update({"image_root": str(image_root), "config": json.dumps(config)})
        file.attrs.create("label_cols", LABELS, dtype=TEXT)
    return votes


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory in which train.py and embed.py are stand-ins."""
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "train.py").write_text(TRAIN)
    (repo / "embed.py").write_text(EMBED)
    (repo / "conf").symlink_to(CONF)
    for module in (runs, planting):
        monkeypatch.setattr(module, "REPO", repo)
    runs.run_stage.cache_clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planted(workplace):
    """The same with an embedding, one of whose galaxies the truth has in another order and some are of no class."""
    ids = [f"g{row}" for row in range(N_ROWS)]
    write_embeddings(workplace / "embeddings.h5", ids)
    truth = pd.DataFrame({"id_str": ids, "rare_class": None, "artifact": None}, dtype=object)
    truth.loc[[0, 6, 7], "rare_class"] = "ring"
    truth.loc[[8], "rare_class"] = "jellyfish"
    truth.loc[[3, 4], "artifact"] = "trail"
    lost = pd.DataFrame({"id_str": ["lost"], "rare_class": ["ring"], "artifact": [None]})
    pd.concat([truth.iloc[::-1], lost]).to_parquet(workplace / "truth.parquet")
    return workplace


def small_source(folder, names=("bottleneck",), **changes):
    sizes = {"n_galaxies": 8000, "size": 64, "seed": 3, "test_share": 0.45, "epochs": 2, "rare_shares": (0.001, 0.01)}
    return simulated_source(folder, names=names, **sizes | changes)


def asked(folder):
    return json.loads((folder / "asked.json").read_text())


@pytest.fixture(scope="module")
def hydra_at_hand():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(model, command, overrides):
    config = OmegaConf.to_container(compose(command, list(overrides)), resolve=True)
    return validated(model, config, f"{command}.py")


@pytest.mark.parametrize("name", sorted({recipe.network for recipe in RECIPES.values()}))
def test_overrides_of_every_network_compose_into_valid_settings(hydra_at_hand, tmp_path, name):
    source = small_source(tmp_path, [name])
    trained = composed(TrainSettings, "train", source.training(name))
    assert (trained.data.n_galaxies, trained.data.survey_seed, trained.seed) == (8000, 3, 3)
    assert (trained.data.rare_share_min, trained.data.rare_share_max) == (0.001, 0.01)
    assert round(8000 * (1 - trained.data.validation_share - trained.data.test_share)) == 4000
    assert trained.bottleneck.dim == (None if name == "unbottlenecked" else 128)
    assert trained.retrain.n_blocks == (0 if name in ("imagenet", "random") else None)
    embedded = composed(EmbedSettings, "embed", source.embedding(name))
    assert embedded.embedding.features == (name in ("imagenet", "random"))


def test_path_keeps_the_characters_that_mean_something_to_hydra(hydra_at_hand, tmp_path):
    folder = tmp_path / "a=b, {c} [d]"
    overrides = (runs.option("output_dir", folder), runs.option("checkpoint", folder / "best.ckpt"))
    assert composed(EmbedSettings, "embed", overrides).checkpoint == folder / "best.ckpt"


def test_network_of_another_survey_is_named_as_checkpoint_and_not_trained_again(hydra_at_hand, tmp_path):
    small = small_source(tmp_path)
    large = small_source(tmp_path, n_galaxies=100_000, trained=small)
    settings = composed(EmbedSettings, "embed", large.embedding("bottleneck"))
    assert settings.checkpoint == tmp_path / "simulated-8000-seed3" / "bottleneck" / "train" / "best.ckpt"
    assert settings.data.n_galaxies == 100_000


def test_survey_joins_the_truth_by_id_whatever_its_order(planted):
    survey = simulated(small_source(planted), ["bottleneck"], 3)
    assert (survey.name, survey.truth, survey.seed) == ("simulated-8000", "planted", 3)
    assert list(survey.classes) == ["jellyfish", "ring"]
    assert np.flatnonzero(survey.classes["ring"]).tolist() == [0, 6, 7]
    assert np.flatnonzero(survey.classes["jellyfish"]).tolist() == [8]
    assert survey.kinds.tolist() == ["trail" if row in (3, 4) else "" for row in range(N_ROWS)]


def test_rows_are_those_that_pass_the_papers_cuts(planted):
    survey = simulated(small_source(planted), ["bottleneck"], 3)
    removed = {*SMOOTH, *EDGE_ON}
    assert survey.rows_with_artifacts.tolist() == [row for row in range(N_ROWS) if row not in removed]
    assert survey.rows.tolist() == [row for row in range(N_ROWS) if row not in removed | {*ARTIFACT}]


def test_second_network_is_made_only_when_its_representation_is_read(planted):
    survey = simulated(small_source(planted, ["bottleneck", "layernorm"]), ["bottleneck", "layernorm"], 3)
    folder = planted / "simulated-8000-seed3"
    assert [path.name for path in folder.iterdir()] == ["bottleneck"]
    survey.representations["layernorm"]()
    assert "bottleneck=d128_layernorm" in asked(folder / "layernorm" / "train")


def test_representations_are_what_the_file_holds(planted):
    names = ["bottleneck", "features", "votes"]
    survey = simulated(small_source(planted, names), names, 3)
    found = {name: read() for name, read in survey.representations.items()}
    with h5py.File(planted / "embeddings.h5") as file:
        numbers, votes = file["representation"][:], file["concentrations"][:]
        np.testing.assert_array_equal(found["features"], file["features"][:].astype(np.float32))
    np.testing.assert_array_equal(found["bottleneck"], numbers)
    fractions = np.hstack([part / part.sum(1, keepdims=True) for part in (votes[:, :3], votes[:, 3:])])
    np.testing.assert_allclose(found["votes"], fractions, rtol=1e-6)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_rows_of_another_embedding_are_brought_into_the_order_of_the_ids(planted):
    reversed_ids = np.array([f"g{row}" for row in reversed(range(N_ROWS))], dtype=object)
    read = representations_of(small_source(planted), ["bottleneck"], reversed_ids)["bottleneck"]
    assert read()[:, 0].tolist() == list(reversed(range(N_ROWS)))


def test_galaxy_that_another_network_did_not_embed_is_named(planted):
    read = representations_of(small_source(planted), ["bottleneck"], np.array(["g1", "nowhere"], dtype=object))
    with pytest.raises(UserError, match="has no galaxy 'nowhere'"):
        read["bottleneck"]()


def test_embedding_without_features_says_how_to_get_them(planted):
    ids = [f"g{row}" for row in range(N_ROWS)]
    write_embeddings(planted / "embeddings.h5", ids, with_features=False)
    read = representations_of(small_source(planted, ["features"]), ["features"], np.array(ids, dtype=object))
    with pytest.raises(UserError, match="holds no features from before the bottleneck"):
        read["features"]()


def test_script_that_fails_is_told_with_its_last_words(workplace):
    (workplace / "repo" / "train.py").write_text("raise SystemExit('the disk is full of rings')")
    with pytest.raises(UserError, match=r"(?s)train.py ended with status 1 .*the disk is full of rings"):
        small_source(workplace).embeddings("bottleneck")


def test_folder_that_cannot_be_written_to_is_named(workplace):
    (workplace / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*--out"):
        small_source(workplace / "file").embeddings("bottleneck")


def test_features_are_kept_where_a_representation_reads_them():
    assert networks_with_features(["bottleneck", "votes", "layernorm"]) == frozenset()
    assert networks_with_features(["features", "imagenet", "random"]) == {"bottleneck", "imagenet", "random"}


def test_file_of_random_weights_is_that_of_an_untrained_encoder_and_differs_by_seed(tmp_path):
    state = torch.random.get_rng_state()
    first, other = (random_encoder(tmp_path, seed) for seed in (5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    untrained = create_backbone("tf_efficientnet_lite0").state_dict()
    loaded = {}
    for path in (first, other):
        encoder = create_backbone("tf_efficientnet_lite0")
        load_weights(encoder, str(path), "tf_efficientnet_lite0")
        loaded[path] = encoder.state_dict()
    assert all(torch.equal(value, loaded[first][name]) for name, value in untrained.items())
    assert not torch.equal(loaded[first]["conv_stem.weight"], loaded[other]["conv_stem.weight"])


def test_random_weights_are_made_once(tmp_path):
    made = random_encoder(tmp_path, 0).stat().st_mtime_ns
    networks_of(["random"], 1, 0, tmp_path)
    assert random_encoder(tmp_path, 0).stat().st_mtime_ns == made


def test_pixels_are_their_principal_components(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (80, 32, 32, 3), dtype=np.uint8)
    files = [str(tmp_path / f"{row}.png") for row in range(len(images))]
    for pixels, file in zip(images, files, strict=True):
        Image.fromarray(pixels).save(file)
    found = pixel_components(files)
    expected = PCA(64, svd_solver="full").fit_transform(images.transpose(0, 3, 1, 2).reshape(80, -1) / 255)
    assert found.shape == (80, 64)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)


def test_membership_has_one_column_a_class_and_none_for_the_rest():
    table = membership(pd.Series(["b", "", "a", "b"], index=["w", "x", "y", "z"]))
    assert table.to_dict("list") == {"a": [False, False, True, False], "b": [True, False, False, True]}
    assert table.index.tolist() == [0, 1, 2, 3]
    assert membership(pd.Series(["", ""])).shape == (2, 0)


def write_data(folder, n_efigi=N_EFIGI, n_sdss=100, n_goods=60):
    """Catalogs as the folder of real images has them, without the images."""
    rng = np.random.default_rng(1)
    tables = {
        survey: pd.DataFrame({"id_str": [f"{survey}{row}" for row in range(n_rows)]})
        for survey, n_rows in (("efigi", n_efigi), ("sdss", n_sdss), ("goods", n_goods))
    }
    questions = ["bulge-to-total", "arm-strength", "bar-length", "inclination", "perturbation"]
    grades = {question: rng.integers(-1, 5, n_efigi) for question in questions}
    votes = {f"{q}_{level}": 12 * (grades[q] == level) for q in questions for level in range(5)}
    tables["efigi"] = tables["efigi"].assign(**votes)
    for survey, table in tables.items():
        (folder / survey).mkdir(parents=True)
        located = table.assign(file_loc=[f"images/{name}.jpg" for name in table["id_str"]])
        located.to_csv(folder / survey / "catalog.csv", index=False)
    (folder / "efigi" / "schema.yaml").write_text("bar-length: {answers: ['0', '1'], asked_after: null}\n")
    graded = pd.DataFrame({"id_str": tables["efigi"]["id_str"]})
    for attribute in ("inner-ring", "visible-dust", "flocculence", "multiplicity"):
        graded[attribute] = rng.choice([-1, 0, 0.25, 0.5, 0.75, 1], n_efigi)
    graded.sample(frac=1, random_state=0).to_csv(folder / "efigi" / "attributes_test.csv", index=False)
    return grades, graded.set_index("id_str")


def test_injected_images_are_of_the_kinds_that_they_are_named_after(tmp_path):
    grades, _ = write_data(tmp_path)
    catalog = injected.draw_catalog(tmp_path, 0)
    members = {kind: set(rows["id_str"]) for kind, rows in catalog.groupby("rare_class")}
    assert {kind: len(found) for kind, found in members.items() if kind} == dict.fromkeys(
        ["efigi-edge-on", "efigi-strong-bar", "efigi-perturbed", injected.HUBBLE, injected.CONTROL], 40
    )
    rows = {kind: [int(name.removeprefix("efigi")) for name in members[kind]] for kind in injected.EFIGI_KINDS}
    assert (grades["inclination"][rows["efigi-edge-on"]] == 4).all()
    assert (grades["bar-length"][rows["efigi-strong-bar"]] == 4).all()
    assert (grades["perturbation"][rows["efigi-perturbed"]] >= 3).all()
    assert (grades["perturbation"][rows["efigi-strong-bar"]] < 3).all()
    assert all(name.startswith("goods") for name in members[injected.HUBBLE])
    assert all(name.startswith("efigi") for name in members[injected.CONTROL])
    assert members[""] == {f"sdss{row}" for row in range(100)}
    assert catalog["id_str"].is_unique


def test_drawing_again_gives_the_same_and_another_seed_other_images(tmp_path):
    write_data(tmp_path)
    first, again, other = (injected.draw_catalog(tmp_path, seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert set(first["id_str"]) != set(other["id_str"])


def test_too_few_images_of_a_class_are_refused(tmp_path):
    write_data(tmp_path, n_goods=39)
    with pytest.raises(UserError, match="hubble-goods: there are 39 images, and 40 are injected"):
        injected.draw_catalog(tmp_path, 0)


def test_injected_survey_is_embedded_by_the_network_of_the_simulated_one(workplace):
    write_data(workplace / "data")
    catalog = injected.draw_catalog(workplace / "data", 3)
    write_embeddings(workplace / "embeddings.h5", catalog["id_str"].tolist())
    survey = injected.injected(workplace, workplace / "data", ["bottleneck"], 3, small_source(workplace))
    folder = workplace / "injected-8000-seed3"
    assert f'checkpoint="{workplace}/simulated-8000-seed3/bottleneck/train/best.ckpt"' in asked(
        folder / "bottleneck" / "embed"
    )
    assert not (folder / "bottleneck" / "train").exists()
    assert (survey.name, survey.truth) == ("injected-8000", "injected")
    assert survey.rows.tolist() == list(range(300))
    assert len(survey.rows_with_artifacts) == 0
    kinds = {*injected.EFIGI_KINDS, injected.HUBBLE, injected.CONTROL}
    assert survey.classes.sum().to_dict() == dict.fromkeys(sorted(kinds), 40)
    assert list(pd.read_csv(folder / "catalog.csv")) == ["id_str", "file_loc"]
    written = pd.read_csv(folder / "catalog.csv")["file_loc"]
    assert all(Path(each).is_relative_to(workplace / "data") for each in written)


def test_attribute_that_is_not_graded_counts_as_not_there(tmp_path):
    _, graded = write_data(tmp_path)
    ids = np.array([f"efigi{row}" for row in range(N_EFIGI)], dtype=object)
    classes = attributes.graded_classes(tmp_path / "efigi" / "attributes_test.csv", ids)
    assert len(classes.columns) == len(attributes.GRADED)
    rings = graded["inner-ring"].loc[list(ids)].to_numpy()
    np.testing.assert_array_equal(classes["inner-ring>=1"], rings == 1)
    multiple = graded["multiplicity"].loc[list(ids)].to_numpy()
    np.testing.assert_array_equal(classes["multiplicity>=0.5"], multiple >= 0.5)
    assert (multiple == -1).any()
    assert not classes[multiple == -1]["multiplicity>=0.5"].any()


def test_training_on_efigi_never_reads_the_attributes_that_it_is_tested_on(workplace, hydra_at_hand):
    write_data(workplace / "data")
    write_embeddings(workplace / "embeddings.h5", [f"efigi{row}" for row in range(N_EFIGI)])
    survey = attributes.attributes(workplace, workplace / "data", ["bottleneck", "imagenet"], 1, 7)
    said = asked(workplace / "efigi-7epochs-seed1" / "bottleneck" / "train")
    assert not any("attributes_test" in each for each in said)
    trained = composed(TrainSettings, "train", said)
    assert trained.data.catalog == workplace / "data" / "efigi" / "catalog.csv"
    assert (trained.trainer["max_epochs"], trained.seed, trained.data.image_size) == (7, 1, 96)
    assert (survey.name, survey.truth, survey.seed) == ("efigi-7epochs", "attributes", 1)
    assert len(survey.ids) == len(survey.rows) == len(survey.classes) == N_EFIGI


@pytest.fixture
def any_survey(monkeypatch):
    """Surveys are told by name and not made."""
    made = []

    def note(kind):
        return lambda *given, **named: made.append((kind, *given)) or kind

    monkeypatch.setattr(surveys, "simulated", lambda source, names, seed: made.append((source, names)) or "simulated")
    monkeypatch.setattr(surveys.attributes, "attributes", note("efigi"))
    monkeypatch.setattr(surveys.injected, "injected", note("injected"))
    return made


def test_full_suite_has_three_seeds_and_a_large_survey_of_each_network(any_survey, tmp_path):
    write_data(tmp_path / "data")
    found = list(surveys.suite("full", tmp_path / "out", tmp_path / "data"))
    assert found == ["simulated", "efigi", "injected", "simulated"] * 3
    sources = [each for each in any_survey if isinstance(each[0], runs.Source)]
    assert [source.folder.name for source, _ in sources] == [
        "simulated-30000-seed0",
        "simulated-100000-seed10",
        "simulated-30000-seed1",
        "simulated-100000-seed11",
        "simulated-30000-seed2",
        "simulated-100000-seed12",
    ]
    assert all(large.trained is small for (small, _), (large, _) in zip(sources[::2], sources[1::2], strict=True))
    assert ["unbottlenecked" in names for _, names in sources] == [True, *[False] * 5]


def test_seeds_run_one_by_one_are_those_run_together(any_survey, tmp_path):
    list(surveys.suite("full", tmp_path))
    together = [(source.folder.name, names) for source, names in any_survey]
    any_survey.clear()
    for seed in (2, 0, 1):
        list(surveys.suite("full", tmp_path, seeds=[seed]))
    assert sorted((source.folder.name, names) for source, names in any_survey) == sorted(together)


def test_survey_is_not_made_before_it_is_reached(any_survey, tmp_path):
    begun = surveys.suite("small", tmp_path)
    assert any_survey == []
    next(begun)
    assert len(any_survey) == 1


def test_without_data_the_real_surveys_are_left_out_and_it_is_said(any_survey, tmp_path, capsys):
    assert list(surveys.suite("small", tmp_path)) == ["simulated"]
    assert "--data" in capsys.readouterr().err


def test_survey_whose_files_are_absent_is_left_out_and_it_is_said(any_survey, tmp_path, capsys):
    write_data(tmp_path / "data")
    (tmp_path / "data" / "goods" / "catalog.csv").unlink()
    assert list(surveys.suite("small", tmp_path, tmp_path / "data")) == ["simulated", "efigi"]
    assert "has no goods/catalog.csv" in capsys.readouterr().err


def test_seeds_of_the_user_take_the_place_of_the_suites(any_survey, tmp_path):
    list(surveys.suite("small", tmp_path, seeds=[4, 5]))
    assert [source.folder.name for source, _ in any_survey] == ["simulated-8000-seed4", "simulated-8000-seed5"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [("smal", None, "--suite=smal: .*small"), ("small", "nowhere", "--data=nowhere: there is no such folder")],
)
def test_suite_or_folder_that_is_not_there_is_refused_before_any_work(any_survey, tmp_path, name, data, said):
    with pytest.raises(UserError, match=said):
        next(surveys.suite(name, tmp_path, data and Path(data)))
    assert any_survey == []
