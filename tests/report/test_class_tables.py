import base64
import csv
import io
import json
import resource
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse_single_table, validate
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.pandas import column, data_frames, range_indexes

from rarezoo.cli import UserError
from rarezoo.data.tables import read_table
from rarezoo.report.results import medoid_positions
from rarezoo.report.tables import write_tables

IDS = ["J100239.10+021015.9", 'a "quoted", id', "δ-field 7", "𝔊 7", "two\nlines"]
MADE_FROM = {"settings_sha256": "ab12", "git_commit": "c0ffee", "versions": {"numpy": "2.0"}, "title": "δ < 1 & 'x'"}
FILES = [f"{table}.{suffix}" for table in ("galaxies", "classes") for suffix in ("parquet", "csv", "fits", "vot")]


def galaxies():
    return pd.DataFrame(
        {
            "id_str": IDS,
            "ra": [10.684708, 359.99999999999994, 0.0, np.nan, 1e-12],
            "dec": [-90.0, 41.26875, 0.1, np.nan, 90.0],
            "cluster": np.array([0, -1, 1, 1, 0], np.int32),
            "probability": np.array([1, 0, 0.1, 0.3, 0.7], np.float32),
            "n_visits": pd.array([999999, None, -(2**31), 7, 0], dtype="Int32"),
            "object": np.array([2**63 - 1, -(2**63), 0, 1, 2]),
            "big": np.array([2**64 - 1, 0, 1, 2, 3], np.uint64),
            "tiny": np.array([-128, 127, 0, 1, 2], np.int8),
            "half": np.array([0.5, 1, 2, 3, 4], np.float16),
            "lens": [True, False, False, True, True],
            "merger": pd.array([True, None, False, True, None], dtype="boolean"),
            "comment": ["", None, 'say "hi", then', "naïve", " lead"],
            "survey": pd.Categorical(["north", "south", "north", None, "south"]),
            "night": pd.to_datetime(["2026-01-02", None, "2026-01-03", "2026-01-04", "2026-01-05"]),
            "empty": [None] * 5,
        }
    )


def classes():
    return pd.DataFrame(
        {
            "cluster": np.arange(2, dtype=np.int32),
            "name": ["one-armed, δ", ""],
            "size": [2, 2],
            "nearest": [[1], [0]],
            "answers": [[{"answer": "bar_strong", "mean": 0.8, "others": 0.1, "effect": 4.5}], []],
        }
    )


@pytest.fixture
def written(tmp_path):
    return write_tables(tmp_path, classes(), galaxies(), MADE_FROM)


def escaped(text):
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def test_both_tables_are_written_in_four_formats(written, tmp_path):
    assert list(written) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_parquet_gives_back_what_was_written_lists_included(written):
    pd.testing.assert_frame_equal(pd.read_parquet(written["galaxies.parquet"]), galaxies())
    again = pd.read_parquet(written["classes.parquet"])
    assert again["answers"][0].tolist() == classes()["answers"][0]
    assert [found.tolist() for found in again["nearest"]] == [[1], [0]]


def test_csv_has_each_value_as_text_and_nothing_for_what_is_missing(written):
    with written["galaxies.csv"].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = galaxies()
    assert list(rows[0]) == table.columns.tolist()
    for name in ("id_str", "comment", "survey"):
        assert [row[name] for row in rows] == table[name].astype(object).where(table[name].notna(), "").tolist()
    for name in ("ra", "dec"):
        np.testing.assert_array_equal([float(row[name] or "nan") for row in rows], table[name])
    np.testing.assert_array_equal(np.array([row["probability"] for row in rows], np.float32), table["probability"])
    assert [row["n_visits"] for row in rows] == ["999999", "", "-2147483648", "7", "0"]
    assert [row["merger"] for row in rows] == ["true", "", "false", "true", ""]
    assert rows[0]["big"] == str(2**64 - 1)


@pytest.mark.parametrize("kind", ["fits", "vot"])
def test_numbers_and_nulls_come_back_from_fits_and_votable(written, kind):
    again = Table.read(written[f"galaxies.{kind}"], format="votable" if kind == "vot" else "fits")
    table = galaxies()
    assert again.colnames == table.columns.tolist()
    for name in ("ra", "dec", "probability", "half"):
        np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(again[name]), np.nan), table[name])
    for name in ("cluster", "object", "tiny", "lens"):
        assert again[name].tolist() == table[name].tolist()
    assert again["cluster"].dtype.itemsize == 4
    assert [str(value) for value in again["big"]] == [str(value) for value in table["big"]]
    for name, missing in (("n_visits", [1]), ("merger", [1, 4])):
        assert np.flatnonzero(again[name].mask).tolist() == missing
        there = table[name].notna().to_numpy()
        assert np.asarray(again[name])[there].tolist() == table[name][there].tolist()


def test_text_comes_back_from_votable_whatever_its_characters(written):
    again = Table.read(written["galaxies.vot"], format="votable")
    assert again["id_str"].tolist() == IDS
    assert again["comment"].tolist() == ["", "", 'say "hi", then', "naïve", " lead"]
    assert again["survey"].tolist()[:3] == ["north", "south", "north"]


