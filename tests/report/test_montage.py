import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.provenance import written_beside
from rarezoo.report.montage import (
    GAP_COLOUR,
    UNREADABLE_COLOUR,
    ClassMontage,
    class_montages,
    embedded_copies,
    montage,
    pick_members,
)

COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 20), (20, 240, 240)]


@pytest.fixture
def plain_images(tmp_path):
    files = []
    for number, colour in enumerate(COLOURS):
        files.append(tmp_path / f"galaxy_{number}.png")
        Image.new("RGB", (40, 40), colour).save(files[-1])
    return files


def table(files, clusters, probabilities):
    return pd.DataFrame(
        {
            "id_str": [file.stem for file in files],
            "file_loc": [str(file) for file in files],
            "cluster": clusters,
            "probability": probabilities,
        }
    )


def test_tiles_stand_row_by_row_with_dark_lines_between(plain_images):
    pixels = np.asarray(montage(plain_images, columns=3, rows=2, thumbnail=20, gap=4))
    assert pixels.shape == (2 * 24 + 4, 3 * 24 + 4, 3)
    for position, colour in enumerate(COLOURS):
        top, left = 4 + 24 * (position // 3), 4 + 24 * (position % 3)
        tile = pixels[top : top + 20, left : left + 20].astype(int)
        assert np.abs(tile - colour).max() <= 1
    covered = np.zeros(pixels.shape[:2], bool)
    for position in range(len(COLOURS)):
        top, left = 4 + 24 * (position // 3), 4 + 24 * (position % 3)
        covered[top : top + 20, left : left + 20] = True
    assert (pixels[~covered] == GAP_COLOUR).all()


def test_images_beyond_the_last_tile_are_left_out_and_empty_rows_left_off(plain_images):
    assert montage(plain_images, columns=2, rows=1, thumbnail=10, gap=1).size == (23, 12)
    assert montage(plain_images[:2], columns=2, rows=5, thumbnail=10, gap=1).size == (23, 12)


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\xff\xd8\xff\xe0truncated"])
def test_an_image_that_cannot_be_read_is_a_labelled_grey_tile(plain_images, tmp_path, content):
    bad = tmp_path / "bad.jpg"
    if content is not None:
        bad.write_bytes(content)
    pixels = np.asarray(montage([plain_images[0], bad], columns=2, rows=1, thumbnail=64, gap=2)).astype(int)
    good_tile, bad_tile = pixels[2:66, 2:66], pixels[2:66, 68:132]
    assert np.abs(good_tile - COLOURS[0]).max() <= 1
    grey = (bad_tile == UNREADABLE_COLOUR).all(axis=2).mean()
    assert 0.5 < grey < 0.99, "grey ground with letters on it"


def test_each_class_has_a_file_with_its_surest_members_first(plain_images, tmp_path):
    galaxies = table(plain_images, [7, 7, -1, 7, 2], [0.2, 0.9, 0.0, 0.5, 1.0])
    montages = class_montages(tmp_path / "montages", galaxies, columns=2, rows=1, thumbnail=16)
    assert list(montages) == [2, 7]
    assert montages[7].path == tmp_path / "montages" / "class_007.png"
    assert montages[7].shown == ("galaxy_1", "galaxy_3")
    assert montages[7].members == 3
    with Image.open(montages[7].path) as image:
        assert image.format == "PNG"
        assert image.size == (2 * 18 + 2, 18 + 2)
        assert np.abs(np.asarray(image)[10, 10].astype(int) - COLOURS[1]).max() <= 1
    assert sorted(path.name for path in (tmp_path / "montages").iterdir()) == ["class_002.png", "class_007.png"]


def test_a_random_sample_depends_on_the_seed_alone_and_reaches_all_members():
    members = pd.DataFrame({"id_str": list("abcdefgh"), "probability": np.linspace(1, 0.3, 8)})
    samples = [set(pick_members(members, 3, "random", seed)["id_str"]) for seed in range(40)]
    assert samples == [set(pick_members(members, 3, "random", seed)["id_str"]) for seed in range(40)]
    assert set.union(*samples) == set("abcdefgh")
    assert list(pick_members(members, 3)["id_str"]) == ["a", "b", "c"]


def test_no_class_no_montage(plain_images, tmp_path):
    assert class_montages(tmp_path / "none", table(plain_images, -1, 0.0)) == {}


def test_members_without_an_image_are_counted_and_not_shown(plain_images, tmp_path):
    galaxies = table(plain_images, [7, 7, 7, 2, -1], [0.2, 0.9, 0.5, 1.0, 0.0])
    galaxies.loc[[1, 3], "file_loc"] = ""
    montages = class_montages(tmp_path / "montages", galaxies, thumbnail=16)
    assert list(montages) == [7]
    assert montages[7].shown == ("galaxy_2", "galaxy_0")
    assert montages[7].members == 3


@pytest.fixture
def noisy_montages(tmp_path):
    """Pictures that no format makes small."""
    rng, montages = np.random.default_rng(0), {}
    for cluster in range(6):
        path = tmp_path / f"class_{cluster:03d}.png"
        Image.fromarray(rng.integers(0, 256, (60, 120, 3), dtype=np.uint8)).save(path)
        montages[cluster] = ClassMontage(path, (), 1, 2, 58)
    return montages


def test_copies_are_as_large_as_the_files_where_there_is_room(noisy_montages):
    copies = embedded_copies(noisy_montages, 1_000_000)
    assert list(copies) == list(noisy_montages)
    for cluster, copy in copies.items():
        image = Image.open(io.BytesIO(copy))
        assert (image.format, image.size) == ("JPEG", (120, 60))
        with Image.open(noisy_montages[cluster].path) as written:
            assert abs(np.asarray(image, float).mean() - np.asarray(written).mean()) < 2


@pytest.mark.parametrize("budget", [60_000, 24_000, 8_000, 6_200])
def test_copies_keep_within_their_bytes_by_quality_and_then_by_size(noisy_montages, budget):
    copies = embedded_copies(noisy_montages, budget)
    assert len(copies) == len(noisy_montages)
    assert 0.3 * budget < sum(map(len, copies.values())) <= budget


def test_copies_that_no_quality_makes_small_enough_are_left_out(noisy_montages):
    assert embedded_copies(noisy_montages, 600) == {}
    assert embedded_copies({}, 600) == {}


def test_montage_that_cannot_be_written_leaves_nothing(plain_images, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    galaxies = table(plain_images, 0, 1.0)

    def write():
        with written_beside(tmp_path / "montages") as temporary:
            temporary.mkdir()
            class_montages(Path(temporary), galaxies, thumbnail=16)

    with pytest.raises(UserError, match="No space left"):
        write()
    assert not [path for path in tmp_path.iterdir() if "montages" in path.name]
