from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.spatial.distance import cdist

from rarezoo.cli import UserError
from rarezoo.clustering import pipeline as pipeline_module
from rarezoo.clustering.classes import class_table
from rarezoo.clustering.cohesion import cohesion
from rarezoo.clustering.scores import recovery, summary
from rarezoo.clustering.search import search_classes
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import StageStore
from rarezoo.clustering.whitening import whitening_of

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
    for name in ("find_neighbours", "fuzzy_graph", "initial_layout", "umap_layout", "spanning_tree", "class_tree"):
        monkeypatch.delattr(pipeline_module, name)
    announced = []
    again = _search(planted, store, announced.append)
    np.testing.assert_array_equal(again.tree.labels, found.tree.labels)
    assert all(stage.reused for stage in again.stages.values())
    assert announced == ["selection", "neighbours", "layout", "view", "spanning tree", "classes"]


def computed(planted, store, **groups):
    """Names of the stages that a search had to compute."""
    return {name for name, stage in _search(planted, store, **groups).stages.items() if not stage.reused}


def test_another_setting_of_the_tree_is_read_off_the_same_spanning_tree(planted, store, found):
    assert computed(planted, store, tree={"min_cluster_size": 10, "method": "leaf"}) == {"tree"}


def test_another_min_samples_reuses_the_layout(planted, store, found):
    assert computed(planted, store, tree={"min_samples": 10}) == {"spanning", "tree"}


def test_fewer_neighbours_are_taken_from_the_same_graph(planted, store, found):
    assert "neighbours" not in computed(planted, store, layout={"n_neighbors": 10})


def test_every_stage_of_a_sweep_is_computed_once_whatever_the_order(planted, tmp_path):
    grid = [(n, d, s, size) for n in (10, 15) for d in (2, 3) for s in (5, 10) for size in (10, 20)]
    orders = {"forth": grid, "back": grid[::-1]}
    made = {}
    for order, settings in orders.items():
        store = StageStore(tmp_path / order)
        for n_neighbors, n_components, min_samples, size in settings:
            # Spectral starts of a graph in pieces, as that of the planted groups is, are not shared over dimensions.
            layout = {"n_neighbors": n_neighbors, "n_components": n_components, "n_epochs": 5, "init": "pca"}
            _search(planted, store, layout=layout, tree={"min_samples": min_samples, "min_cluster_size": size})
        made[order] = {name: stage["computed"] for name, stage in store.summary()["stages"].items()}
        assert sorted(path.name for path in store.root.glob("*-*")) == sorted(
            path.name for path in (tmp_path / "forth").glob("*-*")
        )
    # Layouts of two dimensions are views too.
    assert made["forth"] == {"neighbours": 1, "fuzzy": 2, "start": 2, "layout": 4, "spanning": 8, "tree": 16}
    assert made["back"] == made["forth"]


