import sys
from pathlib import Path

import hdbscan
import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from known_truth import peers
from known_truth.contest import Found, Task
from known_truth.contestants import RUNS, Contestant, chosen, read_extra, read_methods
from known_truth.methods import montages_around, search, searched_tree, strongest_members
from omegaconf import OmegaConf
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from small_contest import GROUPS, points, survey_of, task_of

from rarezoo.cli import UserError
from rarezoo.clustering.pipeline import Pipeline
from rarezoo.clustering.scores import recovery
from rarezoo.clustering.settings import SearchSettings
from rarezoo.clustering.stages import StageStore

CONF = Path(__file__).parents[2] / "conf"
# Without a layout it takes no time.
QUICK = {"layout": {"method": "none", "n_neighbors": 5}, "tree": {"min_samples": 5}, "neighbours": {"width": 20}}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return task_of(tmp_path_factory.mktemp("contest"))


@pytest.mark.parametrize("contestant", read_methods().values(), ids=lambda contestant: contestant.name)
def test_options_of_every_method_are_options_that_there_are(contestant):
    options = contestant.find.keywords
    for group in (options if contestant.find.func is search else options.get("search", {}),):
        SearchSettings.model_validate(group)


def test_paper_s_method_has_the_paper_s_settings():
    found = SearchSettings.model_validate(read_methods()["paper"].find.keywords)
    assert (found.layout.n_neighbors, found.layout.n_components, found.layout.min_dist) == (50, 5, 0)
    assert (found.tree.min_samples, found.tree.min_cluster_size, found.tree.method) == (300, 10, "leaf")


@pytest.mark.parametrize("experiment", ["recommended", "demo"])
def test_recommended_method_is_the_experiment_of_that_name(experiment):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("cluster", [f"experiment={experiment}"])
    asked = SearchSettings.model_validate(read_methods()["recommended"].find.keywords)
    for group in ("neighbours", "layout", "tree"):
        assert OmegaConf.to_container(config[group], resolve=True) == getattr(asked, group).model_dump()


def test_search_finds_planted_groups_and_shows_the_most_persistent_first(task):
    found, (_, group) = search(task, **QUICK), points()
    table = recovery(found.labels, group)
    assert set(table["class"]) == set(GROUPS)
    assert table["f1"].min() > 0.9
    assert [np.unique(found.labels[rows]).tolist() for rows in found.montages] == [
        [label] for label in range(len(found.montages))
    ]
    persistence = searched_tree(task, QUICK).persistence
    assert (np.diff(persistence) <= 0).all()


def test_layout_of_a_search_has_the_seed_of_the_task(tmp_path, monkeypatch):
    seeds, build = [], Pipeline.of

    def recorded(x, settings, store):
        seeds.append(settings.layout.seed)
        return build(x, settings, store)

    monkeypatch.setattr(Pipeline, "of", recorded)
    search(task_of(tmp_path, seed=3), **QUICK)
    search(task_of(tmp_path, seed=3), **{**QUICK, "layout": {**QUICK["layout"], "seed": 5}})
    assert seeds == [3, 5]


def test_search_with_an_unknown_setting_names_it(task):
    with pytest.raises(UserError, match=r"tree\.min_sample"):
        search(task, tree={"min_sample": 5})


def test_montage_shows_the_strongest_members_and_of_equals_the_first_rows():
    labels = np.array([1, 0, 0, 1, 0, -1, 0, 3])
    strength = np.array([0.2, 0.5, 0.9, 0.3, 0.5, 1.0, 0.5, 0.1])
    montages = strongest_members(labels, strength, [1, 2, 0, 3], montage_size=3)
    assert [rows.tolist() for rows in montages] == [[3, 0], [2, 1, 4], [7]]


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(2, 30), st.integers(1, 3)), elements=st.integers(-3, 3)),
    st.integers(1, 8),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_ranking_shows_the_next_galaxy_not_shown_with_its_nearest_neighbours(x, size, n_montages, random):
    order = list(range(len(x)))
    random.shuffle(order)
    montages = montages_around(Task(x, 0, None, size), order, n_montages)
    shown, distances = set(), cdist(x, x)
    for rows in montages:
        assert rows[0] == next(row for row in order if row not in shown)
        assert len(set(rows.tolist())) == len(rows) == min(size, len(x))
        np.testing.assert_allclose(
            np.sort(distances[rows[0], rows]), np.sort(distances[rows[0]])[: len(rows)], atol=1e-3
        )
        shown |= set(rows.tolist())
    assert len(montages) == n_montages or len(shown) == len(x)


