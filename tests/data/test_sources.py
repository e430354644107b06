import gzip
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from configs import read_choice
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from rarezoo.cli import UserError
from rarezoo.config import Hdf5Data, ShardData
from rarezoo.data import tar_samples
from rarezoo.data.catalog import Catalog, read_catalog
from rarezoo.data.images import GalaxyImages
from rarezoo.data.prepare import make_datamodule, prepare_catalog
from rarezoo.data.sources import catalog_hdf5, catalog_shards
from rarezoo.data.tar_samples import find_shards, read_shard

VOTES = ["ring_yes", "ring_no"]
N_SHARDS, N_PER_SHARD = 3, 4


def picture(row: int) -> np.ndarray:
    return np.full((16, 16, 3), row * 10, dtype=np.uint8)


def png(row: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(row)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def columns(row: int) -> dict[str, Any]:
    return {"id_str": f"J{row:02d}.5+01", "ra": row / 3, "dec": -row, "ring_yes": row, "ring_no": 3, "note": "é"}


def survey_members(rows: range) -> dict[str, bytes]:
    members = {}
    for row in rows:
        members[f"{row:04d}.png"] = png(row)
        members[f"{row:04d}.json"] = json.dumps(columns(row)).encode()
        members[f"{row:04d}.cls"] = b"3"
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    folder.mkdir()
    for shard in range(N_SHARDS):
        rows = range(shard * N_PER_SHARD, (shard + 1) * N_PER_SHARD)
        write_tar(folder / f"gz-{shard:06d}.tar", survey_members(rows))
    return folder


def grey_levels(catalog: Catalog) -> list[int]:
    """Of each image, as two processes read them; -1 where its pixels differ."""
    images = GalaxyImages(catalog.files, 16)
    loader = DataLoader(images, batch_size=5, num_workers=2, collate_fn=images.collate)
    read = torch.cat([batch["image"] for batch in loader]).flatten(1)
    return torch.where(read.amin(1) == read.amax(1), read[:, 0].long(), -1).tolist()


def settings_of(kind: str, **options: Any) -> dict[str, Any]:
    return read_choice("data", kind) | {"image_size": 16, "batch_size": 5, "workers": 0} | options


def message(pattern: Path | str, catalog: Path) -> str:
    with pytest.raises(UserError) as error:
        catalog_shards(str(pattern), catalog)
    assert not catalog.exists()
    return str(error.value)


def test_catalog_of_shards_has_the_columns_and_images_that_were_packed(shards, tmp_path):
    assert catalog_shards(str(shards), tmp_path / "out" / "c.parquet")
    catalog = read_catalog(tmp_path / "out" / "c.parquet", VOTES)
    expected = pd.DataFrame([columns(row) for row in range(N_SHARDS * N_PER_SHARD)])
    found = catalog.table[list(expected)]
    pd.testing.assert_frame_equal(found, expected.astype({"id_str": "str", "dec": float}), check_dtype=False)
    assert grey_levels(catalog) == [row * 10 for row in range(len(catalog))]


@pytest.mark.parametrize("stage", ["train", "validation"])
def test_shards_and_hdf5_give_the_batches_that_files_give(stage, shards, tmp_path):
    n_rows = N_SHARDS * N_PER_SHARD
    table = pd.DataFrame([columns(row) for row in range(n_rows)]).assign(
        file_loc=[f"{row}.png" for row in range(n_rows)]
    )
    for row in range(n_rows):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    table.to_csv(tmp_path / "files.csv", index=False)
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["images"] = np.stack([picture(row) for row in range(n_rows)])
        for name in (*VOTES, "id_str"):
            file[name] = table[name].to_list()
    made = {"catalog": tmp_path / "made.parquet", "validation_share": 0.3}
    chosen = {
        "shards": ShardData(**settings_of("shards", shards=str(shards), **made)),
        "hdf5": Hdf5Data(**settings_of("hdf5", images=tmp_path / "images.h5", **made)),
    }
    catalogs = {"files": read_catalog(tmp_path / "files.csv", VOTES)}
    found = {}
    for kind in ("files", "shards", "hdf5"):
        (tmp_path / "made.parquet").unlink(missing_ok=True)
        catalog = catalogs.get(kind) or prepare_catalog(chosen[kind], VOTES, {})
        data = make_datamodule(chosen["shards"], catalog, seed=1)
        loader = data.train_dataloader() if stage == "train" else data.val_dataloader()
        found[kind] = [(b["row"].tolist(), b["counts"].tolist(), b["image"].tolist(), b["failed"]) for b in loader]
    assert found["files"] == found["shards"] == found["hdf5"]
    assert found["files"]


def test_catalog_is_made_once_and_anew_when_a_shard_changes(shards, tmp_path):
    path = tmp_path / "c.parquet"
    assert catalog_shards(str(shards), path)
    before = path.read_bytes()
    assert not catalog_shards(str(shards), path)
    path.unlink()
    assert catalog_shards(str(shards), path)
    assert path.read_bytes() == before
    write_tar(shards / "gz-000003.tar", {"last.png": png(1)})
    assert catalog_shards(str(shards), path)
    assert len(read_catalog(path)) == N_SHARDS * N_PER_SHARD + 1
    os.utime(shards / "gz-000003.tar", (1, 1))
    assert catalog_shards(str(shards), path)
    (shards / "gz-000000.tar").rename(shards / "hz-000000.tar")
    assert catalog_shards(str(shards), path)
    assert not catalog_shards(str(shards), path)


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: pd.DataFrame().to_parquet(path)])
def test_catalog_of_the_users_own_is_never_replaced(make, shards, tmp_path):
    path = tmp_path / "c.parquet"
    make(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"data\.catalog=.*c\.parquet: is there, and was not made"):
        catalog_shards(str(shards), path)
    assert path.read_bytes() == before


