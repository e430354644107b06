"""MNIST and CIFAR-10 in the files that they are published in."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError, progress
from rarezoo.data.decoding import decode_picture

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10_SIZE = 32
_MNIST_PARTS = {"train": "train", "test": "t10k"}
_IDX_BYTES = 0x08
_PICTURES = (".jpg", ".jpeg", ".png")
_PICKLES = {"train": [f"data_batch_{part}" for part in range(1, 6)], "test": ["test_batch"]}


class Labelled(NamedTuple):
    """Images, bytes (N, H, W) or (N, 3, H, W), and their classes, int64 (N,)."""

    images: NDArray[np.uint8]
    target: NDArray[np.int64]


def read_mnist(source: Path) -> dict[str, Labelled]:
    """Read MNIST, as an .npz of x_train, y_train, x_test and y_test, or as a folder of the four idx files, also .gz.

    Returns
    -------
    "train" and "test", images (N, 28, 28)

    Raises
    ------
    UserError
        naming the file that is missing, damaged or something else
    """
    if source.is_dir():
        return {split: _read_idx_pair(source, part) for split, part in _MNIST_PARTS.items()}
    try:
        with np.load(source) as arrays:
            found = {split: Labelled(arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise UserError(
            f"{source}: is no MNIST ({_one_line(error)}). Give an .npz of x_train, y_train, x_test and y_test, or a "
            "folder of the four idx files."
        ) from error
    return {split: _checked(source, images, target, 3) for split, (images, target) in found.items()}


def read_cifar10(source: Path) -> dict[str, Labelled]:
    """Read CIFAR-10: the Python version, as its .tar.gz or unpacked, or pictures in train/<class> and test/<class>.

    Parameters
    ----------
    source : .tar.gz or .zip, or the folder that either unpacks to

    Returns
    -------
    "train" and "test", images (N, 3, 32, 32)

    Raises
    ------
    UserError
        naming the file that is missing or damaged, holds code, or is something else
    """
    try:
        return _read_cifar10(source)
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{source}: cannot be read ({_one_line(error)}). Copy it again.") from error


def _read_cifar10(source: Path) -> dict[str, Labelled]:
    if source.is_dir():
        files = {path.relative_to(source).as_posix(): path.read_bytes for path in sorted(source.rglob("*"))}
        return _from_members(source, files)
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            return _from_members(source, {name: _opener(archive, name) for name in sorted(archive.namelist())})
    if tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            contents = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            return _from_members(source, {name: stream.read for name, stream in contents.items() if stream})
    raise UserError(f"{source}: is neither a folder nor a tar nor a zip. Give CIFAR-10 as one of these.")


def _opener(archive: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    return lambda: archive.read(name)


def _from_members(source: Path, members: dict[str, Callable[[], bytes]]) -> dict[str, Labelled]:
    by_name = {name.rpartition("/")[2]: name for name in members}
    if all(name in by_name for names in _PICKLES.values() for name in names):
        return {
            split: _from_pickles(source, [(name, members[by_name[name]]()) for name in names])
            for split, names in _PICKLES.items()
        }
    return {split: _from_pictures(source, split, members) for split in ("train", "test")}


def _from_pickles(source: Path, batches: list[tuple[str, bytes]]) -> Labelled:
    images: list[NDArray[np.uint8]] = []
    target: list[int] = []
    for name, content in batches:
        try:
            batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, CIFAR10_SIZE, CIFAR10_SIZE))
            target.extend(batch[b"labels"])
        # A damaged pickle raises nearly every kind of exception that there is.
        except Exception as error:
            raise UserError(
                f"{source}: {name} is no batch of CIFAR-10's Python version ({_one_line(error)}). Copy it again from "
                "its makers."
            ) from error
    return _checked(source, np.concatenate(images), np.array(target), 4)


class _ArraysOnly(pickle.Unpickler):
    """Reads lists, texts, numbers and NumPy arrays; anything else in a pickle may be a program."""

    def find_class(self, module: str, name: str) -> Any:
        """Give what arrays are made with.

        Raises
        ------
        UnpicklingError
            for anything else
        """
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _to_bytes
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and arrays are read only")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: bytes) -> NDArray[Any]:
    return np.ndarray(shape, dtype.decode())


def _to_bytes(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes into a pickle that Python 2 can read.
    return text.encode("latin1")


def _from_pictures(source: Path, split: str, members: dict[str, Callable[[], bytes]]) -> Labelled:
    names = list(_pictures_of(split, members))
    if not names:
        raise UserError(
            f"{source}: holds neither the batches of CIFAR-10's Python version nor pictures in {split}/<class>/. "
            f"Classes are {', '.join(CIFAR10_CLASSES)}."
        )
    images = np.empty((len(names), 3, CIFAR10_SIZE, CIFAR10_SIZE), dtype=np.uint8)
    target = np.empty(len(names), dtype=np.int64)
    for row, (name, label) in enumerate(progress(names, f"Decoding CIFAR-10, {split}", unit="image")):
        try:
            images[row] = decode_picture(members[name](), CIFAR10_SIZE, 1.0)
        # Decoders raise a dozen kinds of exception for a damaged file, with no common base.
        except Exception as error:
            raise UserError(f"{source}: {name} cannot be decoded ({_one_line(error)}). Copy it again.") from error
        target[row] = label
    return _checked(source, images, target, 4)


def _pictures_of(split: str, members: dict[str, Callable[[], bytes]]) -> Iterator[tuple[str, int]]:
    for name in members:
        *folders, file = name.split("/")
        if file.lower().endswith(_PICTURES) and folders[-2:-1] == [split] and folders[-1] in CIFAR10_CLASSES:
            yield name, CIFAR10_CLASSES.index(folders[-1])


def _read_idx_pair(folder: Path, part: str) -> Labelled:
    images, target = (_read_idx(_find_idx(folder, part, kind)) for kind in ("images-idx3", "labels-idx1"))
    return _checked(folder, images, target, 3)


def _find_idx(folder: Path, part: str, kind: str) -> Path:
    # The site has had both spellings.
    names = [f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte"]
    for path in (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")):
        if path.is_file():
            return path
    raise UserError(f"{folder}: has no {names[0]}, with or without .gz. Give a folder of MNIST's four idx files.")


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of bytes: two zeros, type, number of axes, their lengths as big-endian 32 bits, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, n_axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{n_axes}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes)
        if zeros or kind != _IDX_BYTES:
            raise ValueError("it does not begin as one")
        return values.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{path}: is not a whole idx file of bytes ({_one_line(error)}). Copy it again.") from error


def _checked(source: Path, images: NDArray[Any], target: NDArray[Any], n_axes: int) -> Labelled:
    fits = images.ndim == n_axes and target.shape == (len(images),) and images.dtype == np.uint8 and len(images) > 0
    if not fits or target.dtype.kind not in "iu" or target.min() < 0 or target.max() > 9:
        raise UserError(
            f"{source}: has images {images.dtype} {images.shape} and classes {target.dtype} {target.shape}; bytes and "
            "as many whole numbers from 0 to 9 are read."
        )
    return Labelled(images, target.astype(np.int64))


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
