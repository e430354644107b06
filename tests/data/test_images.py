import io
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarezoo.data import decoding
from rarezoo.data.addresses import ImageError
from rarezoo.data.augment import EvalTransform, TrainTransform
from rarezoo.data.decoding import asinh_stretch
from rarezoo.data.images import GalaxyImages, read_image, read_picture


def picture(width: int = 40, height: int = 40) -> np.ndarray:
    """Smooth colour image whose four quarters differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 255 / width, y * 255 / height, 255 * np.exp(-((x - 10) ** 2) / 200)), -1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def reason(path: Path, **options) -> str:
    with pytest.raises(ImageError) as error:
        read_image(path, 16, **options)
    assert error.value.path == str(path)
    assert str(path) in str(error.value)
    return error.value.reason


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    return saved(tmp_path / "galaxy.jpg", Image.fromarray(picture()), quality=95)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp", "x.webp"])
def test_lossless_image_of_the_asked_size_is_read_as_it_is(name, tmp_path):
    path = saved(tmp_path / name, Image.fromarray(picture()), **({"lossless": True} if name == "x.webp" else {}))
    result = read_image(path, 40)
    assert result.dtype == np.uint8
    assert result.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(result, picture().transpose(2, 0, 1))


def test_jpeg_is_read_within_its_loss(jpeg):
    assert np.abs(read_image(jpeg, 40).astype(int) - picture().transpose(2, 0, 1)).mean() < 2


@pytest.mark.parametrize("size", [1, 7, 16, 40, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_result_has_the_asked_shape_whatever_the_files(size, channels, jpeg, tmp_path):
    grey = saved(tmp_path / "grey.png", Image.fromarray(picture()[..., 0]))
    for path in (jpeg, grey):
        assert read_image(path, size, channels).shape == (channels, size, size)


@pytest.mark.parametrize(("stored", "size"), [(90, 30), (424, 224), (256, 224), (40, 100), (224, 224)])
@pytest.mark.parametrize("crop", [1.0, 0.7])
def test_resizing_agrees_with_that_of_pillow_within_a_grey_level(stored, size, crop, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (stored, stored, 3), dtype=np.uint8)
    path = saved(tmp_path / "noise.png", Image.fromarray(pixels))
    side = round(stored * crop)
    start = (stored - side) // 2
    square = Image.fromarray(pixels).crop((start, start, start + side, start + side))
    expected = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
    difference = np.abs(read_image(path, size, crop=crop) - expected.transpose(2, 0, 1).astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.1


def test_long_images_are_cut_to_their_central_square(tmp_path):
    pixels = picture(60, 40)
    path = saved(tmp_path / "wide.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image(path, 40), pixels[:, 10:50].transpose(2, 0, 1))
    path = saved(tmp_path / "high.png", Image.fromarray(pixels.transpose(1, 0, 2)))
    np.testing.assert_array_equal(read_image(path, 40), pixels[:, 10:50].transpose(2, 1, 0))


def test_crop_keeps_the_centre(tmp_path):
    path = saved(tmp_path / "x.png", Image.fromarray(picture()))
    np.testing.assert_array_equal(read_image(path, 20, crop=0.5), picture()[10:30, 10:30].transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, tmp_path):
    upright = picture()
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "x.jpg", Image.fromarray(np.ascontiguousarray(turned)), quality=95, exif=exif)
    assert np.abs(read_image(path, 40).astype(int) - upright.transpose(2, 0, 1)).mean() < 3


def test_greyscale_gives_three_equal_channels(tmp_path):
    grey = picture()[..., 0]
    result = read_image(saved(tmp_path / "x.png", Image.fromarray(grey)), 40)
    np.testing.assert_array_equal(result, np.stack([grey] * 3))


def test_colour_gives_one_channel_by_luma(tmp_path):
    result = read_image(saved(tmp_path / "x.png", Image.fromarray(picture())), 40, channels=1)[0]
    assert np.abs(result - picture() @ [0.299, 0.587, 0.114]).max() <= 1


def test_cmyk_jpeg_is_converted(tmp_path):
    path = saved(tmp_path / "x.jpg", Image.fromarray(picture()).convert("CMYK"), quality=98)
    assert np.abs(read_image(path, 40).astype(int) - picture().transpose(2, 0, 1)).mean() < 3


def test_palette_image_keeps_its_colours(tmp_path):
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20] = [255, 0, 0]
    pixels[20:] = [0, 0, 200]
    image = Image.fromarray(pixels).quantize(4)
    assert image.mode == "P"
    np.testing.assert_array_equal(read_image(saved(tmp_path / "x.png", image), 40), pixels.transpose(2, 0, 1))


def test_bilevel_image_is_black_and_white(tmp_path):
    pixels = picture()[..., 0] > 100
    result = read_image(saved(tmp_path / "x.png", Image.fromarray(pixels)), 40, channels=1)
    np.testing.assert_array_equal(result[0], pixels * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_black(mode, tmp_path):
    alpha = np.zeros((40, 40), dtype=np.uint8)
    alpha[:20] = 255
    colour = np.full((40, 40, 3), 200, dtype=np.uint8)
    image = Image.fromarray(np.dstack((colour, alpha))).convert("LA" if mode == "LA" else "RGBA")
    path = tmp_path / "x.png"
    if mode == "P":
        image = image.quantize(4)
    result = read_image(saved(path, image), 40)
    assert result[:, :20].min() >= 198
    assert result[:, 20:].max() == 0


@pytest.mark.parametrize("suffix", ["png", "tif", "big-endian.tif"])
def test_sixteen_bits_are_scaled_not_clipped_to_white(suffix, tmp_path):
    values = np.linspace(0, 65535, 1600).reshape(40, 40).astype(">u2" if "big" in suffix else "<u2")
    image = Image.frombytes("I;16B" if "big" in suffix else "I;16", (40, 40), values.tobytes())
    result = read_image(saved(tmp_path / f"x.{suffix}", image), 40, channels=1)[0]
    assert result.min() == 0
    assert result.max() == 255
    assert np.abs(result - values.astype(float) / 257).max() <= 0.5


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wider_integers_and_floats_are_stretched_like_fits(dtype, tmp_path):
    flux = (1e6 * np.random.default_rng(0).random((40, 40))).astype(dtype)
    result = read_image(saved(tmp_path / "x.tif", Image.fromarray(flux)), 40, channels=1)
    np.testing.assert_array_equal(result, asinh_stretch(flux[np.newaxis]))


def test_float_tiff_without_a_finite_pixel_is_refused(tmp_path):
    flux = np.full((40, 40), np.nan, dtype=np.float32)
    assert reason(saved(tmp_path / "x.tif", Image.fromarray(flux))) == "no finite pixel"


@pytest.mark.parametrize(("stored", "size"), [(424, 48), (800, 224), (424, 96)])
def test_shrinking_in_the_decoder_changes_little(stored, size, tmp_path, monkeypatch):
    y, x = np.mgrid[0:stored, 0:stored] / stored - 0.5
    galaxy = 250 * np.exp(-30 * np.hypot(x, y)) + 15 * np.random.default_rng(0).random((stored, stored))
    path = saved(tmp_path / "x.jpg", Image.fromarray(np.dstack([galaxy] * 3).astype(np.uint8)), quality=95)
    quick = read_image(path, size).astype(int)
    monkeypatch.setattr(decoding, "_DRAFT_MARGIN", np.inf)
    difference = np.abs(quick - read_image(path, size))
    assert difference.mean() < 1
    assert difference.max() <= 12


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("size", [40, 50, 100, 200])
def test_fast_decoding_gives_the_pixels_that_pillow_gives(mode, options, size, tmp_path, monkeypatch):
    pytest.importorskip("simplejpeg")
    path = saved(tmp_path / "x.jpg", Image.fromarray(picture(203, 401)).convert(mode), quality=80, **options)
    quick = read_image(path, size)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    np.testing.assert_array_equal(quick, read_image(path, size))


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, 100_000), value=st.integers(0, 255), cut=st.booleans(), progressive=st.booleans())
def test_damaged_jpeg_is_what_pillow_says_it_is(position, value, cut, progressive, tmp_path_factory):
    pytest.importorskip("simplejpeg")
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", progressive=progressive)
    content = bytearray(buffer.getvalue())
    position %= len(content)
    content[position:] = b"" if cut else bytes([value]) + content[position + 1 :]
    path = tmp_path_factory.mktemp("damaged") / "x.jpg"
    path.write_bytes(content)
    results = []
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for _ in range(2):
            try:
                results.append(read_image(path, 40).tobytes())
            except ImageError as error:
                results.append(error.reason)
            patch.setattr(decoding, "simplejpeg", None)
    assert results[0] == results[1]


def test_missing_file_is_reported(tmp_path):
    assert reason(tmp_path / "none.jpg") == "no such file or directory"


def test_folder_is_reported(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    assert "directory" in reason(tmp_path / "x.jpg")


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.fits"])
def test_empty_file_is_reported(name, tmp_path):
    (tmp_path / name).touch()
    assert reason(tmp_path / name) == "empty file"


def test_text_called_jpg_is_reported(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    assert reason(tmp_path / "x.jpg") == "not an image, or of an unknown format"


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9])
def test_truncated_image_is_reported(name, kept, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / name, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert reason(path)


def test_progressive_jpeg_that_is_truncated_is_reported(tmp_path):
    path = saved(tmp_path / "x.jpg", Image.fromarray(picture(200, 200)), progressive=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in reason(path)


@pytest.mark.parametrize("pixels", [200, 60])
def test_decompression_bomb_is_reported_and_not_decoded(pixels, tmp_path, monkeypatch):
    # Pillow warns above its limit and refuses above twice the limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 50)
    path = saved(tmp_path / "x.png", Image.fromarray(picture(pixels, pixels)))
    assert "decompression bomb" in reason(path)


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "TIFF"]))
def test_any_damaged_byte_gives_an_image_or_an_image_error(position, value, kind, tmp_path_factory):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    content[position % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "x.jpg"
    path.write_bytes(bytes(content))
    with warnings.catch_warnings(), suppress(ImageError):
        warnings.simplefilter("ignore")
        assert read_image(path, 16).shape == (3, 16, 16)


def galaxy_flux(bands: int | None, side: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] - side / 2
    flux = 100 * np.exp(-np.hypot(x, y) / 5) + np.random.default_rng(0).normal(size=(side, side))
    flux[2, 3] = 400  # a star that tells the corners apart
    return flux if bands is None else np.stack([flux * (1 + band) for band in range(bands)])


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4"])
def test_fits_of_one_band_is_read_with_its_first_row_at_the_bottom(dtype, tmp_path):
    fits.writeto(tmp_path / "x.fits", galaxy_flux(None).astype(dtype))
    result = read_image(tmp_path / "x.fits", 40)
    assert result[0, 37, 3] == 255
    assert result[0, 2, 3] < 100
    np.testing.assert_array_equal(result[0], result[2])


@pytest.mark.parametrize("name", ["x.fits", "x.fit", "x.fts", "X.FITS", "x.fits.gz"])
def test_bands_of_fits_become_channels_in_order(name, tmp_path):
    fits.writeto(tmp_path / name, galaxy_flux(3))
    red, green, blue = read_image(tmp_path / name, 40)[:, 18:22, 18:22].astype(int)
    assert (blue > green).all()
    assert (green > red).all()


@pytest.mark.parametrize("n_bands", [2, 4, 5, 64])
def test_fits_of_any_number_of_bands_becomes_as_many_channels_in_order(n_bands, tmp_path):
    flux = galaxy_flux(n_bands)
    fits.writeto(tmp_path / "x.fits", flux)
    result = read_image(tmp_path / "x.fits", 40, channels=n_bands)
    assert result.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(result, asinh_stretch(flux[:, ::-1]))
    assert (np.diff(result[:, 20, 20].astype(int)) >= 0).all()
    assert result[-1, 20, 20] > result[0, 20, 20]


def test_bands_are_cut_and_resized_as_those_of_a_colour_image(tmp_path):
    flux = galaxy_flux(3, side=60)
    fits.writeto(tmp_path / "three.fits", flux)
    fits.writeto(tmp_path / "six.fits", np.repeat(flux, 2, axis=0))
    three, six = (read_image(tmp_path / f"{name}.fits", 24, n, 0.7) for name, n in (("three", 3), ("six", 6)))
    np.testing.assert_array_equal(six, np.repeat(three, 2, axis=0))


@pytest.mark.parametrize(("n_bands", "channels"), [(5, 4), (4, 5), (3, 2), (1, 2), (None, 5), (5, 1), (5, 3), (2, 3)])
def test_file_of_another_number_of_bands_is_reported(n_bands, channels, tmp_path):
    fits.writeto(tmp_path / "x.fits", galaxy_flux(n_bands))
    found = reason(tmp_path / "x.fits", channels=channels)
    assert f"has {n_bands or 1} bands; for data.channels={channels}, " in found


@pytest.mark.parametrize(("mode", "n_bands"), [("L", 1), ("RGB", 3), ("CMYK", 3)])
def test_picture_for_a_number_of_channels_that_only_fits_has_is_reported(mode, n_bands, tmp_path):
    path = saved(tmp_path / "x.jpg", Image.fromarray(picture()).convert(mode))
    assert reason(path, channels=4) == f"has {n_bands} bands; for data.channels=4, FITS and HDF5 with 4 are read"


def test_batch_of_five_bands_leaves_out_what_has_fewer(tmp_path):
    for row, n_bands in enumerate((5, 3, 5)):
        fits.writeto(tmp_path / f"{row}.fits", galaxy_flux(n_bands))
    images = GalaxyImages([str(tmp_path / f"{row}.fits") for row in range(3)], 16, channels=5)
    batch = images.collate([images[row] for row in range(3)])
    assert batch["image"].shape == (2, 5, 16, 16)
    assert batch["row"].tolist() == [0, 2]
    assert batch["failed"] == [(1, "has 3 bands; for data.channels=5, FITS and HDF5 with 5 are read")]


@pytest.mark.parametrize(("n_bands", "shown"), [(2, (0, 1, 1)), (4, (0, 2, 3)), (5, (0, 2, 4))])
def test_people_see_the_first_middle_and_last_band_of_many(n_bands, shown, tmp_path):
    fits.writeto(tmp_path / "x.fits", galaxy_flux(n_bands))
    bands = read_image(tmp_path / "x.fits", 40, n_bands)
    np.testing.assert_array_equal(read_picture(tmp_path / "x.fits", 40), bands[list(shown)])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_people_see_a_picture_as_the_model_does(mode, tmp_path):
    path = saved(tmp_path / "x.png", Image.fromarray(picture(60, 40)).convert(mode))
    np.testing.assert_array_equal(read_picture(path, 24, 0.8), read_image(path, 24, 3, 0.8))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_views_and_normalisation_take_any_number_of_channels(channels):
    mean, std = [0.1 * band for band in range(channels)], [1.0 + band for band in range(channels)]
    images = torch.randint(0, 256, (3, channels, 16, 16), dtype=torch.uint8)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(EvalTransform(1.0, mean, std)(images), expected)
    still = {"rotate": False, "flip": False, "zoom": (1.0, 1.0), "shift": 0.0}
    torch.testing.assert_close(TrainTransform(**still, mean=mean, std=std)(images), expected)
    assert TrainTransform(mean=mean, std=std)(images).shape == (3, channels, 16, 16)


def test_the_same_file_gives_the_same_input_every_time(jpeg):
    transform = EvalTransform(1.2, 0.3, 0.5)
    first, second = (transform(torch.from_numpy(read_image(jpeg, 24))[None]) for _ in range(2))
    assert torch.equal(first, second)


def test_first_hdu_with_an_image_is_taken(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.ones(3))])
    hdus = fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU(galaxy_flux(None)), fits.ImageHDU(np.ones((4, 4)))])
    hdus.writeto(tmp_path / "x.fits")
    fits.writeto(tmp_path / "plain.fits", galaxy_flux(None))
    np.testing.assert_array_equal(read_image(tmp_path / "x.fits", 40), read_image(tmp_path / "plain.fits", 40))


def test_axes_of_length_one_in_fits_are_ignored(tmp_path):
    fits.writeto(tmp_path / "cube.fits", galaxy_flux(None)[np.newaxis, np.newaxis])
    fits.writeto(tmp_path / "plain.fits", galaxy_flux(None))
    np.testing.assert_array_equal(read_image(tmp_path / "cube.fits", 40), read_image(tmp_path / "plain.fits", 40))


def test_tile_compressed_fits_is_read(tmp_path):
    hdu = fits.CompImageHDU((galaxy_flux(None) * 10).astype(np.int32), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "x.fits.fz")
    fits.writeto(tmp_path / "plain.fits", (galaxy_flux(None) * 10).astype(np.int32))
    np.testing.assert_array_equal(read_image(tmp_path / "x.fits.fz", 40), read_image(tmp_path / "plain.fits", 40))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_of_fits_without_a_value_are_black(value, tmp_path):
    flux = galaxy_flux(None)
    flux[10:14, 20:24] = value
    fits.writeto(tmp_path / "x.fits", flux)
    result = read_image(tmp_path / "x.fits", 40)[0]
    assert result[26:30, 20:24].max() == 0
    assert result[20, 20] > 200


@pytest.mark.parametrize(
    ("flux", "expected"),
    [
        (np.full((10, 10), np.nan), "no finite pixel"),
        (np.ones((5, 10, 10)), "has 5 bands; for data.channels=3, 1 or 3 are read"),
        (np.ones((3, 3, 10, 10)), "4 dimensions"),
        (np.ones(10), "no HDU holds an image"),
    ],
)
def test_fits_that_is_no_galaxy_image_is_reported(flux, expected, tmp_path):
    fits.writeto(tmp_path / "x.fits", flux)
    assert expected in reason(tmp_path / "x.fits")


@pytest.mark.filterwarnings("ignore:.*may have been truncated")
def test_truncated_and_false_fits_are_reported(tmp_path):
    fits.writeto(tmp_path / "x.fits", galaxy_flux(3))
    (tmp_path / "x.fits").write_bytes((tmp_path / "x.fits").read_bytes()[:9000])
    (tmp_path / "text.fits").write_text("<html>404</html>")
    assert reason(tmp_path / "x.fits")
    assert reason(tmp_path / "text.fits")


def test_band_without_a_value_is_black_and_the_others_stay(tmp_path):
    flux = galaxy_flux(3)
    flux[1] = np.nan
    result = asinh_stretch(flux)
    assert result[1].max() == 0
    assert result[0].max() > 50
    assert result[2].max() == 255


def test_constant_image_is_black():
    assert asinh_stretch(np.full((1, 8, 8), 7.0)).max() == 0


def test_single_bright_pixel_is_seen():
    flux = np.zeros((1, 100, 100))
    flux[0, 50, 50] = 1.0
    assert asinh_stretch(flux)[0, 50, 50] == 255


def test_stretch_of_one_band_is_the_asinh_formula():
    flux = galaxy_flux(1).astype(float)
    black, white = np.percentile(flux, 1.0), 0.0
    white = np.percentile(np.maximum(flux - black, 0), 99.8)
    expected = 255 * np.clip(np.arcsinh(8 * np.maximum(flux - black, 0) / white) / np.arcsinh(8), 0, 1)
    assert np.abs(asinh_stretch(flux) - expected).max() <= 0.5 + 1e-9


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(1e-12, 1e12), offset=st.floats(-1e3, 1e3))
def test_stretch_does_not_depend_on_the_unit_or_the_sky_level(factor, offset):
    flux = galaxy_flux(3)
    changed = asinh_stretch(factor * (flux + offset)).astype(int)
    assert np.abs(changed - asinh_stretch(flux)).max() <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_stretch_keeps_the_order_of_brightness_and_the_colour(seed):
    rng = np.random.default_rng(seed)
    flux = rng.gamma(1.0, 10.0, (1, 20, 20)) * np.array([1.0, 0.5, 0.25])[:, None, None]
    stretched = asinh_stretch(flux).astype(float)
    order = np.argsort(flux[0], axis=None)
    assert (np.diff(stretched[0].ravel()[order]) >= 0).all()
    bright = stretched[0] > 100
    np.testing.assert_allclose(stretched[1][bright] / stretched[0][bright], 0.5, atol=0.05)


def dataset(tmp_path: Path, **options) -> GalaxyImages:
    """Rows 0 to 4, of which 1 and 3 cannot be read."""
    files = [tmp_path / f"{row}.png" for row in range(5)]
    for row, path in enumerate(files):
        if row not in (1, 3):
            saved(path, Image.fromarray(np.full((8, 8, 3), row, dtype=np.uint8)))
    files[3].touch()
    counts = np.arange(10, dtype=np.float32).reshape(5, 2)
    return GalaxyImages([str(file) for file in files], 8, **{"counts": counts} | options)


def test_batch_holds_what_could_be_read_and_lists_the_rest(tmp_path):
    images = dataset(tmp_path)
    batch = images.collate([images[i] for i in range(5)])
    assert batch["row"].tolist() == [0, 2, 4]
    assert batch["row"].dtype == torch.int64
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 2, 4]
    assert batch["counts"].tolist() == [[0, 1], [4, 5], [8, 9]]
    assert batch["failed"] == [(1, "no such file or directory"), (3, "empty file")]


def test_batch_of_failures_alone_is_empty_but_keeps_its_shape(tmp_path):
    images = dataset(tmp_path, channels=1)
    batch = images.collate([images[1], images[3]])
    assert batch["image"].shape == (0, 1, 8, 8)
    assert batch["image"].dtype == torch.uint8
    assert batch["row"].shape == (0,)
    assert batch["counts"].shape == (0, 2)
    assert len(batch["failed"]) == 2


def test_subset_gives_rows_of_the_catalog(tmp_path):
    images = dataset(tmp_path, rows=np.array([4, 1, 2]))
    batch = images.collate([images[i] for i in range(3)])
    assert batch["row"].tolist() == [4, 2]
    assert batch["counts"].tolist() == [[8, 9], [4, 5]]
    assert [row for row, _ in batch["failed"]] == [1]


def test_dataset_without_votes_has_counts_of_width_zero(tmp_path):
    assert dataset(tmp_path, counts=None)[0]["counts"].shape == (0,)


def test_file_names_that_are_not_ascii_are_found(tmp_path):
    path = saved(tmp_path / "galaxié ★.png", Image.fromarray(picture()))
    assert GalaxyImages([str(path)], 40)[0]["failure"] == ""


def test_real_images_are_all_read(real_catalog):
    locations = pd.read_csv(real_catalog)["file_loc"]
    step = max(1, len(locations) // 200)
    for location in locations[::step]:
        image = read_image(real_catalog.parent / location, 64)
        assert image.shape == (3, 64, 64)
        assert image.std() > 0