def test_catalog_that_is_no_parquet_is_refused(shards, tmp_path):
    assert "ends in .parquet" in message(shards, tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("", (0, 1, 2)),
        ("*.tar", (0, 1, 2)),
        ("gz-00000[02].tar", (0, 2)),
        ("gz-000001.tar", (1,)),
        ("gz-{000001..000002}.tar", (1, 2)),
        ("{gz}-{000000..000000}.tar", ()),
        ("gz-00000{0..2}.tar", (0, 1, 2)),
    ],
)
def test_shards_are_named_by_folder_by_star_or_by_number(pattern, numbers, shards):
    if numbers:
        assert find_shards(str(shards / pattern)) == [shards / f"gz-{number:06d}.tar" for number in numbers]
    else:
        with pytest.raises(UserError, match="there is no"):
            find_shards(str(shards / pattern))


def test_number_without_its_shard_is_named(shards, tmp_path):
    text = message(shards / "gz-{000000..000005}.tar", tmp_path / "c.parquet")
    assert f"there is no {shards}/gz-000003.tar" in text


@pytest.mark.parametrize("pattern", ["none", "none/*.tar", "none-{0..3}.tar"])
def test_shards_that_are_not_there_are_named(pattern, tmp_path):
    assert f"data.shards={tmp_path / pattern}: there is no " in message(tmp_path / pattern, tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("mode", "name"), [("w:gz", "a.tar.gz"), ("w:xz", "a.tar.xz"), ("w:bz2", "a.tar"), ("w:gz", "a.tgz")]
)
def test_compressed_shards_are_refused_with_the_reason(mode, name, tmp_path):
    write_tar(tmp_path / name, {"a.png": png(0)}, mode)
    for pattern in (tmp_path, tmp_path / name):
        assert f"{name}: is compressed" in message(pattern, tmp_path / "c.parquet")


def test_leftover_of_a_writer_that_was_killed_is_no_shard(shards):
    shutil.copy(shards / "gz-000000.tar", shards / ".gz-000000.tar.x.part.tar")
    assert len(find_shards(str(shards))) == N_SHARDS


@pytest.mark.parametrize("n_lost", [0, 1, 5, 600, 1500])
def test_truncated_shard_is_named(n_lost, shards, tmp_path):
    path = shards / "gz-000001.tar"
    with tarfile.open(path) as tar:
        end = max(member.offset_data + member.size for member in tar)
    os.truncate(path, end - n_lost)
    assert f"{path}: is damaged or truncated" in message(shards, tmp_path / "c.parquet")


def test_shard_cut_between_two_members_is_not_taken_for_a_whole_one(shards, tmp_path):
    path = shards / "gz-000001.tar"
    with tarfile.open(path) as tar:
        second = tar.getmembers()[3].offset
    os.truncate(path, second)
    assert f"{path}: is damaged or truncated" in message(shards, tmp_path / "c.parquet")


def test_shard_with_a_damaged_header_is_not_taken_for_a_shorter_one(shards, tmp_path):
    path = shards / "gz-000001.tar"
    with tarfile.open(path) as tar:
        second = tar.getmembers()[3].offset
    with path.open("r+b") as stream:
        stream.seek(second + 120)
        stream.write(b"\xff\x00\xff")
    assert f"{path}: is damaged or truncated" in message(shards, tmp_path / "c.parquet")


