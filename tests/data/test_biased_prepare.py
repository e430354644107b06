import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from configs import read_choice
from PIL import Image
from scipy.spatial import cKDTree
from sklearn.datasets import load_digits

from rarezoo.cli import UserError
from rarezoo.data.biased.kept import SPLITS, find_kept
from rarezoo.data.biased.prepare import prepare_biased
from rarezoo.data.biased.settings import BiasSettings

RNG = np.random.default_rng(0)


def settings(name, root, **changes):
    return BiasSettings.model_validate(read_choice("bias", name) | {"root": root} | changes)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare_biased(settings("digits", tmp_path_factory.mktemp("digits"), image_size=8))


def write_mnist(path, n_train=400, n_test=100):
    arrays = {
        f"{name}_{split}": values
        for split, n in (("train", n_train), ("test", n_test))
        for name, values in (
            ("x", RNG.integers(1, 256, (n, 28, 28), dtype=np.uint8)),
            ("y", np.arange(n, dtype=np.uint8) % 10),
        )
    }
    np.savez(path, **arrays)
    return path


def write_pictures(folder, labels, name="{row}_{target}_{attribute}.png", size=8):
    """Plain pictures whose grey level is 16 times the class plus the attribute."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, (target, attribute) in enumerate(labels):
        level = 16 * target + attribute
        path = folder / name.format(row=row, target=target, attribute=attribute)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (size, size), (level, level, level)).save(path)


def write_released(root, ratio="5pct", n_classes=10, misspelt=False, flat=False):
    """The layout of Lee et al. (2021): a folder for each class in the training and test splits of the two of them."""
    inside = "{target}/{row}_{target}_{attribute}.png"
    aligned = [(label, label) for label in range(n_classes) for _ in range(19)]
    conflicting = [(label, (label + 1) % n_classes) for label in range(n_classes)]
    write_pictures(root / ratio / "align", aligned, inside)
    write_pictures(root / ratio / ("conlict" if misspelt else "conflict"), conflicting, inside)
    write_pictures(root / ratio / "valid", aligned[:5] + conflicting[:5], "{row}_{target}_{attribute}.png")
    write_pictures(root / "test", aligned[:10] + conflicting[:10], "{row}_{target}_{attribute}.png" if flat else inside)
    return root


def write_bffhq(root):
    labels = [(0, 0), (1, 1)]
    write_pictures(root / "0.5pct" / "align", 199 * labels, "{target}/{row:05}_{target}_{attribute}.png", 12)
    write_pictures(root / "0.5pct" / "conflict", [(0, 1), (1, 0)], "{target}/{row:05}_{target}_{attribute}.png", 12)
    for split in ("valid", "test"):
        write_pictures(root / split, [*labels, (0, 1), (1, 0)], "{row:05}_{target}_{attribute}.png", 12)
    return root


def conflict_share(images):
    return (images.target != images.attribute).mean()


@pytest.mark.parametrize("name", ["digits", "cmnist", "cifar10c", "bffhq"])
def test_configuration_files_hold_every_option_and_no_other(name, tmp_path):
    assert settings(name, tmp_path).name == name


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cmnist", {"conflict_percent": 3}, "conflict_percent=3: for cmnist, give one of 0.5, 1, 2, 5"),
        ("bffhq", {"conflict_percent": 5}, "conflict_percent=5: for bffhq, give one of 0.5"),
        ("digits", {"source": "mnist.npz"}, "source=mnist.npz: digits come with scikit-learn, give source=null"),
        ("cmnist", {"source": None}, "source=null: give the files"),
        ("bffhq", {"severity": 3}, "severity=3: photographs have none"),
        ("cmnist", {"severity": None}, "severity=null: give 1 to 5"),
        ("cmnist", {"severity": 6}, "less than or equal to 5"),
    ],
)
def test_option_that_does_not_fit_the_data_set_is_refused(name, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings(name, tmp_path, **changes)


def test_every_digit_of_scikit_learn_is_in_one_split_and_none_is_lost(digits):
    assert [len(digits.splits[split].target) for split in SPLITS] == [1148, 200, 449]
    painted = np.concatenate([digits.splits[split].images.max(axis=1).reshape(-1, 64) for split in SPLITS])
    targets = np.concatenate([digits.splits[split].target for split in SPLITS])
    # A digit's brightest channel is the digit, whatever its colour.
    theirs, ours = (
        np.column_stack([values / values.max(1, keepdims=True), labels])
        for values, labels in ((load_digits().data, load_digits().target), (painted.astype(float), targets))
    )
    distances, rows = cKDTree(theirs).query(ours, p=np.inf)
    assert distances.max() < 0.01
    assert sorted(rows) == list(range(1797))


@pytest.mark.parametrize("percent", [0.5, 1.0, 2.0, 5.0])
def test_training_and_validation_have_the_share_of_conflicts_that_is_asked_for_and_the_test_has_none_of_the_bias(
    percent, tmp_path
):
    data = prepare_biased(settings("digits", tmp_path, conflict_percent=percent, image_size=8))
    assert conflict_share(data.splits["train"]) == pytest.approx(percent / 100, abs=0.5 / 1148)
    assert conflict_share(data.splits["validation"]) == pytest.approx(percent / 100, abs=0.5 / 200)
    assert conflict_share(data.splits["test"]) == pytest.approx(0.9, abs=0.5 / 449)


def test_fewer_training_images_leave_the_others_and_the_shares_as_they_were(digits, tmp_path):
    fewer = prepare_biased(settings("digits", tmp_path, n_training=400, image_size=8))
    assert [len(fewer.splits[split].target) for split in SPLITS] == [400, 200, 449]
    assert conflict_share(fewer.splits["train"]) == pytest.approx(0.05, abs=0.5 / 400)
    np.testing.assert_array_equal(fewer.splits["test"].images, digits.splits["test"].images)
    np.testing.assert_array_equal(fewer.splits["validation"].target, digits.splits["validation"].target)


@pytest.mark.parametrize("changes", [{"n_training": 1149}, {"n_validation": 1348, "n_training": None}])
def test_more_images_than_there_are_are_refused(changes, tmp_path):
    with pytest.raises(UserError, match=r"there are 1348 images to\s+train on and to validate with"):
        prepare_biased(settings("digits", tmp_path, **changes))


def test_validation_is_unbiased_on_request(tmp_path):
    data = prepare_biased(settings("digits", tmp_path, validation="unbiased", image_size=8))
    assert conflict_share(data.splits["validation"]) == pytest.approx(0.9, abs=0.5 / 200)
    assert conflict_share(data.splits["train"]) == pytest.approx(0.05, abs=0.5 / 1148)


def test_mean_and_spread_are_those_of_the_training_images(digits):
    unit = digits.splits["train"].images / 255
    np.testing.assert_allclose(digits.mean, unit.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(digits.std, unit.std(axis=(0, 2, 3)))


def test_the_same_settings_give_the_same_bytes_in_any_folder_and_another_data_seed_gives_others(digits, tmp_path):
    again = prepare_biased(settings("digits", tmp_path, image_size=8))
    other = prepare_biased(settings("digits", tmp_path, image_size=8, data_seed=1))
    assert again.sha256 == digits.sha256
    assert other.sha256 != digits.sha256
    np.testing.assert_array_equal(again.splits["test"].images, digits.splits["test"].images)


def test_what_is_kept_is_used_again_and_what_is_damaged_is_made_anew(tmp_path):
    chosen = settings("digits", tmp_path, image_size=8)
    first = prepare_biased(chosen)
    record = next(tmp_path.glob("digits-*/biased.json"))
    written = record.stat().st_mtime_ns
    prepare_biased(chosen)
    assert record.stat().st_mtime_ns == written
    images = record.parent / "train_images.npy"
    images.write_bytes(images.read_bytes()[:1000])
    assert prepare_biased(chosen).sha256 == first.sha256
    record.write_text("{")
    assert prepare_biased(chosen).sha256 == first.sha256
    assert not list(tmp_path.glob(".*.part*"))


def test_what_a_killed_process_left_half_made_is_cleared_away(tmp_path):
    chosen = settings("digits", tmp_path, image_size=8)
    prepare_biased(chosen)
    folder = next(tmp_path.glob("digits-*"))
    half_made = tmp_path / f".{folder.name}.abc.part"
    half_made.mkdir()
    prepare_biased(chosen)
    assert not half_made.exists()


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"bias\.root="):
        prepare_biased(settings("digits", tmp_path / "file", image_size=8))


def test_coloured_mnist_keeps_the_digits_and_gives_each_class_its_colour(tmp_path):
    source = write_mnist(tmp_path / "mnist.npz")
    data = prepare_biased(settings("cmnist", tmp_path, source=source, n_validation=50, severity=5))
    train = data.splits["train"]
    assert (len(train.target), len(data.splits["validation"].target), data.origin) == (350, 50, "made")
    hues = train.images.reshape(350, 3, -1).astype(float).mean(2)
    hues /= hues.max(1, keepdims=True)
    for colour in range(10):
        assert hues[train.attribute == colour].std(0).max() < 0.02
    with np.load(source) as arrays:
        np.testing.assert_array_equal(data.splits["test"].target, arrays["y_test"])
        painted = data.splits["test"].images.reshape(100, 3, -1).astype(float)
        white = arrays["x_test"].reshape(100, 1, -1).astype(float)
    # Each pixel of a digit is dimmed by the same factor, to the rounding of bytes.
    np.testing.assert_allclose(painted, painted.max(2, keepdims=True) / white.max(2, keepdims=True) * white, atol=1.01)


def test_more_validation_images_than_there_are_are_refused(tmp_path):
    source = write_mnist(tmp_path / "mnist.npz")
    with pytest.raises(UserError, match=r"bias.n_validation=5000, bias.n_training=None: there are 400 images"):
        prepare_biased(settings("cmnist", tmp_path, source=source))


def test_corrupted_cifar10_is_made_of_pictures(tmp_path):
    for split in ("train", "test"):
        for name in ("airplane", "frog"):
            folder = tmp_path / "cifar" / split / name
            folder.mkdir(parents=True)
            for row in range(20):
                Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{row:02}.png")
    data = prepare_biased(settings("cifar10c", tmp_path, source=tmp_path / "cifar", n_validation=8))
    train = data.splits["train"]
    assert train.images.shape == (32, 3, 32, 32)
    assert set(train.target) == {0, 6}
    assert data.origin == "made"


@pytest.mark.parametrize("name", ["cmnist", "cifar10c"])
@pytest.mark.parametrize("misspelt", [False, True])
def test_released_folders_are_read_with_the_labels_of_the_names(name, misspelt, tmp_path):
    source = write_released(tmp_path / name, misspelt=misspelt)
    data = prepare_biased(settings(name, tmp_path / "kept", source=source, image_size=8))
    assert data.origin == "released"
    assert [len(data.splits[split].target) for split in SPLITS] == [200, 10, 20]
    for images in data.splits.values():
        np.testing.assert_array_equal(images.images[:, 0, 0, 0], 16 * images.target + images.attribute)
    assert conflict_share(data.splits["train"]) == 0.05


def test_biased_ffhq_is_read_and_resized(tmp_path):
    source = write_bffhq(tmp_path / "bffhq")
    data = prepare_biased(settings("bffhq", tmp_path / "kept", source=source, image_size=16))
    assert [data.splits[split].images.shape for split in SPLITS] == [(400, 3, 16, 16), (4, 3, 16, 16), (4, 3, 16, 16)]
    test = data.splits["test"]
    np.testing.assert_array_equal(test.images[:, 1, 8, 8], 16 * test.target + test.attribute)
    assert sorted(zip(test.target.tolist(), test.attribute.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def break_released(source, fault):
    picture = next((source / "5pct" / "align").rglob("*_3_3.png"))
    if fault == "label":
        picture.rename(picture.with_name("7_3_4.png"))
    elif fault == "class":
        picture.rename(picture.with_name("7_30_30.png"))
    elif fault == "name":
        picture.rename(picture.with_name("seven.png"))
    elif fault == "picture":
        picture.write_bytes(picture.read_bytes()[:30])
    elif fault == "share":
        for conflicting in list((source / "5pct" / "conflict").rglob("*.png"))[3:]:
            conflicting.unlink()
    elif fault == "test":
        for missing in (source / "test").rglob("*.png"):
            missing.unlink()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("label", r"7_3_4.png: has class 3 and attribute 4, and lies in align"),
        ("class", r"7_30_30.png: its name does not end in _<class>_<attribute>, each from 0 to 9"),
        ("name", r"seven.png: its name does not end in _<class>_<attribute>"),
        ("picture", r"_3_3.png: .*Copy the data set again"),
        ("share", r"1.55% of 193 images are conflicting, and bias.conflict_percent=5"),
        ("test", r"test: has no pictures"),
    ],
)
def test_fault_of_a_released_folder_is_named_and_leaves_nothing_behind(fault, message, tmp_path):
    source = write_released(tmp_path / "cmnist")
    break_released(source, fault)
    with pytest.raises(UserError, match=message):
        prepare_biased(settings("cmnist", tmp_path / "kept", source=source, image_size=8))
    assert not [path for path in (tmp_path / "kept").iterdir() if not path.name.endswith(".lock")]


def test_source_that_is_not_there_or_is_no_release_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        prepare_biased(settings("cmnist", tmp_path, source=tmp_path / "absent"))
    (tmp_path / "bffhq").mkdir()
    with pytest.raises(UserError, match=r"has no 0\.5pct/align"):
        prepare_biased(settings("bffhq", tmp_path, source=tmp_path / "bffhq"))


def test_record_reads_as_json_and_names_what_it_was_made_with(digits, tmp_path):
    prepare_biased(settings("digits", tmp_path, image_size=8))
    record = json.loads(next(tmp_path.glob("digits-*/biased.json")).read_text())
    assert record["key"]["conflict_percent"] == 5.0
    assert record["versions"]["numpy"] == np.__version__


def test_kept_images_are_found_by_their_content_and_damaged_ones_are_not(tmp_path):
    first, other = (prepare_biased(settings("digits", tmp_path, image_size=8, data_seed=seed)) for seed in (0, 1))
    for data in (first, other):
        found = find_kept(tmp_path, data.sha256)
        assert (found.sha256, found.mean) == (data.sha256, data.mean)
        np.testing.assert_array_equal(found.splits["test"].images, data.splits["test"].images)
    for path in tmp_path.glob("digits-*/test_target.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"does not hold the images .*SHA-256 {first.sha256[:12]}"):
        find_kept(tmp_path, first.sha256)


def test_choices_are_named_as_their_data_sets():
    for path in (Path(__file__).parents[2] / "conf" / "bias").glob("[a-z]*.yaml"):
        assert yaml.safe_load(path.read_text())["name"] == path.stem
