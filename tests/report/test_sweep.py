import io
import json
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.provenance import RunFolder
from rarezoo.report import sweep
from rarezoo.report.sweep import (
    independent_options,
    label,
    note_in_sweep,
    read_sweep,
    sort_values,
    sweep_figure,
    write_sweep,
)


def a_job(folder, name, settings, summary, stage="train"):
    with RunFolder(folder / name, stage, settings, {"catalog": "c" * 64}) as run:
        if summary is not None:
            run.finish(summary)


def settings_of(dim=None, seed=0, **others):
    return {"bottleneck": {"dim": dim, "activation": "none"}, "seed": seed, "augment": {"zoom": [1.0, 1.4]}, **others}


@pytest.fixture
def folder(tmp_path):
    for dim, loss in ((None, 10.0), (128, 11.0), (8, 12.0)):
        for seed in (0, 1):
            summary = {"test/loss": loss + 0.1 * seed, "recovery": {"planted": 12}}
            a_job(tmp_path, f"bottleneck.dim={dim},seed={seed}", settings_of(dim, seed), summary)
    return tmp_path


def test_table_has_a_row_per_job_with_what_differs_and_all_figures(folder):
    found = read_sweep(folder)
    assert found.options == ["bottleneck.dim", "seed"]
    assert list(found.table.columns) == ["job", "bottleneck.dim", "seed", "recovery.planted", "test/loss"]
    by_job = found.table.set_index("job")
    assert by_job.loc["bottleneck.dim=128,seed=1", "test/loss"] == pytest.approx(11.1)
    assert by_job.loc["bottleneck.dim=128,seed=1", "bottleneck.dim"] == 128
    assert pd.isna(by_job.loc["bottleneck.dim=None,seed=0", "bottleneck.dim"])
    assert (by_job["recovery.planted"] == 12).all()
    assert found.left_out == []


def test_files_hold_the_table_as_it_is_and_whole_numbers_stay_whole(folder):
    paths = write_sweep(folder)
    assert set(paths) == {"sweep", "sweep.csv", "sweep.png", "bottleneck.csv", "bottleneck.png"}
    assert all(path.is_file() for path in paths.values())
    pd.testing.assert_frame_equal(pd.read_parquet(paths["sweep"]), read_sweep(folder).table)
    assert pd.read_csv(paths["sweep.csv"], dtype=str)["bottleneck.dim"].dropna().tolist() == ["128", "128", "8", "8"]
    assert Image.open(paths["sweep.png"]).format == "PNG"


