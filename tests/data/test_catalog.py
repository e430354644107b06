import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.data.addresses import missing_files
from rarezoo.data.catalog import read_catalog
from rarezoo.data.splits import split_by_id

KINDS = ["c.csv", "c.csv.gz", "c.parquet", "c.pq", "c.fits", "c.fit", "c.fits.gz", "c.ecsv", "c.vot", "C.CSV"]
IDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x00"), min_size=1, max_size=20
).filter(lambda text: text.strip() != "")


def message(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        read_catalog(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_table_gives_the_same_catalog(name, frame, votes, write):
    path = write(frame, name.lower())
    path = path.rename(path.with_name(name))
    catalog = read_catalog(path, votes)
    assert catalog.ids.tolist() == ["00123", "587722981741363294", "J0931+21", "NA"]
    assert catalog.counts.dtype == np.float32
    np.testing.assert_array_equal(catalog.counts, frame[votes].to_numpy())
    assert list(catalog.files) == [str(path.parent / location) for location in frame["file_loc"]]
    np.testing.assert_array_equal(catalog.table["redshift"].to_numpy(dtype=float), frame["redshift"])
    np.testing.assert_array_equal(catalog.table["ra"], frame["ra"])
    assert list(catalog.table.columns) == list(frame.columns)
    assert catalog.n_dropped == 0


def test_big_endian_columns_and_padded_names_of_fits_are_read(tmp_path, votes):
    columns = [
        fits.Column("id_str", "20A", array=["a", "b "]),
        fits.Column("file_loc", "30A", array=["x.jpg", "y.jpg"]),
        fits.Column(votes[0], "I", array=np.array([1, 300], dtype=">i2")),
        fits.Column("spectrum", "3E", array=np.ones((2, 3))),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "c.fits")
    with pytest.warns(UserWarning, match="columns of arrays are left out: spectrum"):
        catalog = read_catalog(tmp_path / "c.fits", votes[:1], check_files=False)
    assert catalog.ids.tolist() == ["a", "b"]
    assert catalog.counts.tolist() == [[1], [300]]
    assert catalog.table[votes[0]].to_numpy().dtype.isnative


def test_sha256_is_that_of_the_file(frame, write):
    path = write(frame)
    assert read_catalog(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_catalog_without_label_columns_has_counts_of_width_zero(frame, write):
    assert read_catalog(write(frame)).counts.shape == (4, 0)


def test_one_galaxy_is_a_catalog(frame, votes, write):
    assert len(read_catalog(write(frame[:1]), votes)) == 1


def test_galaxy_without_any_vote_is_allowed(frame, votes, write):
    frame.loc[1, votes] = 0
    assert read_catalog(write(frame), votes).counts[1].sum() == 0


def test_integer_ids_of_parquet_become_exact_text(frame, write):
    frame["id_str"] = np.array([587722981741363294 + i for i in range(4)])
    assert read_catalog(write(frame, "c.parquet")).ids[1] == "587722981741363295"


def test_floating_point_ids_are_refused(frame, write):
    frame["id_str"] = [1.0, 2.0, 3.0, 4.0]
    assert "column 'id_str' holds floating-point numbers" in message(write(frame, "c.parquet"))


def test_ids_as_bytes_are_decoded(frame, write):
    frame["id_str"] = [b"a", b"b", "é".encode(), b"d"]
    assert read_catalog(write(frame, "c.parquet")).ids.tolist() == ["a", "b", "é", "d"]


def test_ids_kept_as_the_index_of_a_parquet_file_are_found(frame, tmp_path):
    frame.set_index("id_str").to_parquet(tmp_path / "c.parquet")
    assert read_catalog(tmp_path / "c.parquet").ids[0] == "00123"


def test_rows_are_numbered_from_zero_whatever_the_index_of_the_file(frame, tmp_path):
    frame.iloc[[3, 1]].to_parquet(tmp_path / "c.parquet")
    catalog = read_catalog(tmp_path / "c.parquet")
    assert list(catalog.table.index) == [0, 1]
    assert catalog.ids.tolist() == ["NA", "587722981741363294"]


def test_absolute_paths_are_taken_as_they_are(frame, write, tmp_path):
    frame["file_loc"] = [str(tmp_path / location) for location in frame["file_loc"]]
    assert list(read_catalog(write(frame)).files) == frame["file_loc"].tolist()


def test_image_root_takes_the_place_of_the_catalogs_folder(frame, write, tmp_path):
    frame["file_loc"] = [Path(location).name for location in frame["file_loc"]]
    path = write(frame)
    assert "data.image_root" in message(path)
    assert read_catalog(path, image_root=tmp_path / "images").files[0] == str(tmp_path / "images" / "00123.jpg")


def test_image_root_that_does_not_exist_is_named(frame, write, tmp_path):
    assert message(write(frame), image_root=tmp_path / "none").startswith(f"data.image_root={tmp_path / 'none'}")


def test_missing_catalog_names_the_near_match(frame, write, tmp_path):
    write(frame, "galaxies.csv")
    text = message(tmp_path / "galaxy.csv")
    assert "no such file" in text
    assert "galaxies.csv" in text


@pytest.mark.parametrize("name", ["missing/catalog.csv", "."])
def test_path_without_a_file_is_refused(name, tmp_path):
    assert "no such file" in message(tmp_path / name)


def test_unknown_suffix_lists_those_that_are_known(tmp_path):
    (tmp_path / "catalog.xlsx").write_text("x")
    assert ".parquet, .pq, .csv" in message(tmp_path / "catalog.xlsx")


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz", ".fits", ".fits.gz", ".ecsv", ".vot"])
def test_text_under_another_suffix_is_no_table(suffix, tmp_path):
    (tmp_path / f"c{suffix}").write_text("<html>404 not found</html>")
    assert f"cannot be read as a {suffix} table" in message(tmp_path / f"c{suffix}")


@pytest.mark.parametrize("name", ["c.csv", "c.parquet", "c.fits", "c.csv.gz"])
def test_empty_file_is_no_table(name, tmp_path):
    (tmp_path / name).touch()
    assert "cannot be read" in message(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*Header size is not multiple", "ignore:.*may have been truncated")
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["c.parquet", "c.fits", "c.csv.gz", "c.fits.gz", "c.vot"])
def test_truncated_file_is_no_table(name, kept, frame, write):
    many = pd.concat([frame] * 100, ignore_index=True)
    path = write(many.assign(id_str=[str(i) for i in range(len(many))]), name)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "cannot be read" in message(path)


def test_csv_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "c.csv").write_bytes("id_str,file_loc\né,x.jpg\n".encode("latin-1"))
    assert "utf-8" in message(tmp_path / "c.csv")


@pytest.mark.parametrize("rows", ["a,x.jpg,1\nb,y.jpg,2\n", "a,x.jpg\nb,y.jpg,2\n"])
def test_csv_with_more_fields_than_its_header_is_refused(rows, tmp_path):
    (tmp_path / "c.csv").write_text("id_str,file_loc\n" + rows)
    assert "cannot be read" in message(tmp_path / "c.csv")


def test_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_column(frame, write):
    path = write(frame)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_catalog(path)) == 4


def test_column_that_appears_twice_is_named(tmp_path):
    (tmp_path / "c.csv").write_text("id_str,file_loc,bar_no,bar_no\na,x.jpg,1,2\n")
    assert "more than once: bar_no" in message(tmp_path / "c.csv", check_files=False)
    table = pa.table([["a"], ["x.jpg"], [1], [2]], names=["id_str", "file_loc", "bar_no", "bar_no"])
    pq.write_table(table, tmp_path / "c.parquet")
    assert "cannot be read" in message(tmp_path / "c.parquet", check_files=False)


@pytest.mark.parametrize("name", ["c.csv", "c.parquet", "c.fits"])
def test_catalog_without_rows_is_refused(name, frame, write):
    assert "no rows" in message(write(frame[:0], name))


def test_all_missing_columns_are_named_with_near_matches(frame, votes, write):
    path = write(frame.drop(columns=["file_loc"]).rename(columns={votes[0]: "smooth-or-featured-dr5_smooth"}))
    text = message(path, votes)
    assert "2 columns are missing: 'file_loc', " in text
    assert f"'{votes[0]}' (did you mean 'smooth-or-featured-dr5_smooth'?)" in text


@pytest.mark.parametrize("column", ["id_str", "file_loc", "bar_strong"])
def test_misspelt_column_names_the_near_match(column, frame, votes, write):
    text = message(write(frame.rename(columns={column: column.upper()[0] + column[1:-1]})), votes)
    assert f"column '{column}' is missing. Did you mean '{column.upper()[0] + column[1:-1]}'?" in text


def test_duplicate_ids_are_named_with_both_rows(frame, write):
    frame.loc[3, "id_str"] = "587722981741363294"
    text = message(write(frame))
    assert "column 'id_str' has 1 duplicate id (first: row 3, id 587722981741363294), which row 1 has too" in text


@pytest.mark.parametrize("empty", ["", "   ", None])
@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_empty_id_is_refused(empty, name, frame, write):
    frame.loc[2, "id_str"] = empty
    assert "column 'id_str' has 1 empty id (first: row 2" in message(write(frame, name))


@pytest.mark.parametrize("empty", ["", None])
def test_empty_path_is_refused(empty, frame, write):
    frame.loc[2, "file_loc"] = empty
    assert "column 'file_loc' has 1 empty path (first: row 2, id J0931+21" in message(write(frame))


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (-1, "negative", "-1"),
        (np.nan, "missing", "nan"),
        (np.inf, "infinite", "inf"),
        (-np.inf, "infinite", "-inf"),
        (1e300, "infinite", "1e+300"),
        (2.5, "fractional", "2.5"),
        ("many", "non-numeric", "many"),
    ],
)
@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_bad_votes_are_named_with_row_id_and_value(value, kind, shown, name, frame, votes, write):
    column = frame[votes[2]].astype(object if isinstance(value, str) and name == "c.csv" else float)
    if isinstance(value, str):
        column = column.astype(str)
    column[2] = value
    text = message(write(frame.assign(**{votes[2]: column}), name), votes)
    assert f"column 'bar_strong' has 1 {kind} count (first: row 2, id J0931+21, value {shown}" in text
    assert "data.on_bad_votes=drop" in text


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 0.5])
def test_rows_with_bad_votes_are_dropped_and_counted_on_request(bad, frame, votes, write):
    frame[votes[1]] = frame[votes[1]].astype(float)
    frame.loc[1, votes[1]] = bad
    (path := write(frame)).with_name("images").joinpath("587722981741363294.jpg").unlink()
    catalog = read_catalog(path, votes, on_bad_votes="drop")
    assert catalog.n_dropped == 1
    assert catalog.ids.tolist() == ["00123", "J0931+21", "NA"]
    assert catalog.counts.shape == (3, 4)
    assert list(catalog.table.index) == [0, 1, 2]
    assert len(catalog.files) == 3


