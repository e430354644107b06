import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.data import packing
from rarezoo.data.catalog import Catalog, read_catalog
from rarezoo.data.images import read_image
from rarezoo.data.packing import Packing, pack
from rarezoo.data.shards import main
from rarezoo.data.sources import catalog_shards

N_ROWS = 10
SMALL = Packing(rows_per_shard=4)
RESIZED = Packing(size=16, rows_per_shard=4)


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Ten galaxies whose ids have points, in JPEG and PNG of several sizes."""
    rng = np.random.default_rng(0)
    files = [f"images/{row}.{'jpg' if row % 2 else 'PNG'}" for row in range(N_ROWS)]
    (tmp_path / "images").mkdir()
    for row, file in enumerate(files):
        Image.fromarray(rng.integers(0, 256, (20 + row, 30, 3), dtype=np.uint8)).save(tmp_path / file)
    table = pd.DataFrame({"id_str": [f"J{row:06d}.80+004200.0" for row in range(N_ROWS)], "file_loc": files})
    table["ra"] = rng.uniform(0, 360, N_ROWS)
    table["ring_yes"], table["ring_no"] = np.arange(N_ROWS), 2
    table["redshift"] = np.where(np.arange(N_ROWS) == 3, np.nan, rng.random(N_ROWS))
    table["note"] = "é"
    table.to_parquet(tmp_path / "galaxies.parquet", index=False)
    return tmp_path / "galaxies.parquet"


def opened(survey: Path) -> Catalog:
    return read_catalog(survey, check_files=False)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def message(survey: Path, folder: Path, *arguments: Packing | float) -> str:
    with pytest.raises(UserError) as error:
        pack(opened(survey), folder, *arguments)
    return str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_packed_byte_by_byte_and_read_by_tarfile(workers, survey, tmp_path):
    summary = pack(opened(survey), tmp_path / "packed", SMALL, workers=workers)
    assert summary == {"n_galaxies": N_ROWS, "n_failed": 0, "n_shards": 3, "n_kept": 0}
    table, row = pd.read_parquet(survey), 0
    for name in ("000000.tar", "000001.tar", "000002.tar"):
        with tarfile.open(tmp_path / "packed" / name) as tar:
            members = tar.getmembers()
            for image, beside in zip(members[::2], members[1::2], strict=True):
                assert tar.extractfile(image).read() == (tmp_path / table["file_loc"][row]).read_bytes()
                assert json.loads(tar.extractfile(beside).read())["id_str"] == table["id_str"][row]
                assert image.name == f"{row:09d}.{'jpg' if row % 2 else 'png'}"
                row += 1
    assert row == N_ROWS


def test_packed_catalog_has_the_rows_columns_and_pictures_of_the_one_it_was_made_from(survey, tmp_path):
    pack(opened(survey), tmp_path / "packed", SMALL)
    before = read_catalog(survey, ["ring_yes", "ring_no"])
    after = read_catalog(tmp_path / "packed" / "catalog.parquet", ["ring_yes", "ring_no"])
    pd.testing.assert_frame_equal(after.table.drop(columns="file_loc"), before.table.drop(columns="file_loc"))
    np.testing.assert_array_equal(after.counts, before.counts)
    for old, new in zip(before.files, after.files, strict=True):
        np.testing.assert_array_equal(read_image(new, 16), read_image(old, 16))
    (tmp_path / "packed").rename(tmp_path / "moved")
    moved = read_catalog(tmp_path / "moved" / "catalog.parquet")
    np.testing.assert_array_equal(read_image(moved.files[3], 16), read_image(before.files[3], 16))


def test_shards_alone_give_the_same_catalog(survey, tmp_path):
    pack(opened(survey), tmp_path / "packed", SMALL)
    catalog_shards(str(tmp_path / "packed"), tmp_path / "made.parquet")
    made, packed = (read_catalog(path) for path in (tmp_path / "made.parquet", tmp_path / "packed" / "catalog.parquet"))
    assert list(made.files) == list(packed.files)
    pd.testing.assert_frame_equal(made.table.drop(columns="file_loc"), packed.table.drop(columns="file_loc"))


def test_webdataset_reads_the_shards(survey, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pack(opened(survey), tmp_path / "packed", RESIZED)
    urls = f"{tmp_path}/packed/{{000000..000002}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    table = pd.read_parquet(survey)
    assert [sample["json"]["id_str"] for sample in samples] == table["id_str"].tolist()
    assert [sample["json"]["ring_yes"] for sample in samples] == table["ring_yes"].tolist()
    assert samples[3]["json"]["redshift"] is None
    assert all(sample["jpg"].size == (16, 16) for sample in samples)


def test_resized_images_are_those_that_would_have_been_read(survey, tmp_path):
    pack(opened(survey), tmp_path / "packed", Packing(size=64, quality=95, rows_per_shard=4))
    before, after = opened(survey), read_catalog(tmp_path / "packed" / "catalog.parquet")
    for old, new in zip(before.files, after.files, strict=True):
        assert np.abs(read_image(new, 64).astype(int) - read_image(old, 64)).mean() < 3


def test_rows_of_hdf5_are_packed_in_jpeg_and_not_without_a_size(tmp_path):
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["images"] = np.full((3, 20, 20, 3), 77, dtype=np.uint8)
    table = pd.DataFrame({"id_str": ["a", "b", "c"], "file_loc": [f"g.h5#images[{row}]" for row in range(3)]})
    table.to_csv(tmp_path / "galaxies.csv", index=False)
    assert "Give --size" in message(tmp_path / "galaxies.csv", tmp_path / "packed", SMALL)
    pack(opened(tmp_path / "galaxies.csv"), tmp_path / "packed", RESIZED)
    assert (read_image(read_catalog(tmp_path / "packed" / "catalog.parquet").files[2], 16) == 77).all()


@pytest.mark.parametrize("packing", [SMALL, RESIZED])
def test_same_images_give_the_same_bytes(packing, survey, tmp_path):
    for folder, workers in (("first", 0), ("second", 2)):
        pack(opened(survey), tmp_path / folder, packing, workers=workers)
        for path in (tmp_path / "images").iterdir():
            os.utime(path, (1, 1))
    first, second = (hashes(tmp_path / folder) for folder in ("first", "second"))
    assert {name for name in first if first[name] != second[name]} <= {"packing.json"}


@pytest.mark.parametrize("packing", [SMALL, RESIZED])
def test_bad_images_are_left_out_and_listed(packing, survey, tmp_path):
    (tmp_path / "images/2.PNG").unlink()
    (tmp_path / "images/5.jpg").write_bytes((tmp_path / "images/5.jpg").read_bytes()[:-200])
    (tmp_path / "images/8.PNG").write_bytes(b"")
    summary = pack(opened(survey), tmp_path / "packed", packing, 0.3)
    assert (summary["n_galaxies"], summary["n_failed"]) == (7, 3)
    failed = pd.read_csv(tmp_path / "packed" / "failed.csv")
    assert failed["file_loc"].tolist() == ["images/2.PNG", "images/5.jpg", "images/8.PNG"]
    assert failed["reason"].tolist()[::2] == ["no such file or directory", "empty file"]
    assert "truncated" in failed["reason"][1]
    packed = read_catalog(tmp_path / "packed" / "catalog.parquet")
    assert packed.table["ring_yes"].tolist() == [0, 1, 3, 4, 6, 7, 9]
    assert read_image(packed.files[4], 16).shape == (3, 16, 16)


def test_file_of_a_kind_that_would_not_be_found_again_is_listed(survey, tmp_path):
    table = pd.read_parquet(survey)
    (tmp_path / "images/0.PNG").rename(tmp_path / "images/0.image")
    table.loc[0, "file_loc"] = "images/0.image"
    table.to_parquet(survey)
    pack(opened(survey), tmp_path / "packed", SMALL, 0.3)
    assert "ends in none of jpg" in pd.read_csv(tmp_path / "packed" / "failed.csv")["reason"][0]


def test_too_many_bad_images_stop_the_packing_and_a_higher_share_goes_on(survey, tmp_path):
    for row in (6, 8):
        (tmp_path / f"images/{row}.PNG").unlink()
    text = message(survey, tmp_path / "packed", SMALL, 0.1)
    assert "2 of 10 images could not be read, more than --max-failed-share=0.1" in text
    assert "first: row 6" in text
    assert len(pd.read_csv(tmp_path / "packed" / "failed.csv")) == 2
    assert not (tmp_path / "packed" / "catalog.parquet").exists()
    assert pack(opened(survey), tmp_path / "packed", SMALL, 0.2)["n_kept"] == 2


def test_whole_shards_are_kept_and_damaged_ones_made_anew(survey, tmp_path):
    folder = tmp_path / "packed"
    pack(opened(survey), folder, SMALL)
    before = hashes(folder)
    os.truncate(folder / "000001.tar", 3000)
    (folder / "000002.tar").unlink()
    (folder / ".000002.tar.abc.part.tar").write_bytes(b"half")
    kept = (folder / "000000.tar").stat().st_mtime_ns
    assert pack(opened(survey), folder, SMALL)["n_kept"] == 1
    assert hashes(folder) == before
    assert (folder / "000000.tar").stat().st_mtime_ns == kept
    assert pack(opened(survey), folder, SMALL)["n_kept"] == 3


def test_shard_is_made_anew_when_an_image_that_it_lacks_can_be_read(survey, tmp_path):
    (tmp_path / "images/5.jpg").rename(tmp_path / "away.jpg")
    (tmp_path / "images/6.PNG").write_bytes(b"")
    assert pack(opened(survey), tmp_path / "packed", SMALL, 0.3)["n_failed"] == 2
    assert pack(opened(survey), tmp_path / "packed", SMALL, 0.3)["n_kept"] == 3
    assert len(pd.read_csv(tmp_path / "packed" / "failed.csv")) == 2
    (tmp_path / "away.jpg").rename(tmp_path / "images/5.jpg")
    assert pack(opened(survey), tmp_path / "packed", SMALL, 0.3) == {
        "n_galaxies": 9, "n_failed": 1, "n_shards": 3, "n_kept": 2,
    }  # fmt: skip


@pytest.mark.parametrize("change", [Packing(rows_per_shard=5), Packing(16, rows_per_shard=4), "catalog"])
def test_folder_of_another_packing_is_refused(change, survey, tmp_path):
    pack(opened(survey), tmp_path / "packed", SMALL)
    before = hashes(tmp_path / "packed")
    if change == "catalog":
        pd.read_parquet(survey).iloc[:5].to_parquet(survey)
        change = SMALL
    text = message(survey, tmp_path / "packed", change)
    assert "Give another folder, or remove this one" in text
    assert " there, " in text
    assert hashes(tmp_path / "packed") == before


def test_folder_with_other_things_in_it_is_refused(survey, tmp_path):
    assert "is not empty" in message(survey, tmp_path / "images", SMALL)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "packing.json").write_text("{")
    assert "packing.json: cannot be read" in message(survey, tmp_path / "packed", SMALL)


def test_folder_in_which_another_process_packs_is_refused(survey, tmp_path):
    (tmp_path / "packed").mkdir()
    with FileLock(tmp_path / "packed" / ".lock"):
        assert "another process is packing here" in message(survey, tmp_path / "packed", SMALL)


def test_full_disk_is_named_and_leaves_nothing_half_written(survey, tmp_path, monkeypatch):
    def full(tar, name, content):
        if name.startswith("000000005"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(tar, name, content)

    whole = packing._add
    monkeypatch.setattr(packing, "_add", full)
    assert "000001.tar: cannot be written (No space left on device)" in message(survey, tmp_path / "packed", SMALL)
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {".lock", "packing.json", "000000.tar"}
    monkeypatch.undo()
    assert pack(opened(survey), tmp_path / "packed", SMALL)["n_kept"] == 1


def test_process_that_is_killed_leaves_whole_shards_and_the_next_one_goes_on(survey, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from rarezoo.data import packing
from rarezoo.data.catalog import read_catalog
add = packing._add
def killed(tar, name, content):
    if name.startswith("000000006"):
        os.kill(os.getpid(), signal.SIGKILL)
    add(tar, name, content)
packing._add = killed
packing.pack(read_catalog({str(survey)!r}), Path({str(tmp_path / "packed")!r}), packing.Packing(rows_per_shard=4))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert (tmp_path / "packed" / "000000.tar").exists()
    assert not (tmp_path / "packed" / "000001.tar").exists()
    assert not (tmp_path / "packed" / "catalog.parquet").exists()
    assert pack(opened(survey), tmp_path / "packed", SMALL)["n_kept"] == 1
    pack(opened(survey), tmp_path / "fresh", SMALL)
    left, fresh = (hashes(tmp_path / folder) for folder in ("packed", "fresh"))
    assert {name for name in left.keys() | fresh.keys() if left.get(name) != fresh.get(name)} <= {"packing.json"}


def test_columns_of_arrays_and_times_are_packed_as_json_can(survey, tmp_path):
    table = pd.read_parquet(survey)
    table["colours"] = [[0.5, row] for row in range(N_ROWS)]
    table["seen"] = pd.Timestamp("2026-01-02")
    table.to_parquet(survey)
    pack(opened(survey), tmp_path / "packed", SMALL)
    with tarfile.open(tmp_path / "packed" / "000000.tar") as tar:
        columns = json.loads(tar.extractfile("000000001.json").read())
    assert columns["colours"] == [0.5, 1.0]
    assert columns["seen"].startswith("2026-01-02")


def test_command_says_where_the_shards_are_and_what_to_run_next(survey, tmp_path, monkeypatch, capsys):
    (tmp_path / "images/5.jpg").unlink()
    arguments = [str(survey), str(tmp_path / "packed"), "--size", "16", "--max-failed-share", "0.1", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["shards", *arguments])
    main()
    said = capsys.readouterr().err
    assert f"python train.py data=catalog data.catalog={tmp_path}/packed/catalog.parquet" in said
    assert f"{tmp_path}/packed/failed.csv" in said
    assert Image.open(io.BytesIO(_first_image(tmp_path / "packed" / "000000.tar"))).size == (16, 16)


def _first_image(path: Path) -> bytes:
    with tarfile.open(path) as tar:
        return tar.extractfile(tar.next()).read()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--size", "8"), ("--size", "big"), ("--quality", "0"), ("--rows-per-shard", "0"), ("--max-failed-share", "2")],
)
def test_option_out_of_range_is_named(option, value, survey, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shards", str(survey), str(tmp_path / "packed"), option, value])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"argument {option}: {value}: give a " in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
