"""Two sweeps that are started at once and share one folder of stages, as two jobs on a cluster do."""

import subprocess
import sys

import pytest
from small_scripts import CLUSTER, REPO, environment
from small_searches import record_of, stages_in, tables_of, write_survey

pytestmark = pytest.mark.script

# Both begin with the same neighbours, and then find the layouts that the other has made.
SWEEPS = {"one": "layout.n_neighbors=6,8", "two": "layout.n_neighbors=8,6"}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A folder in which two sweeps of the same settings were run at once; exit status and standard error of each."""
    folder = write_survey(tmp_path_factory.mktemp("together"))
    kept = [option for option in CLUSTER if not option.startswith("layout.n_neighbors")]
    # Whitened galaxies have neighbours of a second kind.
    options = [*kept, "neighbours.whitening=0", "embeddings=embeddings.h5", "stages=stages", "logger=none"]
    running = [
        subprocess.Popen(
            [sys.executable, str(REPO / "cluster.py"), "-m", *options, swept, f"name={name}"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, swept in SWEEPS.items()
    ]
    said = [sweep.communicate(timeout=300)[1] for sweep in running]
    return folder, [sweep.returncode for sweep in running], said


def jobs_of(folder, name):
    return sorted(path.parent for path in (folder / f"outputs/{name}/cluster-sweep").glob("*/run.json"))


def test_both_end_well(sweeps):
    folder, statuses, said = sweeps
    assert statuses == [0, 0], said
    assert not [line for line in "".join(said).splitlines() if "Traceback" in line or "damaged" in line]
    for name in SWEEPS:
        assert len(jobs_of(folder, name)) == 2
        assert (folder / f"outputs/{name}/cluster-sweep/sweep.html").is_file()


def test_what_they_say_they_computed_is_what_is_stored(sweeps):
    folder = sweeps[0]
    summaries = [record_of(job)["summary"] for name in SWEEPS for job in jobs_of(folder, name)]
    stored = stages_in(folder / "stages")
    assert sum(summary["stages_computed"] for summary in summaries) == len(stored)
    for kind, times in {"neighbours": 1, "fuzzy": 2, "layout": 4, "spanning": 2, "tree": 2}.items():
        assert stored.count(kind) == times
        assert sum(summary["stages"][kind]["computed"] for summary in summaries) == times


def test_both_find_the_same_classes(sweeps):
    folder = sweeps[0]
    for one, two in zip(*(jobs_of(folder, name) for name in SWEEPS), strict=True):
        assert one.name == two.name.replace("two", "one")
        classes, again = (tables_of(job)[1]["cluster"].tolist() for job in (one, two))
        assert classes == again
