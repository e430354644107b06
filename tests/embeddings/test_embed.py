import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_embedding import BROKEN, DIM, N_ROWS, embed_survey, make_model, make_survey

from rarezoo.cli import UserError
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.embed import choose_device
from rarezoo.embeddings.redundancy import FeatureMoments

HERE = Path(__file__).parent
READABLE = [row for row in range(N_ROWS) if row not in BROKEN]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return make_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def unbroken(survey, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "e.h5"
    embed_survey(survey, path)
    return path


def images_of(survey: Path) -> torch.Tensor:
    pixels = np.stack([np.asarray(Image.open(survey / f"{row}.png")) for row in READABLE])
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def assert_same_file(one: Path, other: Path, exactly: bool = True) -> None:
    """All arrays alike, and all attributes but the time; numbers within 1e-5 where not exactly."""
    with h5py.File(one, "r") as ours, h5py.File(other, "r") as theirs:
        assert {**ours.attrs}.keys() == {**theirs.attrs}.keys()
        for name in ours.attrs.keys() - {"created"}:
            assert np.array_equal(ours.attrs[name], theirs.attrs[name]), name
        names: list[str] = []
        theirs.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        for name in names:
            assert ours[name].dtype == theirs[name].dtype
            if exactly or ours[name].dtype.kind != "f":
                assert np.array_equal(ours[name][:], theirs[name][:]), name
            else:
                np.testing.assert_allclose(ours[name][:], theirs[name][:], rtol=1e-5, atol=1e-5)
        assert len(names) >= 7


def test_file_holds_what_the_model_gives_for_each_image(survey, unbroken):
    expected = make_model().embed(images_of(survey))
    with open_embeddings(unbroken) as embeddings:
        assert embeddings.ids.tolist() == [f"g{row}" for row in READABLE]
        assert embeddings.failed().to_dict("records") == [
            {"id_str": f"g{row}", "file_loc": f"{row}.png", "reason": "empty file"} for row in BROKEN
        ]
        np.testing.assert_allclose(embeddings.representation[:], expected.representation, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(embeddings.concentrations[:], expected.concentrations, rtol=1e-4, atol=1e-4)


def test_summary_counts_galaxies_and_failures_and_says_how_fast_it_was(survey, tmp_path):
    seen = []
    summary, _ = embed_survey(survey, tmp_path / "e.h5", note=seen.append)
    assert summary.pop("images_per_second") > 0
    assert summary == {"n_galaxies": len(READABLE), "n_failed": len(BROKEN), "dim": DIM}
    assert [numbers["images"] for numbers in seen] == [8, 16, 24, 32, 40, 43]
    assert [numbers["failed"] for numbers in seen] == [1, 1, 3, 3, 3, 4]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (100, 0), (5, 2)])
def test_batches_and_workers_change_nothing(batch_size, workers, survey, unbroken, tmp_path):
    embed_survey(survey, tmp_path / "e.h5", batch_size=batch_size, workers=workers)
    assert_same_file(tmp_path / "e.h5", unbroken)


@dataclass
class Launched:
    returncode: int
    stderr: str


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Embeds in real processes that find each other as those of torchrun do."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "small_embedding.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def launched(n_ranks: int, survey: Path, path: Path, **options) -> Launched:
        said = tmp_path_factory.mktemp("said") / "said.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        world = {"WORLD_SIZE": str(n_ranks), "LOCAL_WORLD_SIZE": str(n_ranks), "GROUP_RANK": "0"}
        request = {"survey": str(survey), "path": str(path), "options": {**options, "n_ranks": n_ranks}}
        server.stdin.write(json.dumps({**request, "said": str(said), "environment": meeting | world}) + "\n")
        server.stdin.flush()
        return Launched(int(server.stdout.readline()), said.read_text())

    yield launched
    server.stdin.close()
    server.wait(20)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_several_processes_write_the_same_file_as_one(n_ranks, survey, unbroken, tmp_path, launch):
    done = launch(n_ranks, survey, tmp_path / "e.h5")
    assert done.returncode == 0, done.stderr
    assert_same_file(tmp_path / "e.h5", unbroken, exactly=False)
    assert done.stderr.count("embedding (1 of") >= 1


