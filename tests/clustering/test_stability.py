import json
from types import SimpleNamespace

import numpy as np
import pytest
from hdbscan import HDBSCAN
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp
from sklearn.metrics import jaccard_score

from rarezoo.clustering.pipeline import Pipeline
from rarezoo.clustering.repeats import repeat_search
from rarezoo.clustering.settings import SearchSettings, TrustSettings
from rarezoo.clustering.stability import (
    best_match_jaccard,
    contrast,
    control_exceeded,
    control_summary,
    gaussian_like,
    grades,
    permuted,
    stability,
)
from rarezoo.clustering.stages import StageStore

label_pairs = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4), st.booleans()), min_size=1, max_size=60)


def classes_of(labels):
    return [np.flatnonzero(labels == number) for number in range(labels.max(initial=-1) + 1)]


def search(x, min_cluster_size=10):
    """hdbscan itself, with what a ClassTree has of it; hdbscan numbers classes in the order of their nodes."""
    found = HDBSCAN(
        min_samples=5,
        min_cluster_size=min_cluster_size,
        cluster_selection_method="leaf",
        approx_min_span_tree=False,
    ).fit(x)
    nodes = np.array(sorted(found.condensed_tree_._select_clusters()), dtype=np.int64)
    return SimpleNamespace(
        labels=found.labels_,
        condensed=found.condensed_tree_.to_pandas(),
        nodes=nodes,
        n_classes=len(nodes),
        persistence=found.cluster_persistence_,
    )


def planted(n_bulk=600, n_groups=4, size=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    mixed = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.linspace(0.5, 2.0, d)
    groups = np.repeat(2 * rng.normal(size=(n_groups, d)), size, axis=0)
    x = np.concatenate([rng.normal(size=(n_bulk, d)), groups + 0.05 * rng.normal(size=groups.shape)]) @ mixed.T
    truth = np.append(np.full(n_bulk, -1), np.repeat(np.arange(n_groups), size))
    order = rng.permutation(len(x))
    return x[order], truth[order]


@settings(deadline=None, max_examples=80)
@given(label_pairs)
def test_best_match_is_the_largest_jaccard_index_of_sklearn(drawn):
    labels, repeat = np.array([a for a, _, _ in drawn]), np.array([b for _, b, _ in drawn])
    found = best_match_jaccard(labels, repeat)
    assert len(found) == labels.max() + 1
    for number, members in enumerate(classes_of(labels)):
        every = [jaccard_score(labels == number, repeat == other, zero_division=0) for other in range(repeat.max() + 1)]
        assert np.isnan(found[number]) if not len(members) else found[number] == pytest.approx(max(every, default=0.0))


@settings(deadline=None, max_examples=80)
@given(label_pairs, st.randoms(use_true_random=False))
def test_repeat_on_a_sample_is_compared_with_the_members_in_it(drawn, random):
    labels, repeat = np.array([a for a, _, _ in drawn]), np.array([b for _, b, _ in drawn])
    rows = [row for row, (_, _, taken) in enumerate(drawn) if taken]
    random.shuffle(rows)
    found = best_match_jaccard(labels, repeat[rows], np.array(rows, dtype=np.int64))
    for number, members in enumerate(classes_of(labels)):
        kept = set(members) & set(rows)
        others = [set(other) & set(rows) for other in classes_of(repeat)]
        every = [len(kept & other) / len(kept | other) for other in others if kept | other]
        assert np.isnan(found[number]) if not kept else found[number] == pytest.approx(max(every, default=0.0))


def test_galaxies_in_no_class_match_nothing():
    labels = np.repeat([0, -1], 10)
    assert best_match_jaccard(labels, np.repeat([-1, 0], 10)).tolist() == [0.0]
    assert best_match_jaccard(labels, np.full(20, -1)).tolist() == [0.0]
    assert best_match_jaccard(np.full(20, -1), labels).tolist() == []


def test_repeat_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 galaxies of the search and 2 labels of the repeat"):
        best_match_jaccard(np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="2 galaxies of the search and 3 labels of the repeat"):
        best_match_jaccard(np.zeros(3, int), np.zeros(3, int), np.array([0, 2]))


def test_stability_is_the_mean_over_the_repeats_that_hold_a_member():
    labels = np.repeat([0, 1, -1], [4, 2, 4])
    seeds = [labels, np.repeat([0, -1], [2, 8])]
    samples = [(np.arange(4), np.array([0, 0, 0, -1])), (np.arange(2, 6), np.array([1, 1, 0, 0]))]
    table = stability(labels, seeds, samples)
    assert table["stability_seeds"].tolist() == [(1 + 0.5) / 2, (1 + 0) / 2]
    assert table["stability_samples"].tolist() == [(0.75 + 1) / 2, 1.0]
    assert table["stability_lowest"].tolist() == [0.5, 0.0]
    assert table["stability_repeats"].tolist() == [4, 3]
    assert table["grade"].tolist() == ["B", "D"]


def test_without_repeats_there_is_no_grade():
    table = stability(np.array([0, 1, -1]), [], [])
    assert table["grade"].tolist() == ["–", "–"]
    assert table["stability_repeats"].tolist() == [0, 0]
    assert table.drop(columns=["grade", "stability_repeats"]).isna().all(axis=None)


def test_search_without_classes_has_a_table_without_rows():
    nothing = np.full(5, -1)
    table = stability(nothing, [nothing], [(np.arange(3), nothing[:3])])
    assert len(table) == 0
    assert {"stability_seeds", "stability_samples", "grade"} <= set(table)


def test_grade_is_of_the_smaller_mean_that_is_known():
    unknown = float("nan")
    seeds = [0.85, 0.85, 0.75, 0.6, 0.599, 1.0, unknown, 0.9, unknown]
    samples = [0.85, 0.849, 0.9, 1.0, 1.0, 0.2, 0.8, unknown, unknown]
    assert grades(seeds, samples).tolist() == ["A", "B", "B", "C", "D", "D", "B", "A", "–"]


def test_planted_groups_are_stable_and_random_labels_are_not():
    x, truth = planted()
    tree = search(x)
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(len(x), int(0.8 * len(x)), replace=False)) for _ in range(3)]
    samples = [(kept, search(x[kept]).labels) for kept in rows]
    table = stability(tree.labels, [], samples)
    is_group = np.array([np.mean(truth[members] >= 0) > 0.5 for members in classes_of(tree.labels)])
    assert is_group.sum() == 4
    assert table.loc[is_group, "grade"].tolist() == ["A"] * 4
    shuffled = stability(rng.permutation(tree.labels), [], samples)
    assert set(shuffled["grade"]) == {"D"}


