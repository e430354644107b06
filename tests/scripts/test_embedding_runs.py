"""embed.py as it is run, broken off, run again, and run in several processes."""

import json
import shutil
import signal

import h5py
import numpy as np
import pytest
from small_scripts import SMALL, interrupt_at, run, run_in_turn

pytestmark = pytest.mark.script

TWO = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")


@pytest.fixture
def place(finished, tmp_path):
    """A folder with the survey of the finished runs, and options that embed it with their model."""
    folder, _ = finished
    shutil.copytree(folder / "outputs" / "simulated", tmp_path / "outputs" / "simulated")
    return tmp_path, ("name=cut", f"checkpoint={folder}/outputs/whole/train/best.ckpt")


def arrays(path):
    with h5py.File(path, "r") as file:
        assert file.attrs["complete"]
        return {name: file[name][:] for name in ("id", "representation", "concentrations")}


def assert_as_finished(path, finished):
    expected = arrays(finished[0] / "outputs/whole/embed/embeddings.h5")
    for name, values in arrays(path).items():
        if name == "id":
            assert values.tolist() == expected[name].tolist()
        else:
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_run_that_is_broken_off_leaves_no_file_and_goes_on_to_the_same_one(with_signal, place, finished):
    folder, options = place
    slowly = (*options, "embedding.batch_size=1")
    status, said = interrupt_at(folder, "embedding", "embed.py", *slowly, with_signal=with_signal)
    assert status == (-9 if with_signal == signal.SIGKILL else 130), said
    assert "Traceback" not in said
    assert not (folder / "outputs/cut/embed/embeddings.h5").exists()
    run(folder, "embed.py", *options)
    assert_as_finished(folder / "outputs/cut/embed/embeddings.h5", finished)
    left = {path.name for path in (folder / "outputs/cut/embed").iterdir()}
    assert left <= {"embeddings.h5", "predicted_fractions.png", "run.json", ".lock", ".hydra", "embed.log"}


def test_two_processes_write_the_file_of_one(place, finished):
    folder, options = place
    done = run(folder, "embed.py", *options, *TWO)
    assert_as_finished(folder / "outputs/cut/embed/embeddings.h5", finished)
    assert done.stderr.count("images_per_second") == 1
    assert "complete before" in run(folder, "embed.py", *options).stderr


def test_fault_of_the_user_is_said_once_by_several_processes(place):
    folder, options = place
    done = run(folder, "embed.py", *options, *TWO, "output=/proc/nowhere/e.h5", check=False)
    assert done.returncode == 2
    assert done.stderr.count("cannot be written") == 1


def test_parts_of_another_run_are_asked_about(place):
    folder, options = place
    parts = folder / "outputs/cut/embed/parts"
    interrupt_at(folder, "embedding", "embed.py", *options, "embedding.batch_size=1")
    parts.mkdir(exist_ok=True)
    done = run(folder, "embed.py", *options, "embedding.dtype=float16", check=False)
    assert done.returncode == 2
    assert "embedding.dtype: float32 there, float16 now" in done.stderr
    assert "overwrite=true" in done.stderr
    run(folder, "embed.py", *options, "embedding.dtype=float16", "overwrite=true")
    assert arrays(folder / "outputs/cut/embed/embeddings.h5")["representation"].dtype == np.float16


def test_file_goes_where_output_says_and_is_made_again_where_it_is_gone(place, finished):
    folder, options = place
    here = (folder, "embed.py", *SMALL["embed.py"], *options, "output=here/e.h5")
    ((status, said),) = run_in_turn([here])
    assert status == 0, said
    assert f"embeddings={folder}/here/e.h5" in said
    (folder / "here/e.h5").unlink()
    (_, again), (_, once_more) = run_in_turn([here, here])
    assert "complete before" not in again
    assert "complete before" in once_more
    assert_as_finished(folder / "here/e.h5", finished)


def test_everything_that_can_be_asked_for_is_in_the_file(place):
    folder, options = place
    wanted = (
        "embedding.features=true",
        "embedding.dropout_passes=2",
        "embedding.rotations=2",
        "embedding.redundancy=true",
        "seed=1",
    )
    checkpoint = options[1].partition("=")[2]
    shutil.copy(checkpoint, folder / "other.ckpt")
    run(folder, "embed.py", options[0], f"checkpoint=[{checkpoint},other.ckpt]", *wanted)
    with h5py.File(folder / "outputs/cut/embed/embeddings.h5") as file:
        members = json.loads(file.attrs["members"])
        assert file["member_concentrations"].shape[1] == len(members) == 4
        assert {member["pass"] for member in members} == {0, 1}
        assert len(file.attrs["checkpoint_sha256"].split(",")) == 2
        assert file["features"].dtype == np.float16
    assert (folder / "outputs/cut/embed/predicted_fractions.png").stat().st_size > 10_000
    assert (folder / "outputs/cut/embed/redundancy.png").exists()