def test_text_comes_back_from_fits_with_escapes_for_what_fits_has_not(written):
    again = Table.read(written["galaxies.fits"], character_as_bytes=False)
    assert again["id_str"].tolist() == [escaped(text) for text in IDS]
    assert again["id_str"].tolist()[2] == "\\u03b4-field 7"
    assert again["comment"].tolist() == ["", "", 'say "hi", then', "na\\xefve", " lead"]


@pytest.mark.parametrize("kind", ["csv", "fits", "vot"])
def test_lists_are_json_where_there_are_no_lists(written, kind):
    again = read_table(written[f"classes.{kind}"])
    assert [json.loads(text) for text in again["answers"]] == classes()["answers"].tolist()
    assert [json.loads(text) for text in again["nearest"]] == [[1], [0]]


@pytest.mark.parametrize("kind", ["parquet", "csv", "fits", "vot"])
def test_every_file_is_a_table_that_this_package_reads(written, kind):
    assert read_table(written[f"galaxies.{kind}"])["ra"].tolist()[:3] == galaxies()["ra"].tolist()[:3]


def test_coordinates_have_units_and_ucds_and_columns_are_described(written):
    header = fits.getheader(written["galaxies.fits"], 1)
    assert (header["EXTNAME"], header["TUNIT2"], header["TUCD2"]) == ("GALAXIES", "deg", "pos.eq.ra;meta.main")
    assert header["TCOMM4"] == "Class, -1 for none"
    field = parse_single_table(written["galaxies.vot"]).fields[1]
    assert (str(field.unit), field.ucd, field.description) == ("deg", "pos.eq.ra;meta.main", "Right ascension")
    about = pq.read_schema(written["galaxies.parquet"]).field("ra").metadata
    assert (about[b"unit"], about[b"ucd"]) == (b"deg", b"pos.eq.ra;meta.main")


def test_classes_lie_where_their_medoids_do_and_are_found_there_by_programs_that_match_positions(tmp_path):
    found = classes().assign(medoid_row=[4, 2])
    found = found.assign(**medoid_positions(found, galaxies()))
    paths = write_tables(tmp_path, found, galaxies(), MADE_FROM)
    for kind in ("parquet", "csv", "fits", "vot"):
        again = read_table(paths[f"classes.{kind}"])
        assert (again["medoid_ra"].tolist(), again["medoid_dec"].tolist()) == ([1e-12, 0.0], [90.0, 0.1])
    table = parse_single_table(paths["classes.vot"])
    for axis in ("ra", "dec"):
        field = table.get_field_by_id_or_name(f"medoid_{axis}")
        assert [other.name for other in table.fields if other.ucd == f"pos.eq.{axis};meta.main"] == [field.name]
        assert str(field.unit) == "deg"
    assert QTable.read(paths["classes.fits"])["medoid_ra"].unit == "deg"
    assert medoid_positions(found, galaxies().drop(columns="dec")) == {}


def test_each_file_but_csv_says_what_it_was_made_from(written):
    assert json.loads(pq.read_schema(written["classes.parquet"]).metadata[b"rarezoo"]) == MADE_FROM
    history = [str(line) for line in fits.getheader(written["classes.fits"], 1)["HISTORY"]]
    assert history[:3] == ["settings_sha256 = ab12", "git_commit = c0ffee", "versions.numpy = 2.0"]
    infos = ET.parse(written["classes.vot"]).iter("{http://www.ivoa.net/xml/VOTable/v1.3}INFO")
    assert {info.get("name"): info.get("value") for info in infos}["title"] == MADE_FROM["title"]


def test_missing_text_has_its_bit_in_votable(written):
    stream = ET.parse(written["galaxies.vot"]).find(".//{*}STREAM")
    rows = base64.b64decode(stream.text)
    place = galaxies().columns.get_loc("comment")
    flags = np.frombuffer(rows, np.uint8).reshape(len(IDS), -1)[:, :2]
    assert np.flatnonzero(np.unpackbits(flags, axis=1)[:, place]).tolist() == [1]


def test_votable_is_valid_in_the_eyes_of_astropy(written):
    said = io.StringIO()
    validate(written["galaxies.vot"], output=said, xmllint=False)
    assert "found no violations" in said.getvalue()


def test_names_that_xml_has_not_do_no_harm(tmp_path):
    table = pd.DataFrame({"id_str": ["a"], "flux <g> & r": [1.5], "µ": [2.5], "1st": [3]})
    paths = write_tables(tmp_path, classes(), table, {})
    again = parse_single_table(paths["galaxies.vot"])
    assert [field.name for field in again.fields] == table.columns.tolist()
    assert again.array.tolist()[0] == ("a", 1.5, 2.5, 3)
    assert Table.read(paths["galaxies.fits"]).colnames == ["id_str", "flux <g> & r", "\\xb5", "1st"]