def test_what_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_text("<html>404</html>")
    assert f"{tmp_path}/a.tar: is damaged or truncated" in message(tmp_path, tmp_path / "c.parquet")
    (tmp_path / "a.tar").write_bytes(b"")
    assert f"{tmp_path}/a.tar: is damaged or truncated" in message(tmp_path, tmp_path / "c.parquet")


def test_shards_without_images_are_named(tmp_path):
    write_tar(tmp_path / "a.tar", {})
    assert "1 tars hold no images" in message(tmp_path, tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (["J1.json", "J2.png"], "key 'J1' has no image (J1.json)"),
        (["J1.png", "J1.jpg"], "key 'J1' has several images (J1.png, J1.jpg)"),
        (["J0931.5+21.png"], "key 'J0931' has no image (J0931.5+21.png)"),
    ],
)
def test_key_without_one_image_is_named(members, named, tmp_path):
    write_tar(tmp_path / "a.tar", dict.fromkeys(members, b"{}"))
    assert named in message(tmp_path, tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xff", "is not JSON"),
        (b"[1]", "holds no columns"),
        (b'{"id_str": 1.5}', "a fraction"),
    ],
)
def test_json_that_is_no_row_is_named(content, named, tmp_path):
    write_tar(tmp_path / "a.tar", {"J1.png": png(0), "J1.json": content})
    text = message(tmp_path, tmp_path / "c.parquet")
    assert "a.tar: member J1.json" in text
    assert named in text


def test_column_of_numbers_and_text_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": png(0), "1.json": b'{"z": 1}', "2.png": png(0), "2.json": b'{"z": "x"}'})
    assert "mixes numbers and text" in message(tmp_path, tmp_path / "c.parquet")


def test_key_that_is_there_twice_is_refused_by_the_catalog(tmp_path):
    write_tar(tmp_path / "a.tar", [("J1.png", png(0)), ("J2.png", png(1)), ("J1.png", png(2))])
    write_tar(tmp_path / "b.tar", {"J2.png": png(0)})
    assert catalog_shards(str(tmp_path), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"2 duplicate ids \(first: row 2, id J1\)"):
        read_catalog(tmp_path / "c.parquet")


def test_without_json_the_key_is_the_id_and_folders_belong_to_it(tmp_path):
    members = {"./a/J1.png": png(0), "b/J1.png": png(1), "b/._J1.png": b"", "b/J1.txt": b"x"}
    write_tar(tmp_path / "a.tar", members)
    rows = read_shard(tmp_path / "a.tar")
    assert [row["id_str"] for row in rows] == ["a/J1", "b/J1"]
    assert catalog_shards(str(tmp_path), tmp_path / "c.parquet")
    assert grey_levels(read_catalog(tmp_path / "c.parquet")) == [0, 10]


def test_columns_of_json_keep_what_they_hold(tmp_path):
    members = {"1.png": png(0), "2.png": png(1), "3.png": png(2)}
    members["1.json"] = b'{"id_str": 587722981741363294, "z": 0.1, "tags": ["a"], "file_loc": "elsewhere.png"}'
    members["2.json"] = b'{"id_str": "00123", "z": null, "n": 587722981741363294}'
    write_tar(tmp_path / "a.tar", members)
    first, second, third = read_shard(tmp_path / "a.tar")
    assert (first["id_str"], second["id_str"], third["id_str"]) == ("587722981741363294", "00123", "3")
    assert first["tags"] == '["a"]'
    assert first["file_loc"].startswith(f"{tmp_path}/a.tar#1.png@")
    assert second["n"] == 587722981741363294
    assert set(third) == {"id_str", "file_loc"}


@given(st.from_regex(r"([ab#@+é][ab.#@+é]*[ab]/){0,2}[ab#@+é][ab.#@+é]*[ab]", fullmatch=True))
def test_keys_end_where_those_of_webdataset_do(name):
    # The expression of webdataset.tariterators.base_plus_ext.
    theirs = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    ours = tar_samples._KEY.fullmatch(name)
    assert (ours.groups() if ours else None) == (theirs.groups() if theirs else None)


