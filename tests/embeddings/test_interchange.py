import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.export import export_embeddings
from rarezoo.embeddings.interchange import import_embeddings
from rarezoo.provenance import sha256_of_file
from rarezoo.votes import load_schema

SCHEMA = load_schema("rings")
ANSWERS = list(SCHEMA.label_cols)
N_ROWS, DIM = 37, 5
RNG = np.random.default_rng(0)
IDS = [f"J{row:02d}é" for row in range(N_ROWS)]
FEATURES = RNG.normal(size=(N_ROWS, DIM)).astype(np.float32)
PASSES = RNG.uniform(1, 101, (N_ROWS, len(ANSWERS), 3)).astype(np.float32)


@pytest.fixture(params=[1, 7, 10**6], ids=lambda rows: f"{rows} rows at a time")
def at_once(request, monkeypatch) -> int:
    for module in ("rows", "foreign"):
        monkeypatch.setattr(f"rarezoo.embeddings.{module}.PIECE_BYTES", 4 * DIM * request.param)
    monkeypatch.setattr("rarezoo.embeddings.interchange._TEXTS_AT_ONCE", request.param)
    monkeypatch.setattr("rarezoo.embeddings.interchange._VOTE_BYTES", PASSES[0].nbytes * request.param)
    return request.param


def votes_file(path: Path, values=PASSES, ids=IDS, columns=ANSWERS) -> Path:
    """Predictions as Zoobot writes them."""
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        file.create_dataset("predictions", data=values, compression="gzip")
        file.create_dataset("id_str", data=ids, dtype=h5py.string_dtype("utf-8"))
        file.create_dataset("label_cols", data=columns, dtype=h5py.string_dtype("utf-8"))
    return path.with_suffix(".hdf5")


def features_file(path: Path, values=FEATURES, ids=IDS, columns=None) -> Path:
    """Features as Zoobot writes them."""
    return votes_file(path, values, ids, columns or [f"feat_{index}" for index in range(values.shape[1])])


@pytest.fixture
def zoobot() -> SimpleNamespace:
    """Zoobot's own writer, readers and arithmetic."""
    found = SimpleNamespace()
    for module in ("load_predictions", "save_predictions", "stats"):
        vars(found).update(vars(pytest.importorskip(f"zoobot.shared.{module}", reason="Zoobot is not installed")))
    return found


@pytest.mark.parametrize(
    ("ours", "values", "columns"), [(votes_file, PASSES, ANSWERS), (features_file, FEATURES, None)]
)
def test_files_of_these_tests_are_as_zoobot_writes_them(ours, values, columns, zoobot, tmp_path):
    zoobot.predictions_to_hdf5(values, IDS, columns, str(tmp_path / "theirs.hdf5"))
    with h5py.File(ours(tmp_path / "ours"), "r") as one, h5py.File(tmp_path / "theirs.hdf5", "r") as other:
        assert set(one) == set(other)
        for name in one:
            assert (one[name].dtype, one[name].compression) == (other[name].dtype, other[name].compression)
            np.testing.assert_array_equal(one[name][:], other[name][:])


def released_table(columns=None) -> pd.DataFrame:
    """Representations as GZ DESI publishes them."""
    table = pd.DataFrame({"id_str": IDS, "ra": np.linspace(0, 359, N_ROWS), "dec": np.linspace(-80, 80, N_ROWS)})
    for index in range(DIM):
        table[f"feat_pca_{index}"] = FEATURES[:, index]
    return table.assign(**(columns or {}))


def parquet_file(path: Path, columns=None, drop=()) -> Path:
    released_table(columns).drop(columns=list(drop)).to_parquet(path, index=False, row_group_size=10)
    return path


def test_features_of_zoobot_become_the_representation(tmp_path, at_once):
    facts = import_embeddings(features_file(tmp_path / "features"), tmp_path / "e.h5")
    assert facts == {"n_galaxies": N_ROWS, "dim": DIM, "n_answers": 0, "n_passes": 1, "n_with_image": 0}
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        assert embeddings.ids.tolist() == IDS
        np.testing.assert_array_equal(embeddings.representation[:], FEATURES)
        assert embeddings.vote_fractions().shape == (N_ROWS, 0)
        assert set(embeddings.files) == {""}
        assert embeddings.failed().empty


