import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.data.simulate.votes import MAX_VOLUNTEERS, MIN_VOLUNTEERS, QUESTIONS, answer_probabilities, simulate_votes

SCHEMAS = Path(__file__).parents[2] / "conf" / "schema"
DR5 = yaml.safe_load((SCHEMAS / "decals_dr5.yaml").read_text())
DESI = yaml.safe_load((SCHEMAS / "desi.yaml").read_text())
SHARES = (
    *("bulge_fraction", "axis_ratio", "edge_on", "arm_strength", "flocculence", "bar_strength", "inner_ring"),
    *("outer_ring", "clumpiness", "dust", "disturbance", "companion", "bulge_boxiness"),
)
SPIRAL = {
    "morphology": "disk",
    **dict.fromkeys(SHARES, 0.0),
    **{"axis_ratio": 0.8, "arm_strength": 0.7, "n_arms": 2, "pitch": 15.0, "bulge_fraction": 0.2},
    **{"half_light_radius": 12.0, "snr": 50.0, "psf_fwhm": 3.0, "artifact": "", "rare_class": ""},
}


def alike(n=1, **changed):
    """Galaxies that are all the same barless two-armed spiral, but for what is given."""
    return pd.DataFrame({**SPIRAL, **changed}, index=range(n))


def population(n, seed):
    """Galaxies with every parameter drawn on its own."""
    rng = np.random.default_rng(seed)
    drawn = pd.DataFrame({name: rng.random(n) for name in SHARES})
    return drawn.assign(
        morphology=rng.choice(["smooth", "disk", "irregular", "merger"], n),
        n_arms=rng.integers(0, 7, n),
        pitch=rng.uniform(5, 45, n),
        half_light_radius=rng.lognormal(2, 0.5, n),
        snr=rng.lognormal(3, 1, n),
        psf_fwhm=rng.uniform(2, 5, n),
        artifact=rng.choice(["", "", "chip_edge", "satellite_trail"], n),
        rare_class=rng.choice(["", "polar_ring"], n),
    )


def votes_of(counts, tree, question):
    return counts[[f"{question}_{answer}" for answer in tree[question]["answers"]]]


def simulated(galaxies, tree=DR5, seed=0):
    return simulate_votes(galaxies, tree, np.random.default_rng(seed))


@pytest.mark.parametrize("tree", [DR5, DESI], ids=["decals_dr5", "desi"])
@settings(deadline=None, max_examples=15)
@given(n=st.integers(0, 200), seed=st.integers(0, 2**32 - 1))
def test_those_who_gave_the_leading_answer_and_no_others_answer_the_next_question(tree, n, seed):
    galaxies = population(n, seed)
    counts = simulated(galaxies, tree, seed)
    assert list(counts.columns) == [f"{question}_{answer}" for question in tree for answer in tree[question]["answers"]]
    assert counts.index.equals(galaxies.index)
    assert (counts.dtypes == np.int64).all()
    assert (counts.to_numpy() >= 0).all()
    for question, asked in tree.items():
        total = votes_of(counts, tree, question).sum(axis=1)
        if asked["asked_after"] is None:
            assert total.between(MIN_VOLUNTEERS, MAX_VOLUNTEERS).all()
        else:
            pd.testing.assert_series_equal(total, counts[asked["asked_after"]].sum(axis=1))


def test_merging_is_asked_of_smooth_and_featured_even_where_the_tree_says_of_all():
    tree = {**DR5, "merging-dr5": {**DR5["merging-dr5"], "asked_after": None}}
    galaxies = population(300, 0)
    pd.testing.assert_frame_equal(simulated(galaxies, tree), simulated(galaxies, DR5))


def test_a_parent_may_be_a_single_column_and_the_questions_may_stand_in_any_order():
    single = {q: {**v, "asked_after": v["asked_after"] and v["asked_after"][0]} for q, v in DR5.items()}
    backwards = dict(reversed(single.items()))
    counts = simulated(population(50, 0), backwards)
    assert votes_of(counts, DR5, "spiral-winding-dr5").sum(axis=1).equals(counts["has-spiral-arms-dr5_yes"])