def test_unfinished_and_damaged_jobs_are_left_out_and_counted(folder):
    a_job(folder, "running", settings_of(8, 5), None)
    for name, content in {
        "cut": '{"complete": true, "key": {"sett',
        "list": "[]",
        "poor": '{"complete": true, "key": {"settings": 3}, "summary": {}}',
        "bytes": b"\xff\xfe\x00",
    }.items():
        (folder / name).mkdir()
        (folder / name / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_sweep(folder)
    assert len(found.table) == 6
    assert sorted(found.left_out) == ["bytes", "cut", "list", "poor", "running"]
    titles = [axes.get_title(loc="right") for axes in sweep_figure(found).axes]
    assert "6 jobs; 5 not complete" in titles[0]


def test_sweep_without_a_complete_job_writes_nothing(tmp_path):
    a_job(tmp_path, "running", settings_of(), None)
    assert write_sweep(tmp_path) == {}
    assert not list(tmp_path.glob("sweep.*"))


def test_first_job_alone_is_a_table_already(tmp_path):
    a_job(tmp_path, "seed=0", settings_of(), {"test/loss": 1.0})
    assert set(write_sweep(tmp_path)) == {"sweep", "sweep.csv", "sweep.png"}
    assert pd.read_parquet(tmp_path / "sweep.parquet")["job"].tolist() == ["seed=0"]


def test_sweep_of_a_stage_without_the_metric_has_tables_and_no_figure(tmp_path):
    for size in (5, 6):
        a_job(tmp_path, f"size={size}", {"tree": {"min_cluster_size": size}}, {"n_classes": size}, "cluster")
    assert set(write_sweep(tmp_path)) == {"sweep", "sweep.csv"}
    with pytest.raises(UserError, match=r"no job of the sweep has 'n_clases'.*Did you mean 'n_classes'"):
        sweep_figure(read_sweep(tmp_path), "n_clases")
    assert "sweep.png" in write_sweep(tmp_path, metric="n_classes")


def test_jobs_that_end_together_leave_the_table_of_all(tmp_path):
    def end(seed):
        a_job(tmp_path, f"seed={seed}", settings_of(seed=seed), {"loss": float(seed)})
        write_sweep(tmp_path)

    threads = [threading.Thread(target=end, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pd.read_parquet(tmp_path / "sweep.parquet")["loss"]) == list(range(8))
    assert not list(tmp_path.glob(".sweep.*.part*"))


def test_only_a_job_of_a_sweep_is_noted(folder):
    job = folder / "bottleneck.dim=8,seed=0"
    assert note_in_sweep(job) == {}
    (folder / "multirun.yaml").touch()
    assert "sweep" in note_in_sweep(job)


def test_points_are_means_over_seeds_with_their_standard_error(folder):
    axes = sweep_figure(read_sweep(folder)).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8", "128", "none"]
    (container,) = axes.containers
    line, _, (bars,) = container
    np.testing.assert_allclose(line.get_ydata().astype(float), [12.05, 11.05, 10.05])
    # two values 0.1 apart: a standard deviation of 0.0707, over the root of two
    np.testing.assert_allclose([np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()], 0.05)


def test_option_with_most_values_is_along_the_axis_and_others_make_lines(tmp_path):
    for rate in (1e-4, 1e-3, 1e-2):
        for backbone in ("tiny", "resnet18"):
            for seed in range(4):
                settings = {"optim": {"lr": rate}, "backbone": {"drop": len(backbone), "name": backbone}, "seed": seed}
                a_job(tmp_path, f"lr={rate},{backbone},{seed}", settings, {"test/loss": rate})
    found = read_sweep(tmp_path)
    assert independent_options(found) == ["optim.lr", "backbone.name"]
    axes = sweep_figure(found).axes[0]
    assert axes.get_xlabel() == "optim.lr"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["backbone=resnet18", "backbone=tiny"]


def test_of_options_that_change_together_the_one_that_was_given_is_kept(tmp_path):
    for size in (32, 64):
        settings = {"data": {"image_size": size, "root": f"simulated/{size}", "batch_size": size}}
        a_job(tmp_path, f"data.image_size={size}", settings, {"test/loss": 1.0})
    assert independent_options(read_sweep(tmp_path)) == ["data.image_size"]


def test_more_combinations_than_have_room_are_noted(tmp_path):
    for width in range(12):
        for depth in range(11):
            settings = {"width": width, "depth": depth}
            a_job(tmp_path, f"width={width},depth={depth}", settings, {"test/loss": float(width + depth)})
    axes = sweep_figure(read_sweep(tmp_path)).axes[0]
    assert len(axes.containers) == sweep._MOST_LINES
    assert "the first 8 of 11 combinations" in axes.get_title(loc="right")


def test_names_with_dollar_signs_are_text_and_not_formulas(tmp_path):
    for name in ("$\\frac{", "b_$x"):
        for size in (1, 2, 3):
            a_job(tmp_path, f"{size}{len(name)}", {"size": size, "path": name}, {"test/loss": 1.0})
    write_sweep(tmp_path)
    assert Image.open(io.BytesIO((tmp_path / "sweep.png").read_bytes())).size[0] > 500


def test_options_that_only_some_jobs_have_differ_and_lists_are_text(tmp_path):
    a_job(tmp_path, "a", {"layers": [1, 2], "kind": "x"}, {"loss": 1})
    a_job(tmp_path, "b", {"layers": [1, 3]}, {"loss": 2.5})
    a_job(tmp_path, "c", {"layers": "all", "kind": 7}, {"loss": "none"})
    table = read_sweep(tmp_path).table
    assert table["layers"].tolist() == ["[1, 2]", "[1, 3]", "all"]
    assert table["kind"].tolist()[::2] == ["x", "7"]
    assert pd.isna(table["kind"].iloc[1])
    assert set(write_sweep(tmp_path)) == {"sweep", "sweep.csv"}


def test_values_are_sorted_as_numbers_then_text_then_none():
    assert sort_values(["b", 512, None, 8.0, "a", 32]) == [8.0, 32, 512, "a", "b", None]
    assert [label(value) for value in (None, np.nan, pd.NA, 512, 512.0, 1e-4, "x")] == [
        *["none"] * 3,
        *("512", "512", "0.0001", "x"),
    ]


def test_record_of_a_run_is_where_the_sweep_looks_for_it(tmp_path):
    a_job(tmp_path, "job", settings_of(), {"test/loss": 1.0})
    assert json.loads((tmp_path / "job" / "run.json").read_text())["key"]["settings"]["seed"] == 0
