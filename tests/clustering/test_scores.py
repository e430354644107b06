import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, f1_score, precision_score, recall_score

from rarezoo.clustering.scores import chance_recovery, kind_agreement, recovery, summary

pairs = st.lists(st.tuples(st.integers(-1, 4), st.sampled_from(["", "ring", "jellyfish", "lens"])), min_size=1)

overlapping = st.lists(st.tuples(st.integers(-1, 4), st.booleans(), st.booleans(), st.booleans()), min_size=1)


def _columns(drawn) -> tuple[np.ndarray, pd.DataFrame]:
    table = pd.DataFrame([row[1:] for row in drawn], columns=["ring", "lens", "tail"], dtype=bool)
    return np.array([row[0] for row in drawn]), table


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_scores_of_the_best_cluster_are_those_of_sklearn(drawn):
    labels, truth = np.array([a for a, _ in drawn]), np.array([b for _, b in drawn])
    for row in recovery(labels, truth).to_dict("records"):
        is_class = truth == row["class"]
        every = {c: f1_score(is_class, labels == c) for c in np.unique(labels[labels >= 0])}
        assert row["f1"] == pytest.approx(max(every.values(), default=0.0))
        assert row["members"] == row["selected"] == is_class.sum()
        if row["f1"] > 0:
            guess = labels == row["cluster"]
            assert every[row["cluster"]] == pytest.approx(row["f1"])
            assert row["purity"] == pytest.approx(precision_score(is_class, guess))
            assert row["completeness"] == pytest.approx(recall_score(is_class, guess))


@settings(deadline=None, max_examples=30)
@given(pairs, st.integers(0, 20))
def test_members_that_the_selection_lost_count_as_if_they_were_in_no_cluster(drawn, n_lost):
    labels, truth = np.array([a for a, _ in drawn]), np.array([b for _, b in drawn], dtype=object)
    totals = {name: int((truth == name).sum()) + n_lost for name in ("ring", "jellyfish", "lens")}
    lost = [name for name in totals for _ in range(n_lost)]
    whole = recovery(np.append(labels, np.full(len(lost), -1)), np.append(truth, lost))
    table = recovery(labels, truth, totals)
    columns = ["class", "members", "cluster", "f1", "purity", "completeness"]
    assert table[columns].equals(whole[columns])


def test_a_class_that_the_selection_lost_altogether_is_a_class_not_found():
    table = recovery(np.array([0, 0, -1]), ["ring", "ring", ""], {"ring": 4, "lens": 9})
    assert table["class"].tolist() == ["lens", "ring"]
    assert table["cluster"].tolist() == [-1, 0]
    assert table["f1"].tolist() == pytest.approx([0, 2 * 2 / (2 + 4)])


def test_summary_counts_found_classes_and_clusters_of_nothing():
    labels = np.repeat([0, 1, 2, 3, -1], [10, 10, 10, 10, 10])
    truth = np.array(["ring"] * 10 + ["lens"] * 6 + [""] * 4 + [""] * 20 + ["odd"] * 10, dtype=object)
    found = summary(recovery(labels, truth, {"ring": 10, "lens": 8, "odd": 10}), labels, truth)
    assert found == {
        "planted": 3,
        "found_f1_50": 2,
        "found_f1_80": 1,
        "mean_f1": pytest.approx((1 + 12 / 18 + 0) / 3),
        "median_purity": pytest.approx(0.8),
        "median_completeness": pytest.approx((1 + 0.75) / 2),
        "clusters": 4,
        "clusters_of_no_class": 2,
        "false_per_true": 1.0,
        "share_in_clusters": 0.8,
    }


def test_none_nan_empty_and_minus_1_all_mean_no_class():
    truth = ["3", None, float("nan"), "", -1, 3]
    table = recovery(np.zeros(6, int), truth)
    assert table[["class", "members"]].to_dict("list") == {"class": ["3"], "members": [2]}


def test_without_a_cluster_or_a_class_there_is_nothing_to_report():
    nothing = np.full(3, -1)
    assert recovery(nothing, ["", "", ""]).empty
    found = summary(recovery(nothing, ["a", "a", ""]), nothing, ["a", "a", ""])
    assert (found["clusters"], found["found_f1_50"], found["mean_f1"]) == (0, 0, 0.0)


def test_more_selected_galaxies_than_members_are_refused():
    with pytest.raises(ValueError, match="class 'ring': 2 selected, 1 in all"):
        recovery(np.zeros(2, int), ["ring", "ring"], {"ring": 1})
    with pytest.raises(ValueError, match="2 labels and 1 known"):
        recovery(np.zeros(2, int), ["ring"])


