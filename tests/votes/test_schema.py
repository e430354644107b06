import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.votes import Schema, load_schema
from rarezoo.votes.schema import resolve_schema

TREE = {
    "kind": {"answers": ["smooth", "disk", "artifact"], "asked_after": None},
    "arms": {"answers": ["yes", "no"], "asked_after": "kind_disk"},
    "count": {"answers": ["1", "2"], "asked_after": ["arms_yes"]},
    "merging": {"answers": ["yes", "no"], "asked_after": ["kind_smooth", "kind_disk"]},
}


def test_label_columns_are_question_answer_in_order():
    assert Schema.from_tree(TREE).label_cols[:5] == ("kind_smooth", "kind_disk", "kind_artifact", "arms_yes", "arms_no")


def test_probability_of_being_asked_is_the_product_along_the_parents():
    schema = Schema.from_tree(TREE)
    fractions = torch.tensor([[0.2, 0.7, 0.1, 0.4, 0.6, 0.5, 0.5, 0.3, 0.7]])
    torch.testing.assert_close(schema.p_asked(fractions), torch.tensor([[1.0, 0.7, 0.28, 0.9]]))


def test_several_parents_of_different_questions_are_independent_ways_to_be_asked():
    tree = {
        "a": {"answers": ["yes", "no"]},
        "b": {"answers": ["yes", "no"]},
        "c": {"answers": ["yes", "no"], "asked_after": ["a_yes", "b_yes"]},
    }
    asked = Schema.from_tree(tree).p_asked(torch.tensor([0.4, 0.6, 0.3, 0.7, 0.5, 0.5]))
    torch.testing.assert_close(asked, torch.tensor([1.0, 1.0, 1 - 0.6 * 0.7]))


def test_probability_of_being_asked_takes_any_leading_dimensions():
    schema = Schema.from_tree(TREE)
    fractions = torch.rand(3, 4, 9)
    torch.testing.assert_close(schema.p_asked(fractions)[2], schema.p_asked(fractions[2]))


def test_a_small_probability_of_being_asked_keeps_its_digits():
    fractions = torch.full((1, 9), 0.5)
    fractions[0, 1] = 1e-9
    assert Schema.from_tree(TREE).p_asked(fractions)[0, 1] == pytest.approx(1e-9, rel=1e-6)


def test_each_answer_knows_its_question():
    assert Schema.from_tree(TREE).question_of().tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_a_copy_carries_the_questions_alone():
    schema = Schema.from_tree(TREE)
    schema.question_of()
    copied = pickle.loads(pickle.dumps(schema))
    assert copied == schema
    assert set(vars(copied)) == {"questions"}


def test_a_child_listed_before_its_parent_is_read_alike():
    turned = Schema.from_tree(dict(reversed(TREE.items())))
    assert set(turned.label_cols) == set(Schema.from_tree(TREE).label_cols)
    assert len(turned.parents_first) == 4


def test_tree_survives_writing_and_reading():
    schema = Schema.from_tree(TREE)
    assert Schema.from_tree(schema.to_tree()) == schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"answers": ["yes", "yes"]}}, "'arms_yes' is there twice"),
        ({"arms": {"answers": ["yes"], "asked_after": "kind_dsk"}}, "Did you mean 'kind_disk'"),
        ({"arms": {"answers": ["yes"], "asked_after": "count_1"}}, "arms, count wait for each other"),
        ({"arms": {"answers": []}}, "at least one answer"),
        ({"arms": {"answers": "yes"}}, "at least one answer"),
        ({"arms": {"answers": [True, False]}}, "Put it in quotes"),
        ({"arms": {"answer": ["yes"]}}, "has no answers"),
        ({"arms": {"answers": ["yes"], "askd_after": None}}, "Did you mean 'asked_after'"),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Schema.from_tree({**TREE, **change})


def test_a_misspelt_schema_is_refused_with_the_near_match():
    with pytest.raises(UserError, match="Did you mean 'decals_dr5'"):
        load_schema("decals_d5")


def test_a_schema_of_ones_own_is_read_from_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ring:\n  answers: ['yes', 'no']\n")
    assert resolve_schema({"path": str(path)}).label_cols == ("ring_yes", "ring_no")


def test_broken_yaml_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ring: [")
    with pytest.raises(UserError, match=r"mine\.yaml: is not readable as YAML"):
        load_schema(path)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 1.0), min_size=9, max_size=9))
def test_a_question_is_never_asked_more_often_than_possible(weights):
    asked = Schema.from_tree(TREE).p_asked(torch.tensor([weights]).clamp(0, 0.5))
    assert (asked >= 0).all()
    assert (asked <= 1).all()
