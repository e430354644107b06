import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from rarezoo.cli import UserError
from rarezoo.data.catalog import Catalog
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.hdf5 import require_room
from rarezoo.embeddings.parts import Part
from rarezoo.embeddings.writer import write_embeddings
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.provenance import canonical_json, fingerprint

TREE = {
    "shape": {"answers": ["smooth", "featured"], "asked_after": []},
    "bar": {"answers": ["yes", "no"], "asked_after": ["shape_featured"]},
}
LABEL_COLS = ["shape_smooth", "shape_featured", "bar_yes", "bar_no"]
DIM, SIZE, N_ROWS = 6, 32, 10
FAILED = {2: "empty file", 7: "no such file or directory"}
PROVENANCE = {"image_root": "/data/images", "config": '{"seed":0}', "checkpoint_sha256": "c" * 64}


@pytest.fixture(scope="module")
def model() -> VoteModel:
    torch.manual_seed(0)
    return VoteModel(ModelSpec(TREE, "test_efficientnet", DIM, image_size=SIZE, zoom=1.2)).eval()


def make_catalog(n_rows: int = N_ROWS, **columns) -> Catalog:
    table = pd.DataFrame({"id_str": [f"J{row}é✶" for row in range(n_rows)]})
    table["file_loc"] = [f"gälaxy {row}.png" for row in range(n_rows)]
    files = [f"/data/images/{name}" for name in table["file_loc"]]
    table = table.assign(**columns)
    return Catalog(Path("catalog.csv"), table, files, (), np.zeros((n_rows, 0), np.float32), "a" * 64, 0)


def make_parts(rows: list[list[int]], failed: dict[int, str] | None = None, dtype=np.float32) -> list[Part]:
    """Parts of these rows; the first of them holds all that failed."""
    rng = np.random.default_rng(0)
    return [
        Part(
            np.asarray(some, np.int64),
            {
                "representation": rng.normal(size=(len(some), DIM)).astype(dtype),
                "concentrations": rng.uniform(1, 101, (len(some), len(LABEL_COLS))).astype(np.float32),
            }
            if some
            else {},
            (failed or {}) if number == 0 else {},
        )
        for number, some in enumerate(rows)
    ]


GOOD = make_parts([[0, 1], [], [3, 4, 5, 6], [8, 9]], FAILED)


def write(path: Path, model, catalog=None, parts=GOOD, provenance=PROVENANCE):
    return write_embeddings(path, make_catalog() if catalog is None else catalog, parts, model, provenance)


def joined(name: str) -> np.ndarray:
    return np.concatenate([part.arrays[name] for part in GOOD if part.arrays])


KEPT = np.concatenate([part.rows for part in GOOD])