@settings(deadline=None, max_examples=40)
@given(overlapping)
def test_each_column_of_overlapping_classes_scores_as_if_it_were_the_only_class(drawn):
    labels, classes = _columns(drawn)
    table = recovery(labels, classes)
    assert sorted(table["class"]) == sorted(classes.columns[classes.any()])
    for name in table["class"]:
        alone = recovery(labels, np.where(classes[name], name, ""))
        pd.testing.assert_frame_equal(table[table["class"] == name].reset_index(drop=True), alone)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_classes_given_by_column_score_as_the_same_classes_given_by_name(drawn):
    labels, truth = np.array([a for a, _ in drawn]), np.array([b for _, b in drawn])
    columns = pd.DataFrame({name: truth == name for name in ("ring", "jellyfish", "lens")})
    by_name, by_column = recovery(labels, truth), recovery(labels, columns)
    pd.testing.assert_frame_equal(by_name, by_column)
    assert summary(by_name, labels, truth) == pytest.approx(summary(by_column, labels, columns), nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(overlapping)
def test_cluster_is_of_no_class_where_no_column_holds_half_of_it(drawn):
    labels, classes = _columns(drawn)
    clusters = [classes[labels == c] for c in np.unique(labels[labels >= 0])]
    expected = sum(not (members.mean() >= 0.5).any() for members in clusters)
    assert summary(recovery(labels, classes), labels, classes)["clusters_of_no_class"] == expected


def test_columns_count_what_the_selection_lost_as_missed():
    classes = pd.DataFrame({"ring": [True, True, False], "lens": [False, False, False]})
    table = recovery(np.array([0, 0, 1]), classes, {"ring": 6, "lens": 3})
    assert table["class"].tolist() == ["ring", "lens"]
    assert table["selected"].tolist() == [2, 0]
    assert table["f1"].tolist() == pytest.approx([2 * 2 / (2 + 6), 0])
    assert table["cluster"].tolist() == [0, -1]


def test_columns_that_are_not_bool_or_have_one_name_are_refused():
    with pytest.raises(ValueError, match="known class 'lens': its column is float64, and must be bool"):
        recovery(np.zeros(2, int), pd.DataFrame({"ring": [True, False], "lens": [1.0, np.nan]}))
    with pytest.raises(ValueError, match="known class 'ring': has two columns"):
        recovery(np.zeros(1, int), pd.DataFrame([[True, True]], columns=["ring", "ring"]))


def test_false_per_true_is_clusters_of_no_class_for_each_class_found():
    labels, truth = np.repeat([0, 1, 2, 3], 5), ["ring"] * 5 + [""] * 15
    assert summary(recovery(labels, truth), labels, truth)["false_per_true"] == 3
    missed = summary(recovery(labels, truth, {"ring": 50}), labels, truth)
    assert missed["clusters_of_no_class"] == 3
    assert math.isnan(missed["false_per_true"])


def test_chance_gives_the_best_f1_of_all_deals_of_the_labels():
    labels, truth = np.array([0, 0, 1, 1, 1, -1]), np.array(["ring", "ring", "", "", "lens", ""])
    deals = np.array([recovery(np.array(deal), truth)["f1"] for deal in set(permutations(labels.tolist()))])
    table = chance_recovery(labels, truth, n_times=4000)
    assert table["class"].tolist() == recovery(labels, truth)["class"].tolist() == ["ring", "lens"]
    assert table["chance_f1"].tolist() == pytest.approx(deals.mean(axis=0).tolist(), abs=0.02)
    assert table["chance_found"].tolist() == pytest.approx((deals >= 0.5).mean(axis=0).tolist(), abs=0.03)
    assert table["chance_f1_highest"].tolist() == pytest.approx(deals.max(axis=0).tolist())


def test_chance_is_told_of_members_that_the_selection_lost():
    labels, truth = np.repeat([0, 1], 4), ["ring"] * 4 + [""] * 4
    table = chance_recovery(labels, truth, {"ring": 4, "lens": 2}, n_times=50)
    lost = chance_recovery(labels, truth, {"ring": 12, "lens": 2}, n_times=50)
    assert lost["chance_f1"].tolist() == pytest.approx([table["chance_f1"][0] * (4 + 4) / (4 + 12), 0])


def test_chance_is_the_same_for_the_same_seed_and_far_below_a_class_found():
    labels = np.repeat([0, 1, -1], [20, 20, 400])
    truth = np.repeat(["ring", ""], [20, 420])
    first, again = (chance_recovery(labels, truth, n_times=50, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert first["chance_f1_highest"][0] < 0.5 < recovery(labels, truth)["f1"][0]


def test_agreement_is_1_for_clusters_that_are_the_kinds_and_0_by_chance():
    kinds = np.repeat(["ghost", "trail", ""], 300)
    same = kind_agreement(np.repeat([1, 0, 0], 300), kinds)
    assert (same["ami"], same["ami_in_clusters"], same["n"]) == (pytest.approx(1), pytest.approx(1), 600)
    drawn = kind_agreement(np.random.default_rng(0).integers(0, 3, 900), kinds)
    assert abs(drawn["ami"]) < 0.01


def test_agreement_takes_galaxies_in_no_cluster_as_one_group_or_leaves_them_out():
    labels, kinds = np.array([0, 0, 1, 1, -1, -1]), np.array(["a", "a", "b", "b", "a", "b"])
    found = kind_agreement(labels, kinds)
    assert found["ami"] == pytest.approx(adjusted_mutual_info_score(kinds, labels))
    assert found["ami_in_clusters"] == pytest.approx(1)
    assert found["share_in_clusters"] == pytest.approx(4 / 6)


def test_agreement_without_kinds_is_unknown():
    found = kind_agreement(np.array([0, 1]), ["", None])
    assert found["n"] == 0
    assert np.isnan(found["ami"])