def test_features_are_put_in_the_order_of_their_numbers(tmp_path):
    order = [3, 0, 4, 2, 1]
    columns = [f"feat_{index}" for index in order]
    source = features_file(tmp_path / "features", FEATURES[:, order, None], columns=columns)
    import_embeddings(source, tmp_path / "e.h5")
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        np.testing.assert_array_equal(embeddings.representation[:], FEATURES)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(N_ROWS)), columns=st.permutations(range(len(ANSWERS))))
def test_predictions_are_joined_by_id_and_by_name_of_the_answer(order, columns, tmp_path, at_once):
    values = np.concatenate([PASSES[order][:, columns], np.ones((1, len(ANSWERS), 3), np.float32)])
    votes = votes_file(
        tmp_path / "votes", values, [*(IDS[row] for row in order), "stranger"], [ANSWERS[index] for index in columns]
    )
    target = tmp_path / "e.h5"
    facts = import_embeddings(features_file(tmp_path / "features"), target, votes, SCHEMA)
    assert (facts["n_answers"], facts["n_passes"]) == (len(ANSWERS), 3)
    with open_embeddings(target) as embeddings:
        assert embeddings.ids.tolist() == IDS
        np.testing.assert_array_equal(embeddings.representation[:], FEATURES)
        np.testing.assert_array_equal(embeddings.member_concentrations[:], np.moveaxis(PASSES, 2, 1))
        np.testing.assert_allclose(embeddings.concentrations[:], PASSES.mean(2), rtol=1e-6)
        assert [member["pass"] for member in embeddings.members] == [[0], [1], [2]]


def test_fractions_of_several_passes_are_those_that_zoobot_gives(zoobot, tmp_path):
    questions = [
        SimpleNamespace(start_index=question.start, end_index=question.stop - 1, answers=question.answers)
        for question in SCHEMA.questions
    ]
    import_embeddings(votes_file(tmp_path / "votes"), tmp_path / "e.h5", schema=SCHEMA)
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        expected = zoobot.expected_value_of_dirichlet_mixture(PASSES, SimpleNamespace(questions=questions))
        np.testing.assert_allclose(embeddings.vote_fractions(), expected, rtol=1e-5)
        assert embeddings.representation.shape == (N_ROWS, 0)


def test_predictions_of_several_models_are_told_apart(tmp_path):
    values = RNG.uniform(1, 101, (N_ROWS, len(ANSWERS), 2, 3)).astype(np.float32)
    import_embeddings(votes_file(tmp_path / "votes", values), tmp_path / "e.h5", schema=SCHEMA)
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        assert [member["pass"] for member in embeddings.members] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
        np.testing.assert_array_equal(embeddings.member_concentrations[:][:, 4], values[:, :, 1, 1])


def test_predictions_of_one_pass_are_no_members(tmp_path):
    import_embeddings(votes_file(tmp_path / "votes", PASSES[..., :1]), tmp_path / "e.h5", schema=SCHEMA)
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        assert embeddings.member_concentrations is None
        np.testing.assert_array_equal(embeddings.concentrations[:], PASSES[..., 0])


def test_released_representations_come_with_their_coordinates(tmp_path, at_once):
    facts = import_embeddings(parquet_file(tmp_path / "r.parquet"), tmp_path / "e.h5")
    assert (facts["n_galaxies"], facts["dim"]) == (N_ROWS, DIM)
    table = released_table()
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        np.testing.assert_array_equal(embeddings.representation[:], FEATURES)
        found = embeddings.to_pandas()
    assert list(found.columns) == ["id_str", "file_loc", "ra", "dec"]
    for name in ("id_str", "ra", "dec"):
        assert found[name].tolist() == table[name].tolist()


@pytest.mark.parametrize("ids", [np.arange(N_ROWS) + 2**60, pd.Categorical(IDS), [name.encode() for name in IDS]])
def test_ids_of_a_table_may_be_whole_numbers_categories_or_bytes(ids, tmp_path):
    import_embeddings(parquet_file(tmp_path / "r.parquet", {"id_str": ids}), tmp_path / "e.h5")
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        expected = [str(number) for number in ids] if isinstance(ids, np.ndarray) else IDS
        assert embeddings.ids.tolist() == expected


def test_catalog_gives_images_and_the_coordinates_that_the_source_lacks(tmp_path):
    catalog = pd.DataFrame({"id_str": [IDS[5], "stranger", IDS[2]], "file_loc": ["5.jpg", "x.jpg", "sub/2.jpg"]})
    catalog = catalog.assign(ra=[55.0, 0, 22], dec=[5.0, 0, 2])
    catalog.to_csv(tmp_path / "images.csv", index=False)
    source = parquet_file(tmp_path / "r.parquet", drop=["dec"])
    facts = import_embeddings(source, tmp_path / "e.h5", catalog=tmp_path / "images.csv")
    assert facts["n_with_image"] == 2
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        expected = {5: str(tmp_path / "5.jpg"), 2: str(tmp_path / "sub/2.jpg")}
        assert embeddings.files.tolist() == [expected.get(row, "") for row in range(N_ROWS)]
        table = embeddings.to_pandas()
    assert table["ra"].tolist() == released_table()["ra"].tolist()
    assert table["dec"].dropna().to_dict() == {5: 5.0, 2: 2.0}


