from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from rarezoo.cli import UserError
from rarezoo.clustering import search as search_module
from rarezoo.clustering.classes import class_table
from rarezoo.clustering.scores import recovery, summary
from rarezoo.clustering.search import search_classes
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import StageStore

CUTS = {"artifact": {"answer": "smooth-or-featured*_artifact", "below": 0.4}}


def _settings(cuts=None, neighbours=None, layout=None, tree=None):
    return SearchSettings.model_validate(
        {
            "selection": {"cuts": CUTS if cuts is None else cuts},
            "neighbours": neighbours or {},
            "layout": {"n_neighbors": 15, "n_components": 3, "seed": 1, "n_epochs": 100} | (layout or {}),
            "tree": {"min_samples": 5, "min_cluster_size": 15, "method": "eom"} | (tree or {}),
        }
    )


def _search(planted, store, announce=lambda stage: None, **groups):
    return search_classes(planted, _settings(**groups), store, announce)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return StageStore(tmp_path_factory.mktemp("search") / "stages")


@pytest.fixture(scope="module")
def found(planted, store):
    return _search(planted, store)


def test_planted_groups_are_found(planted, found):
    rows = found.selection.rows
    assert len(rows) < len(planted.x)
    truth = np.where(planted.group >= 0, planted.group.astype(str), "")
    totals = {name: int((truth == name).sum()) for name in "012"}
    scores = summary(recovery(found.tree.labels, truth[rows], totals), found.tree.labels, truth[rows])
    assert scores["found_f1_80"] == 3
    assert scores["median_purity"] > 0.9


def test_planted_groups_cohere_and_are_told_apart_by_their_bars(planted, found):
    rows = found.selection.rows
    ids = [str(row) for row in rows]
    fractions = planted.vote_fractions[rows]
    table = class_table(found.tree, planted.x[rows], found.graph.indices, fractions, planted.label_cols, ids)
    groups = table[table["size"] < 200]
    assert len(groups) >= 3
    assert groups["cohesion"].min() > 0.8
    assert groups["distinguishing"].str.startswith("bar-dr5").all()


def test_a_second_search_computes_nothing(planted, store, found, monkeypatch):
    for name in ("neighbour_graph", "umap_layout", "build_tree"):
        monkeypatch.delattr(search_module, name)
    announced = []
    again = _search(planted, store, announced.append)
    np.testing.assert_array_equal(again.tree.labels, found.tree.labels)
    assert again.summary()["stages_reused"] == 4
    assert again.summary()["seconds_computed"] == 0
    assert announced == ["selection", "neighbours", "layout", "view", "tree"]


def test_another_tree_reuses_the_layout(planted, store, found):
    other = _search(planted, store, tree={"min_samples": 10, "method": "leaf"})
    assert {name: stage.reused for name, stage in other.stages.items()} == {
        "neighbours": True,
        "layout": True,
        "view": True,
        "tree": False,
    }


def test_in_two_dimensions_the_view_is_the_layout(planted, store, found):
    flat = _search(planted, store, layout={"n_components": 2})
    assert flat.stages["view"].key == flat.stages["layout"].key == found.stages["view"].key
    np.testing.assert_array_equal(flat.layout, found.view)


def test_cuts_that_keep_the_same_galaxies_share_all_stages(planted, store, found):
    twice = {**CUTS, "again": {"answer": "smooth-or-featured*_artifact", "below": 0.5}}
    assert _search(planted, store, cuts=twice).summary()["stages_reused"] == 4


def test_the_number_that_auto_turns_on_does_not_make_another_stage(planted, store, found):
    settings = {"method": "exact", "exact_below": 7}
    assert _search(planted, store, neighbours=settings).summary()["stages_reused"] == 4


def test_summary_counts_galaxies_and_classes(found):
    summed = found.summary()
    labels = found.tree.labels
    assert summed["n_selected"] == len(labels) == len(found.layout) == len(found.view) == len(found.graph.indices)
    assert summed["n_classes"] == len(set(labels) - {-1})
    assert summed["share_in_classes"] == pytest.approx((labels >= 0).mean())
    assert summed["neighbour_recall"] == 1.0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"layout": {"n_neighbors": 999}}, r"layout\.n_neighbors=999 needs at least 1001 galaxies"),
        ({"tree": {"min_samples": 5000}}, r"tree\.min_samples=5000, but \d+ galaxies were selected"),
        ({"tree": {"min_cluster_size": 5000}}, r"tree\.min_cluster_size=5000"),
        ({"cuts": {"none": {"answer": "bar*_no", "below": 1e-9}}}, r"(?s)none of 1190 galaxies is left.*bar-dr5_no"),
        ({"cuts": {"a": {"answer": "ring", "below": 0.5}}}, r"selection\.cuts\.a\.answer: 'ring'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_stage_is_computed(planted, tmp_path, groups, message):
    small = {"cuts": {"few": {"answer": "bar*_strong", "below": 0.2}}} | groups
    with pytest.raises(UserError, match=message):
        _search(planted, StageStore(tmp_path / "stages"), **small)
    assert not (tmp_path / "stages").exists()


def test_galaxies_without_votes_are_searched_all_and_described_without_answers(planted, tmp_path):
    few = replace(planted, x=planted.x[:200], vote_fractions=np.empty((200, 0), np.float32), label_cols=[])
    found = _search(few, StageStore(tmp_path / "stages"), cuts={})
    assert found.selection.rows.tolist() == list(range(200))
    ids = [str(row) for row in range(200)]
    table = class_table(found.tree, few.x, found.graph.indices, few.vote_fractions, [], ids)
    assert table["distinguishing"].tolist() == [""] * len(table)
    assert table["answers"].tolist() == [[]] * len(table)


def test_a_file_of_votes_alone_is_refused_with_the_command_that_adds_features(planted, tmp_path):
    with pytest.raises(UserError, match=r"votes alone.*rarezoo\.embeddings\.convert FEATURES TARGET --predictions"):
        _search(replace(planted, x=planted.x[:, :0]), StageStore(tmp_path / "stages"))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"layout": {"n_neighbours": 15}}, "n_neighbours"),
        ({"layout": {"min_dist": -0.1}}, "min_dist"),
        ({"tree": {"min_cluster_size": 1}}, "min_cluster_size"),
        ({"tree": {"method": "leaves"}}, "method"),
        ({"tree": {"method": "leaf", "max_cluster_size": 50}}, "no effect with method=leaf"),
        ({"tree": {"max_cluster_size": 12}}, "below min_cluster_size=15"),
        ({"tree": {"epsilon": float("nan")}}, "epsilon"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(groups, message):
    with pytest.raises(ValidationError, match=message):
        _settings(**groups)


def test_defaults_are_the_papers():
    settings = SearchSettings()
    assert (settings.layout.n_neighbors, settings.layout.n_components) == (50, 5)
    assert (settings.tree.min_samples, settings.tree.min_cluster_size, settings.tree.method) == (300, 10, "leaf")
