import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.data.biased.files import CIFAR10_CLASSES, read_cifar10, read_mnist

RNG = np.random.default_rng(0)
DIGITS = {
    "train": RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "test": RNG.integers(0, 256, (10, 28, 28)).astype(np.uint8),
}
CLASSES = {"train": np.arange(20, dtype=np.uint8) % 10, "test": np.arange(10, dtype=np.uint8)}
PHOTOGRAPHS = {
    split: RNG.integers(0, 256, (len(digits), 3, 32, 32), dtype=np.uint8) for split, digits in DIGITS.items()
}


def idx(values):
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def write_idx(folder, zipped=False, dotted=False):
    for split, part in (("train", "train"), ("test", "t10k")):
        for kind, values in (("images-idx3", DIGITS[split]), ("labels-idx1", CLASSES[split])):
            name = f"{part}-{kind.replace('-', '.') if dotted else kind}-ubyte"
            content = gzip.compress(idx(values)) if zipped else idx(values)
            (folder / (name + ".gz" * zipped)).write_bytes(content)
    return folder


def write_npz(path, **changes):
    arrays = {f"{name}_{split}": values[split] for split in DIGITS for name, values in (("x", DIGITS), ("y", CLASSES))}
    np.savez(path, **arrays | changes)
    return path


def batches():
    """The members of CIFAR-10's Python version: five batches of four images, and one to test with."""
    parts = {f"data_batch_{part + 1}": ("train", slice(4 * part, 4 * part + 4)) for part in range(5)}
    for name, (split, rows) in (parts | {"test_batch": ("test", slice(None))}).items():
        content = {
            b"data": PHOTOGRAPHS[split][rows].reshape(-1, 3072),
            b"labels": CLASSES[split][rows].tolist(),
            b"batch_label": b"testing",
        }
        yield f"cifar-10-batches-py/{name}", pickle.dumps(content, protocol=2)


def write_python_version(folder):
    for name, content in batches():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def assert_is(found, images):
    for split in ("train", "test"):
        np.testing.assert_array_equal(found[split].images, images[split])
        np.testing.assert_array_equal(found[split].target, CLASSES[split])
        assert found[split].target.dtype == np.int64


def test_mnist_is_read_from_an_npz(tmp_path):
    assert_is(read_mnist(write_npz(tmp_path / "mnist.npz")), DIGITS)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_mnist_is_read_from_idx_files(tmp_path, zipped, dotted):
    assert_is(read_mnist(write_idx(tmp_path, zipped, dotted)), DIGITS)


@pytest.mark.parametrize("n_bytes", [0, 3, 10, 1000])
@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_idx_file_is_named(tmp_path, n_bytes, zipped):
    name = write_idx(tmp_path, zipped) / ("t10k-images-idx3-ubyte" + ".gz" * zipped)
    name.write_bytes(name.read_bytes()[:n_bytes])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.*is not a whole idx file"):
        read_mnist(tmp_path)


def test_missing_idx_file_is_named(tmp_path):
    (write_idx(tmp_path) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="has no train-labels-idx1-ubyte"):
        read_mnist(tmp_path)


def test_npz_that_is_damaged_or_holds_something_else_or_objects_is_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    for content in (b"", b"text", write_npz(path).read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no MNIST"):
            read_mnist(path)
    np.savez(path, x=DIGITS["train"])
    with pytest.raises(UserError, match="is no MNIST"):
        read_mnist(path)
    with pytest.raises(UserError, match="is no MNIST"):
        read_mnist(write_npz(path, y_train=np.array([object()])))
    with pytest.raises(UserError, match="is no MNIST"):
        read_mnist(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"y_train": np.arange(19, dtype=np.uint8)},
        {"y_train": np.full(20, 10, dtype=np.uint8)},
        {"y_train": np.full(20, 0.5)},
        {"x_train": DIGITS["train"].astype(np.float32)},
        {"x_train": DIGITS["train"][:, 0]},
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match="bytes and as many whole numbers from 0 to 9 are read"):
        read_mnist(write_npz(tmp_path / "mnist.npz", **changes))


def test_cifar10_is_read_from_its_python_version_unpacked(tmp_path):
    assert_is(read_cifar10(write_python_version(tmp_path)), PHOTOGRAPHS)
    assert_is(read_cifar10(tmp_path / "cifar-10-batches-py"), PHOTOGRAPHS)


def test_cifar10_is_read_from_its_python_version_as_a_tar(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in batches():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert_is(read_cifar10(path), PHOTOGRAPHS)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz"):
        read_cifar10(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_cifar10_is_read_from_pictures_in_folders_of_the_classes(tmp_path, zipped):
    for split, images in PHOTOGRAPHS.items():
        for row, image in enumerate(images):
            folder = tmp_path / "cifar" / split / CIFAR10_CLASSES[CLASSES[split][row]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{row:04}.png")
    (tmp_path / "cifar" / "README.md").write_text("pictures")
    source = tmp_path / "cifar"
    if zipped:
        source = tmp_path / "cifar.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in (tmp_path / "cifar").rglob("*.*"):
                archive.write(path, path.relative_to(tmp_path))
    found = read_cifar10(source)
    for split in ("train", "test"):
        # By class, since folders are read in their order.
        order = np.argsort(CLASSES[split], kind="stable")
        np.testing.assert_array_equal(found[split].images, PHOTOGRAPHS[split][order])
        np.testing.assert_array_equal(found[split].target, CLASSES[split][order])


class Program:
    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


def test_pickle_that_holds_a_program_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "was_here"
    batch = write_python_version(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({b"data": Program(mark), b"labels": []}, protocol=2))
    with pytest.raises(UserError, match=r"data_batch_3 is no batch .*mkdir, and arrays are read only"):
        read_cifar10(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2]), pickle.dumps({b"labels": [1]})])
def test_file_that_is_no_batch_is_named(tmp_path, content):
    (write_python_version(tmp_path) / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch is no batch"):
        read_cifar10(tmp_path)


def test_damaged_picture_is_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "frog").mkdir(parents=True)
        (tmp_path / split / "frog" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train/frog/0.png cannot be decoded"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "missing"])
def test_source_that_holds_no_cifar10_is_refused(tmp_path, kind):
    source = tmp_path / "cifar"
    if kind == "file":
        source.write_text("text")
    elif kind == "folder":
        source.mkdir()
    with pytest.raises(UserError, match=str(source)):
        read_cifar10(source)


def real(*parts) -> Path:
    path = Path(os.environ.get("RAREZOO_DATA", Path(__file__).parents[3] / "shared" / "data")).joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"real data are not here: {path} (set RAREZOO_DATA)")
    return path


def test_all_of_mnist_is_read():
    found = read_mnist(real("mnist", "mnist.npz"))
    assert [len(found[split].target) for split in ("train", "test")] == [60_000, 10_000]
    # As published by LeCun et al.
    assert np.bincount(found["test"].target).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
