"""Sweeps of training: whatever launches them, each job is a run of its own, with its own settings and records.

Sweeps by submitit are run where SLURM is, in tests/integration.
"""

import pandas as pd
import pytest
from offline_runs import read_offline_run
from small_scripts import RINGS, run, write_rings

pytestmark = pytest.mark.script

SWEEP = "outputs/survey/train-sweep"
LAUNCHERS = {
    "one after the other": ("seed=0,1,2",),
    # Worker processes are what joblib makes hard.
    "joblib": ("seed=0,1", "hydra/launcher=local", "data.workers=1"),
}


@pytest.fixture(scope="module", params=LAUNCHERS)
def sweep(request, tmp_path_factory):
    """Seeds, and the runs as Weights & Biases keeps them: job's folder -> run."""
    folder = tmp_path_factory.mktemp("sweep")
    write_rings(folder)
    seeds, *launcher = LAUNCHERS[request.param]
    run(folder, "train.py", "-m", *RINGS, "logger.mode=offline", seeds, *launcher, small=False)
    paths = folder.glob(f"{SWEEP}/*/wandb/offline-run-*/run-*.wandb")
    return [int(seed) for seed in seeds.removeprefix("seed=").split(",")], {
        path.parents[2]: read_offline_run(path) for path in paths
    }


def test_each_job_is_a_finished_run_of_its_own(sweep):
    seeds, runs = sweep
    assert len(runs) == len({tracked.run_id for tracked in runs.values()}) == len(seeds)
    assert {tracked.exit_code for tracked in runs.values()} == {0}


def test_jobs_share_the_sweep_as_group_and_are_named_by_what_sets_them_apart(sweep):
    seeds, runs = sweep
    assert {(tracked.group, tracked.job_type) for tracked in runs.values()} == {("survey/train-sweep", "train")}
    assert sorted(tracked.name for tracked in runs.values()) == [f"seed={seed}" for seed in seeds]


def test_each_job_keeps_its_own_settings_by_dotted_name(sweep):
    seeds, runs = sweep
    assert sorted(tracked.config["seed"] for tracked in runs.values()) == seeds
    for folder, tracked in runs.items():
        assert f"seed={tracked.config['seed']}," in folder.name
        assert tracked.config["optim.lr"] == 0.001
        assert (tracked.config["trainer.max_epochs"], tracked.config["backbone.name"]) == (1, "test_resnet")
        assert not [key for key, value in tracked.config.items() if isinstance(value, dict) and key != "_wandb"]
        assert len(tracked.config["git_commit"].removesuffix("-dirty")) == 40


def test_the_csv_file_has_the_same_metrics_as_the_run(sweep):
    for folder, tracked in sweep[1].items():
        (path,) = folder.glob("metrics/*/metrics.csv")
        table = pd.read_csv(path)
        assert set(table) - {"step"} == tracked.metrics() - {"trainer/global_step"}
        logged = [row["validation/loss"] for row in tracked.history if "validation/loss" in row]
        assert logged == pytest.approx(table["validation/loss"].dropna().tolist())
        assert tracked.summary["test/loss"] == pytest.approx(table["test/loss"].dropna().item())


def test_jobs_of_different_seeds_do_not_share_a_result(sweep):
    assert len({tracked.summary["test/loss"] for tracked in sweep[1].values()}) == len(sweep[0])