def test_permuted_columns_hold_the_same_values_without_their_relations():
    x = np.random.default_rng(0).normal(size=(2000, 1)).astype(np.float32) * np.array([1, -3, 10], np.float32)
    x[:, 2] = np.exp(x[:, 0])
    before = x.copy()
    control = permuted(x, seed=1)
    assert np.array_equal(x, before)
    assert control.dtype == np.float32
    assert np.array_equal(np.sort(control, axis=0), np.sort(x, axis=0))
    assert np.abs(np.corrcoef(control, rowvar=False) - np.eye(3)).max() < 0.1
    assert np.array_equal(control, permuted(x, seed=1))
    assert not np.array_equal(control, permuted(x, seed=2))


@pytest.mark.parametrize("d", [1, 6])
def test_gaussian_control_has_the_mean_and_covariance_and_normal_projections(d):
    x, _ = planted(n_bulk=20_000, d=d)
    x = x + 5
    control = gaussian_like(x.astype(np.float32), seed=0)
    assert control.shape == x.shape
    assert control.dtype == np.float32
    assert control.mean(axis=0) == pytest.approx(x.mean(axis=0), abs=0.05 * x.std())
    assert np.cov(control, rowvar=False) == pytest.approx(np.cov(x, rowvar=False), rel=0.05, abs=0.02 * x.var())
    normal = np.random.default_rng(1).normal(x[:, 0].mean(), x[:, 0].std(), len(x))
    assert ks_2samp(control[:, 0], normal).pvalue > 1e-3
    assert np.array_equal(control, gaussian_like(x.astype(np.float32), seed=0))


def test_gaussian_control_keeps_columns_that_depend_on_each_other_dependent():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 2)) @ rng.normal(size=(2, 8))).astype(np.float32)
    singular = np.linalg.svd(gaussian_like(x, seed=0) - x.mean(axis=0), compute_uv=False)
    assert np.isfinite(singular).all()
    assert singular[2] < 1e-2 * singular[1]


def test_contrast_is_the_mean_gain_in_lambda_over_the_members():
    x, _ = planted()
    tree = search(x)
    rows = tree.condensed.to_dict("records")
    for node, found in zip(tree.nodes, contrast(tree), strict=True):
        born = next(row["lambda_val"] for row in rows if row["child"] == node)
        leaving = [(row["lambda_val"], row["child_size"]) for row in rows if row["parent"] == node]
        expected = sum(n * (1 - born / at) for at, n in leaving) / sum(n for _, n in leaving)
        assert found == pytest.approx(expected)
        assert 0 <= found < 1


