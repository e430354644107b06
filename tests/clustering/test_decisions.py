import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.clustering.decisions import Decision, Decisions, decide, read_decisions, write_template
from rarezoo.clustering.tree import ClassTree

# Classes 0 to 4 of three galaxies each, and three galaxies in none.
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, -1, -1, -1], np.int32)
IDS = [f"J{row}" for row in range(len(LABELS))]


def make_tree(labels=LABELS):
    n, k = len(labels), int(labels.max(initial=-1)) + 1
    return ClassTree(
        labels=labels,
        probabilities=np.where(labels >= 0, 0.5, 0).astype(np.float32),
        outlier_scores=np.linspace(0, 1, n, dtype=np.float32),
        persistence=np.linspace(0.9, 0.1, k),
        nodes=np.arange(n + 1, n + 1 + k),
        parents=np.full(k, n),
        condensed=pd.DataFrame({"parent": n, "child": range(n), "lambda_val": 1.0, "child_size": 1}),
    )


def decided(*entries, tree=None, ids=IDS):
    return decide(tree or make_tree(), ids, Decisions(classes=[Decision(**entry) for entry in entries]))


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "classes.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_no_file_decides_nothing(tmp_path):
    assert read_decisions(tmp_path / "classes.yaml") == Decisions()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "classes:\n", "classes: []\n"])
def test_an_empty_file_decides_nothing(written, text):
    assert read_decisions(written(text)) == Decisions()


