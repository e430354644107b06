import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rarezoo.cli import UserError
from rarezoo.clustering.stages import StageStore, content_hash
from rarezoo.provenance import fingerprint


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
    assert info == {**stage.info, "sha256": fingerprint(stage.info)}
    assert (info["parameters"], info["inputs"], info["name"]) == ({"k": 5}, {"x": "abc"}, "layout")
    assert info["arrays"]["a"]["shape"] == [3, 2]
    assert info["arrays"]["a"]["dtype"] == "float32"
    assert info["versions"]["numpy"] == np.__version__
    assert info["seconds"] >= 0
    assert info["peak_memory_bytes"] > 10**6


def test_hashes_in_the_record_are_those_of_the_files_on_disk(tmp_path):
    stage = _get(StageStore(tmp_path), Counted())
    for name, described in stage.info["arrays"].items():
        content = (tmp_path / stage.key / f"{name}.npy").read_bytes()
        assert described["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here")
def test_peak_memory_is_that_of_the_stage_and_not_of_what_came_before(tmp_path):
    def peak(n_bytes):
        return _get(
            StageStore(tmp_path), lambda: {"a": np.ones(n_bytes, np.uint8)[:1]}, {"n": n_bytes}
        ).info["peak_memory_bytes"]  # fmt: skip

    large, small = peak(300_000_000), peak(1)
    assert large - small > 250_000_000


def test_peak_memory_is_that_of_the_process_where_it_cannot_be_reset(tmp_path, monkeypatch):
    read_text, write_text = Path.read_text, Path.write_text

    def elsewhere(action):
        def guarded(path, *arguments, **options):
            if path.parts[:2] == ("/", "proc"):
                raise PermissionError
            return action(path, *arguments, **options)

        return guarded

    monkeypatch.setattr(Path, "read_text", elsewhere(read_text))
    monkeypatch.setattr(Path, "write_text", elsewhere(write_text))
    assert _get(StageStore(tmp_path), Counted()).info["peak_memory_bytes"] > 10**6


def test_cpu_seconds_are_those_of_all_threads_and_sleep_costs_none(tmp_path):
    def burn():
        end = time.thread_time() + 0.3
        block = bytes(1_000_000)
        while time.thread_time() < end:
            hashlib.sha256(block)  # lets other threads run

    def in_threads():
        threads = [threading.Thread(target=burn) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"a": np.ones(1)}

    def asleep():
        time.sleep(0.5)
        return {"a": np.ones(1)}

    busy = _get(StageStore(tmp_path), in_threads, {"busy": True}).info
    idle = _get(StageStore(tmp_path), asleep, {"busy": False}).info
    # The clock of a thread is finer than that of a process, whose ticks may fall between.
    assert busy["cpu_seconds"] >= 0.5
    assert idle["cpu_seconds"] < 0.3 < idle["seconds"]


@pytest.mark.parametrize("other", [{"parameters": {"k": 6}}, {"parameters": {"j": 5}}, {"inputs": {"x": "abd"}}])
def test_other_parameters_or_inputs_are_another_stage(tmp_path, other):
    compute = Counted()
    first, second = _get(StageStore(tmp_path), compute), _get(StageStore(tmp_path), compute, **other)
    assert compute.calls == 2
    assert first.key != second.key


def test_summary_tells_what_was_computed_and_what_was_reused(tmp_path):
    def slow():
        time.sleep(0.05)
        return {"a": np.ones(1)}

    first, second = StageStore(tmp_path), StageStore(tmp_path)
    before = first.get("layout", {"seed": 0}, {}, slow)
    for _ in range(2):
        second.get("layout", {"seed": 0}, {}, slow)
        layout = second.get("layout", {"seed": 1}, {}, slow)
        tree = second.get("tree", {}, {}, slow)
    seconds = {name: stage.info["seconds"] for name, stage in (("layout", layout), ("tree", tree))}
    assert second.summary() == {
        "stages_computed": 2,
        "stages_reused": 1,
        "seconds_computed": seconds["layout"] + seconds["tree"],
        "seconds_saved": before.info["seconds"],
        "stages": {
            "layout": {
                "computed": 1,
                "reused": 1,
                "seconds": seconds["layout"],
                "cpu_seconds": layout.info["cpu_seconds"],
                "seconds_saved": before.info["seconds"],
                "peak_memory_bytes": max(stage.info["peak_memory_bytes"] for stage in (before, layout)),
            },
            "tree": {
                "computed": 1,
                "reused": 0,
                "seconds": seconds["tree"],
                "cpu_seconds": tree.info["cpu_seconds"],
                "seconds_saved": 0.0,
                "peak_memory_bytes": tree.info["peak_memory_bytes"],
            },
        },
    }
    assert first.summary()["stages_reused"] == 0


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


def _take_that_of_another(folder):
    other = _get(StageStore(folder.parent), Counted(2.0), {"k": 6})
    for path in (folder.parent / other.key).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def _become_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("in the way")


