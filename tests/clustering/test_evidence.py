from dataclasses import replace

import numpy as np
import pytest

from rarezoo.cli import UserError
from rarezoo.clustering import repeats as repeats_module
from rarezoo.clustering.decisions import Decisions, decide
from rarezoo.clustering.evidence import warnings_of, weigh
from rarezoo.clustering.pipeline import Pipeline
from rarezoo.clustering.repeats import repeat_search, shrunk
from rarezoo.clustering.search import search_classes
from rarezoo.clustering.settings import SearchSettings, TreeSettings, TrustSettings
from rarezoo.clustering.stages import StageStore

SETTINGS = SearchSettings.model_validate(
    {
        "layout": {"n_neighbors": 15, "n_components": 3, "seed": 1, "n_epochs": 60},
        "tree": {"min_samples": 5, "min_cluster_size": 15, "method": "leaf"},
    }
)
TRUST = TrustSettings(seeds=1, bootstraps=1, controls=1)


@pytest.fixture(scope="module")
def search(planted, tmp_path_factory):
    return search_classes(planted, SETTINGS, StageStore(tmp_path_factory.mktemp("evidence") / "stages"))


@pytest.fixture(scope="module")
def evidence(search):
    return weigh(search, search.tree, TRUST)


def classes_of_groups(planted, search):
    """Class that holds most of each planted group."""
    rows = [planted.group[search.selection.rows] == group for group in range(3)]
    return [np.bincount(search.tree.labels[inside] + 1)[1:].argmax() for inside in rows]


def test_planted_groups_are_graded_above_the_shattered_bulk(planted, search, evidence):
    groups = classes_of_groups(planted, search)
    stable = evidence.classes[["stability_seeds", "stability_samples"]].mean(axis=1)
    assert stable[groups].mean() > 0.85
    assert stable.drop(index=groups).mean() < 0.6
    assert (evidence.classes.loc[groups, "grade"] == "A").sum() >= 2


def test_planted_groups_have_a_contrast_that_chance_does_not_give(planted, search, evidence):
    groups = classes_of_groups(planted, search)
    least = 1 / (1 + evidence.quality["control_classes"])
    assert evidence.classes.loc[groups, "control_exceeded"].tolist() == pytest.approx([least] * 3)


def test_quality_has_the_same_names_whatever_was_measured(search, evidence):
    nothing = weigh(search, search.tree, TrustSettings())
    assert nothing.quality.keys() == evidence.quality.keys()
    assert nothing.quality["control_classes"] is None
    assert nothing.quality["stability"] is None
    assert set(nothing.classes["grade"]) == {"–"}
    assert nothing.classes["control_exceeded"].isna().all()


