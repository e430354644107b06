import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from rarezoo.clustering.scores import example_precision, ranking


def _by_sklearn(x: np.ndarray, is_member: np.ndarray) -> list[float]:
    found = []
    for example in np.flatnonzero(is_member):
        others = np.arange(len(x)) != example
        distances = cdist(x[example : example + 1], x)[0]
        found.append(average_precision_score(is_member[others], -distances[others]))
    return found


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_average_precision_is_that_of_sklearn_also_among_galaxies_at_one_distance(data):
    n, d = data.draw(st.integers(3, 25)), data.draw(st.integers(1, 3))
    x = data.draw(arrays(np.float32, (n, d), elements=st.integers(-3, 3).map(float)))
    is_member = data.draw(arrays(np.bool_, n).filter(lambda drawn: drawn.sum() > 1))
    row = example_precision(x, pd.DataFrame({"ring": is_member})).iloc[0]
    assert row["members"] == row["examples"] == is_member.sum()
    assert row["average_precision"] == pytest.approx(np.mean(_by_sklearn(x, is_member)))


def test_classes_that_overlap_are_ranked_one_by_one():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 1, size=(300, 8)).astype(np.float32)
    members = pd.DataFrame({"ring": x[:, 0] > 6.3, "lens": x[:, 0] > 6.0, "odd": rng.random(300) < 0.05})
    table = example_precision(x, members)
    assert table["class"].tolist() == ["ring", "lens", "odd"]
    expected = [np.mean(_by_sklearn(x, members[name].to_numpy())) for name in members]
    assert table["average_precision"].tolist() == pytest.approx(expected, rel=1e-9)


def test_precision_far_from_the_origin_is_that_near_it():
    rng = np.random.default_rng(1)
    x = np.round(rng.normal(size=(200, 4)), 2)
    members = pd.DataFrame({"ring": x[:, 0] > 1})
    near, far = (example_precision(x + shift, members)["average_precision"][0] for shift in (0, 2.0**20))
    assert far == pytest.approx(near, rel=1e-3)


def test_blocks_change_nothing_and_bound_the_memory(monkeypatch):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20_000, 16)).astype(np.float32)
    members = pd.DataFrame({"ring": np.arange(len(x)) < 60})
    whole = example_precision(x, members)
    monkeypatch.setattr(ranking, "_BLOCK", 2**20)
    tracemalloc.start()
    in_blocks = example_precision(x, members)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pd.testing.assert_frame_equal(in_blocks, whole)
    assert peak < 8 * 2**20 < 60 * len(x) * 8


def test_chance_is_the_mean_over_rankings_at_random():
    rng = np.random.default_rng(3)
    is_member = np.arange(40) < 4
    row = example_precision(rng.normal(size=(40, 2)), pd.DataFrame({"ring": is_member})).iloc[0]
    drawn = [average_precision_score(is_member[1:], rng.random(39)) for _ in range(1500)]
    assert row["chance"] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(1500))
    assert row["prevalence"] == 3 / 39
    assert row["chance"] > 1.5 * row["prevalence"]


def test_chance_tends_to_the_share_of_members_in_a_large_survey():
    x, is_member = np.arange(20_000.0)[:, None], np.arange(20_000) < 2000
    row = example_precision(x, pd.DataFrame({"ring": is_member}), n_examples=2).iloc[0]
    assert row["chance"] == pytest.approx(row["prevalence"], rel=0.01)


def test_class_of_fewer_than_two_members_has_no_precision():
    members = pd.DataFrame({"none": np.zeros(5, bool), "one": np.arange(5) == 2, "two": np.arange(5) < 2})
    table = example_precision(np.arange(5.0)[:, None], members)
    assert table["members"].tolist() == [0, 1, 2]
    unknown = table[["average_precision", "chance", "prevalence"]].isna()
    assert unknown.to_numpy().tolist() == [[True] * 3, [True] * 3, [False] * 3]
    alone = example_precision(np.arange(5.0)[:, None], members[["one"]])
    assert alone["average_precision"].dtype == np.float64


def test_two_galaxies_of_one_class_and_no_other_rank_perfectly():
    row = example_precision(np.array([[0.0], [1.0]]), pd.DataFrame({"ring": [True, True]})).iloc[0]
    assert (row["average_precision"], row["chance"], row["prevalence"]) == (1, 1, 1)


def test_examples_are_drawn_by_the_seed():
    rng = np.random.default_rng(4)
    x, members = rng.normal(size=(200, 3)), pd.DataFrame({"ring": np.arange(200) < 50})
    first, again, other = (example_precision(x, members, n_examples=5, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert first["examples"][0] == 5
    assert first["average_precision"][0] != other["average_precision"][0]
    every = example_precision(x, members)
    pd.testing.assert_frame_equal(example_precision(x, members, n_examples=50), every)


def test_no_example_is_drawn_twice():
    rng = np.random.default_rng(5)
    x, is_member = rng.normal(size=(60, 3)), np.arange(60) < 20
    each = np.array(_by_sklearn(x, is_member))
    drawn = example_precision(x, pd.DataFrame({"ring": is_member}), n_examples=19)["average_precision"][0]
    left_out = each.sum() - 19 * drawn
    assert np.abs(each - left_out).min() < 1e-9


def test_what_cannot_be_ranked_is_refused():
    members = pd.DataFrame({"ring": [True, True, False]})
    with pytest.raises(ValueError, match="2 galaxies and 3 rows of known classes"):
        example_precision(np.zeros((2, 1)), members)
    with pytest.raises(ValueError, match="NaN"):
        example_precision(np.array([[0.0], [1.0], [np.nan]]), members)
    with pytest.raises(ValueError, match="must be bool"):
        example_precision(np.zeros((3, 1)), members.astype(float))