def nothing_is_left_in(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_file_is_that_of_the_format_and_h5py_alone_reads_it(model, tmp_path):
    path = tmp_path / "embeddings.h5"
    catalog = make_catalog(ra=np.arange(10.0), dec=np.arange(10.0) - 5, redshift=np.linspace(0, 1, 10))
    summary = write(path, model, catalog)
    kept = [0, 1, 3, 4, 5, 6, 8, 9]
    assert summary == {"n_galaxies": 8, "n_failed": 2, "dim": DIM}
    with h5py.File(path, "r") as file:
        assert set(file) == {"id", "file_loc", "representation", "concentrations", "ra", "dec", "carried", "failed"}
        for name in ("id", "file_loc"):
            assert h5py.check_string_dtype(file[name].dtype).encoding == "utf-8"
        assert file["id"].asstr()[:].tolist() == [f"J{row}é✶" for row in kept]
        assert file["file_loc"].asstr()[:].tolist() == [f"gälaxy {row}.png" for row in kept]
        assert file["representation"].dtype == np.float32
        assert file["concentrations"].dtype == np.float32
        np.testing.assert_array_equal(file["representation"][:], joined("representation"))
        np.testing.assert_array_equal(file["concentrations"][:], joined("concentrations"))
        for name, expected in (("ra", np.arange(10.0)), ("dec", np.arange(10.0) - 5)):
            assert file[name].dtype == np.float64
            np.testing.assert_array_equal(file[name][:], expected[kept])
        np.testing.assert_array_equal(file["carried/redshift"][:], np.linspace(0, 1, 10)[kept])
        assert file["failed/id_str"].asstr()[:].tolist() == ["J2é✶", "J7é✶"]
        assert file["failed/file_loc"].asstr()[:].tolist() == ["gälaxy 2.png", "gälaxy 7.png"]
        assert file["failed/reason"].asstr()[:].tolist() == list(FAILED.values())


def test_attributes_say_what_the_file_was_made_from(model, tmp_path):
    write(tmp_path / "embeddings.h5", model)
    with h5py.File(tmp_path / "embeddings.h5", "r") as file:
        attributes = dict(file.attrs)
    assert attributes["format"] == 1
    assert bool(attributes["complete"]) is True
    assert attributes["n_failed"] == 2
    assert attributes["backbone"] == "test_efficientnet"
    assert list(attributes["label_cols"]) == LABEL_COLS
    assert json.loads(attributes["schema"]) == TREE
    assert list(json.loads(attributes["schema"])) == ["shape", "bar"]
    assert attributes["schema_sha256"] == fingerprint(TREE)
    assert json.loads(attributes["transform"]) == model.spec.transform
    assert attributes["transform"] == canonical_json(model.spec.transform)
    assert pd.Timestamp(attributes["created"]).tzinfo is not None
    assert json.loads(attributes["versions"])["torch"]
    assert {"rarezoo", "git_commit"} <= attributes.keys()
    assert {name: attributes[name] for name in PROVENANCE} == PROVENANCE


def test_half_precision_halves_the_representation_alone(model, tmp_path):
    write(tmp_path / "embeddings.h5", model, parts=make_parts([list(range(10))], dtype=np.float16))
    with h5py.File(tmp_path / "embeddings.h5", "r") as file:
        assert file["representation"].dtype == np.float16
        assert file["concentrations"].dtype == np.float32


def test_further_arrays_of_the_parts_are_kept_with_their_kinds(model, tmp_path):
    members = np.random.default_rng(1).uniform(1, 101, (10, 3, len(LABEL_COLS))).astype(np.float32)
    features = np.random.default_rng(2).normal(size=(10, 9)).astype(np.float16)
    further = {"member_concentrations": members, "features": features}
    parts = make_parts([[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]])
    for part in parts:
        part.arrays.update({name: values[part.rows] for name, values in further.items()})
    write(tmp_path / "e.h5", model, parts=parts)
    with h5py.File(tmp_path / "e.h5", "r") as file:
        for name, values in further.items():
            assert file[name].dtype == values.dtype
            np.testing.assert_array_equal(file[name][:], values)


def test_size_of_the_parts_changes_nothing(model, tmp_path):
    arrays = {name: joined(name) for name in ("representation", "concentrations")}
    single = [
        Part(KEPT[i : i + 1], {name: values[i : i + 1] for name, values in arrays.items()}, {} if i else FAILED)
        for i in range(len(KEPT))
    ]
    contents = []
    for name, parts in (("a", GOOD), ("b", [Part(KEPT, arrays, FAILED)]), ("c", single)):
        write(tmp_path / name, model, parts=iter(parts))
        with h5py.File(tmp_path / name, "r") as file:
            contents.append([file[part][:].tobytes() for part in arrays])
    assert contents[0] == contents[1] == contents[2]


CARRIED = {
    "redshift": np.linspace(0, 1, N_ROWS),
    "small": np.linspace(0, 1, N_ROWS).astype(np.float32),
    "gaps": np.where(np.arange(N_ROWS) % 3, np.arange(N_ROWS), np.nan),
    "number": np.arange(N_ROWS) - 5,
    "huge": np.full(N_ROWS, 2**63 + 1, dtype=np.uint64),
    "flag": np.arange(N_ROWS) % 2 == 0,
}


def test_carried_columns_come_back_with_their_values_order_and_kinds(model, tmp_path):
    write(tmp_path / "e.h5", model, make_catalog(**CARRIED))
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        table = embeddings.to_pandas()
    assert list(table.columns) == ["id_str", "file_loc", *CARRIED]
    for name, values in CARRIED.items():
        assert table[name].dtype == values.dtype
        np.testing.assert_array_equal(table[name], values[KEPT])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["ζ", None, "", "a\nb", "'\"", "日本", *"wxyz"], ["ζ", "", "", "a\nb", "'\"", "日本", *"wxyz"]),
        (["a\0b", *"bcdefghij"], ["ab", *"bcdefghij"]),
        (pd.Categorical(["E", None, *"SESESESE"]), ["E", "", *"SESESESE"]),
        ([1, "two", None, 3.5, (4,), np.nan, *"wxyz"], ["1", "two", "", "3.5", "(4,)", "", *"wxyz"]),
        (pd.date_range("2020-01-01", periods=10), [f"2020-01-{day:02d} 00:00:00" for day in range(1, 11)]),
        ([None] * 10, [""] * 10),
    ],
)
def test_carried_text_comes_back_with_missing_values_empty(values, expected, model, tmp_path):
    write(tmp_path / "e.h5", model, make_catalog(note=values))
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        found = embeddings.to_pandas()["note"].tolist()
    assert found == [expected[row] for row in KEPT]


