import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rarezoo.embeddings.redundancy import FeatureMoments, spectrum
from rarezoo.report.redundancy import redundancy_figure, say_redundancy, spectrum_table, write_redundancy


def moments_of(width, n_rows=200, constant=0):
    rng = np.random.default_rng(width)
    features = rng.normal(size=(n_rows, width)) * 0.98 ** np.arange(width) @ rng.normal(size=(width, width))
    features[:, :constant] = 1.0
    moments = FeatureMoments(width)
    moments.update(features)
    return moments


MOMENTS = {"features": moments_of(160), "representation": moments_of(12)}


def test_files_hold_every_component_of_every_space(tmp_path):
    write_redundancy(tmp_path, MOMENTS)
    table = pd.read_parquet(tmp_path / "redundancy.parquet")
    assert table.groupby("space").size().to_dict() == {"features": 160, "representation": 12}
    for space, rows in table.groupby("space"):
        expected = spectrum(MOMENTS[space])
        assert rows["component"].tolist() == list(range(1, len(rows) + 1))
        np.testing.assert_allclose(rows["variance_ratio"], expected.variance_ratio)
        np.testing.assert_allclose(rows["variance_ratio_standardised"], expected.standardised_ratio)
        np.testing.assert_allclose(rows[["cumulative", "cumulative_standardised"]].iloc[-1], 1)
    assert Image.open(tmp_path / "redundancy.png").size == (1500, 660)


def test_terminal_shows_what_the_record_holds(tmp_path, capsys):
    summary = write_redundancy(tmp_path, MOMENTS)
    paths = say_redundancy({"n_galaxies": 200, **summary}, tmp_path)
    assert all(path.is_file() for path in paths.values())
    said = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().err.splitlines()}
    found = spectrum(MOMENTS["representation"]).describe()
    assert said["representation"][:4] == ["12", *(str(found[f"components_{share}"]) for share in (90, 95, 99))]
    assert said["representation"][4] == f"{found['participation_ratio']:.2f}"
    assert said["space"][0] == "width"


def test_run_that_did_not_gather_moments_writes_and_says_nothing(tmp_path, capsys):
    assert write_redundancy(tmp_path, {}) == {}
    assert say_redundancy({"n_galaxies": 200}, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("moments", [MOMENTS, {"features": moments_of(3, constant=1)}, {"features": moments_of(1)}])
def test_figure_marks_128_only_where_there_are_more_features(moments):
    figure = redundancy_figure({space: spectrum(found) for space, found in moments.items()})
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == (["D = 128"] * 2 if moments is MOMENTS else [])
    figure.savefig("/dev/null", format="png")


def test_lines_of_the_figure_are_the_columns_of_the_table():
    spectra = {space: spectrum(found) for space, found in MOMENTS.items()}
    left, right = redundancy_figure(spectra).axes
    table = spectrum_table(spectra)
    first = table[table["space"] == "features"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), first["variance_ratio"])
    drawn = right.lines[0].get_ydata()
    np.testing.assert_allclose(drawn[:-1], 1 - first["cumulative"].iloc[:-1], rtol=1e-6)