def test_votes_go_to_the_answers_by_name_whatever_their_order():
    reversed_answers = {question: {**asked, "answers": asked["answers"][::-1]} for question, asked in DR5.items()}
    counts, turned = (simulated(alike(5000, edge_on=0.7), tree) for tree in (DR5, reversed_answers))
    for question in DR5:
        one, other = (votes_of(table, DR5, question).sum() for table in (counts, turned))
        np.testing.assert_allclose(one / one.sum(), other / other.sum(), atol=0.03)


def test_the_number_of_volunteers_spreads_from_5_to_40_about_22():
    total = votes_of(simulated(alike(20_000)), DR5, "smooth-or-featured-dr5").sum(axis=1)
    assert (total.min(), total.max()) == (5, 40)
    assert total.mean() == pytest.approx(22.5, abs=0.4)


def test_votes_do_not_know_the_rare_class():
    galaxies = population(500, 0)
    permuted = galaxies.assign(rare_class=np.random.default_rng(1).permutation(galaxies["rare_class"]))
    pd.testing.assert_frame_equal(simulated(galaxies), simulated(permuted))
    pd.testing.assert_frame_equal(simulated(galaxies), simulated(galaxies.drop(columns="rare_class")))


def test_an_artifact_gets_mostly_artifact_votes_that_do_not_tell_its_kind():
    counts = simulated(alike(2000, artifact="chip_edge"))
    question = votes_of(counts, DR5, "smooth-or-featured-dr5")
    assert 0.7 < question["smooth-or-featured-dr5_artifact"].sum() / question.to_numpy().sum() < 0.98
    pd.testing.assert_frame_equal(counts, simulated(alike(2000, artifact="satellite_trail")))


def test_the_same_generator_gives_the_same_votes_and_another_gives_others():
    galaxies = population(100, 0)
    pd.testing.assert_frame_equal(simulated(galaxies, seed=4), simulated(galaxies, seed=4))
    assert not simulated(galaxies, seed=4).equals(simulated(galaxies, seed=5))


@pytest.mark.parametrize("role", ["has-spiral-arms", "bar", "bulge-size", "merging"])
def test_votes_of_like_galaxies_vary_as_a_dirichlet_multinomial_not_as_a_multinomial(role):
    galaxies = alike(40_000, bar_strength=0.25, arm_strength=0.4, disturbance=0.2)
    counts = votes_of(simulated(galaxies), DR5, f"{role}-dr5").to_numpy()
    answers = list(DR5[f"{role}-dr5"]["answers"])
    expected = answer_probabilities(galaxies[:1], role)[answers].to_numpy()[0]
    total = counts.sum(axis=1)
    best = int(expected.argmax())
    concentration = QUESTIONS[role].concentration
    binomial = total * expected[best] * (1 - expected[best])
    squared = (counts[:, best] - total * expected[best]) ** 2
    some = total > 5
    assert squared[some].mean() > 1.3 * binomial[some].mean()
    stated = binomial * (total + concentration) / (1 + concentration)
    assert squared[some].mean() == pytest.approx(stated[some].mean(), rel=0.06)


