"""Searches as they are run: alone, in sweeps, without a layout, with repeats; what is tracked, what follows."""

import base64
from html.parser import HTMLParser
from itertools import product
from urllib.parse import unquote

import h5py
import numpy as np
import pandas as pd
import pytest
from offline_runs import read_offline_run
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from small_scripts import CLUSTER, run
from small_searches import SIZES, again_elsewhere, record_of, stages_in, tables_of, write_survey

pytestmark = pytest.mark.script

OPTIONS = ("layout.n_neighbors", "tree.min_samples", "tree.method")


@pytest.fixture(scope="module")
def tracked(searched):
    """The finished search as Weights & Biases keeps it."""
    (path,) = (searched[0] / "outputs/one/cluster/wandb").glob("offline-run-*/run-*.wandb")
    return read_offline_run(path)


def test_tracked_run_has_the_funnel_and_the_classes_with_their_montages(searched, tracked):
    results = searched[0] / "outputs/one/cluster"
    assert [(row["cut"], row["left"]) for row in tracked.table("cuts")] == [("all", 192)]
    classes = tables_of(results)[0]
    logged = tracked.table("classes")
    for name in ("cluster", "size", "medoid_id", "grade"):
        assert [row[name] for row in logged] == classes[name].astype(object).where(classes[name].notna(), None).tolist()
    for row in logged:
        assert row["montage"].read_bytes() == (results / f"montages/class_{row['cluster']:03d}.png").read_bytes()
    (folder,) = (results / "wandb").glob("offline-run-*")
    for name in ("map", "cuts", "class_sizes", "recovery"):
        (picture,) = (row[f"figures/{name}.path"] for row in tracked.history if f"figures/{name}.path" in row)
        assert (folder / "files" / picture).read_bytes() == (results / f"figures/{name}.png").read_bytes()


def test_tracked_run_has_quality_and_what_each_stage_cost(searched, tracked):
    summary = record_of(searched[0] / "outputs/one/cluster")["summary"]
    for name in ("n_classes", "noise_share", "dbcv", "neighbour_recall", "stages_computed", "stages_reused"):
        assert tracked.summary[name] == pytest.approx(summary[name])
    assert (summary["stages_reused"], summary["n_galaxies"]) == (0, 192)
    for name, counted in summary["stages"].items():
        logged = tracked.summary["stages"][name]
        assert (logged["computed"], logged["reused"]) == (counted["computed"], 0)
        assert logged["seconds"] == pytest.approx(counted["seconds"])
    assert {"neighbours", "layout", "spanning", "tree"} <= summary["stages"].keys()
    assert tracked.summary["recovery"]["planted"] == len(SIZES)
    assert tracked.config["layout.n_neighbors"] == 8
    assert (tracked.group, tracked.job_type, tracked.exit_code) == ("one", "cluster", 0)