def test_attributes_name_the_files_that_it_was_made_from(tmp_path):
    features, votes = features_file(tmp_path / "features"), votes_file(tmp_path / "votes")
    import_embeddings(features, tmp_path / "e.h5", votes, SCHEMA)
    with h5py.File(tmp_path / "e.h5", "r") as file:
        attributes = dict(file.attrs)
    assert (attributes["source_file"], attributes["source_sha256"]) == ("features.hdf5", sha256_of_file(features))
    assert (attributes["predictions_file"], attributes["predictions_sha256"]) == ("votes.hdf5", sha256_of_file(votes))
    assert "catalog_file" not in attributes
    assert {"created", "versions", "git_commit", "rarezoo", "schema_sha256", "image_root"} <= attributes.keys()
    assert (attributes["n_failed"], attributes["format"], bool(attributes["complete"])) == (0, 1, True)
    assert json.loads(attributes["schema"]) == SCHEMA.to_tree()


@pytest.fixture
def both(tmp_path) -> Path:
    """A file of format 1 with everything, among which coordinates."""
    votes = votes_file(tmp_path / "votes")
    import_embeddings(parquet_file(tmp_path / "r.parquet"), tmp_path / "both.h5", votes, SCHEMA)
    return tmp_path / "both.h5"


def export(source: Path, target: Path, layout: str) -> Path:
    with open_embeddings(source) as embeddings:
        export_embeddings(embeddings, target, layout)
    return target


def test_zoobot_reads_the_features_that_were_written_for_it(zoobot, both, tmp_path, at_once):
    table = zoobot.single_forward_pass_hdf5s_to_df([str(export(both, tmp_path / "f.hdf5", "zoobot-features"))])
    assert table["id_str"].tolist() == IDS
    np.testing.assert_array_equal(table[[f"feat_{index}" for index in range(DIM)]], FEATURES)


def test_zoobot_reads_the_predictions_that_were_written_for_it(zoobot, both, tmp_path, at_once):
    table, values, columns = zoobot.load_hdf5s([str(export(both, tmp_path / "p.hdf5", "zoobot-predictions"))])
    assert table["id_str"].tolist() == IDS
    assert columns.tolist() == ANSWERS
    np.testing.assert_array_equal(values, PASSES)


def test_predictions_of_one_model_are_written_as_one_pass(tmp_path):
    import_embeddings(votes_file(tmp_path / "votes", PASSES[..., 0]), tmp_path / "e.h5", schema=SCHEMA)
    with h5py.File(export(tmp_path / "e.h5", tmp_path / "p.hdf5", "zoobot-predictions"), "r") as file:
        np.testing.assert_array_equal(file["predictions"][:], PASSES[..., :1])
        assert file["predictions"].compression == "gzip"
        assert file.attrs["source_sha256"] == sha256_of_file(tmp_path / "e.h5")


def test_table_that_was_written_is_that_which_is_published(both, tmp_path, at_once):
    path = export(both, tmp_path / "out.parquet", "gz-desi")
    pd.testing.assert_frame_equal(pd.read_parquet(path), released_table(), check_dtype=False)
    assert pq.read_schema(path).metadata[b"source_sha256"].decode() == sha256_of_file(both)