def test_of_a_large_sample_the_stages_record_that_epochs_were_fewer(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("rarezoo.clustering.layout.FEWER_EPOCHS_FROM", 100)
    found = _search(planted, StageStore(tmp_path / "stages"), layout={"n_epochs": None})
    assert [found.stages[name].info["parameters"]["n_epochs"] for name in ("layout", "view")] == [100, 100]


def test_in_two_dimensions_the_view_is_the_layout(planted, store, found):
    flat = _search(planted, store, layout={"n_components": 2})
    assert flat.stages["view"].key == flat.stages["layout"].key == found.stages["view"].key
    np.testing.assert_array_equal(flat.layout, found.view)


def test_cuts_that_keep_the_same_galaxies_share_all_stages(planted, store, found):
    twice = {**CUTS, "again": {"answer": "smooth-or-featured*_artifact", "below": 0.5}}
    assert not computed(planted, store, cuts=twice)


def test_the_number_that_auto_turns_on_does_not_make_another_stage(planted, store, found):
    assert not computed(planted, store, neighbours={"method": "exact", "exact_below": 7})


def test_without_a_layout_the_tree_is_of_the_neighbour_graph(planted, store, found):
    groups = {"layout": {"method": "none"}, "tree": {"min_samples": 5, "method": "leaf"}}
    direct = _search(planted, store, **groups)
    assert direct.layout is None
    assert "layout" not in direct.stages
    assert direct.stages["view"].reused
    truth = np.where(planted.group >= 0, planted.group.astype(str), "")[direct.selection.rows]
    assert summary(recovery(direct.tree.labels, truth), direct.tree.labels, truth)["found_f1_80"] == 3


def test_without_a_layout_the_graph_is_as_wide_as_min_samples_needs(planted, tmp_path):
    groups = {"neighbours": {"width": 20}, "layout": {"method": "none"}, "tree": {"min_samples": 40}}
    direct = _search(planted, StageStore(tmp_path / "stages"), **groups)
    assert direct.graph.indices.shape[1] == 41


def test_a_new_version_of_a_package_computes_its_stages_anew(planted, store, found, monkeypatch):
    versions = {**pipeline_module.versions(), "umap-learn": "99.0"}
    monkeypatch.setattr(pipeline_module, "versions", lambda: versions)
    assert "neighbours" not in (again := computed(planted, store))
    assert {"layout", "view"} <= again


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


class Twice:
    """Planted galaxies of which the first two have one id."""

    def __init__(self, planted):
        self._planted = planted

    def __getattr__(self, name):
        return getattr(self._planted, name)

    def __len__(self):
        return len(self._planted)

    def to_pandas(self, rows):
        return self._planted.to_pandas(np.where(rows == 1, 0, rows))


@pytest.mark.parametrize(
    ("spoilt", "said"), [("ids", "id_str: 'J0' is the id of row 0 and of row 1"), ("x", "'J77', row 77")]
)
def test_a_galaxy_that_cannot_be_told_or_placed_is_named_before_any_stage(planted, tmp_path, spoilt, said):
    x = planted.x.copy()
    x[77, 5] = np.nan
    galaxies = Twice(planted) if spoilt == "ids" else replace(planted, x=x)
    with pytest.raises(UserError, match=said):
        search_classes(galaxies, _settings(cuts={}), StageStore(tmp_path / "stages"))
    assert not (tmp_path / "stages").exists()


def test_galaxies_that_cuts_remove_may_have_no_place(planted, tmp_path):
    # 190 galaxies have strong bars; without these the rest is searched as it is.
    removed = np.flatnonzero(planted.vote_fractions[:, 3] >= 0.5)
    x = planted.x.copy()
    x[removed] = np.nan
    groups = {"cuts": {"bars": {"answer": "bar*_strong", "below": 0.5}}, "layout": {"n_epochs": 5}}
    found = _search(replace(planted, x=x), StageStore(tmp_path / "stages"), **groups)
    assert found.catalog["id_str"].tolist() == [f"J{row}" for row in found.selection.rows]
    assert not np.isin(found.selection.rows, removed).any()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"layout": {"n_neighbours": 15}}, "n_neighbours"),
        ({"layout": {"min_dist": -0.1}}, "min_dist"),
        ({"tree": {"min_cluster_size": 1}}, "min_cluster_size"),
        ({"tree": {"method": "leaves"}}, "method"),
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


def test_search_is_of_the_whitened_galaxies_and_keeps_them_as_they_were_embedded(planted, store, found):
    again = _search(planted, store, neighbours={"whitening": 0.75})
    assert computed(planted, store, neighbours={"whitening": 0.75}) == set()
    np.testing.assert_array_equal(again.representation, found.representation)
    expected = whitening_of(found.representation, 0.75)(found.representation)
    np.testing.assert_array_equal(again.pipeline.x, expected)
    nearest = cdist(expected[:20], expected).argsort(1, kind="stable")[:, 1:6]
    assert (again.graph.indices[:20, 1:6] == nearest).mean() > 0.99


def test_cohesion_of_the_same_classes_does_not_depend_on_whitening(planted, store, found):
    whitened = _search(planted, store, neighbours={"whitening": 1.0})
    assert found.neighbours_as_embedded() is found.graph.indices
    assert whitened.neighbours_as_embedded().shape == (len(found.representation), 11)

    def cohesions(neighbours):
        return cohesion(found.tree.labels, neighbours, found.tree.n_classes)

    np.testing.assert_array_equal(cohesions(whitened.neighbours_as_embedded()), cohesions(found.graph.indices))
    assert (cohesions(whitened.graph.indices) != cohesions(found.graph.indices)).any()


def test_neighbours_as_embedded_are_found_once_for_searches_of_any_whitening(planted, tmp_path):
    made = []
    for whitening, n_epochs in ((0.5, 5), (0.5, 6), (1.0, 5), (0.0, 5)):
        store = StageStore(tmp_path)
        groups = {"neighbours": {"whitening": whitening}, "layout": {"n_epochs": n_epochs}}
        _search(planted, store, **groups).neighbours_as_embedded()
        made.append(store.summary()["stages"]["neighbours"])
    assert [(each["computed"], each["reused"]) for each in made] == [(2, 0), (0, 2), (1, 1), (1, 0)]


def test_largest_size_below_one_is_a_share_of_those_searched(planted, store, found):
    n_rows = len(found.selection.rows)
    as_share = _search(planted, store, tree={"max_cluster_size": 0.2})
    as_number = _search(planted, store, tree={"max_cluster_size": round(0.2 * n_rows)})
    np.testing.assert_array_equal(as_share.tree.labels, as_number.tree.labels)
    assert as_share.tree.sizes().max() <= 0.2 * n_rows < found.tree.sizes().max()


def test_leaves_have_no_largest_size(planted, store, found):
    limited = _search(planted, store, tree={"method": "leaf", "max_cluster_size": 0.05})
    free = _search(planted, store, tree={"method": "leaf"})
    assert limited.tree.sizes().max() > 0.05 * len(found.selection.rows)
    np.testing.assert_array_equal(limited.tree.labels, free.tree.labels)