def test_page_shows_the_map_that_stands_among_the_figures(searched):
    results = searched[0] / "outputs/one/cluster"
    picture = base64.b64encode((results / "figures/map.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{picture}"' in (results / "report.html").read_text()


class FileLinks(HTMLParser):
    """Text and target of each link in the section of files."""

    def __init__(self, page):
        super().__init__()
        self.links, self._inside, self._target = {}, False, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self._inside = dict(attrs).get("id") == "files"
        self._target = dict(attrs)["href"] if tag == "a" and self._inside else None

    def handle_endtag(self, tag):
        self._target = None

    def handle_data(self, text):
        if self._target is not None:
            self.links[text] = self._target


def test_every_file_that_the_page_links_to_is_beside_it(searched):
    results = searched[0] / "outputs/one/cluster"
    links = FileLinks((results / "report.html").read_text()).links
    tables = {f"{name}.{kind}" for name in ("galaxies", "classes") for kind in ("parquet", "csv", "fits", "vot")}
    assert set(links) == {*tables, "columns.parquet", "recovery.parquet", "map", "cuts", "class_sizes", "recovery"}
    assert all((results / unquote(link)).stat().st_size for link in links.values())


def test_classes_are_weighed_in_what_the_catalog_carries_but_place_and_path(searched):
    columns = pd.read_parquet(searched[0] / "outputs/one/cluster/columns.parquet")
    classes, galaxies = tables_of(searched[0] / "outputs/one/cluster")
    assert columns["column"].tolist() == ["redshift"] * len(classes)
    assert columns["cluster"].tolist() == classes["cluster"].tolist()
    members = galaxies[galaxies["cluster"] >= 0].groupby("cluster")["redshift"]
    assert columns["n"].tolist() == members.size().tolist()
    np.testing.assert_allclose(columns["mean"], members.mean())


def test_classes_lie_where_their_medoids_do(searched):
    classes, galaxies = tables_of(searched[0] / "outputs/one/cluster")
    expected = galaxies.set_index("id_str").loc[classes["medoid_id"], ["ra", "dec"]]
    np.testing.assert_array_equal(classes[["medoid_ra", "medoid_dec"]], expected)


def test_cohesion_is_that_of_the_galaxies_as_they_were_embedded_and_a_sweep_finds_its_neighbours(
    searched, process, tmp_path
):
    options = again_elsewhere(searched[0], "neighbours.whitening=1", "tree.method=leaf")
    status, said = process.run(tmp_path, "cluster.py", *options, "name=whitened")
    assert status == 0, said
    classes, galaxies = tables_of(tmp_path / "outputs/whitened/cluster")
    with h5py.File(searched[0] / "embeddings.h5") as file:
        x = file["representation"][:].astype(np.float64)
    labels = galaxies["cluster"].to_numpy()
    measured = {}
    for name, places in (("embedded", x), ("whitened", PCA(whiten=True).fit_transform(x))):
        nearest = cdist(places, places).argsort(axis=1)[:, 1:11]
        alike = [
            (labels[nearest[labels == cluster][:, : min(10, size - 1)]] == cluster).mean()
            for cluster, size in classes[["cluster", "size"]].itertuples(index=False)
        ]
        measured[name] = np.array(alike)
    np.testing.assert_allclose(classes["cohesion"], measured["embedded"])
    assert np.abs(measured["embedded"] - measured["whitened"]).max() > 0.01
    status, said = process.run(tmp_path, "cluster.py", *options, "name=other", "tree.min_cluster_size=6")
    assert status == 0, said
    stages = record_of(tmp_path / "outputs/other/cluster")["summary"]["stages"]
    assert {name for name, counted in stages.items() if counted["computed"]} == {"tree"}
    assert stages["neighbours"]["reused"] == 2


def test_truth_that_fits_in_part_and_a_min_samples_that_hides_classes_are_told_of_on_the_page(
    searched, process, tmp_path
):
    truth = pd.read_csv(searched[0] / "truth.csv", keep_default_na=False)
    gone = pd.DataFrame({"id_str": ["gone"], "rare_class": ["group0"]})
    pd.concat([truth[3:], gone]).to_csv(tmp_path / "part.csv", index=False)
    options = again_elsewhere(searched[0], "name=part", f"truth={tmp_path}/part.csv", "tree.min_samples=6")
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    page = (tmp_path / "outputs/part/cluster/report.html").read_text()
    assert "1 of its 190 galaxies (first: &#39;gone&#39;) were not embedded, and count as missed; 3 of 192" in page
    assert "tree.min_samples=6 hides groups of fewer than about 6 galaxies, 3.12% of the 192 searched" in page
    assert "hides groups" not in (searched[0] / "outputs/one/cluster/report.html").read_text()


def test_planted_groups_are_found(searched):
    recovery = pd.read_parquet(searched[0] / "outputs/one/cluster/recovery.parquet")
    assert recovery.sort_values("class")["members"].tolist() == list(SIZES)
    assert (recovery["f1"] > 0.9).all()


SWEEPS = {
    "one after the other": ("layout.n_neighbors=6,8", "tree.min_samples=2,3", "tree.method=leaf,eom"),
    "joblib": ("layout.n_neighbors=6,8", "tree.min_samples=3", "tree.method=leaf,eom", "hydra/launcher=local"),
}


@pytest.fixture(scope="module", params=SWEEPS)
def sweep(request, process, tmp_path_factory):
    """Options of each job, and the folder of the sweep."""
    folder = write_survey(tmp_path_factory.mktemp("sweep"))
    swept = SWEEPS[request.param]
    names = {option.partition("=")[0] for option in swept}
    kept = [option for option in CLUSTER if option.partition("=")[0] not in names]
    command = ("-m", *kept, "embeddings=embeddings.h5", "name=s", "logger.mode=offline", *swept)
    if "joblib" in request.param:
        run(folder, "cluster.py", *command, small=False)
    else:
        status, said = process.run(folder, "cluster.py", *command)
        assert status == 0, said
    values = [option.partition("=")[2].split(",") for option in swept if not option.startswith("hydra")]
    jobs = [(int(k), int(s), method) for k, s, method in product(*values)]
    return jobs, folder / "outputs/s/cluster-sweep"


def test_sweep_computes_every_stage_once(sweep):
    jobs, folder = sweep
    summaries = [record_of(path.parent)["summary"] for path in folder.glob("*/run.json")]
    assert len(summaries) == len(jobs)
    stored = stages_in(folder.parent / "stages")
    assert sum(summary["stages_computed"] for summary in summaries) == len(stored)
    for name, times in (
        # Of the whitened galaxies, and of these as they were embedded, for cohesion.
        ("neighbours", 2),
        ("fuzzy", len({k for k, _, _ in jobs})),
        ("layout", 2 * len({k for k, _, _ in jobs})),
        ("spanning", len({(k, s) for k, s, _ in jobs})),
        ("tree", len(jobs)),
    ):
        assert stored.count(name) == times


def test_sweep_has_one_table_and_page_of_all_jobs(sweep):
    jobs, folder = sweep
    table = pd.read_parquet(folder / "sweep.parquet").set_index("job")
    assert len(table) == len(jobs)
    for job, row in table.iterrows():
        record = record_of(folder / job)
        assert row["n_classes"] == record["summary"]["n_classes"] == len(tables_of(folder / job)[0])
        assert (row["layout.n_neighbors"], row["tree.method"]) == (
            record["key"]["settings"]["layout"]["n_neighbors"],
            record["key"]["settings"]["tree"]["method"],
        )
        assert f"layout.n_neighbors={row['layout.n_neighbors']}" in job
    page = (folder / "sweep.html").read_text()
    assert page.count("/report.html") == len(jobs)
    assert all("../sweep.html" in (folder / job / "report.html").read_text() for job in table.index)


def test_each_job_is_a_tracked_run_with_flat_settings_and_the_last_has_the_table_of_all(sweep):
    jobs, folder = sweep
    runs = [read_offline_run(path) for path in folder.glob("*/wandb/offline-run-*/run-*.wandb")]
    found = [tuple(run.config[name] for name in OPTIONS) for run in runs]
    assert sorted(found) == sorted(jobs)
    assert {(run.group, run.job_type, run.exit_code) for run in runs} == {("s/cluster-sweep", "cluster", 0)}
    assert len({run.name for run in runs}) == len(jobs)
    whole = max((run.table("sweep") for run in runs), key=len)
    expected = pd.read_parquet(folder / "sweep.parquet")
    assert {row["job"]: row["n_classes"] for row in whole} == dict(
        zip(expected["job"], expected["n_classes"], strict=True)
    )


def test_search_without_a_layout_in_groups_and_with_repeats(searched, process, tmp_path):
    options = again_elsewhere(searched[0], "name=graph", "layout=none", "groups=similar", "trust=quick")
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    classes, galaxies = tables_of(tmp_path / "outputs/graph/cluster")
    assert classes["grade"].notna().all()
    # A tree of neighbours has no seed: its layout is only for the eye.
    assert classes["stability_seeds"].isna().all()
    assert classes["stability_samples"].between(0, 1).all()
    assert classes["group"].min() == 0
    assert galaxies[["x", "y"]].notna().all(axis=None)
    summary = record_of(tmp_path / "outputs/graph/cluster")["summary"]
    assert summary["control_classes"] is not None
    assert summary["stages"]["layout"]["computed"] == 0
    assert said.count("repeat with seed") == 0
    assert said.count("repeat on sample") == 2


def test_repeats_grade_each_class_and_are_not_made_twice(searched, process, tmp_path):
    options = again_elsewhere(searched[0], "name=graded", "trust=quick", "trust.seeds=1", "trust.bootstraps=1")
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    results = tmp_path / "outputs/graded/cluster"
    classes = tables_of(results)[0]
    assert classes["grade"].isin(list("ABCD")).all()
    assert (classes["stability_repeats"] == 2).all()
    stability = classes[["stability_seeds", "stability_samples"]]
    assert not ((stability < 0) | (stability > 1)).any(axis=None)
    assert record_of(results)["summary"]["stability"] == pytest.approx(stability.min(axis=1).mean())
    status, said = process.run(tmp_path, "cluster.py", *options, "overwrite=true")
    assert status == 0, said
    assert record_of(results)["summary"]["stages_computed"] == 0
    pd.testing.assert_frame_equal(tables_of(results)[0], classes)


def test_new_galaxies_are_placed_in_a_search(searched, process, tmp_path):
    folder = searched[0]
    known = tables_of(folder / "outputs/one/cluster")[1]
    status, said = process.run(
        tmp_path, "rarezoo.clustering.place", folder / "outputs/one/cluster", folder / "embeddings.h5",
        "--embeddings", folder / "embeddings.h5",
    )  # fmt: skip
    assert status == 0, said
    assert "share_in_classes" in said
    placed = pd.read_parquet(tmp_path / "placed.parquet")
    assert placed["id_str"].tolist() == known["id_str"].tolist()
    assert (placed["distance"] == 0).all()
    # A galaxy that is known already is its own nearest neighbour, and counts as one of them.
    np.testing.assert_array_equal(
        *(table["cluster"][table["id_str"].str.startswith("group")] for table in (placed, known))
    )


def test_place_says_which_search_and_file_belong_together(searched, process, tmp_path):
    write_survey(tmp_path, n_bulk=60)
    options = (searched[0] / "outputs/one/cluster", "embeddings.h5", "--embeddings")
    status, said = process.run(tmp_path, "rarezoo.clustering.place", *options, "embeddings.h5")
    assert status == 2, said
    assert "is not the file that" in said
    status, said = process.run(tmp_path, "rarezoo.clustering.place", "nowhere", *options[1:], "embeddings.h5")
    assert status == 2, said
    assert "nowhere/run.json: there is no such file" in said
    assert not (tmp_path / "placed.parquet").exists()


def test_stages_are_listed_and_those_of_an_old_search_removed(searched, process, tmp_path):
    status, said = process.run(searched[0], "rarezoo.clustering.tidy", "stages", "--remove-unused", "30")
    assert status == 0, said
    assert all(f" {name}-" in said or f"\n{name}-" in said for name in ("neighbours", "layout", "spanning", "tree"))
    assert "removed    0" in said
    status, said = process.run(tmp_path, "rarezoo.clustering.tidy", "stages")
    assert status == 2, said
    assert "stages: there is no such folder" in said