DAMAGES = {
    "array missing": lambda folder: (folder / "a.npy").unlink(),
    "array truncated": _truncate,
    "array altered": _flip_a_bit,
    "record missing": lambda folder: (folder / "stage.json").unlink(),
    "record cut off": lambda folder: (folder / "stage.json").write_text('{"arrays": {'),
    "record not an object": lambda folder: (folder / "stage.json").write_text("[1, 2]"),
    "record without arrays' hashes": lambda folder: (folder / "stage.json").write_text('{"arrays": {"a": 1}}'),
    "record not text": lambda folder: (folder / "stage.json").write_bytes(b"\xff\xfe\x00"),
    "record altered": _change_parameters,
    "record without its own hash": lambda folder: (folder / "stage.json").write_text(
        json.dumps({k: v for k, v in json.loads((folder / "stage.json").read_text()).items() if k != "sha256"})
    ),
    "another stage, whole": _take_that_of_another,
    "a file in its place": _become_a_file,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_stage_is_computed_again(tmp_path, damage):
    store, compute = StageStore(tmp_path), Counted()
    damage(tmp_path / _get(store, compute).key)
    again = _get(store, compute)
    assert (again.reused, compute.calls) == (False, 2)
    np.testing.assert_array_equal(again.arrays["a"], np.ones((3, 2), np.float32))
    assert _get(store, compute).reused


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["a.npy", "empty.npy", "stage.json"]), st.integers(0, 2**16), st.integers(1, 255))
def test_no_altered_byte_is_ever_trusted(tmp_path_factory, name, place, change):
    root = tmp_path_factory.mktemp("stages")
    made = _get(StageStore(root), Counted())
    path = root / made.key / name
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    again = _get(StageStore(root), Counted())
    np.testing.assert_array_equal(again.arrays["a"], np.ones((3, 2), np.float32))
    # Blanks around the JSON text are the one thing that may change.
    assert not again.reused or again.info == made.info


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
    import errno, fcntl, os, sys, time
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
        def save(stream, array, **kwargs):
            stream.write(b"half of it")
            calls.with_name("saving").touch()
            time.sleep(600)
        np.save = save
    if hang == "no locks":
        def flock(*arguments):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock = flock
        def compute():
            with calls.open("a") as stream:
                stream.write("x")
            while len(calls.read_text()) < 2:
                time.sleep(0.01)
            return {"a": np.arange(5)}
    stage = StageStore(root).get("tree", {}, {}, compute)
    print(stage.reused, stage.arrays["a"].sum())
    """
)


def _worker(tmp_path, hang="no"):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "stages"), str(tmp_path / "calls"), hang],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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


def test_without_locks_processes_may_both_compute_and_both_have_the_stage(tmp_path):
    workers = [_worker(tmp_path, "no locks") for _ in range(2)]
    said = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert {out.split()[1] for out, _ in said} == {"10"}
    assert all("has no locks" in err for _, err in said)
    assert (tmp_path / "calls").read_text() == "xx"
    assert StageStore(tmp_path / "stages").get("tree", {}, {}, dict).arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert not [path for path in (tmp_path / "stages").iterdir() if ".part" in path.name]


SWEEP = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import numpy as np
    from rarezoo.clustering.stages import StageStore
    root, calls = Path(sys.argv[1]), Path(sys.argv[2])
    for size in (5, 6, 7, 8):
        def compute():
            with calls.open("a") as stream:
                stream.write(f"{size} ")
            time.sleep(0.05)
            return {"a": np.arange(size)}
        assert StageStore(root).get("tree", {"size": size}, {}, compute).arrays["a"].tolist() == list(range(size))
    """
)


def test_two_sweeps_at_once_share_one_store(tmp_path):
    command = [sys.executable, "-c", SWEEP, str(tmp_path / "stages"), str(tmp_path / "calls")]
    sweeps = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [sweep.communicate(timeout=60)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], said
    assert sorted((tmp_path / "calls").read_text().split()) == ["5", "6", "7", "8"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_said_and_costs_no_other_stage(small_disk):
    store = StageStore(small_disk / "stages")
    _get(store, Counted())
    with pytest.raises(UserError, match=r"tree-[0-9a-f]{12}: cannot be written \(No space left on device\)"):
        store.get("tree", {}, {}, lambda: {"a": np.ones(10_000), "b": np.ones(100_000)})
    assert _get(store, Counted()).reused
    assert not [path for path in store.root.iterdir() if ".part" in path.name or path.name.startswith("tree")]
    assert not store.get("tree", {}, {}, lambda: {"a": np.ones(10)}).reused


FILE_LIMIT = textwrap.dedent(
    """
    import resource, sys
    import numpy as np
    from rarezoo.cli import UserError
    from rarezoo.clustering.stages import StageStore
    store = StageStore(sys.argv[1])
    store.get("layout", {}, {}, lambda: {"a": np.ones(10)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store.get("tree", {}, {}, lambda: {"a": np.ones(100_000)})
    except UserError as error:
        print(error)
    print(store.get("layout", {}, {}, dict).reused, sorted(p.name[:6] for p in store.root.iterdir() if p.is_dir()))
    """
)


def test_a_file_that_may_not_grow_is_said_and_costs_no_other_stage(tmp_path):
    command = [sys.executable, "-c", FILE_LIMIT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    error, rest = done.stdout.splitlines()
    assert "cannot be written (File too large)" in error
    assert rest == "True ['layout']"


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


def test_a_disk_that_may_not_be_written_to_still_gives_what_it_holds(small_disk):
    _get(StageStore(small_disk / "stages"), Counted())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert _get(StageStore(small_disk / "stages"), Counted()).reused
    with pytest.raises(UserError, match=r"stages: cannot be written \(Read-only file system\).*stages="):
        _get(StageStore(small_disk / "stages"), Counted(), {"k": 6})


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
