import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarezoo.report import map_data as module
from rarezoo.report.map_data import equal_share, map_data, thumbnail_sheets


def unpacked(text):
    return np.frombuffer(base64.b64decode(text), "<u2").astype(float)


def galaxies_at(x, y, cluster=-1):
    return pd.DataFrame(
        {
            "id_str": [f"J{row}" for row in range(len(x))],
            "file_loc": "",
            "cluster": cluster,
            "probability": 0.5,
            "x": x,
            "y": y,
        }
    )


NO_CLASSES = pd.DataFrame({"cluster": [], "size": [], "medoid_id": []})
coordinates = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(coordinates)
def test_positions_come_back_on_one_scale_for_both_axes(positions):
    x, y = np.array(positions).T
    data = map_data(galaxies_at(x, y), NO_CLASSES)
    span = max(np.ptp(x), np.ptp(y)) or 1.0
    assert sorted(data["ids"]) == sorted(f"J{row}" for row in range(len(x)))
    row_of = [int(identifier[1:]) for identifier in data["ids"]]
    for packed, values in ((data["x"], x[row_of]), (data["y"], y[row_of])):
        back = unpacked(packed) / 65535 * span
        # Relative to the first point, since the page needs no absolute origin.
        np.testing.assert_allclose(back - back[0], values - values[0], atol=1.01 * span / 65535)


def picture_of(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_a_large_bulk_is_sampled_and_members_are_all_kept(monkeypatch):
    monkeypatch.setattr(module, "MAX_BULK", 50)
    rng = np.random.default_rng(0)
    galaxies = galaxies_at(rng.normal(size=400), rng.normal(size=400))
    galaxies.loc[:9, "cluster"] = 0
    classes = pd.DataFrame({"cluster": [0], "size": [10], "medoid_id": ["J3"]})
    data = map_data(galaxies, classes)
    assert (data["n_bulk"], data["all_bulk"], data["n_members"]) == (50, 390, 10)
    assert data["ids"][50:] == [f"J{row}" for row in range(10)]
    assert len(unpacked(data["x"])) == len(data["ids"]) == 60
    assert data == map_data(galaxies, classes)
    assert data["classes"][0]["x"] == unpacked(data["x"])[53]


def test_missing_values_make_valid_json_and_unplaced_galaxies_are_left_out():
    galaxies = galaxies_at([0.0, 1.0, np.nan, 2.0], [0.0, np.inf, 1.0, 1.0], cluster=[0, 0, 0, -1])
    galaxies["probability"] = np.nan
    galaxies["ra"], galaxies["dec"] = np.nan, [10.0, 1, 1, 1]
    data = map_data(galaxies, pd.DataFrame({"cluster": [0], "size": [3], "medoid_id": [None]}))
    assert data["ids"] == ["J3", "J0"]
    assert data["members"] == {"cluster": [0], "probability": [None], "tile": [-1], "ra": [None], "dec": [10.0]}
    json.dumps(data, allow_nan=False)


@pytest.fixture
def coloured_members(tmp_path):
    rows = []
    for number in range(9):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (30, 30), (25 * number + 20, 255 - 25 * number, 60)).save(file)
        rows.append({"id_str": f"J{number}", "file_loc": str(file), "cluster": number % 2, "probability": number / 10})
    return pd.DataFrame(rows).set_index(pd.Index(range(100, 109)))


