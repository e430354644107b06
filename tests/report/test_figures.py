import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarezoo.report import figures


def a_search(n_classes, n_bulk=500, members=6):
    rng = np.random.default_rng(n_classes)
    centres = rng.uniform(-8, 8, (n_classes, 2))
    positions = np.concatenate([rng.normal(0, 4, (n_bulk, 2)), np.repeat(centres, members, 0)])
    positions[n_bulk:] += rng.normal(0, 0.05, (n_classes * members, 2))
    clusters = np.concatenate([np.full(n_bulk, -1), np.repeat(np.arange(n_classes), members)])
    galaxies = pd.DataFrame({"id_str": [f"J{row}" for row in range(len(clusters))], "cluster": clusters})
    galaxies[["x", "y"]] = positions
    classes = pd.DataFrame(
        {
            "cluster": np.arange(n_classes),
            "size": np.full(n_classes, members),
            "persistence": rng.uniform(0, 0.6, n_classes),
            "cohesion": rng.uniform(0, 1, n_classes),
            "medoid_id": [f"J{n_bulk + members * number}" for number in range(n_classes)],
        }
    )
    return galaxies, classes


CUTS = pd.DataFrame({"cut": ["all", "smooth $x_", "edge_on"], "removed": [0, 600, 0], "left": [1000, 400, 400]})
RECOVERY = pd.DataFrame(
    {
        "class_name": ["ring", "$\\frac{"],
        "members": [40, 30],
        "selected": [38, 2],
        "f1": [0.8, np.nan],
        "purity": [0.9, np.nan],
        "completeness": [0.7, np.nan],
    }
)


def picture(figure, dpi=60):
    return Image.open(io.BytesIO(figures.to_png(figure, dpi)))


@pytest.mark.parametrize("n_classes", [0, 1, 5, 150])
def test_figures_of_any_number_of_classes_are_pictures_of_the_stated_size(n_classes):
    galaxies, classes = a_search(n_classes)
    for figure in (figures.class_map(galaxies, classes), figures.class_sizes(classes)):
        image = picture(figure, dpi=50)
        assert image.format == "PNG"
        assert image.size == tuple(int(inches * 50) for inches in figure.get_size_inches())
        assert np.asarray(image.convert("L")).std() > 2, "something is drawn"


def test_names_with_dollar_signs_are_text_and_not_formulas():
    assert picture(figures.cut_waterfall(CUTS)).size[0] > 100
    assert picture(figures.recovery_chart(RECOVERY)).size[0] > 100
    galaxies, classes = a_search(2)
    figure = figures.class_map(galaxies, classes.assign(name=["$\\frac{", None]))
    assert picture(figure).size[0] > 100
    assert {"0 $\\frac{", "1"} <= {text.get_text() for text in figure.axes[0].texts}


def test_waterfall_bars_have_the_lengths_of_the_cuts():
    axes = figures.cut_waterfall(CUTS).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1000, 400, 400, 0, 600, 0]


def test_classes_on_the_map_have_the_colours_of_the_palette_on_the_bulk_of_any_size():
    galaxies, classes = a_search(3, n_bulk=31_000)
    seen = {
        tuple(pixel)
        for pixel in np.asarray(picture(figures.class_map(galaxies, classes), 100).convert("RGB"))[::1].reshape(-1, 3)
    }
    for colour in figures.PALETTE[:3]:
        assert tuple(bytes.fromhex(colour[1:])) in seen


def test_rows_without_a_place_and_classes_without_figures_are_left_out():
    galaxies, classes = a_search(4)
    galaxies.loc[galaxies["cluster"] == 2, "x"] = np.nan
    classes.loc[1, "persistence"] = np.nan
    assert list(figures.class_centres(galaxies, classes).index) == [0, 1, 3]
    assert picture(figures.class_map(galaxies, classes)).size[0] > 100
    assert len(figures.class_sizes(classes).axes[0].collections[0].get_offsets()) == 3


def test_centres_are_at_the_medoids_or_else_at_the_median():
    galaxies, classes = a_search(2)
    classes.loc[1, "medoid_id"] = None
    centres = figures.class_centres(galaxies, classes)
    medoid = galaxies.set_index("id_str").loc[classes.loc[0, "medoid_id"], ["x", "y"]]
    assert centres.loc[0].tolist() == medoid.tolist()
    assert centres.loc[1].tolist() == galaxies.loc[galaxies["cluster"] == 1, ["x", "y"]].median().tolist()


points = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=60, unique=True)


@settings(deadline=None, max_examples=60)
@given(points)
def test_the_nearest_earlier_centre_has_another_colour(centres):
    array = np.array(centres)
    colours = figures.neighbour_colours(array)
    assert len(set(colours)) == min(len(centres), len(figures.PALETTE))
    for index in range(1, len(array)):
        distances = np.linalg.norm(array[:index] - array[index], axis=1)
        assert any(colours[near] != colours[index] for near in np.flatnonzero(distances == distances.min()))


@settings(deadline=None, max_examples=60)
@given(points, st.floats(0.05, 3), st.floats(0.05, 3))
def test_labels_with_room_do_not_overlap_and_those_without_do(centres, width, height):
    x, y = np.array(centres).T
    kept = figures.with_room(x, y, width, height)
    assert kept[0]
    overlap = (np.abs(x[:, None] - x) < width) & (np.abs(y[:, None] - y) < height)
    np.fill_diagonal(overlap, False)
    assert not overlap[np.ix_(kept, kept)].any()
    assert overlap[np.ix_(~kept, kept)].any(axis=1).all()