def test_tables_without_rows_are_written_and_read(tmp_path):
    paths = write_tables(tmp_path, classes()[:0], galaxies()[:0], MADE_FROM)
    for kind in ("parquet", "csv", "fits", "vot"):
        assert list(read_table(paths[f"galaxies.{kind}"]).columns) == galaxies().columns.tolist()
        assert len(read_table(paths[f"classes.{kind}"])) == 0


def test_more_rows_than_are_packed_at_a_time_come_back_in_order(tmp_path):
    n = 61_001
    table = pd.DataFrame({"id_str": [f"J{row}" for row in range(n)], "ra": np.arange(n) / 7})
    again = Table.read(write_tables(tmp_path, classes(), table, {})["galaxies.vot"])
    assert again["id_str"].tolist() == table["id_str"].tolist()
    np.testing.assert_array_equal(again["ra"], table["ra"])


@settings(deadline=None, max_examples=25)
@given(
    data_frames(
        [
            column(
                "text",
                elements=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
                dtype=object,
            ),
            column("whole", elements=st.none() | st.integers(-(2**62), 2**62), dtype=object),
            column("truth", elements=st.none() | st.booleans(), dtype=object),
            column("real", dtype=np.float64),
        ],
        index=range_indexes(min_size=1, max_size=12),
    )
)
def test_whatever_the_values_votable_and_fits_give_them_back(tmp_path_factory, frame):
    frame = frame.astype({"text": "str", "whole": "Int64", "truth": "boolean"})
    paths = write_tables(tmp_path_factory.getbasetemp() / "any", classes(), frame, {})
    for path in (paths["galaxies.vot"], paths["galaxies.fits"]):
        again = Table.read(path).to_pandas()
        for name in ("whole", "truth"):
            there = frame[name].notna()
            assert again[name].isna().tolist() == (~there).tolist()
            assert again[name][there].astype(object).tolist() == frame[name][there].astype(object).tolist()
        np.testing.assert_array_equal(again["real"].to_numpy(np.float64, na_value=np.nan), frame["real"])
    texts = parse_single_table(paths["galaxies.vot"]).array["text"].filled("").tolist()
    assert texts == frame["text"].fillna("").tolist()


def very_long(n_rows, length):
    comments = ["short"] * (n_rows - 1) + ["δ" + "x" * (length - 1)]
    return pd.DataFrame({"id_str": [f"J{row}" for row in range(n_rows)], "comment": comments, "ra": 1.5})


def test_text_that_would_be_a_gigabyte_of_padding_is_left_out_of_fits_and_votable_and_told_of(tmp_path, caplog):
    n_rows, length = 2_000, 600_000
    table = very_long(n_rows, length)
    paths = write_tables(tmp_path, classes(), table, MADE_FROM)
    assert all(path.stat().st_size < 5_000_000 for path in paths.values())
    for kind in ("fits", "vot"):
        assert read_table(paths[f"galaxies.{kind}"]).columns.tolist() == ["id_str", "ra"]
    for kind in ("parquet", "csv"):
        assert read_table(paths[f"galaxies.{kind}"])["comment"].tolist() == table["comment"].tolist()
    (record,) = caplog.records
    assert "galaxies: column 'comment' is left out of FITS and VOTable" in record.getMessage()
    assert "left_out = comment" in str(fits.getheader(paths["galaxies.fits"], 1)["HISTORY"])
    infos = ET.parse(paths["galaxies.vot"]).iter("{http://www.ivoa.net/xml/VOTable/v1.3}INFO")
    assert {info.get("name"): info.get("value") for info in infos}["left_out"] == "comment"


def test_a_long_text_among_few_rows_is_kept_whole(tmp_path, caplog):
    paths = write_tables(tmp_path, classes(), very_long(5, 100_000), MADE_FROM)
    assert read_table(paths["galaxies.fits"])["comment"].str.len().max() == 100_005
    assert read_table(paths["galaxies.vot"])["comment"].str.len().max() == 100_000
    assert not caplog.records
    assert "left_out" not in str(fits.getheader(paths["galaxies.fits"], 1)["HISTORY"])


@pytest.mark.parametrize("limit", [2_000, 30_000, 120_000])
def test_a_disk_that_fills_up_leaves_the_earlier_tables_as_they_were(tmp_path, limit):
    write_tables(tmp_path, classes(), galaxies(), MADE_FROM)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rng = np.random.default_rng(0)
    many = pd.DataFrame({"id_str": [f"J{row}" for row in range(4000)], "ra": rng.random(4000), "dec": rng.random(4000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"galaxies\.\w+: cannot be written \(File too large\)"):
            write_tables(tmp_path, classes(), many, MADE_FROM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("failing", ["fits.table_to_hdu", "votable"])
def test_one_file_that_fails_leaves_none_of_the_others(tmp_path, monkeypatch, failing):
    def refuse(*arguments, **options):
        raise RuntimeError("a fault of ours")

    target = "astropy.io.fits.table_to_hdu" if failing.startswith("fits") else "astropy.io.votable.tree.VOTableFile"
    monkeypatch.setattr(target, refuse)
    with pytest.raises(RuntimeError):
        write_tables(tmp_path, classes(), galaxies(), MADE_FROM)
    assert list(tmp_path.iterdir()) == []