def test_half_precision_is_written_as_single(tmp_path):
    import_embeddings(features_file(tmp_path / "features"), tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        half = file["representation"][:].astype(np.float16)
        del file["representation"]
        file["representation"] = half
    table = pd.read_parquet(export(tmp_path / "e.h5", tmp_path / "out.parquet", "gz-desi"))
    assert list(table.columns) == ["id_str", *(f"feat_pca_{index}" for index in range(DIM))]
    np.testing.assert_array_equal(table.iloc[:, 1:].to_numpy(np.float32), half.astype(np.float32))


@pytest.mark.parametrize(
    ("keeps", "layout", "message"),
    [
        ("features", "zoobot-predictions", "holds no predicted votes. Give --to zoobot-features"),
        ("votes", "zoobot-features", "holds no representation. Give --to zoobot-predictions"),
        ("votes", "gz-desi", "holds no representation"),
    ],
)
def test_what_is_not_there_cannot_be_written(keeps, layout, message, tmp_path):
    if keeps == "features":
        import_embeddings(features_file(tmp_path / "s"), tmp_path / "e.h5")
    else:
        import_embeddings(votes_file(tmp_path / "s"), tmp_path / "e.h5", schema=SCHEMA)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "e.h5", tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def with_value(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


def faults() -> dict:
    bad = with_value(FEATURES, (20, 3), np.nan)
    repeated = [*IDS[:30], IDS[4], *IDS[31:]]
    others = [*ANSWERS[:-1], "ring_maybe"]
    return {
        "ids repeated in HDF5": (
            lambda f: {"source": features_file(f / "s", ids=repeated)},
            rf"s\.hdf5: the id '{IDS[4]}' of row 30 is that of row 4 too \(1 ids",
        ),
        "ids repeated in parquet": (
            lambda f: {"source": parquet_file(f / "s.parquet", {"id_str": repeated})},
            rf"s\.parquet: the id '{IDS[4]}' of row 30 is that of row 4 too",
        ),
        "ids repeated in predictions": (
            lambda f: (
                {"source": features_file(f / "s"), "predictions": votes_file(f / "v", ids=repeated)}
                | {"schema": SCHEMA}
            ),
            r"v\.hdf5: the id",
        ),
        "empty id": (
            lambda f: {"source": parquet_file(f / "s.parquet", {"id_str": [None, *IDS[1:-1], " "]})},
            r"row 0 has no id \(2 rows have none\)",
        ),
        "ids that are not whole": (
            lambda f: {"source": parquet_file(f / "s.parquet", {"id_str": np.arange(N_ROWS) + 0.0})},
            "column 'id_str' holds floating-point numbers",
        ),
        "NaN in HDF5": (
            lambda f: {"source": features_file(f / "s", bad)},
            rf"'feat_3' of row 20, id {IDS[20]}, is nan",
        ),
        "NaN in parquet": (
            lambda f: {"source": parquet_file(f / "s.parquet", {"feat_pca_3": bad[:, 3]})},
            rf"'feat_pca_3' of row 20, id {IDS[20]}, is nan",
        ),
        "missing value in parquet": (
            lambda f: {"source": parquet_file(f / "s.parquet", {"feat_pca_0": [1.5, None] + [1.0] * (N_ROWS - 2)})},
            rf"'feat_pca_0' of row 1, id {IDS[1]}, is nan",
        ),
        "feature left out": (
            lambda f: {"source": parquet_file(f / "s.parquet", drop=["feat_pca_2"])},
            "has 4 features, and none is 'feat_pca_2'",
        ),
        "features of several passes": (
            lambda f: {"source": features_file(f / "s", np.stack([FEATURES, FEATURES], 2))},
            r"has features of \(2,\) passes",
        ),
        "concentration of 0": (
            lambda f: {"source": votes_file(f / "s", with_value(PASSES, (8, 1, 2), 0)), "schema": SCHEMA},
            rf"'{ANSWERS[1]}' of row 8, id {IDS[8]}, is 0\.0. Concentrations are finite and above 0",
        ),
        "no tree": (lambda f: {"source": votes_file(f / "s")}, "has to be said: --schema rings"),
        "unknown answers": (
            lambda f: {"source": votes_file(f / "s", columns=others), "schema": SCHEMA},
            rf"has no label column '{ANSWERS[-1]}' of the tree",
        ),
        "more answers": (
            lambda f: {
                "source": votes_file(f / "s", np.concatenate([PASSES, PASSES[:, :1]], 1), columns=[*ANSWERS, "more"]),
                "schema": SCHEMA,
            },
            "label column 'more' is no answer of the tree",
        ),
        "answer twice": (
            lambda f: {
                "source": votes_file(f / "s", columns=[ANSWERS[0], *ANSWERS[:-1]]),
                "schema": SCHEMA,
            },
            rf"has more than once the label column '{ANSWERS[0]}'",
        ),
        "galaxies without predictions": (
            lambda f: {
                "source": features_file(f / "s"),
                "predictions": votes_file(f / "v", PASSES[:-2], IDS[:-2]),
                "schema": SCHEMA,
            },
            rf"v\.hdf5: has no predictions for '{IDS[-2]}' \(2 of {N_ROWS} galaxies",
        ),
        "features as predictions": (
            lambda f: {"source": features_file(f / "s"), "predictions": features_file(f / "v"), "schema": SCHEMA},
            r"v\.hdf5: holds no predicted votes",
        ),
        "predictions twice": (
            lambda f: {"source": votes_file(f / "s"), "predictions": votes_file(f / "v"), "schema": SCHEMA},
            "holds predictions, as .* does. Give a file of features first",
        ),
        "tree of nothing": (
            lambda f: {"source": features_file(f / "s"), "schema": SCHEMA},
            r"--schema: .*s\.hdf5 holds no predictions",
        ),
        "sizes that disagree": (
            lambda f: {"source": features_file(f / "s", ids=IDS[:-1])},
            rf"'predictions' is of shape \({N_ROWS}, {DIM}\), with {N_ROWS - 1} ids and {DIM} label columns",
        ),
        "no passes": (
            lambda f: {"source": votes_file(f / "s", PASSES[..., :0]), "schema": SCHEMA},
            rf"is of shape \({N_ROWS}, {len(ANSWERS)}, 0\)",
        ),
        "no galaxies": (
            lambda f: {"source": empty_table(f)},
            "holds no galaxies",
        ),
        "another catalog": (
            lambda f: {"source": features_file(f / "s"), "catalog": catalog_of_others(f)},
            r"images\.csv: holds none of the galaxies",
        ),
        "no such file": (lambda f: {"source": f / "s.h5"}, r"s\.h5: there is no such file"),
        "another file": (lambda f: {"source": catalog_of_others(f)}, "is neither HDF5 with predictions, id_str"),
    }


def empty_table(folder: Path) -> Path:
    released_table().iloc[:0].to_parquet(folder / "empty.parquet")
    return folder / "empty.parquet"


def catalog_of_others(folder: Path) -> Path:
    (folder / "images.csv").write_text("id_str,file_loc\nx,x.jpg\n")
    return folder / "images.csv"


@pytest.mark.parametrize("fault", faults())
def test_fault_is_named_and_no_file_is_written(fault, tmp_path):
    make, message = faults()[fault]
    arguments = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        import_embeddings(target=tmp_path / "e.h5", **arguments)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {"hdf5": features_file(folder / "f").read_bytes(), "parquet": parquet_file(folder / "p").read_bytes()}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["hdf5", "parquet"]))
