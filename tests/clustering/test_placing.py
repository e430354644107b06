import json
import sys
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN

from rarezoo.cli import UserError
from rarezoo.clustering import place
from rarezoo.clustering.layout import fuzzy_graph, initial_layout, umap_layout
from rarezoo.clustering.neighbours import find_neighbours
from rarezoo.clustering.placing import KnownGalaxies
from rarezoo.clustering.whitening import whitening_of

TEXT = h5py.string_dtype("utf-8")
TREE = {"shape": {"answers": ["smooth", "featured"]}}
K = 15


@pytest.fixture(scope="module")
def together(planted):
    """Layout and classes of all galaxies, fitted together; every tenth of them is held out below."""
    graph, _ = find_neighbours(planted.x, K)
    fuzzy = fuzzy_graph(graph, K)
    layout = umap_layout(fuzzy, initial_layout(planted.x, fuzzy, 2, "spectral", 0), planted.x, n_epochs=200)
    found = HDBSCAN(min_cluster_size=15, min_samples=5, copy=True).fit(layout.astype(float))
    return layout, found.labels_, found.probabilities_


@pytest.fixture(scope="module")
def held_out(planted):
    return np.random.default_rng(0).random(len(planted)) < 0.1


def _known(planted, together, rows, **options):
    return KnownGalaxies(planted.x[rows], *(each[rows] for each in together), **({"n_neighbors": K} | options))


@pytest.fixture(scope="module")
def known(planted, together, held_out):
    return _known(planted, together, ~held_out)


def test_a_held_out_galaxy_gets_the_class_that_it_has_when_fitted_together(planted, together, held_out, known):
    _, labels, probabilities = together
    placed = known.place(planted.x[held_out])
    in_group = planted.group[held_out] >= 0
    assert len(set(labels[held_out][in_group])) == 3
    assert np.mean(placed.labels[in_group] == labels[held_out][in_group]) > 0.9
    assert np.mean(placed.labels == labels[held_out]) > 0.9
    assert np.abs(placed.probabilities - probabilities[held_out]).mean() < 0.15


def test_a_held_out_galaxy_comes_to_where_it_lies_when_fitted_together(planted, together, held_out, known):
    layout = together[0]
    apart = np.linalg.norm(known.place(planted.x[held_out]).layout - layout[held_out], axis=1)
    assert np.median(apart) < 0.05 * np.ptp(layout)


def test_ivf_places_as_the_exact_search_does(planted, together, held_out, known):
    exact, ivf = (
        each.place(planted.x[held_out]) for each in (known, _known(planted, together, ~held_out, exact_below=0))
    )
    assert np.mean(exact.labels == ivf.labels) > 0.98
    assert np.mean(np.isclose(exact.layout, ivf.layout, atol=1e-3).all(axis=1)) > 0.9


def test_each_galaxy_is_placed_by_itself(planted, held_out, known):
    x = planted.x[held_out][:20]
    together, alone = known.place(x), known.place(x[7:8])
    for name in ("layout", "labels", "probabilities", "nearest"):
        np.testing.assert_array_equal(getattr(together, name)[7:8], getattr(alone, name))


def test_distance_is_that_to_the_nearest_known_galaxy(planted, held_out, known):
    x = planted.x[held_out]
    true = cdist(x.astype(float), planted.x[~held_out].astype(float)).min(axis=1)
    np.testing.assert_allclose(known.place(x).nearest, true, rtol=1e-5)
    assert (known.place(planted.x[~held_out][:9]).nearest == 0).all()


def _smoothed_weights(distances):
    """UMAP's membership weights from their definition (McInnes et al. 2018, Sec. 3.1), by bisection."""
    rho, (low, high) = distances[distances > 0].min(), (0.0, 1e4)
    for _ in range(200):
        sigma = (low + high) / 2
        total = np.exp(-np.maximum(distances - rho, 0) / sigma).sum()
        low, high = (sigma, high) if total < np.log2(len(distances) + 1) else (low, sigma)
    weights = np.exp(-np.maximum(distances - rho, 0) / sigma)
    return weights / weights.sum()


def test_place_and_probability_are_weighted_means_of_the_neighbours(planted, together, held_out, known):
    layout, labels, probabilities = (each[~held_out] for each in together)
    x = planted.x[held_out][:10]
    placed = known.place(x)
    for row, apart in enumerate(cdist(x.astype(float), planted.x[~held_out].astype(float))):
        near = np.argsort(apart)[: K - 1]
        weights = _smoothed_weights(apart[near])
        np.testing.assert_allclose(placed.layout[row], weights @ layout[near], rtol=1e-3, atol=1e-3)
        agreeing = labels[near] == placed.labels[row]
        assert weights[agreeing].sum() == pytest.approx(
            max(weights[labels[near] == label].sum() for label in set(labels[near])), abs=1e-3
        )
        expected = 0 if placed.labels[row] < 0 else weights @ (probabilities[near] * agreeing)
        assert placed.probabilities[row] == pytest.approx(expected, abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(2, 12), st.integers(1, 4))