def test_repeats_are_not_computed_twice(search, evidence, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a repeat was computed again")

    monkeypatch.setattr(repeats_module, "passing_store", refuse)
    again = weigh(search, search.tree, TRUST)
    assert again.classes.equals(evidence.classes)


def test_other_settings_of_the_tree_are_weighed_on_the_layouts_of_the_same_repeats(
    search, evidence, monkeypatch, tmp_path
):
    eom = SETTINGS.tree.model_copy(update={"method": "eom", "min_cluster_size": 30, "min_samples": 4})
    # The same methods by other names.
    exact = SETTINGS.neighbours.model_copy(update={"method": "exact", "exact_below": 0})
    spectral = SETTINGS.layout.model_copy(update={"init": "spectral"})
    settings = SearchSettings(neighbours=exact, layout=spectral, tree=eom)
    other = replace(search.pipeline, settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr(repeats_module, "passing_store", None)
        kept = repeat_search(other, TRUST)
    afresh = repeat_search(replace(other, store=StageStore(tmp_path)), TRUST)
    for found, expected in zip(
        (*kept.by_seed, *kept.by_sample[0]), (*afresh.by_seed, *afresh.by_sample[0]), strict=True
    ):
        assert np.array_equal(found, expected)
    assert np.array_equal(kept.controls[0].labels, afresh.controls[0].labels)


def test_a_sample_that_is_too_small_names_the_share(planted, tmp_path):
    settings = SETTINGS.model_copy(update={"layout": SETTINGS.layout.model_copy(update={"n_neighbors": 50})})
    few = Pipeline.of(planted.x[:60], settings, StageStore(tmp_path / "stages"))
    with pytest.raises(
        UserError, match=r"trust.share=0.8: a sample holds 48 of 60 .* needs at least 52 .*bootstraps=0"
    ):
        repeat_search(few, TrustSettings(bootstraps=1))


def test_a_repeat_leaves_nothing_but_its_result(search, evidence):
    left = {path.name.rpartition("-")[0] for path in search.pipeline.store.root.iterdir() if path.is_dir()}
    assert left == {"neighbours", "fuzzy", "start", "layout", "spanning", "tree", "seed", "sample", "control"}


def test_seeds_differ_and_samples_hold_their_share(search, evidence):
    repeats = repeat_search(search.pipeline, TRUST)
    assert not np.array_equal(repeats.by_seed[0], search.tree.labels)
    rows, labels = repeats.by_sample[0]
    assert len(rows) == len(labels) == round(0.8 * len(search.tree.labels))
    assert (np.diff(rows) > 0).all()


def test_a_tree_without_a_layout_is_not_repeated_by_seed(planted, tmp_path):
    direct = SETTINGS.model_copy(update={"layout": SETTINGS.layout.model_copy(update={"method": "none"})})
    search = search_classes(planted, direct, StageStore(tmp_path / "stages"))
    repeats = repeat_search(search.pipeline, TrustSettings(seeds=3, bootstraps=1))
    assert not repeats.by_seed
    assert len(repeats.by_sample) == 1


def test_a_sample_is_searched_for_classes_as_much_smaller():
    tree = TreeSettings(min_samples=10, min_cluster_size=20, method="eom", max_cluster_size=100)
    assert shrunk(tree, 0.8).model_dump(include={"min_samples", "min_cluster_size", "max_cluster_size"}) == {
        "min_samples": 8,
        "min_cluster_size": 16,
        "max_cluster_size": 80,
    }
    smallest = shrunk(TreeSettings(min_samples=1, min_cluster_size=2), 0.1)
    assert (smallest.min_samples, smallest.min_cluster_size, smallest.max_cluster_size) == (1, 2, 0)
    limited = shrunk(TreeSettings(min_samples=1, min_cluster_size=2, method="eom", max_cluster_size=4), 0.1)
    assert limited.max_cluster_size == 2
    share = shrunk(TreeSettings(min_samples=1, method="eom", max_cluster_size=0.05), 0.5)
    assert share.max_cluster_size == 0.05


def test_excluded_classes_are_not_weighed(search):
    ids = [str(row) for row in range(len(search.tree.labels))]
    member = ids[int(np.flatnonzero(search.tree.labels == 0)[0])]
    decided = decide(search.tree, ids, Decisions.model_validate({"classes": [{"medoid": member, "exclude": True}]}))
    found = weigh(search, decided.tree, TrustSettings())
    assert len(found.classes) == search.tree.n_classes - 1
    # What the summary of the search says of the classes as found is said again of those that remain.
    summary = search.summary() | found.quality
    sizes = search.tree.sizes()[1:]
    assert summary["n_classes"] == len(sizes)
    assert summary["share_in_classes"] == pytest.approx(sizes.sum() / len(search.tree.labels))
    assert summary["share_in_classes"] + summary["noise_share"] == pytest.approx(1)
    assert summary["median_class_size"] == np.median(sizes)


def test_a_merged_class_is_as_stable_as_its_parts(search, evidence):
    ids = [str(row) for row in range(len(search.tree.labels))]
    firsts = [ids[int(np.flatnonzero(search.tree.labels == cluster)[0])] for cluster in (0, 1)]
    entries = [{"medoid": firsts[0], "name": "one"}, {"medoid": firsts[1], "merge_into": "one"}]
    decided = decide(search.tree, ids, Decisions.model_validate({"classes": entries}))
    merged = weigh(search, decided.tree, TRUST).classes
    sizes, parts = search.tree.sizes()[:2], evidence.classes
    for name in ("stability_seeds", "stability_samples"):
        assert merged.loc[0, name] == pytest.approx(np.average(parts.loc[:1, name], weights=sizes))
        assert merged.loc[1:, name].tolist() == pytest.approx(parts.loc[2:, name].tolist())
    assert merged.loc[0, "stability_lowest"] == parts.loc[:1, "stability_lowest"].min()


def test_a_search_of_which_all_is_excluded_is_weighed(search, evidence):
    ids = [str(row) for row in range(len(search.tree.labels))]
    nothing = decide(
        search.tree,
        ids,
        Decisions.model_validate(
            {
                "classes": [
                    {"medoid": ids[int(np.flatnonzero(search.tree.labels == cluster)[0])], "exclude": True}
                    for cluster in range(search.tree.n_classes)
                ]
            }
        ),
    )
    found = weigh(search, nothing.tree, TRUST)
    assert found.classes.empty
    assert list(found.classes) == list(evidence.classes)


@pytest.mark.parametrize(
    ("n_rows", "least", "wanted", "share"), [(632_000, 300, 10, "0.05% of the 632,000"), (1190, 16, 15, "1.34% of the")]
)
def test_min_samples_that_hides_classes_of_min_cluster_size_is_warned_of(search, n_rows, least, wanted, share):
    searched = replace(search, selection=replace(search.selection, rows=np.arange(n_rows)))

    def said(**tree):
        return warnings_of(searched, SETTINGS.model_copy(update={"tree": TreeSettings(**tree)}), {})

    (warning,) = said(min_samples=least, min_cluster_size=wanted)
    assert f"tree.min_samples={least} hides groups of fewer than about {least} galaxies, {share}" in warning
    assert f"tree.min_cluster_size={wanted} asks for classes of {wanted} on" in warning
    assert not said(min_samples=wanted, min_cluster_size=wanted)


def test_few_neighbours_and_as_many_classes_by_chance_are_warned_of(search):
    fine = SETTINGS.model_copy(update={"tree": TreeSettings(min_samples=1)})
    poor = warnings_of(replace(search, recall=0.9), fine, {"control_classes": 1000.0})
    assert ["90.0% of the nearest" in poor[0], "may be chance" in poor[1]] == [True, True]