def test_catalog_whose_rows_would_all_be_dropped_is_refused(frame, votes, write):
    frame[votes[1]] = 0.5
    text = message(write(frame), votes, on_bad_votes="drop")
    assert "4 fractional counts" in text
    assert "data.fractional_votes=true" in text


def test_fractional_votes_are_accepted_by_an_option_and_never_rounded(frame, votes, write):
    frame[votes[0]] = [0.25, 1.5, 2.0, 1e-3]
    catalog = read_catalog(write(frame), votes, fractional_votes=True)
    np.testing.assert_allclose(catalog.counts[:, 0], [0.25, 1.5, 2.0, 1e-3], rtol=1e-7)


def test_negative_votes_are_refused_even_where_fractions_are_accepted(frame, votes, write):
    frame[votes[0]] = [0.25, -1.5, 2.0, 1.0]
    assert "1 negative count (first: row 1" in message(write(frame), votes, fractional_votes=True)


def test_masked_votes_of_fits_count_as_missing(frame, votes, tmp_path):
    table = Table.from_pandas(frame, index=False)
    table = Table(table, masked=True)
    table[votes[0]].mask = [False, True, False, False]
    table.write(tmp_path / "c.fits")
    assert "1 missing count (first: row 1" in message(tmp_path / "c.fits", votes)