def test_processes_without_rows_of_their_own_do_no_harm(survey, unbroken, tmp_path, launch):
    done = launch(3, survey, tmp_path / "e.h5", rows_per_block=100)
    assert done.returncode == 0, done.stderr
    assert_same_file(tmp_path / "e.h5", unbroken, exactly=False)


def test_fewer_rows_than_processes_are_embedded_once(tmp_path, launch):
    survey = make_survey(tmp_path, n_rows=2, broken=())
    done = launch(3, survey, tmp_path / "e.h5", rows_per_block=1)
    assert done.returncode == 0, done.stderr
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        assert embeddings.ids.tolist() == ["g0", "g1"]


def test_run_that_was_killed_goes_on_with_what_is_missing_and_ends_as_an_unbroken_one(
    survey, unbroken, tmp_path, launch
):
    done = launch(2, survey, tmp_path / "e.h5", kill=[1, 2])
    assert done.returncode != 0
    assert not (tmp_path / "e.h5").exists()
    parts = sorted((tmp_path / "parts").glob("rows-*.npz"))
    assert 2 <= len(parts) < 6
    before = {path: path.stat().st_mtime_ns for path in parts}
    seen = []
    embed_survey(survey, tmp_path / "e.h5", resume=True, note=seen.append)
    assert len(seen) == 6 - len(parts)
    assert {path: path.stat().st_mtime_ns for path in parts} == before
    assert_same_file(tmp_path / "e.h5", unbroken, exactly=False)


def test_killed_single_process_ends_with_every_bit_of_an_unbroken_one(survey, unbroken, tmp_path, launch):
    done = launch(1, survey, tmp_path / "e.h5", kill=[0, 3])
    assert done.returncode != 0
    whole = launch(1, survey, tmp_path / "e.h5", resume=True)
    assert whole.returncode == 0, whole.stderr
    fresh = launch(1, survey, tmp_path / "fresh" / "e.h5")
    assert fresh.returncode == 0, fresh.stderr
    assert_same_file(tmp_path / "e.h5", tmp_path / "fresh" / "e.h5")


def parts_of(survey: Path, folder: Path) -> list[Path]:
    """The parts of a run that was whole but for its last step."""
    embed_survey(survey, folder / "e.h5")
    (folder / "e.h5").unlink()
    return sorted((folder / "parts").glob("*.npz"))


