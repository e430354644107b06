import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rarezoo.cli import UserError
from rarezoo.clustering.select import select
from rarezoo.clustering.settings import Cut
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.select import find_answer, predicted_votes, rows_within
from rarezoo.votes import Schema, load_schema

COLS = ["a_yes", "a_no", "b_yes"]
bounds = st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(0, 30), st.just(3)), elements=st.floats(0, 1, width=32)),
    st.lists(bounds, min_size=3, max_size=3),
    st.integers(1, 31),
)
def test_rows_are_those_within_all_bounds_whatever_the_pieces(fractions, cuts, step):
    pieces = [fractions[start : start + step] for start in range(0, len(fractions), step)]
    rows, left = rows_within(pieces, COLS, cuts)
    kept, expected = set(range(len(fractions))), []
    for column, (low, high) in zip(fractions.T, cuts, strict=True):
        least = -np.inf if low is None else np.float32(low)
        most = np.inf if high is None else np.float32(high)
        kept &= {row for row, value in enumerate(column) if least <= value < most}
        expected.append(len(kept))
    assert rows.tolist() == sorted(kept)
    assert rows.dtype == np.int64
    assert left == expected


def test_low_bound_belongs_to_what_is_kept_and_high_bound_does_not():
    pieces = [np.array([[0.2], [0.7], [0.5]], np.float32)]
    assert rows_within(pieces, ["a_yes"], [(0.2, 0.7)])[0].tolist() == [0, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fractions_that_are_not_finite_are_counted_over_all_pieces(value):
    pieces = [np.zeros((2, 1)), np.array([[0.1], [value]]), np.array([[value]])]
    with pytest.raises(UserError, match=rf"'a_yes' is not finite in 2 rows \(first: row 3, value {value}\)"):
        rows_within(pieces, ["a_yes"], [(None, 0.5)])


def test_a_full_name_means_itself_even_where_it_is_also_a_pattern():
    assert find_answer("a[1]", ["a[1]", "a1"], "selection.cuts.a.answer") == "a[1]"


# bar is asked after answers of two questions, of which one leads to the other.
TREE = {
    "shape": {"answers": ["smooth", "disk", "artifact"], "asked_after": None},
    "edge": {"answers": ["yes", "no"], "asked_after": "shape_disk"},
    "bar": {"answers": ["strong", "no"], "asked_after": ["edge_no", "shape_artifact"]},
    "round": {"answers": ["in", "out"], "asked_after": ["shape_smooth", "shape_artifact"]},
}
TREE_COLS = Schema.from_tree(TREE).label_cols
QUESTIONS = {"shape": slice(0, 3), "edge": slice(3, 5), "bar": slice(5, 7), "round": slice(7, 9)}


def _joint_by_hand(concentrations):
    """(rows, answers), written out for this tree."""
    share = np.empty_like(concentrations, dtype=np.float64)
    for places in QUESTIONS.values():
        share[:, places] = concentrations[:, places] / concentrations[:, places].sum(axis=1, keepdims=True)
    smooth, disk, artifact = share[:, :3].T
    asked = {"shape": np.ones(len(share)), "edge": disk, "round": smooth + artifact}
    asked["bar"] = 1 - (1 - disk * share[:, 4]) * (1 - artifact)
    return np.column_stack([share[:, places] * asked[name][:, None] for name, places in QUESTIONS.items()]), share


votes = arrays(np.float32, st.tuples(st.integers(1, 20), st.just(9)), elements=st.floats(0.125, 50, width=32))


@settings(deadline=None, max_examples=60)
@given(
    votes,
    st.lists(st.tuples(st.sampled_from(TREE_COLS), st.sampled_from(["fraction", "joint"])), min_size=1),
    st.integers(1, 21),
)
def test_votes_are_fractions_or_those_times_the_probability_to_be_asked(concentrations, wanted, step):
    pieces = [concentrations[start : start + step] for start in range(0, len(concentrations), step)]
    answers, of = zip(*wanted, strict=True)
    found = np.concatenate(list(predicted_votes(pieces, Schema.from_tree(TREE), answers, of)))
    joint, fraction = _joint_by_hand(concentrations)
    for column, (answer, share) in enumerate(wanted):
        expected = (joint if share == "joint" else fraction)[:, TREE_COLS.index(answer)]
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-5)


def test_votes_of_several_members_are_the_mean_of_each_ones():
    members = np.random.default_rng(0).uniform(0.1, 20, (3, 7, 9)).astype(np.float32)
    [found] = predicted_votes(
        [members.swapaxes(0, 1)], Schema.from_tree(TREE), ["bar_strong", "bar_no"], ["joint", "fraction"]
    )
    joint, fraction = (np.mean(shares, axis=0) for shares in zip(*map(_joint_by_hand, members), strict=True))
    np.testing.assert_allclose(found, np.column_stack([joint[:, 5], fraction[:, 6]]), rtol=1e-5)


def test_joint_votes_of_a_published_tree_sum_to_what_the_leading_answers_leave():
    schema = load_schema("decals_dr5")
    votes = np.random.default_rng(0).uniform(0.1, 20, (5, len(schema.label_cols))).astype(np.float32)
    bars = [column for column in schema.label_cols if column.startswith("bar-dr5")]
    answers = [*bars, "disk-edge-on-dr5_no", "disk-edge-on-dr5_yes", "smooth-or-featured-dr5_featured-or-disk"]
    [found] = predicted_votes([votes], schema, answers, ["joint"] * len(answers))
    np.testing.assert_allclose(found[:, : len(bars)].sum(axis=1), found[:, -3], rtol=1e-5)
    np.testing.assert_allclose(found[:, -3] + found[:, -2], found[:, -1], rtol=1e-5)


@pytest.mark.parametrize("n_members", [1, 3])
def test_a_file_is_cut_on_joint_votes_piece_by_piece(tmp_path, monkeypatch, n_members):
    members = np.random.default_rng(0).uniform(0.1, 20, (50, n_members, 9)).astype(np.float32)
    text = h5py.string_dtype("utf-8")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        for name in ("id", "file_loc"):
            file.create_dataset(name, data=[f"J{row}" for row in range(50)], dtype=text)
        file["representation"] = np.zeros((50, 2), np.float32)
        file["concentrations"] = members.mean(axis=1)
        if n_members > 1:
            file["member_concentrations"] = members
        file.attrs.update({"format": 1, "complete": True, "schema": json.dumps(TREE), "image_root": "/"})
        file.attrs.create("label_cols", list(TREE_COLS), dtype=text)
    monkeypatch.setattr("rarezoo.embeddings.rows.PIECE_BYTES", 500)
    cuts = {
        "bars": Cut(answer="bar_strong", at_least=0.1, below=0.3, of="joint"),
        "disk": Cut(answer="*_disk", below=0.4),
    }
    joint, fraction = np.mean([_joint_by_hand(members[:, i]) for i in range(n_members)], axis=0)
    keep = (joint[:, 5] >= 0.1) & (joint[:, 5] < 0.3) & (fraction[:, 1] < 0.4)
    with open_embeddings(tmp_path / "e.h5") as embeddings:
        found = select(embeddings, cuts)
    assert found.rows.tolist() == np.flatnonzero(keep).tolist()
    assert 0 < len(found.rows) < 50