def test_a_members_tile_on_the_sheet_shows_its_own_image(coloured_members):
    sheets, tiles = thumbnail_sheets(coloured_members, 9)
    for row, galaxy in coloured_members.iterrows():
        sheet = Image.open(io.BytesIO(base64.b64decode(sheets[galaxy["cluster"]].split(",")[1])))
        line, column = divmod(int(tiles[row]), module.SHEET_COLUMNS)
        side = module.THUMBNAIL
        pixel = np.array(sheet.getpixel((column * side + side // 2, line * side + side // 2)))
        with Image.open(galaxy["file_loc"]) as image:
            assert np.abs(pixel - image.getpixel((3, 3))).max() < 8


def test_thumbnails_are_shared_out_where_there_are_too_many(coloured_members):
    _, tiles = thumbnail_sheets(coloured_members, 4)
    assert sorted(tiles.index) == [105, 106, 107, 108], "the two surest of either class"


def test_of_more_classes_than_thumbnails_the_first_have_their_surest_galaxy(coloured_members):
    members = coloured_members.assign(cluster=[0, 0, 1, 1, 2, 2, 3, 3, 3])
    sheets, tiles = thumbnail_sheets(members, 3)
    assert sorted(tiles.index) == [101, 103, 105]
    assert sorted(sheets) == [0, 1, 2]


@pytest.mark.parametrize(("most", "of_classes", "outside"), [(3, 3, 2), (2, 3, 1), (1, 3, 0), (0, 2, 0)])
def test_thumbnails_of_galaxies_outside_are_given_up_for_classes_without_any(
    coloured_members, monkeypatch, most, of_classes, outside
):
    monkeypatch.setattr(module, "MAX_THUMBNAILS", most)
    monkeypatch.setattr(module, "MAX_BULK_THUMBNAILS", 2)
    galaxies = coloured_members.assign(cluster=[0, 1, 2, *[-1] * 6], x=np.arange(9.0), y=0.0)
    classes = pd.DataFrame({"cluster": [0, 1, 2], "size": 1, "medoid_id": None})
    data = map_data(galaxies, classes)
    sheets = {entry["cluster"]: entry["sheet"] for entry in data["classes"]}
    assert [sheets[cluster] is not None for cluster in range(3)] == [cluster < of_classes for cluster in range(3)]
    assert [tile >= 0 for tile in data["members"]["tile"]] == [cluster < of_classes for cluster in range(3)]
    assert data["bulk_tiles"] == outside
    assert (data["bulk_sheet"] is not None) == (outside > 0)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 50), max_size=20), st.integers(0, 400))
def test_equal_share_is_the_largest_within_the_budget(sizes, budget):
    share = equal_share(np.array(sizes, int), budget)
    shares = [n for n in range(1, 51) if sum(min(size, n) for size in sizes) <= budget]
    expected = min(max(shares, default=0), max(sizes, default=0))
    assert share == expected


def test_galaxies_without_an_image_are_on_the_map_without_a_thumbnail(coloured_members):
    members = coloured_members.assign(x=0.0, y=1.0)
    members.loc[members["cluster"] == 0, "file_loc"] = ""
    classes = pd.DataFrame({"cluster": [0, 1], "size": [1, 1], "medoid_id": [None, None]})
    data = map_data(members, classes)
    assert len(data["ids"]) == len(members)
    has_tile = [tile >= 0 for tile in data["members"]["tile"]]
    assert has_tile == [cluster == 1 for cluster in data["members"]["cluster"]]
    assert [entry["sheet"] is None for entry in sorted(data["classes"], key=lambda e: e["cluster"])] == [True, False]


def test_density_of_a_large_bulk_is_where_the_galaxies_are(monkeypatch):
    monkeypatch.setattr(module, "MAX_BULK", 100)
    rng = np.random.default_rng(0)
    crowded, sparse = rng.normal((4, 9), 0.05, (4000, 2)), rng.normal((-4, 1), 0.05, (40, 2))
    data = map_data(galaxies_at(*np.concatenate([crowded, sparse]).T), NO_CLASSES)
    density = data["density"]
    opacity = picture_of(density["image"])[..., 3].astype(float)
    assert opacity.shape[0] / opacity.shape[1] == pytest.approx(
        (density["high"] - density["low"]) / (density["right"] - density["left"]), rel=0.01
    )
    rows, columns = np.nonzero(opacity)
    upper_right = (rows < opacity.shape[0] / 2) & (columns > opacity.shape[1] / 2)
    lower_left = (rows > opacity.shape[0] / 2) & (columns < opacity.shape[1] / 2)
    assert (upper_right | lower_left).all(), "north is up, and nothing is where no galaxy is"
    assert upper_right.sum() > 5 * lower_left.sum() > 0
    assert opacity.max() > opacity[opacity > 0].min()
    x = unpacked(data["x"])
    assert (x < 30_000).sum() > 20, "what can be pointed at is spread evenly, not by number"


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1e-9)])
def test_density_of_galaxies_at_one_place_or_on_one_line_is_drawn(monkeypatch, place):
    monkeypatch.setattr(module, "MAX_BULK", 3)
    x, y = np.linspace(0, place[0], 30), np.linspace(0, place[1], 30)
    data = map_data(galaxies_at(x, y), NO_CLASSES)
    assert picture_of(data["density"]["image"])[..., 3].any()
    assert data["n_bulk"] == 3


