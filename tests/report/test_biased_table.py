import json

import numpy as np
import pandas as pd
import pytest

from rarezoo.report.biased import objectives_table, write_objectives
from rarezoo.report.sweep import read_sweep


def write_run(folder, objective, bias, seed, accuracy, complete=True, **settings):
    job = folder / f"{objective}-{bias}-{seed}-{'-'.join(map(str, settings.values()))}"
    job.mkdir(parents=True)
    summary = {
        "bias": bias,
        "objective": objective,
        "origin": "made",
        "test/accuracy": accuracy,
        "test/accuracy_aligned": min(1.0, accuracy + 0.3),
        "test/accuracy_conflicting": accuracy - 0.1,
        "epochs": 10,
    }
    chosen = {"objective": {"name": objective}, "bias": {"name": bias}, "seed": seed, "classifier": settings}
    record = {"key": {"settings": chosen}, "complete": complete, "summary": summary}
    (job / "run.json").write_text(json.dumps(record))


@pytest.fixture
def accuracies():
    rng = np.random.default_rng(0)
    return {
        (objective, bias): rng.uniform(0.3, 0.9, 3)
        for objective in ("sos", "sce", "l1")
        for bias in ("cifar10c", "cmnist")
    }


@pytest.fixture
def folder(tmp_path, accuracies):
    for (objective, bias), values in accuracies.items():
        for seed, accuracy in enumerate(values):
            write_run(tmp_path, objective, bias, seed, accuracy)
    return tmp_path


def cell(table, images, objective, bias):
    chosen = table[(table["images"] == images) & (table["objective"] == objective) & (table["bias"] == bias)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_cells_are_mean_and_standard_deviation_over_seeds_in_per_cent(folder, accuracies):
    table = objectives_table(read_sweep(folder))
    for (objective, bias), values in accuracies.items():
        found = cell(table, "all", objective, bias)
        assert found["n_seeds"] == 3
        assert found["mean"] == pytest.approx(100 * np.mean(values))
        assert found["std"] == pytest.approx(100 * np.std(values, ddof=1))
        assert cell(table, "conflicting", objective, bias)["mean"] == pytest.approx(100 * np.mean(values) - 10)


def test_mean_is_that_of_the_data_sets_and_missing_where_one_is(folder, accuracies):
    write_run(folder, "bce", "cmnist", 0, 0.5)
    table = objectives_table(read_sweep(folder))
    for objective in ("sos", "sce", "l1"):
        expected = 100 * np.mean([accuracies[objective, bias].mean() for bias in ("cmnist", "cifar10c")])
        assert cell(table, "all", objective, "mean")["mean"] == pytest.approx(expected)
    assert np.isnan(cell(table, "all", "bce", "mean")["mean"])


def test_objectives_and_data_sets_are_in_the_order_of_the_paper(folder):
    table = objectives_table(read_sweep(folder))
    assert list(dict.fromkeys(table["objective"])) == ["sce", "l1", "sos"]
    assert list(dict.fromkeys(table["bias"])) == ["cmnist", "cifar10c", "mean"]


def test_runs_that_are_not_complete_are_left_out(folder):
    before = objectives_table(read_sweep(folder))
    write_run(folder, "sce", "cmnist", 9, 0.0, complete=False)
    pd.testing.assert_frame_equal(objectives_table(read_sweep(folder)), before)


def test_what_else_was_swept_is_told_apart(tmp_path):
    for stem, accuracy in (("standard", 0.4), ("small", 0.6)):
        for seed in (0, 1):
            write_run(tmp_path, "sce", "cmnist", seed, accuracy, stem=stem)
    table = objectives_table(read_sweep(tmp_path))
    shown = table[(table["images"] == "all") & (table["bias"] == "cmnist")]
    assert dict(zip(shown["classifier.stem"], shown["mean"], strict=True)) == pytest.approx(
        {"standard": 40, "small": 60}
    )
    written = write_objectives(tmp_path)["objectives.md"].read_text()
    assert "all images, classifier.stem=small (mean ± standard deviation, 2 seeds)" in written


def test_files_hold_the_table_and_its_best_cells_in_bold(folder, accuracies):
    paths = write_objectives(folder)
    pd.testing.assert_frame_equal(
        pd.read_parquet(paths["objectives"]), objectives_table(read_sweep(folder)), check_dtype=False
    )
    written = paths["objectives.md"].read_text()
    for bias in ("cmnist", "cifar10c"):
        best = max(("sos", "sce", "l1"), key=lambda objective: accuracies[objective, bias].mean())
        values = 100 * accuracies[best, bias]
        assert f"**{values.mean():.2f} ± {values.std(ddof=1):.2f}**" in written
    assert written.count("\n## ") == 3
    assert "| objective |  | C-MNIST | C-CIFAR | mean |" in written


def test_one_seed_has_no_standard_deviation_and_one_data_set_no_mean(tmp_path):
    write_run(tmp_path, "sce", "digits", 0, 0.5)
    written = write_objectives(tmp_path)["objectives.md"].read_text()
    assert "| sce | softmax cross-entropy | **50.00** |" in written


def test_folder_without_such_runs_gets_no_files(tmp_path):
    assert write_objectives(tmp_path) == {}
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "run.json").write_text(
        json.dumps({"key": {"settings": {"seed": 1}}, "complete": True, "summary": {"test/loss": 1.0}})
    )
    assert write_objectives(tmp_path) == {}
    assert not list(tmp_path.glob("objectives*"))
