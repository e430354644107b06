import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from rarezoo.cli import UserError
from rarezoo.embeddings import open_embeddings, store
from rarezoo.embeddings.rows import Rows
from rarezoo.votes import Schema, expected_vote_fractions

TREE = {
    "shape": {"answers": ["smooth", "featured"], "asked_after": []},
    "bar": {"answers": ["yes", "no"], "asked_after": ["shape_featured"]},
}
SCHEMA = Schema.from_tree(TREE)
N_ROWS, DIM = 23, 4
TEXT = h5py.string_dtype("utf-8")
RNG = np.random.default_rng(0)
REPRESENTATION = RNG.normal(size=(N_ROWS, DIM)).astype(np.float32)
CONCENTRATIONS = RNG.uniform(1, 101, (N_ROWS, 4)).astype(np.float32)
IDS = [f"J{row}é✶" for row in range(N_ROWS)]


def make_file(path: Path, change=None) -> Path:
    """A file of the format, as its description has it; written by h5py alone."""
    with h5py.File(path, "w") as file:
        file["id"] = np.array(IDS, dtype=TEXT)
        file["file_loc"] = np.array([f"{row}.png" for row in range(N_ROWS)], dtype=TEXT)
        file["representation"] = REPRESENTATION
        file["concentrations"] = CONCENTRATIONS
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", data=np.array([], dtype=TEXT))
        file.attrs["format"] = 1
        file.attrs["complete"] = True
        file.attrs["schema"] = json.dumps(TREE)
        file.attrs["image_root"] = "/data/images"
        file.attrs.create("label_cols", list(SCHEMA.label_cols), dtype=TEXT)
        if change:
            change(file)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_file(tmp_path_factory.mktemp("store") / "embeddings.h5")


@pytest.fixture(scope="module")
def embeddings(path):
    with open_embeddings(path) as opened:
        yield opened


@pytest.fixture(params=[1, 5, 23, 100])
def chunk_rows(request, monkeypatch) -> int:
    # A row of the representation and one of the concentrations take 16 bytes each.
    monkeypatch.setattr("rarezoo.embeddings.rows.PIECE_BYTES", 16 * request.param)
    monkeypatch.setattr(store, "_ROWS_AT_ONCE", request.param)
    return request.param


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught, open_embeddings(path):
        pass
    assert str(path) in str(caught.value)
    assert "embed.py" in str(caught.value)
    return str(caught.value)


def test_file_opens_by_its_path_or_its_text(path):
    for given_path in (path, str(path)):
        with open_embeddings(given_path) as opened:
            assert len(opened) == N_ROWS
            assert opened.path == path


def test_names_and_files_are_text(embeddings):
    assert embeddings.ids.tolist() == IDS
    assert embeddings.files.tolist() == [f"/data/images/{row}.png" for row in range(N_ROWS)]
    assert embeddings.label_cols == SCHEMA.label_cols
    assert embeddings.schema == SCHEMA


def test_absolute_paths_of_images_stay_as_they_are(tmp_path):
    def change(file):
        file["file_loc"][0] = "/elsewhere/a.png"

    with open_embeddings(make_file(tmp_path / "e.h5", change)) as opened:
        assert opened.files[:2].tolist() == ["/elsewhere/a.png", "/data/images/1.png"]


def test_table_has_no_coordinates_where_the_file_has_none(embeddings, tmp_path):
    assert list(embeddings.to_pandas().columns) == ["id_str", "file_loc"]

    def change(file):
        file["ra"], file["dec"] = np.arange(N_ROWS, dtype=float), np.zeros(N_ROWS)
        file["carried/redshift"] = np.linspace(0, 1, N_ROWS)

    with open_embeddings(make_file(tmp_path / "e.h5", change)) as opened:
        table = opened.to_pandas()
    assert list(table.columns) == ["id_str", "file_loc", "ra", "dec", "redshift"]
    assert table["ra"].tolist() == list(range(N_ROWS))


def test_file_without_failures_lists_none(embeddings):
    failed = embeddings.failed()
    assert list(failed.columns) == ["id_str", "file_loc", "reason"]
    assert failed.empty


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(-N_ROWS, N_ROWS - 1), max_size=40))
def test_rows_by_number_are_those_of_numpy(rows, embeddings, chunk_rows):
    numbers = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(embeddings.representation[numbers], REPRESENTATION[numbers])


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=st.lists(st.booleans(), min_size=N_ROWS, max_size=N_ROWS))
def test_rows_by_mask_are_those_of_numpy(mask, embeddings, chunk_rows):
    np.testing.assert_array_equal(embeddings.representation[np.array(mask)], REPRESENTATION[np.array(mask)])


