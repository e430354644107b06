import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.provenance import RunFolder, fingerprint, git_commit, sha256_of_file, versions, written_beside

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON))
def test_fingerprint_does_not_depend_on_the_order_of_keys(value):
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


def test_sha256_is_that_of_the_standard_tool(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"galaxies" * 1000)
    told = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sha256_of_file(path) == told


def test_versions_name_what_decides_a_result():
    assert {"python", "torch", "umap-learn", "hdbscan", "rarezoo"} <= versions().keys()


def test_commit_is_a_hash_or_nothing():
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_a_fault_leaves_neither_the_file_nor_anything_beside_it(tmp_path):
    def half():
        with written_beside(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(tmp_path.iterdir()) == []


def test_a_fault_leaves_the_earlier_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def half():
        with written_beside(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "before"


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "montages"
    for content in ("old", "new"):
        with written_beside(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [found.name for found in path.iterdir()] == ["new"]
    assert [found.name for found in tmp_path.iterdir()] == ["montages"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)"),
        written_beside(tmp_path / "a.txt"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x" * 10_000)


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"), written_beside(tmp_path / "outputs" / "a.txt"):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(tmp_path / "outputs" / "train", "train", {}, {})


def test_an_error_of_reading_is_not_taken_for_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), written_beside(tmp_path / "a.txt"):
        (tmp_path / "absent").read_text()


def test_a_finished_run_is_known_and_keeps_its_summary(tmp_path):
    with RunFolder(tmp_path, "train", {"seed": 1}, {"catalog": "abc"}) as run:
        assert not run.complete
        run.finish({"loss": 2.0})
    with RunFolder(tmp_path, "train", {"seed": 1}, {"catalog": "abc"}) as again:
        assert again.complete
        assert again.summary == {"loss": 2.0}


def test_an_unfinished_run_can_be_resumed(tmp_path):
    with RunFolder(tmp_path, "train", {"seed": 1}, {}):
        pass
    with RunFolder(tmp_path, "train", {"seed": 1}, {}) as run:
        assert run.resumable


def test_a_run_with_other_settings_is_refused_and_named(tmp_path):
    with RunFolder(tmp_path, "train", {"optim": {"lr": 0.1}}, {}) as run:
        run.finish({})
    with pytest.raises(UserError, match=r"optim\.lr: 0\.1 there, 0\.2 now.*overwrite=true"):
        RunFolder(tmp_path, "train", {"optim": {"lr": 0.2}}, {})
    with RunFolder(tmp_path, "train", {"optim": {"lr": 0.1}}, {}) as run:
        assert run.complete


def test_a_run_that_came_to_nothing_gives_way_to_another(tmp_path):
    with RunFolder(tmp_path, "cluster", {"n_neighbors": 500}, {}):
        pass
    with RunFolder(tmp_path, "cluster", {"n_neighbors": 50}, {}) as run:
        assert not run.resumable


def test_unfinished_work_does_not_give_way_to_another_run(tmp_path):
    with RunFolder(tmp_path, "train", {"seed": 1}, {}, unfinished_work="last.ckpt"):
        (tmp_path / "last.ckpt").write_text("an epoch's work")
    with pytest.raises(UserError, match=r"seed: 1 there, 2 now"):
        RunFolder(tmp_path, "train", {"seed": 2}, {}, unfinished_work="last.ckpt")
    with RunFolder(tmp_path, "train", {"seed": 1}, {}, unfinished_work="last.ckpt") as run:
        assert run.resumable


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    (tmp_path / ".embeddings.h5.x1.part.h5").write_text("half")
    (tmp_path / "embeddings.h5").write_text("whole")
    with RunFolder(tmp_path, "embed", {}, {}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "embeddings.h5", "run.json"]


def test_another_input_is_another_run(tmp_path):
    with RunFolder(tmp_path, "embed", {}, {"checkpoint": "a"}) as run:
        run.finish({})
    with pytest.raises(UserError, match=r"inputs\.checkpoint"):
        RunFolder(tmp_path, "embed", {}, {"checkpoint": "b"})


def test_overwrite_takes_the_folder_over(tmp_path):
    with RunFolder(tmp_path, "embed", {}, {"checkpoint": "a"}) as run:
        run.finish({})
    with RunFolder(tmp_path, "embed", {}, {"checkpoint": "b"}, overwrite=True) as run:
        assert not run.complete
        assert not run.resumable


def test_a_damaged_record_counts_as_none(tmp_path):
    (tmp_path / "run.json").write_text('{"key": ')
    with RunFolder(tmp_path, "embed", {}, {}) as run:
        assert not run.complete


def test_record_says_what_the_run_was_made_with(tmp_path):
    with RunFolder(tmp_path, "embed", {"seed": 3}, {"checkpoint": "a"}) as run:
        run.finish({"n": 1})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["complete"] is True
    assert record["key"] == {"stage": "embed", "settings": {"seed": 3}, "inputs": {"checkpoint": "a"}}
    assert {"created", "versions", "git_commit"} <= record.keys()


HOLDS = """
import sys, time
from pathlib import Path
from rarezoo.provenance import RunFolder
with RunFolder(Path(sys.argv[1]), "train", {}, {}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_write_to_one_folder_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is writing here"):
            RunFolder(tmp_path, "train", {}, {})
    finally:
        holder.kill()
        holder.wait()
    time.sleep(0.1)
    with RunFolder(tmp_path, "train", {}, {}) as run:
        assert run.resumable


def test_a_run_whose_result_is_gone_is_not_complete(tmp_path):
    result = tmp_path / "elsewhere" / "e.h5"
    result.parent.mkdir()
    result.write_text("embeddings")
    with RunFolder(tmp_path / "run", "embed", {}, {}, result=result) as run:
        run.finish({})
    with RunFolder(tmp_path / "run", "embed", {}, {}, result=result) as run:
        assert run.complete
    result.unlink()
    with RunFolder(tmp_path / "run", "embed", {}, {}, result=result) as run:
        assert not run.complete
        assert run.resumable


def test_what_a_killed_process_left_of_a_result_elsewhere_is_cleared(tmp_path):
    (tmp_path / ".e[1].h5.x1.part.h5").write_text("half")
    (tmp_path / ".other.h5.x1.part.h5").write_text("half of another run")
    with RunFolder(tmp_path / "run", "embed", {}, {}, result=tmp_path / "e[1].h5"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.h5.x1.part.h5", "run"]


def test_version_of_a_package_is_found_whatever_its_wheel_is_named(tmp_path, monkeypatch):
    (tmp_path / "cuml").mkdir()
    (tmp_path / "cuml/__init__.py").touch()
    about = tmp_path / "cuml_cu12-25.8.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cuml-cu12\nVersion: 25.8.0\n")
    (about / "RECORD").write_text("cuml/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    versions.cache_clear()
    try:
        assert versions()["cuml"] == "25.8.0"
    finally:
        versions.cache_clear()