def galaxy10(path: Path, **further: Any) -> Path:
    """The layout of Galaxy10 DECaLS: images, ans, dec, pxscale, ra, redshift."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["images"] = np.stack([picture(row) for row in range(12)])
        file["ans"] = np.arange(12, dtype=np.uint8)
        file["ra"], file["dec"] = rng.uniform(0, 90, 12), rng.uniform(-30, 30, 12)
        file["redshift"] = rng.random(12).astype(">f4")
        for name, values in further.items():
            file[name] = values
    return path


def test_hdf5_file_of_images_becomes_a_catalog_with_the_columns_beside_them(tmp_path):
    galaxy10(tmp_path / "g.h5", vectors=np.zeros((12, 2)), short=np.zeros(5))
    assert catalog_hdf5(tmp_path / "g.h5", "images", None, tmp_path / "c.parquet")
    catalog = read_catalog(tmp_path / "c.parquet", ["ans"])
    assert set(catalog.table) == {"id_str", "file_loc", "ans", "ra", "dec", "redshift"}
    assert catalog.ids.tolist() == [f"{row:02d}" for row in range(12)]
    assert catalog.counts[:, 0].tolist() == list(range(12))
    with h5py.File(tmp_path / "g.h5") as file:
        np.testing.assert_array_equal(catalog.table["redshift"], file["redshift"][:])
    assert grey_levels(catalog) == [row * 10 for row in range(12)]


@pytest.mark.parametrize("ids", ["names", None])
def test_ids_of_hdf5_are_those_of_the_dataset_that_is_named_or_of_id_str(ids, tmp_path):
    names = np.array([f"J{row}.é" for row in range(12)], dtype=object)
    objid = np.arange(12) + 587722981741363294
    galaxy10(tmp_path / "g.h5", id_str=names, names=objid)
    assert catalog_hdf5(tmp_path / "g.h5", "images", ids, tmp_path / "c.parquet")
    expected = names.tolist() if ids is None else [str(number) for number in objid]
    assert read_catalog(tmp_path / "c.parquet").ids.tolist() == expected


def test_catalog_of_hdf5_is_made_anew_when_the_file_or_the_choice_changes(tmp_path):
    path = galaxy10(tmp_path / "g.h5", other=np.zeros((12, 8, 8)))
    catalog = tmp_path / "c.parquet"
    assert catalog_hdf5(path, "images", None, catalog)
    assert not catalog_hdf5(path, "images", None, catalog)
    assert catalog_hdf5(path, "other", None, catalog)
    assert catalog_hdf5(path, "other", "ans", catalog)
    os.utime(path, (1, 1))
    assert catalog_hdf5(path, "other", "ans", catalog)


@pytest.mark.parametrize(
    ("dataset", "ids", "named"),
    [
        ("image", None, r"data\.dataset=image: .* has no such dataset\. Did you mean 'images'\?"),
        ("ra", None, r"data\.dataset=ra: .* shape \(12,\); images are .* images"),
        ("images", "id", r"data\.ids=id: .* has no such dataset"),
        ("images", "short", r"data\.ids=short: has shape \(5,\), and there are 12 images"),
    ],
)
def test_dataset_that_cannot_be_used_is_named(dataset, ids, named, tmp_path):
    galaxy10(tmp_path / "g.h5", short=np.zeros(5))
    with pytest.raises(UserError, match=named):
        catalog_hdf5(tmp_path / "g.h5", dataset, ids, tmp_path / "c.parquet")


@pytest.mark.parametrize(("name", "named"), [("none.h5", "there is no such file"), ("a.dat", "end in .h5 or .hdf5")])
def test_file_that_is_missing_or_called_otherwise_is_named(name, named, tmp_path):
    (tmp_path / "a.dat").touch()
    with pytest.raises(UserError, match=named):
        catalog_hdf5(tmp_path / name, "images", None, tmp_path / "c.parquet")


def test_hdf5_that_is_truncated_or_none_is_named(tmp_path):
    path = galaxy10(tmp_path / "g.h5")
    os.truncate(path, path.stat().st_size // 2)
    (tmp_path / "text.h5").write_bytes(gzip.compress(b"text"))
    for each in (path, tmp_path / "text.h5"):
        with pytest.raises(UserError, match="is not a whole HDF5 file"):
            catalog_hdf5(each, "images", None, tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


@pytest.mark.parametrize("kind", ["shards", "hdf5"])
def test_configuration_file_of_packed_images_holds_every_option_and_no_other(kind):
    model, given = {"shards": (ShardData, {"shards": "packed"}), "hdf5": (Hdf5Data, {"images": "g.h5"})}[kind]
    settings = model(**settings_of(kind, **given))
    assert set(settings.model_dump()) == set(read_choice("data", kind))
    assert settings.kind == kind