steps = st.integers(1, 7) | st.none()
ends = st.integers(-N_ROWS - 3, N_ROWS + 3) | st.none()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.builds(slice, ends, ends, steps))
def test_rows_by_slice_are_those_of_numpy(rows, embeddings, chunk_rows):
    np.testing.assert_array_equal(embeddings.representation[rows], REPRESENTATION[rows])
    fractions = embeddings.vote_fractions(rows)
    expected = expected_vote_fractions(torch.from_numpy(CONCENTRATIONS), SCHEMA).numpy()[rows]
    assert fractions.shape == expected.shape
    np.testing.assert_allclose(fractions, expected, rtol=1e-6)


def test_row_by_number_is_that_of_numpy(embeddings):
    for row in (0, 5, -1):
        np.testing.assert_array_equal(embeddings.representation[row], REPRESENTATION[row])


@pytest.mark.parametrize("rows", [[N_ROWS], [0, -N_ROWS - 1], [True] * (N_ROWS + 1), [0.5]])
def test_rows_that_are_not_there_are_refused_as_numpy_does(rows, embeddings):
    with pytest.raises(IndexError):
        embeddings.representation[np.array(rows)]


def test_rows_keep_the_precision_of_the_file(tmp_path):
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["x"] = REPRESENTATION.astype(np.float16)
        rows = Rows(file["x"])
        assert rows.dtype == np.float16
        assert rows.shape == (N_ROWS, DIM)
        assert rows[np.array([3, 1])].dtype == np.float16


def test_vote_fractions_are_the_expected_ones(embeddings, chunk_rows):
    fractions = embeddings.vote_fractions()
    expected = np.concatenate(
        [
            CONCENTRATIONS[:, part] / CONCENTRATIONS[:, part].sum(1, keepdims=True)
            for part in (slice(0, 2), slice(2, 4))
        ],
        axis=1,
    )
    assert fractions.dtype == np.float32
    np.testing.assert_allclose(fractions, expected, rtol=1e-6)
    chosen = np.array([20, 3, 3, 11])
    np.testing.assert_allclose(embeddings.vote_fractions(chosen), expected[chosen], rtol=1e-6)


def test_file_that_is_not_there_is_refused_with_the_command_to_run(tmp_path):
    assert "there is no such file. Run embed.py first" in refusal(tmp_path / "embeddings.h5")


def test_folder_is_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04" + bytes(200)])
def test_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "e.h5").write_bytes(content)
    assert "is not a whole HDF5 file" in refusal(tmp_path / "e.h5")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_refused(share, path, tmp_path):
    content = path.read_bytes()
    (tmp_path / "e.h5").write_bytes(content[: int(share * len(content))])
    assert "is not a whole HDF5 file" in refusal(tmp_path / "e.h5")


@pytest.mark.parametrize("found", [2, 0, "1.0", [1, 2]])
def test_file_of_another_format_is_refused(found, tmp_path):
    def change(file):
        file.attrs["format"] = found

    assert "not embeddings format 1" in refusal(make_file(tmp_path / "e.h5", change))


def test_hdf5_file_of_another_program_is_refused(tmp_path):
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["x"] = np.arange(3)
    assert "has format none, not embeddings format 1" in refusal(tmp_path / "e.h5")


@pytest.mark.parametrize("change", [lambda f: f.attrs.update(complete=False), lambda f: f.attrs.pop("complete")])
def test_file_that_is_not_complete_is_refused(change, tmp_path):
    assert "is not complete (complete is false)" in refusal(make_file(tmp_path / "e.h5", change))


@pytest.mark.parametrize("name", ["id", "file_loc", "representation", "concentrations"])
def test_file_without_one_of_its_arrays_is_refused_by_name(name, tmp_path):
    assert f"is not complete ({name})" in refusal(make_file(tmp_path / "e.h5", lambda file: file.pop(name)))


@pytest.mark.parametrize("name", ["id", "file_loc", "representation", "concentrations"])
def test_arrays_of_different_lengths_are_refused(name, tmp_path):
    def change(file):
        shorter = file[name][:-1]
        del file[name]
        file.create_dataset(name, data=shorter, dtype=TEXT if shorter.dtype.kind == "O" else shorter.dtype)

    found = refusal(make_file(tmp_path / "e.h5", change))
    assert "its arrays differ in length ({" in found
    assert f"'{name}': {N_ROWS - 1}" in found


