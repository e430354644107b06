import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.data.simulate import RARE_CLASSES, rare_counts, simulate_survey
from rarezoo.data.simulate.chunks import CHUNK_SIZE
from rarezoo.provenance import sha256_of_file

REPOSITORY = Path(__file__).parents[2]
TREE = yaml.safe_load((REPOSITORY / "conf" / "schema" / "decals_dr5.yaml").read_text())
N = 2 * CHUNK_SIZE + 37
ARGUMENTS = {"n_galaxies": N, "size": 32, "seed": 3, "rare_share_min": 0.003, "rare_share_max": 0.03}

MAKE = """
import sys, yaml
from pathlib import Path
from rarezoo.data.simulate import simulate_survey
if __name__ == "__main__":
    tree = yaml.safe_load(Path(sys.argv[2]).read_text())
    print(simulate_survey(Path(sys.argv[1]), int(sys.argv[3]), 32, 0, tree, workers=2))
"""


def make(root, workers=1, **changes):
    return simulate_survey(root, decision_tree=TREE, workers=workers, **{**ARGUMENTS, **changes})


def contents(root):
    return {str(path.relative_to(root)): sha256_of_file(path) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated") / "survey"
    assert make(root)
    return root


@pytest.fixture(scope="module")
def catalog(survey):
    return pd.read_parquet(survey / "catalog.parquet")


@pytest.fixture(scope="module")
def truth(survey):
    return pd.read_parquet(survey / "truth.parquet")


def start(root, tmp_path, n_galaxies):
    script = tmp_path / "make.py"
    script.write_text(MAKE)
    command = [sys.executable, script, root, REPOSITORY / "conf" / "schema" / "decals_dr5.yaml", str(n_galaxies)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_pictures(root, process):
    for _ in range(600):
        if any(root.parent.glob(f".{root.name}.*.part/images/0000/*.jpg")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    pytest.fail("no picture within a minute")


def test_catalog_rows_are_valid_and_every_picture_decodes_at_the_size(survey, catalog):
    assert len(catalog) == N
    assert catalog["id_str"].is_unique
    assert catalog["file_loc"].is_unique
    assert catalog["ra"].between(0, 360).all()
    assert catalog["dec"].between(-90, 90).all()
    for name in catalog["file_loc"]:
        with Image.open(survey / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
            image.load()


def test_ids_and_files_follow_the_numbering(catalog):
    assert catalog["id_str"].tolist()[:2] == ["SIM000000000", "SIM000000001"]
    assert catalog["file_loc"].iloc[12] == "images/0000/SIM000000012.jpg"


def test_catalog_has_one_count_column_per_answer_and_nothing_of_the_truth(catalog, truth):
    answers = [f"{question}_{answer}" for question, node in TREE.items() for answer in node["answers"]]
    assert list(catalog) == ["id_str", "file_loc", "ra", "dec", *answers]
    assert set(catalog) & set(truth) == {"id_str"}
    assert not any(name in str(catalog.to_numpy().ravel().tolist()) for name in RARE_CLASSES)
    assert (catalog[answers] >= 0).all().all()


def test_truth_is_in_catalog_order(catalog, truth):
    assert truth["id_str"].tolist() == catalog["id_str"].tolist()


def test_every_rare_class_has_exactly_its_count(survey, truth):
    wanted = rare_counts(N, 0.003, 0.03)
    assert truth.loc[truth["rare_class"] != "", "rare_class"].value_counts().to_dict() == wanted
    assert json.loads((survey / "survey.json").read_text())["rare_classes"] == wanted
    assert (truth.loc[truth["rare_class"] != "", "artifact"] == "").all()


def test_shares_of_rare_classes_are_spaced_evenly_in_logarithm():
    counts = list(rare_counts(10**7, 0.0005, 0.005).values())
    assert counts[0] == 5000
    assert counts[-1] == 50_000
    np.testing.assert_allclose(np.diff(np.log(counts)), np.log(10) / (len(counts) - 1), rtol=1e-3)


def test_rare_galaxies_are_scattered_over_the_survey(truth):
    places = np.flatnonzero(truth["rare_class"] != "")
    assert places.min() < N / 5
    assert places.max() > 4 * N / 5


def test_survey_is_the_same_whatever_the_number_of_workers(survey, tmp_path):
    assert make(tmp_path / "survey", workers=3)
    ours, theirs = contents(tmp_path / "survey"), contents(survey)
    assert ours.pop("survey.json")
    assert theirs.pop("survey.json")
    assert ours == theirs


def test_another_seed_gives_another_survey(tmp_path, truth):
    make(tmp_path / "survey", seed=4, n_galaxies=60)
    other = pd.read_parquet(tmp_path / "survey" / "truth.parquet")
    assert not np.isclose(other["snr"], truth["snr"][:60]).any()


def test_same_seed_gives_the_same_galaxies_at_any_size(tmp_path, truth):
    make(tmp_path / "survey", size=64)
    larger = pd.read_parquet(tmp_path / "survey" / "truth.parquet")
    assert larger["rare_class"].tolist() == truth["rare_class"].tolist()
    np.testing.assert_allclose(larger["half_light_radius"], 2 * truth["half_light_radius"])
    np.testing.assert_allclose(larger["axis_ratio"], truth["axis_ratio"])


def test_record_has_the_hashes_arguments_and_versions(survey):
    record = json.loads((survey / "survey.json").read_text())
    assert record["sha256"] == {name: sha256_of_file(survey / name) for name in ("catalog.parquet", "truth.parquet")}
    assert record["arguments"].items() >= ARGUMENTS.items()
    assert "numpy" in record["versions"]


def test_a_survey_that_is_there_is_not_made_again(survey):
    before = contents(survey)
    assert make(survey) is False
    assert contents(survey) == before


def test_other_arguments_are_refused_by_name(survey):
    with pytest.raises(UserError, match=r"data\.n_galaxies: 437 there, 500 now; data\.survey_seed: 3 there, 9 now"):
        make(survey, n_galaxies=500, seed=9)


def test_another_decision_tree_is_refused(survey):
    other = {question: {**node, "answers": node["answers"][::-1]} for question, node in TREE.items()}
    with pytest.raises(UserError, match=r"another decision tree \(schema=\.\.\.\)\).*data\.root="):
        simulate_survey(survey, decision_tree=other, **ARGUMENTS)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no simulated survey.*data\.root="):
        make(tmp_path, n_galaxies=3)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"arguments": 3}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "survey.json").write_text(text)
    with pytest.raises(UserError, match=r"survey\.json: cannot be read"):
        make(tmp_path, n_galaxies=3)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "survey").mkdir()
    assert make(tmp_path / "survey", n_galaxies=3)
    assert (tmp_path / "survey" / "images" / "0000" / "SIM000000002.jpg").exists()


def test_zero_shares_plant_nothing(tmp_path):
    make(tmp_path / "survey", n_galaxies=40, rare_share_min=0, rare_share_max=0, artifact_share=0)
    truth = pd.read_parquet(tmp_path / "survey" / "truth.parquet")
    assert (truth[["rare_class", "artifact"]] == "").all().all()


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"n_galaxies": 0}, "data.n_galaxies=0"),
        ({"n_galaxies": 10.5}, "data.n_galaxies=10.5"),
        ({"size": 31}, "data.survey_size=31"),
        ({"seed": -1}, "data.survey_seed=-1"),
        ({"artifact_share": 1.2}, "data.artifact_share=1.2"),
        ({"artifact_share": float("nan")}, "data.artifact_share=nan"),
        ({"rare_share_min": -0.1}, "data.rare_share_min=-0.1"),
        ({"rare_share_max": 0.5}, "data.rare_share_max=0.5"),
        ({"rare_share_min": 0.02, "rare_share_max": 0.01}, "data.rare_share_min=0.02"),
        ({"rare_share_min": 0.0}, "data.rare_share_min=0.0"),
        ({"workers": 0}, "data.workers=0"),
        ({"n_galaxies": 11, "rare_share_min": 0.06, "rare_share_max": 0.06}, "data.n_galaxies=11"),
    ],
)
def test_arguments_out_of_range_are_refused_before_any_work(tmp_path, changes, option):
    with pytest.raises(UserError) as error:
        make(tmp_path / "survey", **changes)
    assert option in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_tree_that_volunteers_cannot_answer_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="decision tree"):
        simulate_survey(tmp_path / "survey", 3, 32, 0, {"colour": {"answers": ["red"], "asked_after": None}}, workers=1)
    assert not (tmp_path / "survey").exists()
    assert not list(tmp_path.glob("*.part"))


def test_a_root_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make(tmp_path / "file" / "survey", n_galaxies=3)


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    root = tmp_path / "out" / "survey"
    process = start(root, tmp_path, 200_000)
    wait_for_pictures(root, process)
    # A terminal sends it to the whole group, workers included.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "SpawnProcess" not in errors
    assert "spawn_main" not in errors
    assert [path.name for path in root.parent.iterdir() if path.suffix != ".lock"] == []


def test_a_killed_process_leaves_no_survey_and_its_workers_end(tmp_path):
    root = tmp_path / "out" / "survey"
    process = start(root, tmp_path, 200_000)
    wait_for_pictures(root, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.kill()
    process.communicate()
    assert not root.exists()
    for _ in range(200):
        if not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers)
    assert make(root, n_galaxies=3)
    assert {path.name for path in root.parent.iterdir()} == {"survey", ".survey.lock"}


def test_of_two_that_start_together_one_makes_it_and_the_other_waits(tmp_path):
    root = tmp_path / "out" / "survey"
    both = [start(root, tmp_path, 150) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert sorted(out.strip() for out, _ in answers) == ["False", "True"], answers
    assert len(pd.read_parquet(root / "catalog.parquet")) == 150
