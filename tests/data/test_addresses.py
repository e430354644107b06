import io
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rarezoo.data import addresses
from rarezoo.data.addresses import Hdf5Row, ImageError, ImageFile, TarMember, missing_files, parse_address
from rarezoo.data.decoding import asinh_stretch
from rarezoo.data.images import GalaxyImages, read_image, read_picture
from rarezoo.report.montage import montage

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
N_IMAGES = 6


def pixels(row: int, side: int = 20) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(values: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> dict[str, str]:
    """Name -> address, as Python's tarfile says where each member is."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return {member.name: f"{path}#{member.name}@{member.offset_data}+{member.size}" for member in tar}


@pytest.fixture
def tar(tmp_path: Path) -> dict[str, str]:
    return write_tar(tmp_path / "a.tar", {f"J{row}.png": encoded(pixels(row)) for row in range(N_IMAGES)})


@pytest.fixture
def hdf5(tmp_path: Path) -> list[str]:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.stack([pixels(row) for row in range(N_IMAGES)])
    return [f"{tmp_path}/a.h5#images[{row}]" for row in range(N_IMAGES)]


def reason(address: str, **options) -> str:
    with pytest.raises(ImageError) as error:
        read_image(address, 16, **options)
    assert error.value.path == address
    return error.value.reason


@given(folder=NAMES, member=NAMES, offset=st.integers(0, 2**60), length=st.integers(0, 2**60))
def test_address_in_a_tar_names_the_same_bytes_when_it_is_read(folder, member, offset, length):
    place = TarMember(f"{folder.replace('#', '')}/1.tar", member, offset, length)
    assert parse_address(str(place)) == place


@given(folder=NAMES, dataset=NAMES, row=st.integers(0, 2**60), suffix=st.sampled_from(["h5", "hdf5", "H5"]))
def test_address_in_hdf5_names_the_same_row_when_it_is_read(folder, dataset, row, suffix):
    place = Hdf5Row(f"{folder.replace('#', '')}/1.{suffix}", dataset, row)
    assert parse_address(str(place)) == place


@pytest.mark.parametrize(
    "name",
    ["a#b.png", "a[1].png", "x.tar#b.png", "x.h5#1.png", "images.h5[3].png", "x.tar#b@1.png", "x@1+2.png", "#.png"],
)
def test_file_whose_name_only_resembles_an_address_is_read_as_a_file(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(encoded(pixels(0)))
    assert parse_address(str(path)) == ImageFile(str(path))
    np.testing.assert_array_equal(read_image(path, 20), pixels(0).transpose(2, 0, 1))
    assert missing_files([str(path)]) == []


def test_images_in_a_tar_are_those_that_were_put_there(tar):
    for row, address in enumerate(tar.values()):
        np.testing.assert_array_equal(read_image(address, 20), pixels(row).transpose(2, 0, 1))
        np.testing.assert_array_equal(read_picture(Path(address), 20), pixels(row).transpose(2, 0, 1))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "name", ["a.png", "folder/a.png", "galaxié ★.png", f"{'x' * 90}/{'y' * 60}.png", "a#b@1+2.png"]
)
def test_members_of_any_tar_format_and_name_are_read(tar_format, name, tmp_path):
    (address,) = write_tar(tmp_path / "a.tar", {name: encoded(pixels(0))}, tar_format).values()
    np.testing.assert_array_equal(read_image(address, 20), pixels(0).transpose(2, 0, 1))


def test_fits_in_a_tar_is_told_by_its_name(tmp_path):
    stream = io.BytesIO()
    flux = np.random.default_rng(0).random((5, 20, 20))
    fits.PrimaryHDU(flux).writeto(stream)
    (address,) = write_tar(tmp_path / "a.tar", {"a.fits": stream.getvalue()}).values()
    np.testing.assert_array_equal(read_image(address, 20, channels=5), asinh_stretch(flux[:, ::-1]))


def test_place_beyond_the_end_of_a_tar_is_reported(tar, tmp_path):
    end = (tmp_path / "a.tar").stat().st_size
    assert reason(f"{tmp_path}/a.tar#J0.png@{end + 512}+100") == "the tar ends before the image does"
    assert reason(f"{tmp_path}/a.tar#J0.png@512+{end}") == "the tar ends before the image does"


def test_place_where_no_member_begins_is_reported(tar, tmp_path):
    for offset in (0, 511, 513, 600):
        assert "no member of" in reason(f"{tmp_path}/a.tar#J0.png@{offset}+100")


def test_place_of_another_member_is_reported_with_what_is_there(tar, tmp_path):
    place = parse_address(tar["J1.png"])
    assert "the tar has 'J1.png' of" in reason(str(TarMember(place.container, "J2.png", place.offset, place.length)))
    shorter = TarMember(place.container, place.name, place.offset, place.length - 1)
    assert "the tar has 'J1.png' of" in reason(str(shorter))


def test_truncated_tar_loses_only_the_images_that_are_cut_off(tar, tmp_path):
    place = parse_address(tar["J3.png"])
    os.truncate(tmp_path / "a.tar", place.offset + 100)
    images = GalaxyImages(list(tar.values()), 20)
    batch = images.collate([images[row] for row in range(N_IMAGES)])
    assert batch["row"].tolist() == [0, 1, 2]
    assert batch["failed"] == [(row, "the tar ends before the image does") for row in (3, 4, 5)]


def test_empty_and_damaged_members_are_reported_as_files_are(tmp_path):
    members = {"empty.png": b"", "text.png": b"<html>", "cut.jpg": encoded(pixels(0, 90), "JPEG")[:-300]}
    found = {name: reason(address) for name, address in write_tar(tmp_path / "a.tar", members).items()}
    assert found["empty.png"] == "empty file"
    assert found["text.png"] == "not an image, or of an unknown format"
    assert "truncated" in found["cut.jpg"]


@pytest.mark.parametrize("address", ["none.tar#a.png@512+10", "none.h5#images[0]", "none.png"])
def test_missing_container_is_reported_for_its_image_and_found_before_any_is_read(address, tmp_path, tar, hdf5):
    assert reason(f"{tmp_path}/{address}") == "no such file or directory"
    assert missing_files([*tar.values(), f"{tmp_path}/{address}", *hdf5]) == [N_IMAGES]


def test_montage_shows_images_of_tars_and_of_hdf5(tar, hdf5):
    places = [*tar.values(), *hdf5]
    shown = np.asarray(montage([Path(address) for address in places], N_IMAGES, 2, 20, gap=0))
    expected = np.concatenate([pixels(row) for row in range(N_IMAGES)], axis=1)
    np.testing.assert_array_equal(shown, np.concatenate([expected, expected]))


def test_many_images_of_one_missing_tar_are_all_counted(tmp_path, tar):
    missing = [f"{tmp_path}/none.tar#{row}.png@512+10" for row in range(200)]
    assert missing_files([*tar.values(), *missing]) == list(range(N_IMAGES, N_IMAGES + 200))


def test_rows_of_hdf5_are_the_images_that_were_put_there(hdf5):
    for row, address in enumerate(hdf5):
        np.testing.assert_array_equal(read_image(address, 20), pixels(row).transpose(2, 0, 1))


@pytest.mark.parametrize("n_bands", [1, 3, 5])
def test_bands_may_come_first_or_last_in_hdf5(n_bands, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2, n_bands, 20, 24), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["first"], file["group/last"] = values, values.transpose(0, 2, 3, 1)
    first, last = (read_image(f"{tmp_path}/a.h5#{name}[1]", 20, n_bands) for name in ("first", "group/last"))
    np.testing.assert_array_equal(first, values[1, :, :, 2:22])
    np.testing.assert_array_equal(first, last)


def test_last_axis_is_that_of_the_bands_where_first_and_last_are_equal(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = values
    np.testing.assert_array_equal(read_image(f"{tmp_path}/a.h5#images[0]", 3), values[0, :, 2:5].transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_of_hdf5_are_divided_by_257(dtype, tmp_path):
    values = np.linspace(0, 65535, 400).reshape(1, 20, 20).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = values
    found = read_image(f"{tmp_path}/a.h5#images[0]", 20, channels=1)
    np.testing.assert_array_equal(found, np.rint(values / 257.0))


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i4"])
def test_fluxes_of_hdf5_are_stretched_with_their_first_row_at_the_top(dtype, tmp_path):
    values = (100 * np.random.default_rng(0).random((1, 20, 20))).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = values
    found = read_image(f"{tmp_path}/a.h5#images[0]", 20, channels=1)
    np.testing.assert_array_equal(found, asinh_stretch(values.astype(float)))


def test_faults_of_hdf5_are_reported(hdf5, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "a") as file:
        file["nan"] = np.full((1, 8, 8), np.nan)
        file["flat"] = np.zeros((4, 5))
        file["scalar"] = 1
        file["text"] = ["a", "b"]
    assert "no row 6" in reason(f"{path}#images[6]")
    assert reason(f"{path}#image[0]") == "the file has no dataset 'image'"
    assert reason(f"{path}#nan[0]") == "no finite pixel"
    assert "1 dimensions" in reason(f"{path}#flat[0]")
    assert "no row 0" in reason(f"{path}#scalar[0]")
    assert reason(f"{path}#text[0]")
    assert "has 3 bands" in reason(f"{path}#images[0]", channels=5)


def test_truncated_and_false_hdf5_are_reported(hdf5, tmp_path):
    os.truncate(tmp_path / "a.h5", 3000)
    (tmp_path / "text.h5").write_text("<html>404</html>")
    assert reason(hdf5[0])
    assert reason(f"{tmp_path}/text.h5#images[0]")


def test_many_containers_are_read_with_few_of_them_open(tmp_path, monkeypatch):
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("this system does not list open files")
    places = []
    for number in range(addresses._OPEN_TARS + 30):
        places += write_tar(tmp_path / f"{number}.tar", {"a.png": encoded(pixels(number))}).values()
    before = len(list(open_files.iterdir()))
    for _ in range(2):
        for number, address in enumerate(places):
            np.testing.assert_array_equal(read_image(address, 20), pixels(number).transpose(2, 0, 1))
    assert len(list(open_files.iterdir())) <= before + addresses._OPEN_TARS


def _all_agree(found: list[np.ndarray]) -> bool:
    return all(np.array_equal(each, pixels(row % N_IMAGES).transpose(2, 0, 1)) for row, each in enumerate(found))


def _reads_all(places: list[str]) -> bool:
    return _all_agree([read_image(address, 20) for address in places])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_processes_read_side_by_side_after_their_parent_has_read(tar, hdf5):
    places = [*tar.values(), *hdf5]
    assert _reads_all(places)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert all(pool.map(_reads_all, [places * 10] * 6))
    assert _reads_all(places)


def test_threads_read_side_by_side(tar, hdf5):
    places = [*tar.values(), *hdf5] * 20
    with ThreadPoolExecutor(8) as pool:
        assert _all_agree(list(pool.map(lambda address: read_image(address, 20), places)))


def test_dataset_that_has_read_can_be_sent_to_another_process(tar, hdf5):
    images = GalaxyImages([*tar.values(), *hdf5], 20)
    before = images[N_IMAGES]["image"]
    assert pickle.loads(pickle.dumps(images))[N_IMAGES]["image"].equal(before)