def test_concentrations_of_other_answers_than_those_named_are_refused(tmp_path):
    def change(file):
        del file["concentrations"]
        file["concentrations"] = CONCENTRATIONS[:, :3]

    assert "has concentrations of 3 answers, and names 4" in refusal(make_file(tmp_path / "e.h5", change))


def replace(name: str, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.pop("schema"),
        lambda file: file.attrs.update(schema="{"),
        lambda file: file.attrs.update(schema=3),
        lambda file: file.attrs.pop("label_cols"),
        lambda file: file.attrs.update(label_cols=4),
        replace("representation", 5.0),
        replace("representation", np.ones(N_ROWS)),
        replace("concentrations", np.ones(N_ROWS)),
        lambda file: file.pop("id") and file.create_group("id"),
    ],
)
def test_file_that_was_tampered_with_is_refused(change, tmp_path):
    assert "is damaged" in refusal(make_file(tmp_path / "e.h5", change))


def test_error_of_the_reader_is_not_taken_for_damage(path):
    with pytest.raises(KeyError, match="a fault of the caller"), open_embeddings(path):
        raise KeyError("a fault of the caller")


def members_of(n_members: int):
    values = np.random.default_rng(1).uniform(1, 101, (N_ROWS, n_members, 4)).astype(np.float32)

    def change(file):
        file["member_concentrations"] = values
        file.attrs["members"] = json.dumps([{"checkpoint_sha256": "c", "pass": index} for index in range(n_members)])

    return values, change


@pytest.mark.parametrize("name", ["features", "member_concentrations"])
def test_what_was_not_kept_is_none(name, embeddings):
    assert getattr(embeddings, name) is None
    assert embeddings.members == []


def test_features_are_read_where_they_are_indexed(tmp_path):
    features = RNG.normal(size=(N_ROWS, 7)).astype(np.float16)
    with open_embeddings(make_file(tmp_path / "e.h5", lambda file: file.update(features=features))) as opened:
        np.testing.assert_array_equal(opened.features[np.array([5, 2])], features[[5, 2]])
        assert opened.features.dtype == np.float16


def test_fractions_of_several_members_are_the_mean_of_theirs(tmp_path, chunk_rows):
    values, change = members_of(3)
    pairs = values.reshape(N_ROWS, 3, 2, 2).astype(np.float64)
    expected = (pairs / pairs.sum(-1, keepdims=True)).reshape(N_ROWS, 3, 4).mean(1)
    with open_embeddings(make_file(tmp_path / "e.h5", change)) as opened:
        np.testing.assert_allclose(opened.vote_fractions(), expected, rtol=1e-5)
        assert opened.member_concentrations.shape == (N_ROWS, 3, 4)
        assert [member["pass"] for member in opened.members] == [0, 1, 2]
        rows = opened.select({"bar_yes": (0.5, None)})
    assert rows.tolist() == np.flatnonzero(expected[:, 2] >= 0.5).tolist()


def test_interval_of_several_members_is_that_of_their_mixture(tmp_path):
    values, change = members_of(4)
    rows = np.array([7, 3])
    with open_embeddings(make_file(tmp_path / "e.h5", change)) as opened:
        found = opened.credible_intervals(rows, level=0.8)
    a = values[rows][..., :1].astype(float)
    b = values[rows][..., 1:2].astype(float)
    for edge, probability in ((found.lower, 0.1), (found.upper, 0.9)):
        below = stats.beta.cdf(edge[:, None, :1], a, b).mean(axis=1)
        np.testing.assert_allclose(below, probability, atol=1e-6)


def test_interval_of_one_model_is_that_of_its_beta_distribution(embeddings):
    found = embeddings.credible_intervals(slice(2, 5))
    a, b = CONCENTRATIONS[2:5, 2].astype(float), CONCENTRATIONS[2:5, 3].astype(float)
    np.testing.assert_allclose(found.lower[:, 2], stats.beta.ppf(0.05, a, b), rtol=1e-6)
    np.testing.assert_allclose(found.upper[:, 2], stats.beta.ppf(0.95, a, b), rtol=1e-6)