def test_truncated_file_is_refused(share, kind, whole, tmp_path):
    source, target = tmp_path / f"s.{kind}", tmp_path / "e.h5"
    source.write_bytes(whole[kind][: int(share * len(whole[kind]))])
    with pytest.raises(UserError, match=rf"s\.{kind}: (is neither|cannot be read)"):
        import_embeddings(source, target)
    assert not target.exists()


def test_column_whose_bytes_are_damaged_is_refused(tmp_path):
    source = parquet_file(tmp_path / "s.parquet")
    place = pq.ParquetFile(source).metadata.row_group(2).column(4).data_page_offset
    content = bytearray(source.read_bytes())
    content[place : place + 12] = b"\xff" * 12
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"s\.parquet: cannot be read .* It is damaged"):
        import_embeddings(source, tmp_path / "e.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


@pytest.mark.parametrize("room", [0, 2_000, 5_000])
def test_disk_that_fills_up_is_a_users_fault_and_leaves_nothing(room, tmp_path, monkeypatch):
    source = features_file(tmp_path / "s")
    written = []
    write_all = os.write

    def write_some(descriptor, data):
        if sum(written) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write_all(descriptor, data[: room - sum(written)]))
        return written[-1]

    monkeypatch.setattr("rarezoo.embeddings.hdf5.os.write", write_some)
    with pytest.raises(UserError, match=r"e\.h5: cannot be written \(No space left on device\)"):
        import_embeddings(source, tmp_path / "e.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["s.hdf5"]


@pytest.mark.parametrize("layout", ["zoobot-features", "zoobot-predictions", "gz-desi"])
def test_killed_process_leaves_no_final_file(layout, both, tmp_path):
    child = os.fork()
    if child == 0:
        with open_embeddings(both) as embeddings:
            embeddings.to_pandas = lambda rows: os.kill(os.getpid(), signal.SIGKILL)
            export_embeddings(embeddings, tmp_path / "out", layout)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("layout", ["zoobot-features", "gz-desi"])
def test_disk_that_is_really_full_is_a_users_fault_and_leaves_nothing(layout, small_disk, tmp_path):
    features = RNG.normal(size=(20_000, DIM))
    source = features_file(tmp_path / "s", features, [f"J{row}" for row in range(len(features))])
    import_embeddings(source, tmp_path / "e.h5")
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        export(tmp_path / "e.h5", small_disk / "out", layout)
    assert list(small_disk.iterdir()) == []
