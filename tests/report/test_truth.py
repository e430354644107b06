from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rarezoo.cli import UserError
from rarezoo.report.truth import compare, read_truth

EMBEDDED = [f"J{row}" for row in range(6)]


@pytest.fixture
def read(tmp_path):
    """Read a truth table of these ids, the first of which are a ring, beside the embeddings of six galaxies."""

    def read_table(ids, embedded=EMBEDDED, **columns):
        path = tmp_path / "truth.csv"
        names = ["ring"] + [""] * (len(ids) - 1)
        pd.DataFrame({"id_str": ids, "rare_class": names[: len(ids)], **columns}).to_csv(path, index=False)
        embeddings = SimpleNamespace(ids=np.array(embedded, dtype=object), path=tmp_path / "embeddings.h5")
        return read_truth(path, embeddings)

    return read_table


def test_a_table_of_all_embedded_galaxies_says_nothing(read):
    table, told = read(EMBEDDED)
    assert told == []
    assert table["rare_class"].fillna("").tolist() == ["ring", "", "", "", "", ""]


def test_a_table_of_other_galaxies_is_refused_with_an_id_of_each_side(read):
    with pytest.raises(UserError) as raised:
        read(["587722981736448065", "587722981736448066"])
    said = str(raised.value)
    assert "truth.csv: column 'id_str' (such as '587722981736448065')" in said
    assert "embeddings.h5 (such as 'J0')" in said
    assert "Give the table of the catalog that was embedded, or truth=null" in said


def test_a_table_without_rows_is_refused(read):
    with pytest.raises(UserError, match=r"'id_str' \(none\) has none of the galaxies"):
        read([])


def test_a_table_that_fits_in_part_is_told_of_with_both_numbers(read):
    _, told = read(["J0", "J1", "gone", "J2", "lost"])
    assert told == [
        "truth.csv: 2 of its 5 galaxies (first: 'gone') were not embedded, and count as missed; "
        "3 of 6 embedded galaxies are not in it, and count as of no known class."
    ]


@pytest.mark.parametrize(("ids", "said"), [(["J0", "J1", "gone"], "1 of its 3"), (["J0"], "5 of 6 embedded")])
def test_each_side_that_lacks_galaxies_is_told_of(read, ids, said):
    assert said in read(ids)[1][0]


def test_an_id_twice_and_a_column_that_is_not_there_are_refused(read, tmp_path):
    with pytest.raises(UserError, match="'J1' more than once"):
        read(["J0", "J1", "J1"])
    pd.DataFrame({"id_str": EMBEDDED, "rare": ""}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UserError, match=r"has no column 'rare_class'"):
        read_truth(tmp_path / "other.csv", SimpleNamespace(ids=np.array(EMBEDDED), path="e.h5"))
    with pytest.raises(UserError, match="there is no such file"):
        read_truth(tmp_path / "absent.csv", SimpleNamespace(ids=np.array(EMBEDDED), path="e.h5"))


def test_members_that_were_not_selected_count_as_missed(read):
    truth = pd.DataFrame({"rare_class": ["ring"] * 4 + [None] * 2}, index=EMBEDDED)
    found = pd.DataFrame({"id_str": ["J5", "J1", "J0"], "cluster": [-1, 0, 0]})
    table, facts = compare(found, truth)
    (row,) = table.to_dict("records")
    assert (row["members"], row["selected"], row["overlap"], row["purity"]) == (4, 2, 2, 1.0)
    assert row["f1"] == pytest.approx(2 * 2 / (2 + 4))
    assert facts["planted"] == 1