def test_a_file_is_read_as_it_is_written(written):
    path = written(
        "classes:\n"
        "  - medoid: J100239.10+021015.9\n    name: one-armed spirals\n    note: 'as in Arp: 22'\n"
        "  - members: [J1, 'J2', J1]\n    merge_into: one-armed spirals\n"
        "  - medoid: J3\n    exclude: true\n"
    )
    first, second, third = read_decisions(path).classes
    assert (first.galaxies, first.name, first.note) == (["J100239.10+021015.9"], "one-armed spirals", "as in Arp: 22")
    assert (second.galaxies, second.merge_into, third.exclude) == (["J1", "J2"], "one-armed spirals", True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: [", "is not readable as YAML"),
        (b"classes: \xff", "is not readable as YAML"),
        ("- medoid: J1", "holds a list. Write classes: and below it a list"),
        ("clases:\n - medoid: J1", "has 'clases'. Did you mean 'classes'"),
        ("classes: {medoid: J1}", "classes is no list. Write each entry with a dash"),
        ("classes: [J1]", r"entry 1: write it as 'medoid: ...' \(found 'J1'\)"),
        ("classes:\n - medoid: J1\n - medoid: J2\n   nam: x", "entry 2 has 'nam'. Did you mean 'name'"),
        ("classes:\n - medoid: 0123", "entry 1: medoid is 83, read as int. Put it in quotes"),
        ("classes:\n - medoid: J1\n   name: no", "entry 1: name is False, read as bool. Put it in quotes"),
        ("classes:\n - members: [J1, 5]", "entry 1: members.1 is 5, read as int. Put it in quotes"),
        ("classes:\n - members: []", r"entry 1: members is \[\]"),
        ("classes:\n - medoid: J1\n   exclude: maybe", "entry 1: exclude is 'maybe'"),
        ("classes:\n - name: x", "entry 1: give either medoid, the id_str of a galaxy"),
        ("classes:\n - medoid: J1\n   members: [J2]", "entry 1: give either medoid"),
        ("classes:\n - medoid: J1\n   name: a\n   merge_into: a", "entry 1: merge_into gives the class the name"),
        ("classes:\n - medoid: J1\n   exclude: true\n   merge_into: a", "entry 1: merge_into gives"),
        ("classes:\n - medoid: J1\n   name: a\n   name: b", "'name' is there twice"),
        (
            "classes:\n - medoid: J1\n   name: a\n - medoid: J2\n   name: a",
            r"entry 2 \(J2\) has the name 'a' of entry 1 \(J1\). Write merge_into: a",
        ),
        ("classes:\n - medoid: J1\n - medoid: J1", r"entry 2 \(J1\) has the medoid 'J1' of entry 1"),
        (
            "classes:\n - medoid: J1\n   name: tail\n - medoid: J2\n   merge_into: tails",
            r"entry 2 \(J2\) merges into 'tails', the name of no entry. Did you mean 'tail'",
        ),
        ("classes:\n - medoid: J2\n   merge_into: tails", "the name of no entry. Give an entry this name"),
    ],
)
def test_a_fault_is_named_with_file_entry_and_fix(written, text, said):
    path = written(text)
    with pytest.raises(UserError, match=said) as raised:
        read_decisions(path)
    assert str(path) in str(raised.value)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not readable"):
        read_decisions(tmp_path)


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["classes", "medoid", "members", "name", "note", "merge_into", "exclude", "x"]), inner
            )
        ),
    )
)
def test_whatever_yaml_holds_is_read_or_refused_in_words(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    refused = []
    try:
        assert isinstance(read_decisions(path), Decisions)
    except UserError as error:
        refused.append(str(error))
    assert all("any.yaml" in message for message in refused)


def test_without_decisions_all_stays_as_it_was():
    found = decided()
    assert found.tree.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(found.tree.persistence, make_tree().persistence)
    assert found.classes["found_clusters"].tolist() == [[0], [1], [2], [3], [4]]
    assert set(found.classes["name"]) | set(found.classes["note"]) == {""}
    assert (found.excluded, found.unmatched) == ([], [])


def test_names_and_notes_go_to_the_class_that_holds_the_galaxy():
    found = decided({"medoid": "J4", "name": "tadpoles", "note": "see Straughn"}, {"medoid": "J14", "note": "odd"})
    assert found.classes["name"].tolist() == ["", "tadpoles", "", "", ""]
    assert found.classes["note"].tolist() == ["", "see Straughn", "", "", "odd"]
    assert found.unmatched == []


def test_merged_classes_are_one_in_the_place_of_the_most_persistent_and_the_rest_close_up():
    found = decided({"medoid": "J9", "name": "rings"}, {"medoid": "J3", "merge_into": "rings", "note": "polar"})
    assert found.classes["found_clusters"].tolist() == [[0], [1, 3], [2], [4]]
    assert found.classes["cluster"].tolist() == [0, 1, 2, 3]
    assert found.classes["name"].tolist() == ["", "rings", "", ""]
    assert found.classes["note"].tolist() == ["", "polar", "", ""]
    assert found.tree.labels.tolist() == np.array([0, 1, 2, 1, 3, -1])[LABELS].tolist()
    before = make_tree()
    np.testing.assert_array_equal(found.tree.nodes, before.nodes[[0, 1, 2, 4]])
    np.testing.assert_array_equal(found.tree.persistence, before.persistence[[0, 1, 2, 4]])
    assert found.tree.sizes().tolist() == [3, 6, 3, 3]


def test_classes_merge_into_a_name_whose_own_galaxy_is_in_no_class():
    entries = [{"medoid": "J16", "name": "rings"}, *({"medoid": m, "merge_into": "rings"} for m in ("J0", "J12"))]
    found = decided(*entries)
    assert found.classes["found_clusters"].tolist() == [[0, 4], [1], [2], [3]]
    assert found.classes["name"].tolist() == ["rings", "", "", ""]
    assert found.unmatched == ["entry 1 (J16): none of its galaxies is in a class of this search."]


def test_galaxies_of_an_excluded_class_are_in_none_and_keep_what_was_found():
    found = decided({"medoid": "J3", "exclude": True})
    assert found.tree.labels.tolist() == np.array([0, -1, 1, 2, 3, -1])[LABELS].tolist()
    assert found.found.tolist() == LABELS.tolist()
    assert (found.tree.probabilities[LABELS == 1] == 0).all()
    assert found.excluded == [1]
    assert found.classes["found_clusters"].tolist() == [[0], [2], [3], [4]]


def test_what_merges_into_an_excluded_name_is_excluded():
    found = decided({"medoid": "J0", "name": "ghosts", "exclude": True}, {"medoid": "J8", "merge_into": "ghosts"})
    assert found.excluded == [0, 2]
    assert "ghosts" not in found.classes["name"].tolist()


def test_all_classes_may_be_excluded():
    found = decided(*({"medoid": f"J{3 * cluster}", "exclude": True} for cluster in range(5)))
    assert (found.tree.labels == -1).all()
    assert (found.tree.n_classes, len(found.classes)) == (0, 0)


@pytest.mark.parametrize(
    ("members", "cluster"),
    [
        (["J0", "J3", "J4"], 1),
        (["J0", "J3"], 0),
        (["J15", "not here", "J6", "J7"], 2),
        (["J15", "J16", "J17", "J6"], None),
        (["not here", "nor here", "J6"], None),
        (["J0", "J3", "J6"], None),
        (["J15", "not here"], None),
    ],
)
def test_members_mean_the_class_that_holds_at_least_half_of_all_that_are_named(members, cluster):
    found = decided({"members": members, "name": "this"})
    assert [c for c, name in enumerate(found.classes["name"]) if name] == ([] if cluster is None else [cluster])
    assert len(found.unmatched) == (cluster is None)


def test_one_galaxy_that_is_left_of_a_class_does_not_exclude_another():
    entry = {"members": ["J9", *(f"gone-{number}" for number in range(20))], "exclude": True}
    found = decided(entry)
    assert found.excluded == []
    assert found.unmatched == [
        "entry 1 (J9): no class of this search holds half of its 21 galaxies (class 3 has 1, and 20 are in none)."
    ]


def test_of_two_entries_for_one_class_the_first_is_applied_and_the_second_told_of():
    found = decided({"medoid": "J0", "name": "a"}, {"medoid": "J1", "name": "b"}, {"medoid": "J2", "exclude": True})
    assert found.classes["name"].tolist() == ["a", "", "", "", ""]
    assert found.unmatched == [
        "entry 2 (J1): entry 1 (J0) is for the same class.",
        "entry 3 (J2): entry 1 (J0) is for the same class.",
    ]


def test_an_entry_that_merges_what_is_one_class_already_is_no_fault():
    found = decided({"medoid": "J0", "name": "a", "note": "x"}, {"medoid": "J1", "merge_into": "a", "note": "y"})
    assert found.unmatched == []
    assert found.classes.loc[0, ["name", "note"]].tolist() == ["a", "x; y"]


def test_an_entry_that_decides_nothing_is_not_told_of():
    assert decided({"medoid": "not here"}, {"medoid": "J0"}, {"medoid": "J1", "name": "a"}).unmatched == []


def test_decisions_hold_whatever_the_numbers_and_the_order_of_galaxies():
    rng = np.random.default_rng(0)
    rows, numbers = rng.permutation(len(LABELS)), rng.permutation(5)
    entries = [
        {"medoid": "J9", "name": "rings"},
        {"medoid": "J3", "merge_into": "rings"},
        {"medoid": "J6", "exclude": True},
    ]
    renumbered = np.append(numbers, -1)[LABELS][rows].astype(np.int32)
    before = decided(*entries)
    after = decided(*entries, tree=make_tree(renumbered), ids=[IDS[row] for row in rows])

    def members(found, ids):
        return {
            (name, frozenset(np.array(ids)[found.tree.labels == cluster]))
            for cluster, name in zip(found.classes["cluster"], found.classes["name"], strict=True)
        }

    assert members(before, IDS) == members(after, [IDS[row] for row in rows])


def classes_table(ids):
    columns = {
        "cluster": range(len(ids)),
        "size": 10,
        "medoid_id": ids,
        "distinguishing": "bar_strong 0.80 (others 0.10)",
    }
    return pd.DataFrame(columns)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True, max_size=5))
def test_a_template_decides_nothing_and_names_every_medoid(tmp_path_factory, ids):
    path = tmp_path_factory.getbasetemp() / "template.yaml"
    write_template(path, classes_table(ids))
    entries = read_decisions(path).classes
    assert [entry.medoid for entry in entries] == ids
    assert not any(entry.decides for entry in entries)


def test_a_template_keeps_the_names_that_were_given_already(tmp_path):
    write_template(tmp_path / "t.yaml", classes_table(["J1", "J2"]).assign(name=['rings: "polar"', ""]))
    assert [entry.name for entry in read_decisions(tmp_path / "t.yaml").classes] == ['rings: "polar"', None]


def test_a_template_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        write_template(tmp_path / "t.yaml", classes_table(["J1"]))
    assert list(tmp_path.iterdir()) == []