def test_places_lie_among_the_known_and_classes_are_those_known(seed, n_neighbors, n_values):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, n_values + 1, size=(40, 2)).astype(np.float32)
    x[:2] = [[0, 0], [1, 1]]
    layout, labels = rng.normal(size=(40, 3)), rng.integers(-1, 3, 40)
    known = KnownGalaxies(x, layout, labels, np.where(labels < 0, 0, rng.uniform(size=40)), n_neighbors)
    placed = known.place(rng.integers(0, 6, size=(15, 2)).astype(np.float32))
    assert (placed.layout >= layout.min(axis=0) - 1e-5).all()
    assert (placed.layout <= layout.max(axis=0) + 1e-5).all()
    assert set(placed.labels) <= set(labels)
    assert ((placed.probabilities >= 0) & (placed.probabilities <= 1 + 1e-6)).all()
    assert (placed.probabilities[placed.labels < 0] == 0).all()


def test_at_equal_weights_a_galaxy_belongs_to_none():
    x = np.array([[0.0], [0.0], [5.0], [5.0]], np.float32)
    known = KnownGalaxies(x, np.zeros((4, 2)), np.array([1, -1, 0, 0]), np.array([1.0, 0, 1, 1]), 3)
    placed = known.place(np.zeros((1, 1), np.float32))
    assert (placed.labels[0], placed.probabilities[0]) == (-1, 0)


def test_faults_of_the_galaxies_are_named(planted, together, held_out, known):
    with pytest.raises(UserError, match=r"new galaxies have 5 dimensions, and the known ones 128.*checkpoint"):
        known.place(np.zeros((3, 5), np.float32))
    spoiled = planted.x[:4].copy()
    spoiled[2, 9] = np.nan
    with pytest.raises(UserError, match=r"1 of 4 new galaxies.*first: row 2"):
        known.place(spoiled)
    with pytest.raises(UserError, match=r"layout\.n_neighbors=15.*14 others, but 10 are known"):
        _known(planted, together, np.arange(10))
    with pytest.raises(ValueError, match="9 labels"):
        KnownGalaxies(planted.x[:10], together[0][:10], together[1][:9], together[2][:10], 5)


def _write_embeddings(path: Path, x, first=0, checkpoint="a" * 64, change=None) -> Path:
    n_rows = len(x)
    with h5py.File(path, "w") as file:
        file["id"] = np.array([f"J{first + row}" for row in range(n_rows)], dtype=TEXT)
        file["file_loc"] = np.array([""] * n_rows, dtype=TEXT)
        file["representation"] = x
        # Every third galaxy is smooth.
        smooth = np.where(np.arange(n_rows) % 3 == 0, 90, 5)
        file["concentrations"] = np.column_stack([smooth, 100 - smooth]).astype(np.float32)
        file["ra"], file["dec"] = np.linspace(0, 359, n_rows), np.linspace(-9, 9, n_rows)
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", data=np.array([], dtype=TEXT))
        file.attrs.update({"format": 1, "complete": True, "schema": json.dumps(TREE), "image_root": ""})
        file.attrs.create("label_cols", ["shape_smooth", "shape_featured"], dtype=TEXT)
        file.attrs["checkpoint_sha256"] = checkpoint
        if change:
            change(file)
    return path


@pytest.fixture
def run(tmp_path, planted, together, held_out):
    """A run's folder, made in another order than that of the embeddings, and the files of known and new galaxies."""
    rows = np.flatnonzero(~held_out)
    known = _write_embeddings(tmp_path / "known.h5", planted.x[rows])
    new = _write_embeddings(tmp_path / "new.h5", planted.x[held_out], first=10_000)
    layout, labels, probabilities = (each[rows] for each in together)
    table = {"id_str": [f"J{row}" for row in range(len(rows))], "cluster": labels, "probability": probabilities}
    table |= {"outlier_score": 0.5, "x": layout[:, 0], "y": layout[:, 1]}
    folder = tmp_path / "cluster"
    folder.mkdir()
    pd.DataFrame(table).sample(frac=1, random_state=0).to_parquet(folder / "galaxies.parquet")
    _write_run(folder, known)
    return folder, new, known, tmp_path / "placed.parquet"


def _write_run(folder, known, cuts=None, **changes):
    groups = {"selection": {"cuts": cuts or {}}, "neighbours": {}, "layout": {"n_neighbors": K}, "tree": {}}
    key = {"stage": "cluster", "settings": groups, "inputs": {"embeddings": sha256(known.read_bytes()).hexdigest()}}
    record = {"key": key | changes, "complete": True, "summary": {}}
    (folder / "run.json").write_text(json.dumps(record))


