import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from rarezoo.report import predictions
from rarezoo.report.predictions import predictions_figure
from rarezoo.votes import load_schema

SCHEMA = load_schema("decals_dr5")
N_ANSWERS = len(SCHEMA.label_cols)


def galaxies(n, channels=3, seed=0, schema=SCHEMA):
    rng = np.random.default_rng(seed)
    n_answers = len(schema.label_cols)
    images = rng.integers(0, 255, (n, channels, 24, 24), dtype=np.uint8)
    return images, rng.uniform(1, 50, (n, n_answers)).astype(np.float32), rng.integers(0, 9, (n, n_answers))


def picture(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels_are_shown(channels):
    images, concentrations, counts = galaxies(2, channels)
    images[0], images[1] = 255, 0
    counts[:] = 0
    shown = picture(predictions_figure(images, concentrations, counts, SCHEMA))
    assert (shown == 0).all(-1).sum() > 1000
    assert shown.shape[1] == 1430


@pytest.mark.parametrize(("n", "given"), [(6, 3), (2, 9), (1, 1), (5, 0)])
def test_at_most_as_many_galaxies_are_shown_as_asked_for(n, given, monkeypatch):
    drawn = []
    monkeypatch.setattr(predictions, "_draw_votes", lambda axes, *rest: drawn.append(axes))
    picture(predictions_figure(*galaxies(given), SCHEMA, n=n))
    assert len(drawn) == min(n, given)


def test_only_questions_that_were_asked_are_listed_with_their_votes():
    counts = np.zeros(N_ANSWERS)
    second = SCHEMA.questions[1]
    counts[second.start : second.stop] = [3, 4]
    rows = predictions._rows(counts, np.ones(N_ANSWERS), SCHEMA)
    assert [row.text for row in rows] == [f"{second.name}  (7 votes)", *second.answers]
    assert [row.index for row in rows] == [None, *range(second.start, second.stop)]
    assert rows[1].n_votes == 7
    assert rows[1].total == len(second.answers)


def test_galaxy_without_votes_says_so():
    rows = predictions._rows(np.zeros(N_ANSWERS), np.ones(N_ANSWERS), SCHEMA)
    assert [row.text for row in rows] == ["no votes"]


@pytest.mark.parametrize("name", ["decals_dr5", "gz_evo_v2"])
def test_what_has_no_room_is_counted(name):
    schema = load_schema(name)
    rows = predictions._rows(np.ones(len(schema.label_cols)), np.ones(len(schema.label_cols)), schema)
    assert len(rows) <= predictions._MOST_ROWS + 1
    listed = sum(row.text.endswith("votes)") for row in rows)
    assert rows[-1].text == f"and {len(schema.questions) - listed} more questions"


def test_interval_of_the_sampled_fraction_is_that_of_simulated_volunteers():
    concentration, total, n_votes = 4.0, 10.0, 25
    rng = np.random.default_rng(0)
    fractions = rng.binomial(n_votes, rng.beta(concentration, total - concentration, 200_000)) / n_votes
    row = predictions._Row("yes", 0, n_votes, total)
    np.testing.assert_allclose(
        predictions._sampled(row, concentration), np.quantile(fractions, [0.05, 0.95]), atol=1e-9
    )
    # wider than the interval of the fraction itself
    narrow = stats.beta.ppf([0.05, 0.95], concentration, total - concentration)
    assert np.ptp(predictions._sampled(row, concentration)) > np.ptp(narrow)


def test_fractional_votes_and_a_question_of_one_answer_are_drawn():
    images, concentrations, counts = galaxies(1)
    assert picture(predictions_figure(images, concentrations, counts + 0.3, SCHEMA)).std() > 1
    assert predictions._sampled(predictions._Row("only", 0, 0.2, 3.0), 3.0) == [1.0, 1.0]


def test_arrays_of_different_galaxies_are_refused():
    images, concentrations, counts = galaxies(3)
    with pytest.raises(ValueError, match="2 images, 3 concentrations"):
        predictions_figure(images[:2], concentrations, counts, SCHEMA)


def test_marks_stand_at_the_observed_fraction_and_the_predicted_mean():
    axes = Figure().add_subplot()
    counts, concentrations = np.zeros(N_ANSWERS), np.ones(N_ANSWERS)
    first = SCHEMA.questions[0]
    counts[first.start : first.stop] = [2, 6, 0]
    rows = predictions._rows(counts, concentrations, SCHEMA)
    spans = np.tile(np.array([[0.1], [0.4], [0.8]]), N_ANSWERS)
    predictions._draw_votes(axes, rows, spans, concentrations, counts)
    marks = {kind: [line for line in axes.lines if line.get_marker() == kind] for kind in ("o", "|")}
    assert [(float(line.get_xdata()[0]), line.get_ydata()[0]) for line in marks["o"]] == [(0.25, 1), (0.75, 2), (0, 3)]
    assert [float(line.get_xdata()[0]) for line in marks["|"]] == [0.4] * 3
    assert [label.get_text() for label in axes.get_yticklabels()] == list(first.answers)
