import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from rarezoo.embeddings import open_embeddings
from rarezoo.report import fractions as module
from rarezoo.report.fractions import count_fractions, write_fractions
from rarezoo.report.wandb import TrackedRun
from rarezoo.votes import Schema

TREE = {
    "shape": {"answers": ["smooth", "featured"], "asked_after": []},
    "bar": {"answers": ["yes", "no"], "asked_after": ["shape_featured"]},
}
N_ROWS = 500


class Recorder:
    def __init__(self) -> None:
        self.logged: dict[str, object] = {}

    def log(self, values) -> None:
        self.logged |= values


def make_file(path: Path, tree: dict) -> Path:
    """Embeddings of galaxies whose predicted fractions are even steps from 0 to 1."""
    label_cols = list(Schema.from_tree(tree).label_cols) if tree else []
    featured = np.linspace(0, 1, N_ROWS)
    concentrations = np.stack([1 - featured, featured, featured**2, 1 - featured**2], 1)[:, : len(label_cols)]
    text = h5py.string_dtype("utf-8")
    with h5py.File(path, "w") as file:
        file["id"] = np.array([f"g{row}" for row in range(N_ROWS)], dtype=text)
        file["file_loc"] = np.array([""] * N_ROWS, dtype=text)
        file["representation"] = np.zeros((N_ROWS, 2), np.float32)
        file["concentrations"] = (1e-3 + 50 * concentrations).astype(np.float32)
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", data=np.array([], dtype=text))
        file.attrs.update({"format": 1, "complete": True, "schema": json.dumps(tree), "image_root": "/"})
        file.attrs.create("label_cols", label_cols, dtype=text)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_file(tmp_path_factory.mktemp("fractions") / "e.h5", TREE)


@pytest.mark.parametrize("rows_at_once", [7, 100_000])
def test_counts_are_those_of_numpys_histogram(rows_at_once, path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", rows_at_once)
    with open_embeddings(path) as embeddings:
        counts = count_fractions(embeddings, 20)
        expected = [np.histogram(each, 20, (0, 1))[0] for each in embeddings.vote_fractions().astype(np.float64).T]
    assert counts.sum(1).tolist() == [N_ROWS] * 4
    # A float32 on the edge of a bin may fall to either side of it.
    assert np.abs(counts - expected).max() <= 1


def test_figure_is_kept_and_each_answers_histogram_is_logged(path, tmp_path):
    recorder = Recorder()
    written = write_fractions(path, tmp_path, TrackedRun(recorder, "offline"))
    assert written["fractions"].read_bytes().startswith(b"\x89PNG")
    assert "predicted_fractions" in recorder.logged
    histogram = recorder.logged["fraction/bar_yes"]
    assert sum(histogram.histogram) == N_ROWS
    assert histogram.bins[0] == 0
    assert histogram.bins[-1] == 1
    # Half of all squares lie below a quarter.
    assert sum(histogram.histogram[: module.N_BINS // 4]) == pytest.approx(N_ROWS / 2, abs=8)


def test_file_without_votes_has_no_figure(tmp_path):
    path = make_file(tmp_path / "e.h5", {})
    assert write_fractions(path, tmp_path, TrackedRun(Recorder(), "offline")) == {}
    assert not (tmp_path / "predicted_fractions.png").exists()