def test_several_faults_are_reported_together(frame, votes, write):
    frame.loc[1, votes[0]] = -1
    frame.loc[2, votes[3]] = -2
    frame.loc[3, "id_str"] = "00123"
    frame.loc[0, "dec"] = 91
    text = message(write(frame), votes)
    for part in (votes[0], votes[3], "duplicate id", "'dec' has 1 impossible coordinate (first: row 0"):
        assert part in text


def test_long_lists_of_faults_end_with_their_number(frame, write):
    names = [f"question_{i}" for i in range(30)]
    table = pd.concat([frame, pd.DataFrame(-1, index=frame.index, columns=names)], axis=1)
    text = message(write(table), names)
    assert "10 more faults" in text
    assert "drop them" in text


def test_unknown_choice_for_bad_votes_is_named(frame, write):
    assert "data.on_bad_votes=dorp" in message(write(frame), on_bad_votes="dorp")


@pytest.mark.parametrize(("column", "value"), [("ra", 361.0), ("dec", -90.5), ("ra", np.inf), ("dec", "12:30:00")])
def test_impossible_coordinates_are_refused(column, value, frame, write):
    frame[column] = frame[column].astype(object)
    frame.loc[2, column] = value
    assert f"column '{column}' has 1 impossible coordinate (first: row 2, id J0931+21, value" in message(write(frame))


def test_unknown_coordinates_may_be_missing(frame, write):
    frame.loc[2, ["ra", "dec"]] = np.nan
    assert np.isnan(read_catalog(write(frame)).table["ra"][2])


