import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from rarezoo.clustering.passing import passing_store
from rarezoo.clustering.stages import StageStore
from rarezoo.clustering.tidy import remove_unused, stored_stages

DAY = 86_400


def make(root, seed, days_ago, n_bytes=1000):
    """Store a stage that was last used so many days ago."""
    stage = StageStore(root).get("layout", {"seed": seed}, {}, lambda: {"a": np.ones(n_bytes, np.uint8)})
    then = time.time() - days_ago * DAY
    os.utime(root / stage.key / "stage.json", (then, then))
    return stage.key


def test_list_has_size_and_days_since_the_last_use(tmp_path):
    old, new = make(tmp_path, 0, 40, 2_000_000), make(tmp_path, 1, 3)
    table = stored_stages(tmp_path).set_index("stage")
    assert list(table.index) == [old, new]
    on_disk = sum(path.stat().st_size for path in (tmp_path / old).iterdir())
    assert table.loc[old, "megabytes"] == pytest.approx(on_disk / 1e6)
    assert table["unused_days"].tolist() == pytest.approx([40, 3], abs=0.01)
    (tmp_path / old / "stage.json").write_text("[")
    assert np.isnan(stored_stages(tmp_path).set_index("stage").loc[old, "seconds"])


def test_only_stages_that_were_not_used_for_so_long_are_removed(tmp_path):
    old, used, new = (make(tmp_path, seed, days) for seed, days in ((0, 40), (1, 40), (2, 3)))
    StageStore(tmp_path).get("layout", {"seed": 1}, {}, dict)
    assert remove_unused(tmp_path, 30) == [old]
    assert sorted(stored_stages(tmp_path)["stage"]) == sorted([used, new])
    assert remove_unused(tmp_path, float("nan")) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    leftover = tmp_path / ".tree-0123456789ab.x1_y2.part"
    leftover.mkdir()
    assert remove_unused(tmp_path, 1) == []
    assert remove_unused(tmp_path, 0) == [leftover.name]
    assert not leftover.exists()


def _hold_passing(root, held, release):
    with passing_store(StageStore(root)) as store:
        store.get("layout", {}, {}, lambda: {"a": np.ones(1)})
        held.set()
        release.wait()


def test_a_passing_store_goes_with_its_process_however_that_ends(tmp_path):
    def age():
        for folder in tmp_path.glob(".passing-*"):
            os.utime(folder, (0, 0))

    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold_passing, args=(tmp_path, held, release))
    holder.start()
    assert held.wait(60)
    age()
    with passing_store(StageStore(tmp_path)) as store:
        assert len({*tmp_path.glob(".passing-*")} - {store.root}) == 1
    holder.kill()
    holder.join()
    (left,) = tmp_path.glob(".passing-*")
    age()
    assert remove_unused(tmp_path, 30) == [left.name]
    assert not list(tmp_path.glob(".passing-*"))


def _hold(root, computing, release):
    def compute():
        computing.set()
        release.wait()
        return {"a": np.ones(1)}

    StageStore(root).get("layout", {"seed": 0}, {}, compute)


def test_a_stage_that_is_being_computed_stays(tmp_path):
    key = make(tmp_path, 0, 40)
    (tmp_path / key / "a.npy").unlink()
    context = multiprocessing.get_context("fork")
    computing, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, computing, release))
    holder.start()
    try:
        assert computing.wait(60)
        assert remove_unused(tmp_path, 0) == []
    finally:
        release.set()
        holder.join()
    assert remove_unused(tmp_path, 0) == [key]


def test_command_lists_removes_and_says_what_is_wrong(tmp_path):
    old = make(tmp_path / "stages", 0, 40)
    command = [sys.executable, "-m", "rarezoo.clustering.tidy"]

    def run(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)

    listed = run(str(tmp_path / "stages"))
    assert listed.returncode == 0
    assert old in listed.stderr
    assert (tmp_path / "stages" / old).is_dir()
    removed = run(str(tmp_path / "stages"), "--remove-unused", "30")
    assert (removed.returncode, removed.stderr.split()[-2:]) == (0, ["removed", "1"])
    assert not (tmp_path / "stages" / old).exists()
    missing = run(str(tmp_path / "none"))
    assert missing.returncode == 2
    assert "there is no such folder" in missing.stderr
