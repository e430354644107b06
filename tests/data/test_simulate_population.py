from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from rarezoo.data.simulate.artifacts import ARTIFACT_KINDS
from rarezoo.data.simulate.picture import take_picture
from rarezoo.data.simulate.population import MORPHOLOGIES, Galaxy, draw_population
from rarezoo.data.simulate.rare import RARE_CLASSES, draw_rare
from rarezoo.data.simulate.votes import answer_probabilities

UNIT = ["bulge_fraction", "axis_ratio", "edge_on", "arm_strength", "flocculence", "bar_strength", "inner_ring"]
UNIT += ["outer_ring", "clumpiness", "dust", "disturbance", "companion", "bulge_boxiness"]


def table(galaxies):
    return pd.DataFrame([vars(galaxy) for galaxy in galaxies])


@pytest.fixture(scope="module")
def population():
    return table(draw_population(8000, 96, 0.04, np.random.default_rng(0)))


def members(name, n=60):
    rng = np.random.default_rng(7)
    return [draw_rare(name, 96, rng) for _ in range(n)]


def test_kinds_have_their_shares(population):
    found = population["morphology"].value_counts(normalize=True)
    for kind, share in MORPHOLOGIES.items():
        assert found[kind] == pytest.approx(share, abs=4 * np.sqrt(share / 8000))


def test_a_tenth_is_seen_edge_on_and_near_half_are_disks_seen_from_above(population):
    disks = population["morphology"] == "disk"
    edge_on = (disks & (population["edge_on"] > 0.75)).mean()
    assert edge_on == pytest.approx(0.10, abs=0.015)
    assert (disks & (population["edge_on"] <= 0.75)).mean() == pytest.approx(0.455, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.04, 1.0])
def test_artifacts_have_their_share_and_all_kinds_occur(share):
    faults = table(draw_population(4000, 64, share, np.random.default_rng(1)))["artifact"]
    assert (faults != "").mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))
    if share:
        assert set(faults) - {""} == set(ARTIFACT_KINDS)


@pytest.mark.parametrize("name", UNIT)
def test_strengths_lie_between_0_and_1_and_vary(population, name):
    assert population[name].between(0, 1).all()
    assert population[name].nunique() > 200


def test_inclination_flattens_disks(population):
    disks = population[population["morphology"] == "disk"]
    assert disks[["axis_ratio", "edge_on"]].corr("spearman").iloc[0, 1] < -0.999


def test_later_disks_are_bluer_and_have_smaller_bulges(population):
    disks = population[population["morphology"] == "disk"]
    assert disks[["bulge_fraction", "disk_blueness"]].corr("spearman").iloc[0, 1] < -0.5


def test_bulk_galaxies_belong_to_no_rare_class(population):
    assert (population["rare_class"] == "").all()


def test_lengths_scale_with_the_frame_and_nothing_else_does():
    small, large = (draw_population(40, size, 0.1, np.random.default_rng(2)) for size in (48, 192))
    lengths = ("bulge_radius", "half_light_radius", "bar_length", "psf_fwhm")
    for one, other in zip(table(small).to_dict("records"), table(large).to_dict("records"), strict=True):
        for name, value in one.items():
            wanted = pytest.approx(4 * value) if name in lengths else value
            assert other[name] == wanted, name


def test_there_are_at_least_ten_rare_classes():
    assert len(RARE_CLASSES) >= 10


@pytest.mark.parametrize("name", RARE_CLASSES)
def test_volunteers_would_call_a_rare_class_featured_and_neither_edge_on_nor_artifact(name):
    galaxies = table(members(name))
    assert (galaxies["rare_class"] == name).all()
    assert (galaxies["artifact"] == "").all()
    assert answer_probabilities(galaxies, "smooth-or-featured")["featured-or-disk"].median() > 0.65
    assert answer_probabilities(galaxies, "disk-edge-on")["yes"].max() < 0.3


@pytest.mark.parametrize("name", RARE_CLASSES)
def test_members_of_a_rare_class_vary(name):
    galaxies = table(members(name))
    for column in ("half_light_radius", "snr", "psf_fwhm", "axis_ratio", "position_angle", "disk_blueness"):
        assert galaxies[column].nunique() > 40, column


@pytest.mark.parametrize("size", [32, 96, 130])
@pytest.mark.parametrize("name", RARE_CLASSES)
def test_every_rare_class_can_be_painted_at_any_size(name, size):
    rng = np.random.default_rng(4)
    for _ in range(3):
        picture = take_picture(draw_rare(name, size, rng), size, rng)
        assert picture.shape == (size, size, 3)
        assert picture.max() > 100


@pytest.mark.parametrize("name", RARE_CLASSES)
def test_a_rare_class_differs_from_an_ordinary_galaxy_of_the_same_parameters(name):
    galaxy = members(name, 1)[0]
    rare = take_picture(galaxy, 96, np.random.default_rng(5)).astype(float)
    plain = take_picture(replace(galaxy, rare_class=""), 96, np.random.default_rng(5)).astype(float)
    assert np.abs(rare - plain).mean() > 2


def test_parameters_have_the_types_they_state(population):
    kinds = {"str": str, "int": (int, np.integer), "float": (float, np.floating)}
    for field in fields(Galaxy):
        assert isinstance(population[field.name].iloc[0], kinds[str(field.type)]), field.name
