"""Where other programs for Galaxy Zoo votes go wrong, or differ from ours (docs/compared_with_zoobot.md)."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.autograd.profiler import profile

from rarezoo.cli import UserError
from rarezoo.data.catalog import read_catalog
from rarezoo.votes import load_schema, vote_nll
from rarezoo.votes.tree_files import tree_names

TREES = [name for name in tree_names() if not name.endswith("_published")]


def operations_of(name):
    schema = load_schema(name)
    concentrations = torch.full((4, len(schema.label_cols)), 5.0, requires_grad=True)
    counts = torch.ones_like(concentrations)
    vote_nll(concentrations, counts, schema)
    with profile() as recorded:
        vote_nll(concentrations, counts, schema).sum().backward()
    return sorted(event.name for event in recorded.function_events if event.name.startswith("aten::"))


def test_likelihood_of_86_questions_takes_no_more_operations_than_that_of_one():
    assert operations_of("gz_evo_v2") == operations_of("rings")


def asked(schema, **fractions):
    """Probability that each question is asked, by its name; answers that are not named share what is left."""
    values = torch.zeros(len(schema.label_cols), dtype=torch.float64)
    for question in schema.questions:
        given = [fractions.get(column.replace("-", "_")) for column in question.label_cols]
        left = (1 - sum(value or 0 for value in given)) / max(1, given.count(None))
        values[question.start : question.stop] = torch.tensor([left if value is None else value for value in given])
    names = (question.name for question in schema.questions)
    return dict(zip(names, schema.p_asked(values).tolist(), strict=True))


def sure_of(schema, question, answer):
    """Votes that all go to one answer of a question, in every campaign."""
    columns = [column for q in schema.questions if q.name.startswith(question) for column in q.label_cols]
    return {column.replace("-", "_"): float(column.endswith(f"_{answer}")) for column in columns}


def named(schema, *beginnings):
    return [question.name for question in schema.questions if question.name.startswith(beginnings)]


@pytest.mark.parametrize("name", TREES)
def test_no_tree_asks_about_the_arms_of_a_galaxy_without(name):
    schema = load_schema(name)
    about_arms = named(schema, "spiral-winding", "spiral-arm-count")
    probabilities = asked(schema, **sure_of(schema, "has-spiral-arms", "no"))
    assert [probabilities[question] for question in about_arms] == [0] * len(about_arms)
    assert all(value > 0 for question, value in asked(schema).items() if question in about_arms)
    assert bool(about_arms) == (name != "rings")


@pytest.mark.parametrize("name", TREES)
def test_no_tree_asks_about_the_bar_of_a_galaxy_seen_from_the_edge(name):
    schema = load_schema(name)
    about_disks = named(schema, "bar", "has-spiral-arms", "bulge-size")
    probabilities = asked(schema, **sure_of(schema, "disk-edge-on", "yes"))
    assert [probabilities[question] for question in about_disks] == [0] * len(about_disks)


def test_an_answer_leads_to_all_questions_that_are_asked_after_it():
    schema = load_schema("decals_dr5")
    fractions = {"smooth_or_featured_dr5_featured_or_disk": 0.5, "disk_edge_on_dr5_no": 0.4}
    probabilities = asked(schema, **fractions)
    for question in ("bar-dr5", "has-spiral-arms-dr5", "bulge-size-dr5"):
        assert probabilities[question] == pytest.approx(0.2)
    assert probabilities["edge-on-bulge-dr5"] == pytest.approx(0.3)


@pytest.fixture
def release(tmp_path):
    """A table as Galaxy Zoo releases them: counts among fractions and totals, in an order of its own."""
    label_cols = load_schema("decals_dr5").label_cols
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id_str": ["J1", "J2"], "file_loc": ["1.jpg", "2.jpg"], "redshift": [0.1, np.nan]})
    for column in rng.permutation(label_cols):
        counts = rng.integers(0, 40, 2)
        table[f"{column}_fraction"] = counts / 40
        table[column] = counts
    for question in load_schema("decals_dr5").questions:
        table[f"{question.name}_total-votes"] = [np.nan, 40.5]
    path = tmp_path / "release.parquet"
    table.to_parquet(path)
    return path, table


def test_counts_are_found_by_name_among_fractions_and_totals(release):
    path, table = release
    label_cols = load_schema("decals_dr5").label_cols
    catalog = read_catalog(path, label_cols, check_files=False)
    np.testing.assert_array_equal(catalog.counts, table[list(label_cols)].to_numpy())


def test_columns_of_another_campaign_are_refused_with_those_that_are_there(release):
    expected = r"34 columns are missing: 'smooth-or-featured_smooth' \(did you mean 'smooth-or-featured-dr5_smooth'\?\)"
    with pytest.raises(UserError, match=expected):
        read_catalog(release[0], load_schema("desi").label_cols, check_files=False)