def test_hdbscan_on_principal_components_is_that_of_the_hdbscan_package(task):
    found = peers.pca_search(task, n_components=4, min_samples=5, min_cluster_size=10)
    places = PCA(4, random_state=0).fit_transform(task.x).astype(np.float64)
    theirs = hdbscan.HDBSCAN(
        min_cluster_size=10, min_samples=5, cluster_selection_method="leaf", approx_min_span_tree=False
    ).fit_predict(places)
    assert theirs.max() >= len(GROUPS) - 1
    assert adjusted_rand_score(theirs, found.labels) > 0.98


@pytest.mark.parametrize("run", [peers.kmeans, peers.mixture])
def test_methods_that_are_told_a_number_of_clusters_make_as_many_as_the_search_finds(task, run):
    n_classes = searched_tree(task, QUICK).n_classes
    found = run(task, match="count", search=QUICK)
    assert len(np.unique(found.labels)) == n_classes
    assert (found.labels >= 0).all()


def test_clusters_of_the_size_of_the_search_s_are_as_many_as_share_the_galaxies(task):
    sizes = searched_tree(task, QUICK).sizes()
    assert peers.matched_count(task, "size", QUICK) == round(len(task.x) / np.median(sizes))


def test_search_without_a_class_gives_no_number_to_match(task):
    with pytest.raises(UserError, match="no class"):
        peers.matched_count(task, "count", QUICK | {"tree": {"min_samples": 5, "min_persistence": 1.0}})


def test_most_compact_cluster_comes_first_and_those_too_small_for_a_montage_last():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [30, 30]], dtype=float)
    spreads, sizes = (2.0, 0.1, 0.5, 0.0), (50, 30, 40, 2)
    x = np.concatenate([c + s * rng.normal(size=(n, 2)) for c, s, n in zip(centres, spreads, sizes, strict=True)])
    labels = np.repeat(range(4), sizes)
    found = peers.by_centres(Task(x.astype(np.float32), 0, None, montage_size=10), labels, centres)
    assert [labels[rows[0]] for rows in found.montages] == [1, 2, 0, 3]
    nearest = np.argsort(cdist(x[labels == 1], centres[[1]])[:, 0])[:10] + 50
    assert set(found.montages[0]) == set(nearest)


@pytest.mark.parametrize("run", [peers.isolation_forest, peers.local_outlier_factor])
def test_rankings_begin_with_galaxies_far_from_all_others(tmp_path, run):
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    x[[7, 19]] += 40
    options = {"n_trees": 50} if run is peers.isolation_forest else {"n_neighbors": 20}
    found = run(Task(x, 0, StageStore(tmp_path), montage_size=5), n_montages=4, **options)
    assert found.labels is None
    assert {7, 19} <= set(found.montages[0])
    assert len(found.montages) == 4


def test_random_order_is_that_of_its_seed(task):
    first, again = (peers.random_order(task, 5).montages for _ in range(2))
    other = peers.random_order(Task(task.x, 1, task.store), 5).montages
    np.testing.assert_equal(first, again)
    assert [rows[0] for rows in first] != [rows[0] for rows in other]