answers = st.sampled_from(SCHEMA.label_cols)
bounds = st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.dictionaries(answers, bounds, max_size=4))
def test_selected_rows_are_those_whose_vote_fractions_lie_within_all_bounds(cuts, embeddings, chunk_rows):
    fractions = embeddings.vote_fractions()
    keep = np.ones(N_ROWS, bool)
    for answer, (low, high) in cuts.items():
        column = fractions[:, SCHEMA.label_cols.index(answer)]
        keep &= (low is None or column >= np.float32(low)) & (high is None or column < np.float32(high))
    assert embeddings.select(cuts).tolist() == np.flatnonzero(keep).tolist()


def test_answers_to_select_by_may_be_patterns_and_unknown_ones_are_refused(embeddings):
    assert embeddings.select({"*_smooth": (0.5, 1)}).tolist() == embeddings.select({"shape_smooth": (0.5, 1)}).tolist()
    with pytest.raises(UserError, match=r"'shape_smoth' matches no label column\. Did you mean 'shape_smooth'"):
        embeddings.select({"shape_smoth": (0.5, 1)})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.integers(0, N_ROWS - 1), max_size=40))
def test_rows_are_found_by_id_in_the_order_of_the_ids(wanted, embeddings, chunk_rows):
    assert embeddings.rows_of([IDS[row] for row in wanted]).tolist() == wanted


def test_id_that_is_not_there_is_refused_by_name(embeddings):
    with pytest.raises(UserError, match=r"has no galaxy 'J99' \(1 of 2 ids are not there\)"):
        embeddings.rows_of([IDS[3], "J99"])


@pytest.mark.parametrize("rows", [slice(3, 17, 2), np.array([20, 3, 3]), np.arange(N_ROWS) % 3 == 0])
def test_table_of_some_rows_is_that_part_of_the_whole_table(rows, tmp_path, chunk_rows):
    def change(file):
        file["ra"], file["dec"] = np.arange(N_ROWS, dtype=float), np.zeros(N_ROWS)
        file["carried/note"] = np.array([f"é{row}" for row in range(N_ROWS)], dtype=TEXT)

    with open_embeddings(make_file(tmp_path / "e.h5", change)) as opened:
        some, whole = opened.to_pandas(rows), opened.to_pandas()
    pd.testing.assert_frame_equal(some, whole.loc[np.arange(N_ROWS)[rows]].reset_index(drop=True))


def without_votes(file):
    del file["concentrations"]
    file["concentrations"] = np.empty((N_ROWS, 0), np.float32)
    file.attrs["schema"] = "{}"
    file.attrs.create("label_cols", [], dtype=TEXT)


def test_file_without_votes_opens_and_gives_all_rows(tmp_path):
    with open_embeddings(make_file(tmp_path / "e.h5", without_votes)) as opened:
        assert opened.label_cols == ()
        assert opened.vote_fractions().shape == (N_ROWS, 0)
        assert opened.select({}).tolist() == list(range(N_ROWS))


@pytest.mark.parametrize(
    "ask", [lambda opened: opened.select({"a": (0, 1)}), lambda opened: opened.credible_intervals(slice(None))]
)
def test_votes_that_are_not_there_are_refused_with_the_command_that_adds_them(ask, tmp_path):
    with (
        open_embeddings(make_file(tmp_path / "e.h5", without_votes)) as opened,
        pytest.raises(UserError, match=r"holds no predicted votes.*rarezoo\.embeddings\.convert .* --predictions"),
    ):
        ask(opened)


def test_galaxy_without_an_image_has_no_file(tmp_path):
    def change(file):
        file["file_loc"][4] = ""

    with open_embeddings(make_file(tmp_path / "e.h5", change)) as opened:
        assert opened.files[3:6].tolist() == ["/data/images/3.png", "", "/data/images/5.png"]


@pytest.mark.parametrize(("name", "width"), [("features", (7,)), ("member_concentrations", (2, 4)), ("ra", ())])
def test_optional_arrays_of_another_length_are_refused(name, width, tmp_path):
    def change(file):
        file[name] = np.ones((N_ROWS - 1, *width))

    assert f"'{name}': {N_ROWS - 1}" in refusal(make_file(tmp_path / "e.h5", change))


def test_members_of_other_answers_than_those_named_are_refused(tmp_path):
    def change(file):
        file["member_concentrations"] = np.ones((N_ROWS, 2, 3), np.float32)

    found = refusal(make_file(tmp_path / "e.h5", change))
    assert "has member_concentrations of 3 answers, and names 4" in found