def test_command_places_new_galaxies(run, planted, held_out, known, monkeypatch, capsys):
    folder, new, old, output = run
    arguments = ["place", str(folder), str(new), "--embeddings", str(old), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(place, "_ROWS_AT_ONCE", 50)
    place.main()
    assert "placed.parquet" in capsys.readouterr().err
    table, expected = pd.read_parquet(output), known.place(planted.x[held_out])
    assert table.columns.tolist() == ["id_str", "ra", "dec", "cluster", "probability", "x", "y", "distance"]
    assert table["id_str"].tolist() == [f"J{10_000 + row}" for row in range(held_out.sum())]
    np.testing.assert_allclose(table["dec"], np.linspace(-9, 9, held_out.sum()))
    np.testing.assert_array_equal(table["cluster"], expected.labels)
    np.testing.assert_allclose(table[["x", "y"]], expected.layout, rtol=1e-4)
    np.testing.assert_allclose(table["probability"], expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(table["distance"], expected.nearest, rtol=1e-5)


def test_galaxies_that_the_search_cut_away_are_not_placed(run, held_out):
    folder, new, old, output = run
    _write_run(folder, old, cuts={"smooth": {"answer": "shape_smooth", "below": 0.5}})
    facts = place.place_file(folder, new, old, output)
    ids = pd.read_parquet(output)["id_str"].tolist()
    assert ids == [f"J{10_000 + row}" for row in range(held_out.sum()) if row % 3]
    assert facts["n_placed"] == len(ids)
    assert facts["n_left_out"] == held_out.sum() - len(ids)


FAULTS = {
    "no run": (lambda folder, *_: (folder / "run.json").unlink(), r"run\.json: there is no such file.*cluster\.py"),
    "no table": (lambda folder, *_: (folder / "galaxies.parquet").unlink(), r"galaxies\.parquet: there is no such"),
    "table cut off": (
        lambda folder, *_: (folder / "galaxies.parquet").write_bytes(b"PAR1"),
        r"holds no search that can be read.*overwrite=true",
    ),
    "record cut off": (lambda folder, *_: (folder / "run.json").write_text('{"key": '), "no search that can be read"),
    "another stage": (lambda folder, new, old, _: _write_run(folder, old, stage="embed"), "is of no complete search"),
    "other embeddings": (
        lambda folder, new, old, _: _write_run(folder, new),
        r"--embeddings=.*known\.h5: is not the file that .*cluster was made from",
    ),
    "no embeddings": (lambda folder, new, old, _: old.unlink(), r"known\.h5: there is no such file.*--embeddings"),
    "no new galaxies": (lambda folder, new, *_: new.unlink(), r"new\.h5: there is no such file"),
    "another checkpoint": (
        lambda folder, new, *_: _write_embeddings(new, np.zeros((3, 128), np.float32), checkpoint="b" * 64),
        r"new\.h5: was embedded with another checkpoint \(.*bbb\).*same checkpoint",
    ),
    "another width": (
        lambda folder, new, *_: _write_embeddings(new, np.zeros((3, 64), np.float32)),
        "new galaxies have 64 dimensions, and the known ones 128",
    ),
}


@pytest.mark.parametrize(("break_it", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_files_that_do_not_belong_together_are_refused_and_nothing_is_written(run, break_it, message):
    break_it(*run)
    with pytest.raises(UserError, match=message):
        place.place_file(*run)
    assert not run[3].exists()


def test_an_output_that_is_there_is_left_as_it_is(run):
    run[3].write_text("mine")
    with pytest.raises(UserError, match=r"placed\.parquet: is there already.*--output"):
        place.place_file(*run)
    assert run[3].read_text() == "mine"


def test_converted_files_that_name_no_checkpoint_are_placed(run):
    def forget(file):
        del file.attrs["checkpoint_sha256"]

    folder, new, old, output = run
    _write_embeddings(new, np.zeros((3, 128), np.float32), change=forget)
    assert place.place_file(folder, new, old, output)["n_placed"] == 3


def test_a_full_disk_leaves_no_file_and_is_told(run, monkeypatch):
    def full(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(UserError, match=r"placed\.parquet: cannot be written \(No space left"):
        place.place_file(*run)
    assert not run[3].exists()
    assert not list(run[3].parent.glob(".*.part*"))


def test_new_galaxies_are_placed_by_their_neighbours_among_the_whitened(planted, together, held_out):
    whiten = whitening_of(planted.x[~held_out], 0.75)
    ours = _known(planted, together, ~held_out, whitening=0.75).place(planted.x[held_out])
    by_hand = KnownGalaxies(whiten(planted.x[~held_out]), *(each[~held_out] for each in together), n_neighbors=K)
    theirs = by_hand.place(whiten(planted.x[held_out]))
    for name in ("labels", "probabilities", "layout", "nearest"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
