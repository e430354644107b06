import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rarezoo.cli import UserError
from rarezoo.clustering.stages import StageStore, content_hash


class Counted:
    def __init__(self, value=1.0):
        self.calls = 0
        self.value = value

    def __call__(self):
        self.calls += 1
        return {"a": np.full((3, 2), self.value, np.float32), "empty": np.zeros((0, 4), np.int32)}


def _get(store, compute, parameters=None, inputs=None):
    return store.get("layout", parameters or {"k": 5}, inputs or {"x": "abc"}, compute)


def test_a_stage_is_computed_once(tmp_path):
    compute = Counted()
    first = _get(StageStore(tmp_path / "new" / "stages"), compute)
    second = _get(StageStore(tmp_path / "new" / "stages"), compute)
    assert (first.reused, second.reused, compute.calls) == (False, True, 1)
    np.testing.assert_array_equal(second.arrays["a"], np.ones((3, 2), np.float32))
    assert second.arrays["empty"].shape == (0, 4)
    assert first.digest == second.digest


def test_arrays_are_memory_mapped_and_cannot_be_written_to(tmp_path):
    stage = _get(StageStore(tmp_path), Counted())
    assert isinstance(stage.arrays["a"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        stage.arrays["a"][0] = 7


def test_the_record_says_what_the_stage_was_made_from(tmp_path):
    stage = _get(StageStore(tmp_path), Counted())
    info = json.loads((tmp_path / stage.key / "stage.json").read_text())
    assert info == stage.info
    assert (info["parameters"], info["inputs"], info["name"]) == ({"k": 5}, {"x": "abc"}, "layout")
    assert info["arrays"]["a"]["shape"] == [3, 2]
    assert info["arrays"]["a"]["dtype"] == "float32"
    assert info["versions"]["numpy"] == np.__version__
    assert info["seconds"] >= 0
    assert info["peak_memory_bytes"] > 10**6


@pytest.mark.parametrize("other", [{"parameters": {"k": 6}}, {"parameters": {"j": 5}}, {"inputs": {"x": "abd"}}])
def test_other_parameters_or_inputs_are_another_stage(tmp_path, other):
    compute = Counted()
    first, second = _get(StageStore(tmp_path), compute), _get(StageStore(tmp_path), compute, **other)
    assert compute.calls == 2
    assert first.key != second.key


def _truncate(folder):
    path = folder / "a.npy"
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(folder):
    path = folder / "a.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _change_parameters(folder):
    path = folder / "stage.json"
    path.write_text(path.read_text().replace('"k": 5', '"k": 6'))


DAMAGES = {
    "array missing": lambda folder: (folder / "a.npy").unlink(),
    "array truncated": _truncate,
    "array altered": _flip_a_bit,
    "record missing": lambda folder: (folder / "stage.json").unlink(),
    "record cut off": lambda folder: (folder / "stage.json").write_text('{"arrays": {'),
    "record not an object": lambda folder: (folder / "stage.json").write_text("[1, 2]"),
    "record without arrays' hashes": lambda folder: (folder / "stage.json").write_text('{"arrays": {"a": 1}}'),
    "record not text": lambda folder: (folder / "stage.json").write_bytes(b"\xff\xfe\x00"),
    "record of another stage": _change_parameters,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_stage_is_computed_again(tmp_path, damage):
    store, compute = StageStore(tmp_path), Counted()
    damage(tmp_path / _get(store, compute).key)
    again = _get(store, compute)
    assert (again.reused, compute.calls) == (False, 2)
    np.testing.assert_array_equal(again.arrays["a"], np.ones((3, 2), np.float32))
    assert _get(store, compute).reused


def test_a_stage_whose_computation_fails_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        _get(StageStore(tmp_path), fail)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert not _get(StageStore(tmp_path), Counted()).reused


def test_a_stage_that_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"pickle|Object arrays"):
        _get(StageStore(tmp_path), lambda: {"a": np.ones(3), "b": np.array([object()])})
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


WORKER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import numpy as np
    from rarezoo.clustering.stages import StageStore
    root, calls, hang = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    def compute():
        with calls.open("a") as stream:
            stream.write("x")
        while hang == "compute":
            time.sleep(0.05)
        time.sleep(0.5)
        return {"a": np.arange(5)}
    if hang == "save":
        def save(*args, **kwargs):
            Path(args[0]).write_bytes(b"half of it")
            calls.with_name("saving").touch()
            time.sleep(600)
        np.save = save
    stage = StageStore(root).get("tree", {}, {}, compute)
    print(stage.reused, stage.arrays["a"].sum())
    """
)


def _worker(tmp_path, hang="no"):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "stages"), str(tmp_path / "calls"), hang],
        stdout=subprocess.PIPE,
        text=True,
    )


def _wait_for(path: Path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_processes_that_want_the_same_stage_at_once_compute_it_once(tmp_path):
    workers = [_worker(tmp_path) for _ in range(2)]
    said = sorted(worker.communicate(timeout=60)[0].strip() for worker in workers)
    assert said == ["False 10", "True 10"]
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize(("hang", "sign"), [("compute", "calls"), ("save", "saving")])
def test_a_killed_process_leaves_neither_a_lock_nor_half_a_stage(tmp_path, hang, sign):
    worker = _worker(tmp_path, hang)
    _wait_for(tmp_path / sign)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    stage = StageStore(tmp_path / "stages").get("tree", {}, {}, lambda: {"a": np.arange(3)})
    assert not stage.reused
    assert stage.arrays["a"].tolist() == [0, 1, 2]
    left = {path.name for path in (tmp_path / "stages").iterdir()}
    assert not [name for name in left if ".part" in name]


def _hold(root, ready, release):
    def compute():
        ready.set()
        release.wait()
        return {"a": np.arange(3)}

    StageStore(root).get("tree", {"slow": True}, {}, compute)


def test_a_stage_under_way_does_not_hold_up_another(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    try:
        assert ready.wait(60)
        assert not StageStore(tmp_path).get("tree", {"slow": False}, {}, lambda: {"a": np.arange(2)}).reused
    finally:
        release.set()
        holder.join()
    assert StageStore(tmp_path).get("tree", {"slow": True}, {}, dict).arrays["a"].tolist() == [0, 1, 2]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*cannot be written"):
        _get(StageStore(tmp_path / "file" / "stages"), Counted())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path):
    (tmp_path / "stages").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"stages.*cannot be written"):
        _get(StageStore(tmp_path / "stages"), Counted())


@settings(deadline=None, max_examples=40)
@given(arrays(np.float32, array_shapes(min_side=0, max_dims=3), elements=st.floats(-9, 9, width=32)))
def test_content_hash_is_that_of_values_dtype_and_shape(array):
    assert content_hash(array) == content_hash(array.copy(order="F"))
    assert content_hash(array) != content_hash(array.astype(np.float64))
    assert content_hash(array) != content_hash(array[None])
    if array.size:
        changed = array.copy()
        changed.flat[0] += 1
        assert content_hash(array) != content_hash(changed)
