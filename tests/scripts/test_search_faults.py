"""Searches that are broken off, or whose disk, store or input is at fault: what is said, what the next run gives."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from small_scripts import CLUSTER, REPO, environment
from small_searches import again_elsewhere, record_of, stages_in, tables_of, write_survey

pytestmark = pytest.mark.script


def start(folder, *options):
    return subprocess.Popen(
        [sys.executable, str(REPO / "cluster.py"), *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lays_out(store):
    """Whether a process computes a layout there; it holds the lock and has not written."""
    return any(store.glob(".layout-*.lock"))


def assert_same_result(results, expected):
    for table, wanted in zip(tables_of(results), tables_of(expected), strict=True):
        pd.testing.assert_frame_equal(table, wanted)


def test_search_broken_off_in_a_layout_goes_on_from_the_stages_before_it(searched, process, tmp_path):
    options = (*CLUSTER, "logger=none", f"embeddings={searched[0]}/embeddings.h5", "name=cut")
    store, results = tmp_path / "outputs/cut/stages", tmp_path / "outputs/cut/cluster"
    broken_off = start(tmp_path, *options)
    wait_until(lambda: lays_out(store))
    broken_off.send_signal(signal.SIGINT)
    said = broken_off.communicate(timeout=120)[0]
    assert broken_off.returncode == 130, said
    assert "Traceback" not in said
    stored = stages_in(store)
    assert set(stored) == {"neighbours", "fuzzy", "start"}
    assert not record_of(results)["complete"]
    assert not (results / "classes.parquet").exists()
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    assert record_of(results)["summary"]["stages_reused"] == len(stored)
    assert_same_result(results, searched[0] / "outputs/one/cluster")


def test_a_search_goes_on_when_the_one_it_waits_for_is_killed(searched, process, tmp_path):
    options = (*CLUSTER, "logger=none", f"embeddings={searched[0]}/embeddings.h5", "stages=stages")
    first = start(tmp_path, *options, "name=first")
    wait_until(lambda: lays_out(tmp_path / "stages"))
    # Held still, so that it cannot be done before the other is there.
    first.send_signal(signal.SIGSTOP)
    process.start(tmp_path, "cluster.py", *options, "name=second", "tree.min_samples=3")
    log = tmp_path / "outputs/second/cluster/cluster.log"
    wait_until(lambda: log.exists() and "Waiting for another process that computes" in log.read_text())
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=120)
    status, said = process.wait()
    assert status == 0, said
    status, said = process.run(tmp_path, "cluster.py", *options, "name=first")
    assert status == 0, said
    assert_same_result(tmp_path / "outputs/first/cluster", searched[0] / "outputs/one/cluster")
    stages = record_of(tmp_path / "outputs/first/cluster")["summary"]["stages"]
    assert {name for name, counted in stages.items() if counted["computed"]} == {"spanning", "tree"}
    stages_in(tmp_path / "stages")


# Neighbours take some 160 KiB, and all stages 300.
@pytest.mark.parametrize("kib", [100, 190, 240])
def test_a_store_on_a_disk_that_fills_up_is_named_and_the_next_run_is_right(searched, process, tmp_path, disk_of, kib):
    options = (*CLUSTER, "logger=none", f"embeddings={searched[0]}/embeddings.h5", "name=full")
    store = disk_of(kib) / "stages"
    results = tmp_path / "outputs/full/cluster"
    status, said = process.run(tmp_path, "cluster.py", *options, f"stages={store}")
    assert status == 2, said
    assert f"{store}" in said
    assert "cannot be written (No space left on device)" in said
    assert "Traceback" not in said
    stored = stages_in(store)
    assert not record_of(results)["complete"]
    disk_of(10_000)
    status, said = process.run(tmp_path, "cluster.py", *options, f"stages={store}")
    assert status == 0, said
    assert record_of(results)["summary"]["stages_reused"] == len(stored)
    assert_same_result(results, searched[0] / "outputs/one/cluster")


# Tables take some 250 KiB, montages 1,200, the page 800.
@pytest.mark.parametrize("kib", [60, 1000, 2000])
def test_outputs_on_a_disk_that_fills_up_are_named_and_the_next_run_is_right(searched, process, tmp_path, disk_of, kib):
    results = disk_of(kib) / "cluster"
    options = again_elsewhere(searched[0], "name=full", f"output_dir={results.parent}")
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 2, said
    assert "cannot be written (No space left on device)" in said
    assert "Traceback" not in said
    assert not (results / "report.html").exists()
    assert not [path for path in results.rglob("*") if ".part" in path.name]
    disk_of(10_000)
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    assert_same_result(results, searched[0] / "outputs/one/cluster")


def test_damaged_stages_are_computed_again(searched, process, tmp_path):
    shutil.copytree(searched[0] / "stages", tmp_path / "stages")
    damaged = [*tmp_path.glob("stages/spanning-*/rows.npy"), *tmp_path.glob("stages/layout-*/layout.npy")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-100])
    options = (*again_elsewhere(searched[0], "name=damaged"), "stages=stages")
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    results = tmp_path / "outputs/damaged/cluster"
    log = (results / "cluster.log").read_text()
    assert all(f"{path.parent.name} is damaged and is computed again" in log for path in damaged)
    assert record_of(results)["summary"]["stages_computed"] == len(damaged)
    assert_same_result(results, searched[0] / "outputs/one/cluster")


def test_embeddings_that_changed_under_a_finished_run_are_refused_by_name(searched, process, tmp_path):
    shutil.copytree(searched[0] / "outputs/one/cluster", tmp_path / "outputs/one/cluster")
    shutil.copy(searched[0] / "truth.csv", tmp_path)
    before = record_of(tmp_path / "outputs/one/cluster")
    write_survey(tmp_path, n_bulk=100)
    options = (*CLUSTER, "name=one", "embeddings=embeddings.h5", "logger.mode=offline", "truth=truth.csv")
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 2, said
    assert "holds a run that differs (inputs.embeddings: " in said
    assert "overwrite=true" in said
    assert record_of(tmp_path / "outputs/one/cluster") == before


def of_nan(file):
    file["representation"][7, 3] = np.nan


def same_id(file):
    file["id"][9] = file["id"][2]


def constant(file):
    file["representation"][:] = 1.5


def incomplete(file):
    file.attrs["complete"] = False


def foreign(file):
    for name in list(file):
        del file[name]
    file.attrs.pop("format")
    file["spectra"] = np.zeros(3)


def unvoted_for(file):
    file["concentrations"][5, 0] = np.nan


def write_faulty_files(folder):
    """A truth of other galaxies, and decisions with a misspelt word."""
    (folder / "others.csv").write_text("id_str,rare_class\n587722981736448065,ring\n")
    (folder / "broken.yaml").write_text("classes:\n - {medoid: bulk-0, nam: ring}\n")


FAULTS = {
    "not finite": (of_nan, (), "1 of 192 selected galaxies hold values that are not finite (first: 'bulk-7', row 7"),
    "two of one id": (same_id, (), "is the id of row 2 and of row 9 of the embeddings"),
    "constant": (constant, (), "is the same for all 192 selected galaxies (1.5"),
    "incomplete": (incomplete, (), "embeddings.h5: is not complete"),
    "foreign": (foreign, (), "embeddings.h5: has format none, not embeddings format 1"),
    "votes not finite": (
        unvoted_for,
        ("+selection.cuts.all={answer:shape_smooth,below:0.9}",),
        "shape_smooth",
    ),
    "few for n_neighbors": (None, ("layout.n_neighbors=250",), "layout.n_neighbors=250 needs at least 252 galaxies"),
    "few for min_samples": (None, ("tree.min_samples=192",), "tree.min_samples=192, but 192 galaxies were selected"),
    "few for min_samples, no layout": (
        None,
        ("layout=none", "tree.min_samples=192"),
        "tree.min_samples=192, but 192 galaxies were selected",
    ),
    "few for the sizes of classes": (None, ("tree.min_cluster_size=300",), "Lower tree.min_cluster_size"),
    "nothing is left": (
        None,
        ("+selection.cuts.none={answer:shape_smooth,below:0.01}",),
        "selection.cuts: none of 192 galaxies is left",
    ),
    "no such answer": (None, ("selection=featured",), "Did you mean 'shape_smooth'"),
    "truth of others": (None, ("truth=others.csv",), "has none of the galaxies of embeddings.h5 (such as 'bulk-0')"),
    "broken decisions": (None, ("decisions=broken.yaml",), "broken.yaml: entry 1 has 'nam'. Did you mean 'name'"),
    "no truth": (None, ("truth=nowhere.csv",), "truth=nowhere.csv: there is no such file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_searched_is_named_with_the_fix_and_nothing_is_computed(process, tmp_path, name):
    change, options, said_of_it = FAULTS[name]
    write_survey(tmp_path, change)
    write_faulty_files(tmp_path)
    options = ("embeddings=embeddings.h5", "name=x", "logger=none", *options)
    status, said = process.run(tmp_path, "cluster.py", *CLUSTER, *options)
    assert status == 2, said
    assert said_of_it in said
    assert "Traceback" not in said
    assert not list((tmp_path / "outputs/x").glob("stages/*-*"))
    assert not (tmp_path / "outputs/x/cluster/report.html").exists()


@pytest.mark.parametrize("name", ["truth of others", "broken decisions"])
def test_files_of_a_person_are_read_before_a_run_is_tracked(process, tmp_path, name):
    _, options, said_of_it = FAULTS[name]
    write_survey(tmp_path)
    write_faulty_files(tmp_path)
    options = ("embeddings=embeddings.h5", "name=x", "logger.mode=offline", *options)
    status, said = process.run(tmp_path, "cluster.py", *CLUSTER, *options)
    assert status == 2, said
    assert said_of_it in said
    assert not (tmp_path / "outputs/x/cluster/wandb").exists()
