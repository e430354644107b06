"""The study of objectives on biased data, as it is run: a sweep of train.py, and its table and figure."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_scripts import run_in_turn

pytestmark = pytest.mark.script

SWEEP = "outputs/study/train-sweep"
TRAIN = (
    "train.py",
    "-m",
    "task=biased",
    "bias=digits",
    "bias.image_size=8",
    "bias.n_validation=1000",
    "objective=sce,nll",
    "seed=1",
    "classifier.batch_size=128",
    "trainer.max_epochs=1",
    "logger=none",
    "name=study",
)
FIGURES = ("rarezoo.report.biased", SWEEP)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Folder, and exit status and output of training, of the figures, and of the command given wrongly."""
    folder = tmp_path_factory.mktemp("study")
    commands = (TRAIN, FIGURES, (*FIGURES, "--root", "elsewhere"), (FIGURES[0], "outputs/biased"), (FIGURES[0], "no"))
    ends = run_in_turn([(folder, *command) for command in (*commands, (*FIGURES, "--batch-size", "7"))])
    return folder, ends


def test_sweep_leaves_the_table_of_its_objectives(study):
    folder, ends = study
    assert ends[0][0] == 0, ends[0][1]
    table = pd.read_parquet(folder / SWEEP / "objectives.parquet")
    assert table["objective"].unique().tolist() == ["sce", "nll"]
    assert set(table["images"]) == {"all", "aligned", "conflicting"}
    assert table["mean"].between(0, 100).all()


def test_command_leaves_the_figure_of_its_layers(study):
    folder, ends = study
    status, said = ends[1]
    assert status == 0, said
    assert Image.open(folder / SWEEP / "cka-digits.png").format == "PNG"
    with np.load(folder / SWEEP / "cka-digits.npz") as file:
        found = {name: file[name] for name in file.files}
    assert sorted(found["objectives"].tolist()) == ["nll", "sce"]
    assert found["itself"].shape == (2, 60, 60)
    assert found["n_images"] == 449
    for name in ("objectives.parquet", "objectives.md", "cka-digits.npz", "cka-digits.png"):
        assert f"{SWEEP}/{name}" in said


def test_likelihood_is_the_same_network_as_cross_entropy(study):
    with np.load(study[0] / SWEEP / "cka-digits.npz") as file:
        itself, with_reference = file["itself"], file["with_reference"]
        nll = file["objectives"].tolist().index("nll")
    np.testing.assert_array_equal(itself[0], itself[1])
    np.testing.assert_array_equal(with_reference[nll], itself[nll])


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (2, "elsewhere: does not hold the images that the networks were trained on"),
        (3, "outputs/biased: has no complete run of train.py with task=biased"),
        (4, "no: has no complete run of train.py with task=biased"),
        (5, "7: give a whole number from 8"),
    ],
)
def test_command_that_is_given_wrongly_says_what_to_give(study, command, shown):
    status, said = study[1][command]
    assert status == 2
    assert shown in " ".join(said.split())
    assert "Traceback" not in said