@pytest.mark.parametrize(
    ("dtype", "values", "stored"),
    [
        ("Int64", [1, None, 3, 4, 5, 6, 7, 8, 9, 10], np.float64),
        ("Int64", list(range(10)), np.int64),
        ("Float64", [0.5, None, *range(8)], np.float64),
        ("boolean", [True, None, *[False] * 8], np.float64),
        ("boolean", [True] * 10, np.bool_),
    ],
)
def test_numbers_with_gaps_come_back_as_floats(dtype, values, stored, model, tmp_path):
    write(tmp_path / "e.h5", model, make_catalog(column=pd.array(values, dtype=dtype)))
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        found = embeddings.to_pandas()["column"]
    assert found.dtype == stored
    expected = [values[row] for row in KEPT]
    assert [None if pd.isna(value) else value for value in found] == expected


def test_names_of_columns_that_hdf5_does_not_take_come_back_as_they_were(model, tmp_path):
    names = ["u/g", "u|g", "/", ".", "..", "a.b", "é", "mag g-r"]
    write(tmp_path / "e.h5", model, make_catalog(**{name: np.arange(10) * 10 + i for i, name in enumerate(names)}))
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        table = embeddings.to_pandas()
    assert list(table.columns) == ["id_str", "file_loc", *names]
    assert [int(table[name].iloc[1]) for name in names] == list(range(10, 18))


def test_vote_counts_are_not_carried(model, tmp_path):
    write(tmp_path / "e.h5", model, make_catalog(shape_smooth=np.arange(10), shape_other=np.arange(10)))
    with h5py.File(tmp_path / "e.h5", "r") as file:
        assert set(file["carried"]) == {"shape_other"}


@pytest.mark.parametrize(
    ("rows", "failed"),
    [
        ([[0, 1, 3, 4, 5, 6, 8]], FAILED),
        ([[0, 1, 2, 3, 4, 5, 6, 8, 9]], FAILED),
        ([[0, 1, 3, 4, 5, 6, 8, 9], [9]], FAILED),
        ([[1, 0, 3, 4, 5, 6, 8, 9]], FAILED),
        ([[8, 9], [0, 1, 3, 4, 5, 6]], FAILED),
        ([[0, 1, 3, 4, 5, 6, 8, 9, 10]], FAILED),
        ([list(range(9))], {}),
    ],
)
def test_rows_that_are_missing_twice_or_out_of_order_are_no_file(rows, failed, model, tmp_path):
    with pytest.raises(RuntimeError, match="not there exactly once and in order"):
        write(tmp_path / "e.h5", model, parts=make_parts(rows, failed))
    assert nothing_is_left_in(tmp_path)


