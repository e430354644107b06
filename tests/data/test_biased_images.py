import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from rarezoo.data.biased.colours import COLOURS, SPREADS, colour_digit
from rarezoo.data.biased.corruptions import CORRUPTIONS, corrupt

KINDS = list(CORRUPTIONS)
SEVERITIES = range(1, 6)


@pytest.fixture(scope="module")
def photograph():
    """A smooth coloured picture with edges, (3, 32, 32)."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.uniform(0, 1, (3, 32, 32)), (0, 4, 4))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    smooth[0, 8:24, 8:24] = 0.9
    return np.rint(200 * smooth + 20).astype(np.uint8)


def as_picture(image):
    return Image.fromarray(image.transpose(1, 2, 0))


def spoil(image, kind, severity, seed=0):
    return corrupt(image, KINDS.index(kind), severity, np.random.default_rng(seed))


def test_there_are_ten_kinds():
    assert len(KINDS) == 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_corruption_changes_the_image_and_keeps_its_shape_and_type(kind, severity, photograph):
    before = photograph.copy()
    spoilt = spoil(photograph, kind, severity)
    assert (spoilt.shape, spoilt.dtype) == ((3, 32, 32), np.uint8)
    assert np.abs(spoilt.astype(int) - photograph).mean() > 0.5
    np.testing.assert_array_equal(photograph, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_corruption(kind, photograph):
    np.testing.assert_array_equal(spoil(photograph, kind, 3), spoil(photograph, kind, 3))


@pytest.mark.parametrize("kind", ["snow", "frost", "fog", "spatter", "elastic"])
def test_corruptions_that_are_drawn_differ_from_image_to_image(kind, photograph):
    assert (spoil(photograph, kind, 3, seed=1) != spoil(photograph, kind, 3, seed=2)).any()


@pytest.mark.parametrize("kind", ["frost", "fog", "brightness", "contrast", "jpeg", "pixelate"])
def test_the_strongest_corruption_leaves_less_of_the_image_than_the_weakest(kind, photograph):
    weakest, strongest = (np.abs(spoil(photograph, kind, level).astype(int) - photograph).mean() for level in (1, 5))
    assert strongest > weakest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_black_and_white_images_stay_images(kind, level, severity):
    spoilt = spoil(np.full((3, 32, 32), level, dtype=np.uint8), kind, severity)
    assert spoilt.shape == (3, 32, 32)


def test_jpeg_is_pillows(photograph):
    stored = io.BytesIO()
    as_picture(photograph).save(stored, "JPEG", quality=40)
    theirs = np.asarray(Image.open(stored)).transpose(2, 0, 1)
    np.testing.assert_array_equal(spoil(photograph, "jpeg", 5), theirs)


def test_pixels_are_coarsened_as_by_pillow(photograph):
    theirs = as_picture(photograph).resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    np.testing.assert_array_equal(spoil(photograph, "pixelate", 5), np.asarray(theirs).transpose(2, 0, 1))


@pytest.mark.parametrize(("severity", "factor"), zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True))
def test_contrast_falls_by_the_factor_of_its_severity(severity, factor, photograph):
    spoilt = spoil(photograph, "contrast", severity)
    before, after = (image.reshape(3, -1).astype(float) for image in (photograph, spoilt))
    np.testing.assert_allclose(after.std(1), factor * before.std(1), rtol=0.05)
    np.testing.assert_allclose(after.mean(1), before.mean(1), atol=0.5)


def test_colours_fade_and_strengthen_as_pillow_enhances_them(photograph):
    def colourfulness(image):
        return np.asarray(as_picture(image).convert("HSV"))[..., 1].mean()

    faded = np.asarray(ImageEnhance.Color(as_picture(photograph)).enhance(0.5)).transpose(2, 0, 1)
    assert colourfulness(spoil(photograph, "saturate", 2)) < colourfulness(faded) < colourfulness(photograph)
    assert colourfulness(spoil(photograph, "saturate", 4)) > colourfulness(photograph)


def test_kneading_moves_what_is_there_and_adds_no_light(photograph):
    for severity in SEVERITIES:
        spoilt = spoil(photograph, "elastic", severity)
        assert spoilt.min() >= photograph.min()
        assert spoilt.max() <= photograph.max()


def test_a_digit_has_its_colour_where_it_is_white_and_stays_black_elsewhere():
    digit = np.zeros((28, 28), dtype=np.uint8)
    digit[4:24, 10:18] = 255
    digit[0, 0] = 128
    for colour in range(10):
        painted = colour_digit(digit, colour, 5, np.random.default_rng(colour))
        assert (painted[:, digit == 0] == 0).all()
        np.testing.assert_allclose(painted[:, 10, 12] / 255, COLOURS[colour], atol=4 * SPREADS[4] + 0.002)
        np.testing.assert_allclose(painted[:, 0, 0], painted[:, 10, 12] * (128 / 255), atol=1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_colours_spread_as_the_severity_says(severity):
    digit = np.full((1, 1), 255, dtype=np.uint8)
    rng = np.random.default_rng(0)
    drawn = np.array([colour_digit(digit, 1, severity, rng)[:, 0, 0] for _ in range(2000)]) / 255
    # Rounding to bytes adds a twelfth of a level squared.
    expected = np.hypot(SPREADS[severity - 1], 1 / 255 / np.sqrt(12))
    np.testing.assert_allclose(drawn.std(0), expected, rtol=0.1)


def test_colours_are_told_apart_at_their_widest_spread():
    distances = np.linalg.norm(COLOURS[:, np.newaxis] - COLOURS, axis=2) + np.eye(10)
    assert distances.min() > 4 * SPREADS[0]