def test_one_tight_class_lowers_the_persistence_of_all_others_and_not_their_contrast():
    x, truth = planted()
    tight = 100 + 1e-4 * np.random.default_rng(0).normal(size=(20, x.shape[1]))
    tree, other = search(x), search(np.concatenate([x, tight]))
    first_members = [np.flatnonzero(truth == group)[0] for group in range(4)]
    before, after = tree.labels[first_members], other.labels[first_members]
    assert before.min() >= 0
    assert after.min() >= 0
    assert (other.persistence[after] < 0.1 * tree.persistence[before]).all()
    # Distances that are equal may be joined in another order, so that a galaxy at the edge is in or out.
    assert contrast(other)[after] == pytest.approx(contrast(tree)[before], abs=0.05)


def test_class_of_galaxies_at_one_place_has_a_contrast_between_0_and_1():
    x, _ = planted(n_bulk=200)
    x = np.concatenate([x, np.full((60, x.shape[1]), 3.0)])
    tree = search(x)
    found = contrast(tree)
    place = tree.labels[-1]
    assert place >= 0
    assert found[place] == pytest.approx(1)
    assert ((found >= 0) & (found <= 1)).all()


def test_planted_groups_have_more_contrast_than_any_class_of_a_control():
    x, truth = planted()
    tree = search(x)
    controls = [search(control(x, seed)) for control in (permuted, gaussian_like) for seed in range(2)]
    every = np.concatenate([contrast(control) for control in controls])
    exceeded = control_exceeded(contrast(tree), every)
    is_group = np.array([np.mean(truth[members] >= 0) > 0.5 for members in classes_of(tree.labels)])
    assert is_group.sum() == 4
    assert exceeded[is_group] == pytest.approx(1 / (1 + len(every)))
    found = control_summary(controls)
    assert found["control_classes"] == pytest.approx(len(every) / 4)
    assert found["control_contrast"] == every.max() < contrast(tree)[is_group].min()
    assert 0 < found["control_share_in_classes"] < 1


def test_controls_of_a_search_are_searches_of_the_draws_that_it_asks_for(tmp_path):
    x = planted()[0].astype(np.float32)
    settings = SearchSettings.model_validate(
        {
            "neighbours": {"width": 20},
            "layout": {"method": "none", "n_neighbors": 10},
            "tree": {"min_samples": 5, "min_cluster_size": 10, "method": "leaf", "max_cluster_size": 0},
        }
    )
    searched, found = Pipeline.of(x, settings, StageStore(tmp_path / "stages")), {}
    for control, draw in {"permuted": permuted, "gaussian": gaussian_like}.items():
        found[control] = repeat_search(searched, TrustSettings(controls=2, control=control)).controls
        for number, tree in enumerate(found[control], start=1):
            alone = Pipeline.of(draw(x, number), settings, StageStore(tmp_path / "alone"))
            np.testing.assert_array_equal(tree.labels, alone.read_off().labels)
    assert not np.array_equal(*(trees[0].labels for trees in found.values()))
    records = [json.loads(path.read_text()) for path in (tmp_path / "stages").glob("control-*/stage.json")]
    asked = [(record["parameters"]["control"], record["parameters"]["number"]) for record in records]
    assert sorted(asked) == [("gaussian", 1), ("gaussian", 2), ("permuted", 1), ("permuted", 2)]


def test_controls_without_classes_exceed_nothing_and_none_say_nothing():
    nothing = search(np.random.default_rng(0).normal(size=(50, 2)), min_cluster_size=30)
    assert nothing.n_classes == 0
    assert control_summary([nothing]) == {
        "control_classes": 0.0,
        "control_share_in_classes": 0.0,
        "control_contrast": 0.0,
    }
    assert control_summary([]) == {}
    assert np.isnan(control_exceeded(np.array([0.3]), contrast(nothing))).tolist() == [True]


strengths = arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9]))


@settings(deadline=None)
@given(strengths, strengths)
def test_share_of_the_control_counts_the_class_itself(strength, control):
    expected = [(1 + sum(other >= one for other in control)) / (1 + len(control)) for one in strength]
    assert control_exceeded(strength, control) == pytest.approx(expected)


@given(strengths, st.floats(0.01, 1))
def test_chance_classes_fall_below_a_share_no_more_often_than_it_says(every, level):
    # Each class in turn is compared with the others, which are of its kind.
    shares = [control_exceeded(every[[n]], np.delete(every, n))[0] for n in range(len(every))]
    assert np.mean(np.array(shares) <= level) <= level + 1e-12