@pytest.mark.parametrize("parts", [[], make_parts([[]], dict.fromkeys(range(N_ROWS), "empty file"))])
def test_catalog_of_which_no_image_could_be_read_is_refused(parts, model, tmp_path):
    with pytest.raises(UserError, match="none of the catalog's images could be read"):
        write(tmp_path / "e.h5", model, parts=parts)
    assert nothing_is_left_in(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("damaged"), KeyboardInterrupt(), UserError("too many failed")])
def test_run_that_breaks_off_leaves_nothing_and_keeps_an_earlier_file(error, model, tmp_path):
    path = tmp_path / "e.h5"
    path.write_bytes(b"of an earlier run")

    def parts():
        yield GOOD[0]
        raise error

    with pytest.raises(type(error)):
        write(path, model, parts=parts())
    assert [found.name for found in tmp_path.iterdir()] == ["e.h5"]
    assert path.read_bytes() == b"of an earlier run"


def test_killed_run_leaves_no_final_file(model, tmp_path):
    def parts():
        yield GOOD[0]
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write(tmp_path / "e.h5", model, parts=parts())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "e.h5").exists()
    with pytest.raises(UserError, match="there is no such file"), open_embeddings(tmp_path / "e.h5"):
        pass


def many_rows(n_rows: int):
    for start in range(0, n_rows, 1000):
        yield make_parts([list(range(start, start + 1000))])[0]


def test_too_little_space_is_said_with_what_is_needed(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr("rarezoo.embeddings.hdf5.shutil.disk_usage", lambda path: usage)
    require_room(tmp_path / "not" / "yet" / "e.h5", 10_000)
    with pytest.raises(UserError, match=r"e\.h5: cannot be written \(No such file or directory\)"):
        require_room(Path("/proc/nowhere/e.h5"), 0)
    with pytest.raises(UserError, match=r"e\.h5: takes at least 0\.0004 GB, and 1e-05 GB are free.*output_dir="):
        require_room(tmp_path / "not" / "yet" / "e.h5", 400_000)


@pytest.mark.parametrize("room", [0, 100, 5_000, 100_000, 250_000])
def test_disk_that_fills_up_is_a_users_fault_and_leaves_nothing(room, model, tmp_path, monkeypatch):
    written = []
    write_all = os.write

    def write_some(descriptor, data):
        if sum(written) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write_all(descriptor, data[: room - sum(written)]))
        return written[-1]

    monkeypatch.setattr("rarezoo.embeddings.hdf5.os.write", write_some)
    with pytest.raises(UserError, match=r"e\.h5: cannot be written \(No space left on device\)"):
        write(tmp_path / "e.h5", model, make_catalog(5000), many_rows(5000))
    assert sum(written) == room
    assert nothing_is_left_in(tmp_path)


def test_full_disk_stops_the_run_before_the_last_part(model, tmp_path, monkeypatch):
    def fail(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rarezoo.embeddings.hdf5.os.write", fail)
    # More than HDF5 keeps in memory before it writes at all.
    parts = many_rows(600_000)
    with pytest.raises(UserError, match="No space left"):
        write(tmp_path / "e.h5", model, make_catalog(600_000), parts)
    assert next(parts, None) is not None


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_that_is_really_full_is_a_users_fault_and_does_not_crash_the_process(model, small_disk):
    with pytest.raises(UserError, match=r"e\.h5: cannot be written \(No space left on device\)"):
        write(small_disk / "e.h5", model, make_catalog(20_000), many_rows(20_000))
    assert nothing_is_left_in(small_disk)
    write(small_disk / "e.h5", model)
    with open_embeddings(small_disk / "e.h5") as embeddings:
        assert len(embeddings) == 8


@pytest.fixture
def nobody():
    """A user who may not write everywhere, as root may."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    yield
    os.seteuid(own)


def test_folder_that_cannot_be_written_to_is_a_users_fault(model, tmp_path, nobody):
    if os.geteuid() != 65534:
        tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"e\.h5: cannot be written \(Permission denied\)"):
        write(tmp_path / "e.h5", model)


def test_file_in_the_place_of_the_folder_is_a_users_fault(model, tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "run" / "e.h5", model)
