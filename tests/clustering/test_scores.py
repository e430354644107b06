import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, f1_score, precision_score, recall_score

from rarezoo.clustering.scores import kind_agreement, recovery, summary

pairs = st.lists(st.tuples(st.integers(-1, 4), st.sampled_from(["", "ring", "jellyfish", "lens"])), min_size=1)


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
