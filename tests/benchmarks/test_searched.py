import json

import h5py
import numpy as np
import pandas as pd
import pytest
import speed_tables
from searched import SearchedGalaxies

from rarezoo.cli import UserError

TEXT = h5py.string_dtype()


@pytest.fixture
def survey(tmp_path):
    """A file of embeddings of eight galaxies, of which three are rings, and the table that says so."""
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    ids = [f"J{row}" for row in range(8)]
    with h5py.File(tmp_path / "embeddings.h5", "w") as file:
        file["id"], file["file_loc"] = np.array(ids, TEXT), np.array([""] * 8, TEXT)
        file["representation"], file["concentrations"] = x, np.empty((8, 0), np.float32)
        file.attrs.update({"format": 1, "complete": True, "schema": json.dumps({}), "image_root": "", "n_failed": 0})
        file.attrs.create("label_cols", [], dtype=TEXT)
    names = ["ring" if row < 3 else "" for row in range(8)]
    pd.DataFrame({"id_str": ids, "rare_class": names}).sample(frac=1, random_state=0).to_csv(
        tmp_path / "truth.csv", index=False
    )
    return tmp_path, x


def test_a_survey_is_searched_whole_with_the_classes_that_its_truth_names(survey):
    folder, x = survey
    galaxies = SearchedGalaxies.embedded(folder / "embeddings.h5", folder / "truth.csv")
    np.testing.assert_array_equal(galaxies.representation, x)
    assert galaxies.group.tolist() == ["ring"] * 3 + [""] * 5


def test_a_sample_of_a_survey_keeps_each_galaxys_class(survey):
    folder, x = survey
    galaxies = SearchedGalaxies.embedded(folder / "embeddings.h5", folder / "truth.csv", 5)
    assert len(galaxies) == 5
    rows = [int(np.flatnonzero((x == place).all(1))[0]) for place in galaxies.representation]
    assert galaxies.group.tolist() == ["ring" if row < 3 else "" for row in rows]


@pytest.mark.parametrize("known", [True, False])
def test_what_is_saved_comes_back_with_and_without_known_classes(survey, known):
    folder, _ = survey
    galaxies = SearchedGalaxies.embedded(folder / "embeddings.h5", folder / "truth.csv" if known else None)
    galaxies.save(folder)
    again = SearchedGalaxies.load(folder)
    np.testing.assert_array_equal(again.representation, galaxies.representation)
    np.testing.assert_array_equal(again.group, galaxies.group)


def test_a_truth_of_another_survey_is_refused(survey):
    folder, _ = survey
    pd.DataFrame({"id_str": ["a"], "rare_class": ["ring"]}).to_csv(folder / "truth.csv", index=False)
    with pytest.raises(UserError, match="has none of the galaxies"):
        SearchedGalaxies.embedded(folder / "embeddings.h5", folder / "truth.csv")


@pytest.mark.parametrize("scored", [True, False])
def test_recovery_is_a_column_only_where_classes_are_known(scored, capsys):
    row = {"seconds": 2.0, "cpu": 3.0, "memory": 1.0, "recovery": 0.75}
    speed_tables.print_routes({"rarezoo": row, "fresh": row | {"seconds": 5.0}}, scored)
    lines = capsys.readouterr().out.splitlines()
    assert ("mean F1" in lines[0], lines[2].endswith("| 0.750 |")) == (scored, scored)
    assert len({line.count("|") for line in lines}) == 1
    assert "| 2.5 |" in lines[3]