def test_only_a_damaged_part_is_computed_again(survey, unbroken, tmp_path):
    parts = parts_of(survey, tmp_path)
    whole = parts[2].read_bytes()
    parts[2].write_bytes(whole[: len(whole) // 2])
    seen = []
    embed_survey(survey, tmp_path / "e.h5", resume=True, note=seen.append)
    assert len(seen) == 1
    assert_same_file(tmp_path / "e.h5", unbroken)


def test_all_parts_are_there_and_nothing_is_computed(survey, unbroken, tmp_path):
    parts_of(survey, tmp_path)
    summary, _ = embed_survey(survey, tmp_path / "e.h5", resume=True)
    assert "images_per_second" not in summary
    assert_same_file(tmp_path / "e.h5", unbroken)


def test_parts_are_not_taken_over_unless_asked(survey, tmp_path):
    parts = parts_of(survey, tmp_path)
    seen = []
    embed_survey(survey, tmp_path / "e.h5", note=seen.append)
    assert len(seen) == len(parts)


def test_part_that_is_damaged_before_it_is_merged_is_named_with_the_way_on(survey, tmp_path):
    def damage(numbers):
        if numbers["images"] == N_ROWS:
            next((tmp_path / "parts").glob("*.npz")).write_bytes(b"")

    with pytest.raises(UserError, match=r"parts.rows-.*npz.*Run the same command again: this part is computed anew"):
        embed_survey(survey, tmp_path / "e.h5", note=damage)
    assert not (tmp_path / "e.h5").exists()


def test_image_that_was_repaired_is_read_when_the_run_goes_on(survey, tmp_path):
    own = Path(shutil.copytree(survey, tmp_path / "survey"))
    parts_of(own, tmp_path)
    shutil.copy(own / "0.png", own / "17.png")
    seen = []
    summary, _ = embed_survey(own, tmp_path / "e.h5", resume=True, note=seen.append)
    assert len(seen) == 1
    assert summary["n_failed"] == len(BROKEN) - 1
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        assert "g17" in embeddings.ids
        assert "g18" not in embeddings.ids


def test_too_many_unreadable_images_stop_the_run_and_keep_what_is_done(survey, tmp_path):
    with pytest.raises(UserError, match=r"\d of 43 images could not be read.*data\.max_failed_share=0\.05"):
        embed_survey(survey, tmp_path / "e.h5", max_failed_share=0.05)
    assert not (tmp_path / "e.h5").exists()
    assert len(list((tmp_path / "parts").glob("*.npz"))) == 2
    summary, _ = embed_survey(survey, tmp_path / "e.h5", resume=True)
    assert summary["n_failed"] == len(BROKEN)


def test_processes_that_each_stay_below_the_share_are_judged_together(survey, tmp_path, launch):
    done = launch(3, survey, tmp_path / "e.h5", max_failed_share=0.08)
    assert done.returncode == 2
    assert "4 of 43 images could not be read" in done.stderr
    assert not (tmp_path / "e.h5").exists()


def test_features_and_half_precision_are_kept_where_they_are_asked_for(survey, unbroken, tmp_path):
    embed_survey(survey, tmp_path / "e.h5", features=True, dtype="float16")
    expected = make_model().embed(images_of(survey))
    with h5py.File(tmp_path / "e.h5", "r") as file, h5py.File(unbroken, "r") as plain:
        assert (file["features"].dtype, file["representation"].dtype) == (np.float16, np.float16)
        np.testing.assert_allclose(file["features"][:], expected.features, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(file["representation"][:], plain["representation"][:], rtol=2e-3, atol=1e-3)
        assert "features" not in plain


def test_dropout_passes_and_several_models_are_members(survey, tmp_path):
    models = [make_model(seed) for seed in (0, 1)]
    embed_survey(survey, tmp_path / "e.h5", models=models, dropout_passes=3)
    expected = [model.embed(images_of(survey)) for model in models]
    with h5py.File(tmp_path / "e.h5", "r") as file:
        assert file["member_concentrations"].shape == (len(READABLE), 6, 4)
        np.testing.assert_allclose(file["representation"][:], expected[0].representation, rtol=1e-4, atol=1e-5)
        mean = (expected[0].concentrations + expected[1].concentrations) / 2
        np.testing.assert_allclose(file["concentrations"][:], mean, rtol=1e-4, atol=1e-4)


def test_redundancy_is_that_of_all_galaxies_though_the_run_was_broken_off(survey, tmp_path):
    embed_survey(survey, tmp_path / "e.h5", moments=True)
    (tmp_path / "e.h5").unlink()
    next((tmp_path / "parts").glob("*.npz")).unlink()
    _, embedding = embed_survey(survey, tmp_path / "e.h5", resume=True, moments=True)
    expected = make_model().embed(images_of(survey))
    for space, found in embedding.moments.items():
        moments = FeatureMoments(len(found.mean))
        moments.update(getattr(expected, space).numpy())
        assert found.n_rows == len(READABLE)
        np.testing.assert_allclose(found.covariance, moments.covariance, rtol=0.02, atol=1e-4)
    with h5py.File(tmp_path / "e.h5", "r") as file:
        assert "features" not in file


def test_too_little_space_is_found_before_the_first_image(survey, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 3000})
    monkeypatch.setattr("rarezoo.embeddings.hdf5.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"e\.h5: takes at least 3\.44e-06 GB"):
        embed_survey(survey, tmp_path / "e.h5", note=lambda numbers: pytest.fail("an image was embedded"))


def test_folder_that_cannot_be_written_to_is_a_users_fault(survey, tmp_path):
    (tmp_path / "parts").write_text("not a folder")
    with pytest.raises(UserError, match=r"parts.* cannot be written"):
        embed_survey(survey, tmp_path / "e.h5")


def test_device_is_chosen_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(UserError, match=rf"embedding\.device={name}: cannot be used here .* Use auto, cpu or cuda\."):
        choose_device(name)