def test_missing_images_are_counted_and_the_first_is_named(frame, write, tmp_path):
    path = write(frame)
    for name in ("587722981741363294.jpg", "NA.jpg"):
        (tmp_path / "images" / name).unlink()
    text = message(path)
    assert "2 of 4 image files do not exist (first: row 1, id 587722981741363294, " in text
    assert "data.image_root" in text
    assert len(read_catalog(path, check_files=False)) == 4


@pytest.mark.parametrize("address", ["none.tar#J0931.jpg@512+100", "none.h5#images[3]"])
def test_missing_tar_or_hdf5_file_is_named_with_the_first_row_that_needs_it(address, frame, write):
    frame.loc[2:, "file_loc"] = address
    text = message(write(frame))
    assert "2 of 4 image files do not exist (first: row 2, id J0931+21, " in text
    assert address in text


def test_folder_in_the_place_of_an_image_is_missing(frame, write, tmp_path):
    frame.loc[1, "file_loc"] = "images"
    assert "1 of 4 image file does not exist (first: row 1" in message(write(frame))


@pytest.mark.parametrize("n_files", [5, 200])
def test_missing_files_are_found_in_small_and_large_folders(n_files, tmp_path):
    files = [tmp_path / f"{i % 2}" / f"{i}.jpg" for i in range(n_files)]
    for folder in ("0", "1"):
        (tmp_path / folder).mkdir()
    for position, file in enumerate(files):
        if position not in (1, 4):
            file.touch()
    files[3].unlink()
    files[3].symlink_to(tmp_path / "nowhere")
    absent = [str(tmp_path / "none" / f"{i}.jpg") for i in range(n_files)]
    assert missing_files([str(file) for file in files] + absent) == [1, 3, 4, *range(n_files, 2 * n_files)]


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(IDS, min_size=1, max_size=8, unique=True),
    counts=st.lists(st.integers(0, 2**24), min_size=8, max_size=8),
)
def test_ids_and_votes_survive_the_way_through_a_file(name, ids, counts, tmp_path):
    frame = pd.DataFrame({"id_str": ids, "file_loc": "x.jpg", "a_b": counts[: len(ids)]})
    path = tmp_path / name
    frame.to_csv(path, index=False) if name == "c.csv" else frame.to_parquet(path)
    catalog = read_catalog(path, ["a_b"], check_files=False)
    assert catalog.ids.tolist() == ids
    assert catalog.counts[:, 0].astype(int).tolist() == counts[: len(ids)]


@settings(deadline=None, max_examples=50)
@given(
    ids=st.lists(IDS, min_size=1, max_size=50, unique=True),
    shares=st.tuples(st.floats(0, 0.49), st.floats(0, 0.49)),
    seed=st.integers(-(2**31), 2**31),
    order=st.randoms(),
)
def test_split_of_a_galaxy_depends_on_its_id_alone(ids, shares, seed, order):
    together = dict(zip(ids, split_by_id(ids, *shares, seed), strict=True))
    shuffled = list(ids)
    order.shuffle(shuffled)
    for subset in (shuffled, shuffled[: len(ids) // 2 + 1]):
        assert split_by_id(subset, *shares, seed).tolist() == [together[name] for name in subset]


@settings(deadline=None, max_examples=50)
@given(ids=st.lists(IDS, min_size=1, max_size=50), shares=st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)))
def test_test_split_is_the_same_whatever_the_validation_share(ids, shares):
    first, second = (split_by_id(ids, share, 0.2) == "test" for share in shares)
    assert first.tolist() == second.tolist()


def test_splits_have_the_shares_asked_for_and_differ_between_seeds():
    ids = [str(i) for i in range(20_000)]
    split = split_by_id(ids, 0.1, 0.2)
    for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        # Five standard deviations of a binomial draw.
        assert abs(np.mean(split == name) - share) < 5 * np.sqrt(share * (1 - share) / len(ids))
    other = split_by_id(ids, 0.1, 0.2, seed=1)
    assert 0.4 < np.mean(split == other) < 0.7


def test_split_is_the_same_in_another_process():
    code = "from rarezoo.data.splits import split_by_id; print(*split_by_id([str(i) for i in range(30)], 0.3, 0.3, 5))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed == split_by_id([str(i) for i in range(30)], 0.3, 0.3, 5).tolist()


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.2), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(shares):
    with pytest.raises(UserError, match=r"data\.validation_share"):
        split_by_id(["a"], *shares)


def test_real_catalog_is_read_with_all_its_votes(real_catalog):
    table = pd.read_csv(real_catalog, dtype={"id_str": str})
    columns = [name for name in table if name not in ("id_str", "file_loc", "ra", "dec", "p_features")]
    catalog = read_catalog(real_catalog, columns)
    assert catalog.ids.tolist() == table["id_str"].tolist()
    np.testing.assert_array_equal(catalog.counts, table[columns].to_numpy())