def test_too_many_members_are_taken_from_the_large_classes(monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 60)
    cluster = [0] * 500 + [1] * 8 + [2] * 200
    rng = np.random.default_rng(0)
    galaxies = galaxies_at(rng.normal(size=708), rng.normal(size=708), cluster)
    classes = pd.DataFrame({"cluster": [0, 1, 2], "size": [500, 8, 200], "medoid_id": [None] * 3})
    data = map_data(galaxies, classes)
    found, counts = np.unique(data["members"]["cluster"], return_counts=True)
    assert dict(zip(found, counts, strict=True)) == {0: 26, 1: 8, 2: 26}
    assert data["all_members"] == 708
    assert data["members"]["cluster"] == sorted(data["members"]["cluster"])
    assert set(data["ids"]) >= {f"J{row}" for row in range(500, 508)}


def test_galaxies_outside_the_classes_have_thumbnails_of_their_own(coloured_members, monkeypatch):
    monkeypatch.setattr(module, "MAX_BULK_THUMBNAILS", 5)
    rng = np.random.default_rng(0)
    galaxies = coloured_members.assign(cluster=-1, x=rng.normal(size=9), y=rng.normal(size=9))
    galaxies.loc[[100, 101], "file_loc"] = ""
    data = map_data(galaxies, NO_CLASSES)
    assert data["bulk_tiles"] == 5
    assert {*data["ids"][7:]} == {"J0", "J1"}
    sheet, side = picture_of(data["bulk_sheet"]), module.THUMBNAIL
    files = galaxies.set_index("id_str")["file_loc"]
    for tile, identifier in enumerate(data["ids"][:5]):
        with Image.open(files[identifier]) as image:
            assert np.abs(sheet[side // 2, tile * side + side // 2] - np.array(image.getpixel((3, 3)), int)).max() < 8


def test_a_class_has_at_most_so_many_thumbnails_even_where_there_is_room(coloured_members, monkeypatch):
    monkeypatch.setattr(module, "MAX_THUMBNAILS_OF_A_CLASS", 2)
    _, tiles = thumbnail_sheets(coloured_members, 9)
    assert sorted(tiles.index) == [105, 106, 107, 108]


def test_thumbnails_of_noise_are_of_a_lower_quality_so_that_they_take_as_little_as_galaxies(coloured_members, tmp_path):
    rng = np.random.default_rng(0)
    for number, row in enumerate(coloured_members.index[:3]):
        coloured_members.loc[row, "file_loc"] = file = str(tmp_path / f"noise{number}.png")
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    members = coloured_members.assign(cluster=[0, 0, 1, *[2] * 6])
    sheets, _ = thumbnail_sheets(members, 9)
    sizes = {cluster: len(base64.b64decode(sheet.split(",")[1])) for cluster, sheet in sheets.items()}
    assert sizes[0] < 2 * 1430
    assert sizes[1] < 1430
    for cluster, is_best in enumerate((False, False, True)):
        table = Image.open(io.BytesIO(base64.b64decode(sheets[cluster].split(",")[1]))).quantization[0]
        best = io.BytesIO()
        Image.new("RGB", (8, 8)).save(best, "JPEG", quality=78)
        assert (table == Image.open(best).quantization[0]) == is_best


def test_name_of_a_class_goes_along():
    classes = pd.DataFrame({"cluster": [0, 1], "size": 1, "medoid_id": [None, None], "name": ["jellyfish", None]})
    data = map_data(galaxies_at([0.0, 1.0], [0.0, 1.0], [0, 1]), classes)
    assert {entry["cluster"]: entry["name"] for entry in data["classes"]} == {0: "jellyfish", 1: None}
