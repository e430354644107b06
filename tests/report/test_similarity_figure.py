import io
import itertools

import numpy as np
import pytest
from PIL import Image

from rarezoo.report.figures import to_png
from rarezoo.report.similarity import most_similar, similarity_figure, write_similarity
from rarezoo.similarity.compare import Similarity


def make(n_a, n_b, orders=3, prefix="backbone.blocks", dead=()):
    rng = np.random.default_rng(n_a)
    cka = rng.uniform(0, 1, (n_a, n_b)) + rng.uniform(0, 0.02, (orders, n_a, n_b))
    cka[:, list(dead)] = np.nan
    names = [tuple(f"{prefix}.{number}" for number in range(n)) for n in (n_a, n_b)]
    return Similarity(("one", "other"), *names, cka, rng.normal(0, 0.01, cka.shape), 1000)


def test_table_has_the_layer_of_b_that_is_most_like_each_layer_of_a():
    found = make(6, 4, dead=[2])
    table = most_similar(found)
    assert table["layer_a"].tolist() == [name for index, name in enumerate(found.layers_a) if index != 2]
    for row in table.itertuples():
        index = found.layers_a.index(row.layer_a)
        values = found.cka[:, index]
        best = values.mean(0).argmax()
        assert row.layer_b == found.layers_b[best]
        assert row.cka == pytest.approx(values.mean(0)[best])
        assert (row.low, row.high) == (values[:, best].min(), values[:, best].max())
        assert row.permuted == np.abs(found.permuted[:, index, best]).max()


def test_every_layer_is_named_and_few_have_numbers():
    found = make(3, 5, dead=[1])
    figure = similarity_figure(found)
    left, right, _ = figure.axes
    assert figure.get_suptitle() == "a: one\nb: other\n1,000 images, mean of 3 orders"
    assert [text.get_text() for text in left.get_yticklabels()] == list(found.layers_a)
    assert [text.get_text() for text in left.get_xticklabels()] == list(found.layers_b)
    assert [text.get_text() for text in left.texts] == [f"{value:.2f}" for value in found.mean[[0, 2]].ravel()]
    assert (left.get_ylabel(), left.get_xlabel()) == ("layers of a", "layers of b")
    assert {text.get_text() for text in right.get_legend().get_texts()} == {
        "most similar layer of b",
        "images permuted",
    }


def test_points_stand_beside_their_rows():
    found = make(5, 4, dead=[0])
    _, right, _ = similarity_figure(found).axes
    table = most_similar(found)
    drawn = {line.get_label(): line for line in right.lines}["most similar layer of b"]
    np.testing.assert_array_equal(drawn.get_ydata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(drawn.get_xdata(), table["cka"])


@pytest.mark.parametrize("n_layers", [40, 300])
def test_names_have_room_however_many_layers_there_are(n_layers):
    found = make(n_layers, n_layers, orders=1)
    figure = similarity_figure(found)
    figure.draw_without_rendering()
    left = figure.axes[0]
    boxes = [label.get_window_extent() for label in left.get_yticklabels()]
    assert len(boxes) > 30
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] - 1 for below, above in itertools.pairwise(heights))
    assert len(left.texts) == 0
    assert max(figure.get_size_inches()) < 30


@pytest.mark.parametrize("found", [make(1, 1), make(2, 70), make(4, 3, dead=[0, 1, 2, 3]), make(2, 2, prefix="$x^$")])
def test_every_result_can_be_drawn(found):
    assert Image.open(io.BytesIO(to_png(similarity_figure(found)))).size[0] > 500


def test_files_are_written_and_the_record_describes_them(tmp_path):
    found = make(3, 4)
    assert write_similarity(tmp_path, found) == found.describe()
    with np.load(tmp_path / "cka.npz") as file:
        np.testing.assert_array_equal(file["cka"], found.cka)
    assert Image.open(tmp_path / "cka.png").format == "PNG"
