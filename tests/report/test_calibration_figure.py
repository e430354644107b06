import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rarezoo.report.calibration import calibration_figure, question_table, worst_questions
from rarezoo.votes import Calibration, Schema, calibration, calibration_sums, load_schema

LEVELS = np.array([0.5, 0.9])


def a_tree(n_questions, n_answers=2):
    names = [f"question-{index} $x_{index}" for index in range(n_questions)]
    answers = [f"answer-{index}" for index in range(n_answers)]
    return Schema.from_tree({name: {"answers": answers, "asked_after": None} for name in names})


def a_calibration(ece, n_asked, coverage=None, n_answers=2):
    ece, n_asked = np.asarray(ece, float), np.asarray(n_asked, float)
    n_questions, n_bins = len(ece), 10
    if coverage is None:
        coverage = np.tile(LEVELS, (n_questions * n_answers, 1))
    coverage = np.where(np.repeat(n_asked > 0, n_answers)[:, None], coverage, np.nan)
    middles = np.tile((np.arange(n_bins) + 0.5) / n_bins, (n_questions, 1))
    weight = np.tile(n_asked[:, None], n_bins)
    return Calibration(
        levels=LEVELS,
        coverage=coverage,
        pit=np.where(np.isfinite(coverage[:, :1]), np.full((n_questions * n_answers, 20), 0.05), np.nan),
        predicted=np.where(weight > 0, middles, np.nan),
        observed=np.where(weight > 0, middles, np.nan),
        weight=weight,
        ece=np.where(n_asked > 0, ece, np.nan),
        n_asked=n_asked.astype(np.int64),
    )


def picture(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["rings", "decals_dr5", "gz_evo_v2"])
def test_trees_of_2_to_279_answers_have_a_picture_of_the_same_size(name):
    schema = load_schema(name)
    torch.manual_seed(0)
    concentrations = 1 + 20 * torch.rand(40, len(schema.label_cols))
    counts = torch.randint(0, 9, concentrations.shape)
    counts[:, schema.questions[-1].start :] = 0
    found = calibration(calibration_sums(concentrations, counts, schema), schema)
    assert picture(calibration_figure(found, schema)).shape == (473, 1650, 3)


def test_votes_that_nobody_cast_leave_empty_panels(recwarn):
    schema = a_tree(3)
    found = a_calibration([0.1] * 3, [0] * 3)
    assert picture(calibration_figure(found, schema)).std() > 1
    assert worst_questions(found) == []
    assert not [str(warning.message) for warning in recwarn if "NaN" in str(warning.message)]


def test_the_worst_are_those_of_the_largest_error_among_questions_asked_often_enough():
    assert worst_questions(a_calibration([0.1, 0.4, 0.2, 0.3, 0.9, 0.8], [50, 60, 70, 80, 3, 0])) == [1, 3, 2]
    assert worst_questions(a_calibration([0.1, 0.4], [5, 3])) == [0]


def test_worst_question_is_drawn_in_its_own_colour_and_the_rest_is_not():
    schema = a_tree(2)
    png = calibration_figure(a_calibration([0.2, 0.1], [100, 100]), schema)
    alone = calibration_figure(a_calibration([0.2, 0.1], [0, 0]), schema)
    for colour in ("#D55E00", "#0072B2"):
        pixel = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
        assert (picture(png) == pixel).all(-1).any()
        assert not (picture(alone) == pixel).all(-1).any()


def test_table_has_a_row_per_question_in_the_order_of_the_tree():
    schema = a_tree(3)
    coverage = np.array([[0.4, 0.8], [0.6, 0.9], [0.5, 0.7], [np.nan, np.nan], [0.5, 0.5], [0.5, 0.5]])
    found = question_table([1.5, 2.5, 0.0], a_calibration([0.1, 0.2, 0.3], [7, 8, 0], coverage), schema)
    expected = pd.DataFrame(
        {
            "question": [question.name for question in schema.questions],
            "n_asked": [7, 8, 0],
            "loss": [1.5, 2.5, np.nan],
            "ece": [0.1, 0.2, np.nan],
            "coverage_90": [0.85, 0.7, np.nan],
        }
    )
    pd.testing.assert_frame_equal(found, expected)