@pytest.mark.parametrize("role", list(QUESTIONS))
def test_mean_vote_fractions_are_the_stated_probabilities(role):
    galaxies = alike(20_000, edge_on=0.7, disturbance=0.2)
    counts = votes_of(simulated(galaxies), DR5, f"{role}-dr5")
    expected = answer_probabilities(galaxies[:1], role)[DR5[f"{role}-dr5"]["answers"]].to_numpy()[0]
    np.testing.assert_allclose(counts.sum() / counts.to_numpy().sum(), expected, atol=0.015)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_probabilities_of_every_question_are_positive_and_sum_to_one(seed):
    for role in QUESTIONS:
        fractions = answer_probabilities(population(50, seed), role).to_numpy()
        assert (fractions > 0).all()
        np.testing.assert_allclose(fractions.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("parameter", "role", "answer"),
    [
        ("arm_strength", "has-spiral-arms", "yes"),
        ("arm_strength", "smooth-or-featured", "featured-or-disk"),
        ("outer_ring", "smooth-or-featured", "featured-or-disk"),
        ("clumpiness", "smooth-or-featured", "featured-or-disk"),
        ("bar_strength", "bar", "strong"),
        ("bulge_fraction", "bulge-size", "dominant"),
        ("axis_ratio", "how-rounded", "round"),
        ("edge_on", "disk-edge-on", "yes"),
        ("bulge_boxiness", "edge-on-bulge", "boxy"),
        ("pitch", "spiral-winding", "loose"),
        ("flocculence", "spiral-arm-count", "cant-tell"),
        ("companion", "merging", "merger"),
        ("disturbance", "merging", "major-disturbance"),
    ],
)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_more_of_a_parameter_brings_more_votes_for_its_answer(parameter, role, answer, seed):
    galaxies = population(40, seed).assign(n_arms=2, artifact="")
    scale = 45 if parameter == "pitch" else 1
    steps = [galaxies.assign(**{parameter: scale * value}) for value in np.linspace(0, 1, 9)]
    fractions = np.stack([answer_probabilities(step, role)[answer] for step in steps])
    assert (np.diff(fractions, axis=0) >= -1e-12).all()
    assert (fractions[-1] > fractions[0]).all()


@pytest.mark.parametrize("n_arms", [1, 2, 3, 4])
def test_the_number_of_arms_is_counted(n_arms):
    assert answer_probabilities(alike(n_arms=n_arms), "spiral-arm-count").iloc[0].idxmax() == str(n_arms)


def test_five_arms_and_more_are_more_than_four():
    for n_arms in (5, 9):
        assert answer_probabilities(alike(n_arms=n_arms), "spiral-arm-count").iloc[0].idxmax() == "more-than-4"


@pytest.mark.parametrize("worse", [{"snr": 1.0}, {"half_light_radius": 2.0}, {"psf_fwhm": 20.0}])
def test_a_faint_or_small_or_blurred_spiral_looks_smooth_and_armless(worse):
    clear, blurred = alike(), alike(**worse)
    for role, answer in (("has-spiral-arms", "no"), ("smooth-or-featured", "smooth")):
        fractions = [answer_probabilities(galaxies, role)[answer].iloc[0] for galaxies in (clear, blurred)]
        assert fractions[0] < 0.2
        assert fractions[1] > fractions[0] + 0.2


def changed_tree(question, **changes):
    tree = copy.deepcopy(DR5)
    tree[question] |= changes
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({q: v for q, v in DR5.items() if q not in ("bar-dr5", "merging-dr5")}, "no question named 'bar', 'merging'"),
        ({**DR5, **DESI}, "more than one campaign .*'bar-dr5', 'bar'"),
        ({**DR5, "clumps-dr5": {"answers": ["yes", "no"], "asked_after": None}}, "cannot answer 'clumps-dr5'"),
        (changed_tree("bar-dr5", answers=["yes", "no"]), "'bar-dr5' lacks the answers 'strong', 'weak'"),
        (changed_tree("bar-dr5", answers=["strong", "weak", False]), "'bar-dr5' lacks the answers 'no'"),
        (changed_tree("bar-dr5", answers=["strong", "weak", "no", "two"]), "'bar-dr5' has the answers 'two'"),
        (changed_tree("bar-dr5", asked_after=["disk-edge-on-dr5_maybe"]), "'bar-dr5' can never be asked"),
        (changed_tree("bar-dr5", asked_after=["bar-dr5_no"]), "'bar-dr5' can never be asked"),
        ({}, "no question named 'smooth-or-featured'"),
    ],
)
def test_a_tree_that_the_volunteers_cannot_answer_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        simulated(alike(), tree)


def test_a_parameter_that_is_absent_or_not_finite_is_refused():
    with pytest.raises(ValueError, match="lacks the columns pitch, artifact"):
        simulated(alike().drop(columns=["pitch", "artifact"]))
    with pytest.raises(ValueError, match="'snr'"):
        simulated(alike(snr=np.nan))