@pytest.mark.parametrize("layer", ["best", "finest"])
def test_evoc_s_clusters_come_by_their_mean_strength(task, monkeypatch, layer):
    labels = np.array([0] * 20 + [1] * 30 + [-1] * (len(task.x) - 50))
    strength = np.where(labels == 1, 0.9, 0.4)

    class TheirModel:
        def __init__(self, **options):
            assert options["random_state"] == task.seed
            self.labels_, self.membership_strengths_ = labels, strength
            # The finest layer: the same with the two clusters' names exchanged.
            self.cluster_layers_ = [np.where(labels >= 0, 1 - labels, -1), labels]
            self.membership_strength_layers_ = [strength, strength]

        def fit(self, x):
            return self

    monkeypatch.setitem(sys.modules, "evoc", type("evoc", (), {"EVoC": TheirModel}))
    found = peers.evoc(task, layer, n_neighbors=15, min_cluster_size=10)
    assert [len(rows) for rows in found.montages] == [12, 12]
    assert set(found.montages[0]) <= set(range(20, 50))
    assert found.labels[25] == (1 if layer == "best" else 0)


def test_evoc_that_is_not_installed_says_how_to_install_it(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "evoc", None)
    with pytest.raises(UserError, match=r"rarezoo\[benchmark\]"):
        peers.evoc(task, "best", n_neighbors=15, min_cluster_size=10)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("mine: {run: serch}", "Did you mean 'search'"),
        ("mine: {run: search, option: {}}", "'mine': option"),
        ("mine: {run: kmeans, options: {n: 4}}", "'mine'.*kmeans"),
        ("mine: {run: search, truth: [guessed]}", "'mine': truth"),
        ("mine: {run: search, most_galaxies: 0}", "most_galaxies"),
        ("mine: {options: {}}", "run"),
        ("- mine", "holds no methods"),
        ("mine: {run: [", "cannot be read as YAML"),
        ("", "holds no methods"),
    ],
)
def test_faulty_file_of_methods_is_refused_with_the_fault_named(tmp_path, content, named):
    path = tmp_path / "methods.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=named) as error:
        read_methods(path)
    assert str(path) in str(error.value)


def test_file_of_methods_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_methods(tmp_path / "none.yaml")


def test_every_way_to_look_for_classes_is_used_by_a_method():
    assert {contestant.find.func for contestant in read_methods().values()} == set(RUNS.values())


def test_methods_of_a_python_file_take_part(tmp_path, task):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\nfrom known_truth.contest import Found, Task\n"
        "def all_in_one(task: Task) -> Found:\n"
        "    return Found([np.arange(task.montage_size)], np.zeros(len(task.x), dtype=np.int32))\n"
        "METHODS = {'all-in-one': all_in_one}\n"
    )
    mine = read_extra(path)["all-in-one"]
    assert (mine.name, mine.representation) == ("all-in-one", "bottleneck")
    found = mine.find(task)
    assert (found.labels == 0).all()
    assert found.montages[0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("x = 1", "has no METHODS"),
        ("METHODS = {'mine': 3}", "has no METHODS"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_faulty_python_file_is_refused_with_the_fault_named(tmp_path, content, named):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError, match=named):
        read_extra(path)


@pytest.mark.parametrize("name", ["absent.py", "notes.txt"])
def test_extra_that_is_no_python_file_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("METHODS = {}")
    with pytest.raises(UserError, match="no Python file"):
        read_extra(tmp_path / name)


def test_methods_are_chosen_by_name_in_the_order_of_the_file():
    methods = read_methods()
    assert [contestant.name for contestant in chosen(methods, ["evoc", "paper"])] == ["paper", "evoc"]
    assert [contestant.name for contestant in chosen(methods, [])] == list(methods)
    with pytest.raises(UserError, match="Did you mean 'k-means'"):
        chosen(methods, ["kmeans"])


def test_method_takes_part_in_surveys_of_its_kind_and_size_that_have_its_representation():
    def takes_part(**place):
        return Contestant("mine", lambda task: Found([]), **place).takes_part(survey_of())

    assert takes_part()
    assert takes_part(truth=("planted",), most_galaxies=500, representation="votes")
    assert not takes_part(truth=("injected",))
    assert not takes_part(most_galaxies=499)
    assert not takes_part(representation="pixels")


def test_names_of_methods_can_be_names_of_files():
    names = pd.Series(list(read_methods()))
    assert names.str.fullmatch(r"[a-z0-9-]+").all()
