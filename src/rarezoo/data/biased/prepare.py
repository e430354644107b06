"""Biased data sets made or read once, and kept as arrays that all runs of a study share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError, progress
from rarezoo.data.addresses import ImageError
from rarezoo.data.biased.attributes import biased_attributes, check_conflict_share, unbiased_attributes
from rarezoo.data.biased.colours import colour_digit
from rarezoo.data.biased.corruptions import corrupt
from rarezoo.data.biased.files import Labelled, read_cifar10, read_mnist
from rarezoo.data.biased.kept import RECORD, SPLITS, BiasedData, is_whole, load_kept
from rarezoo.data.biased.released import Listing, is_released, list_released
from rarezoo.data.biased.settings import BiasSettings
from rarezoo.data.decoding import resized
from rarezoo.data.images import read_image
from rarezoo.provenance import fingerprint, made_with, only_one, sha256_of_file, write_json, written_beside

MAKING_VERSION = 1
"""Raised whenever the same settings give other images: what was kept before is then made anew."""
_DIGITS_TEST_SHARE = 0.25
_LEVELS_OF_DIGITS = 16


@dataclass(frozen=True)
class _Plan:
    """Labels of a split, and how the image of a row is had: (3, any, any)."""

    target: NDArray[np.int64]
    attribute: NDArray[np.int64]
    image: Callable[[int], NDArray[np.uint8]]


def prepare_biased(settings: BiasSettings) -> BiasedData:
    """Make or read a biased data set, or find it kept below `settings.root`.

    The same settings give the same bytes. A process that finds another one at work waits for it; what is damaged is
    made anew.

    Raises
    ------
    UserError
        naming the option, folder or file that cannot be used
    """
    origin = _origin(settings)
    key = _key(settings, origin)
    folder = settings.root / f"{settings.name}-{fingerprint(key)[:12]}"
    with only_one(folder, "bias.root"):
        if not is_whole(folder):
            with written_beside(folder) as temporary:
                _write(temporary, settings, origin, key)
    return load_kept(folder)


def _origin(settings: BiasSettings) -> str:
    if settings.source is None:
        return "made"
    if not settings.source.exists():
        raise UserError(f"bias.source={settings.source}: there is no such file or folder. Give that of the data set.")
    if is_released(settings.source, settings.conflict_percent):
        return "released"
    if settings.name == "bffhq":
        raise UserError(
            f"bias.source={settings.source}: has no {settings.conflict_percent:g}pct/align. Biased FFHQ is read as it "
            "is released: give its folder bffhq."
        )
    return "made"


def _key(settings: BiasSettings, origin: str) -> dict[str, Any]:
    """What decides the images; of the options, those that are used for that origin."""
    unused = {"source", "root"} | (
        {"validation", "n_validation", "n_training", "data_seed", "severity"} if origin != "made" else set()
    )
    options = settings.model_dump(mode="json", exclude=unused)
    return {**options, "origin": origin, "files": _stamps(settings.source), "version": MAKING_VERSION}


def _stamps(source: Path | None) -> list[list[object]]:
    files = [source] if source and source.is_file() else sorted(source.rglob("*")) if source else []
    stats = [(path, path.stat()) for path in files if path.is_file()]
    return [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _plans(settings: BiasSettings, origin: str) -> dict[str, _Plan]:
    if origin == "released":
        assert settings.source is not None
        listings = list_released(settings.source, settings.conflict_percent, settings.n_classes)
        plans = {split: _read(listing, settings.image_size) for split, listing in listings.items()}
    else:
        plans = _made(settings)
    train = plans["train"]
    share = settings.conflict_percent / 100
    check_conflict_share(f"bias={settings.name}", train.target, train.attribute, share)
    return plans


def _read(listing: Listing, size: int) -> _Plan:
    def image(row: int) -> NDArray[np.uint8]:
        try:
            return read_image(listing.files[row], size)
        except ImageError as error:
            raise UserError(f"{listing.files[row]}: {error.reason}. Copy the data set again.") from error

    return _Plan(listing.target, listing.attribute, image)


def _made(settings: BiasSettings) -> dict[str, _Plan]:
    """Hold a validation split out of the training images, and paint or spoil each image as its attribute says."""
    sources = _sources(settings)
    everything = sources["train"]
    n_validation, there = settings.n_validation, len(everything.target)
    n_training = settings.n_training or there - n_validation
    if n_training < 1 or n_validation + n_training > there:
        raise UserError(
            f"bias.n_validation={n_validation}, bias.n_training={settings.n_training}: there are {there} images to "
            "train on and to validate with. Give smaller numbers."
        )
    order = np.random.default_rng((settings.data_seed, len(SPLITS))).permutation(there)
    held_out, kept = np.sort(order[:n_validation]), np.sort(order[n_validation : n_validation + n_training])
    rows = {"train": kept, "validation": held_out, "test": np.arange(len(sources["test"].target))}
    plans = {}
    for index, split in enumerate(SPLITS):
        images, target = sources["test" if split == "test" else "train"]
        rng = np.random.default_rng((settings.data_seed, index))
        if split == "train" or (split == "validation" and settings.validation == "biased"):
            share = settings.conflict_percent / 100
            attribute = biased_attributes(target[rows[split]], settings.n_classes, share, rng)
        else:
            attribute = unbiased_attributes(target[rows[split]], settings.n_classes, rng)
        plans[split] = _Plan(target[rows[split]], attribute, _painter(settings, images, rows[split], attribute, index))
    return plans


def _sources(settings: BiasSettings) -> dict[str, Labelled]:
    if settings.source is None:
        return _digits(settings.data_seed)
    return read_cifar10(settings.source) if settings.name == "cifar10c" else read_mnist(settings.source)


def _digits(seed: int) -> dict[str, Labelled]:
    """The 1,797 digits of 8 px that come with scikit-learn (Alpaydin & Kaynak 1998), a quarter of them to test with."""
    from sklearn.datasets import load_digits  # slow to import, and the other data sets do without

    found = load_digits()
    images = np.rint(found.images * (255 / _LEVELS_OF_DIGITS)).astype(np.uint8)
    target = found.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(target))
    n_test = round(_DIGITS_TEST_SHARE * len(target))
    rows = {"test": order[:n_test], "train": order[n_test:]}
    return {split: Labelled(images[chosen], target[chosen]) for split, chosen in rows.items()}


def _painter(
    settings: BiasSettings,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    attribute: NDArray[np.int64],
    stream: int,
) -> Callable[[int], NDArray[np.uint8]]:
    treat = corrupt if settings.name == "cifar10c" else colour_digit
    severity = settings.severity
    assert severity is not None

    def image(row: int) -> NDArray[np.uint8]:
        # A stream of its own for each image: its draws do not depend on which others are made before it.
        rng = np.random.default_rng(np.random.SeedSequence(settings.data_seed, spawn_key=(stream, row)))
        return treat(images[rows[row]], int(attribute[row]), severity, rng)

    return image


def _write(folder: Path, settings: BiasSettings, origin: str, key: Mapping[str, Any]) -> None:
    folder.mkdir()
    size = settings.image_size
    plans = _plans(settings, origin)
    sums = np.zeros((2, 3))
    for split, plan in plans.items():
        shape = (len(plan.target), 3, size, size)
        images = np.lib.format.open_memmap(folder / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=shape)
        for row in progress(range(len(images)), f"{settings.name}, {split}", total=len(images), unit="image"):
            image = plan.image(row)
            images[row] = image if image.shape[1] == size else resized(image, size, 1.0)
            if split == "train":
                unit = images[row].reshape(3, -1) / 255.0
                sums += unit.mean(1), (unit**2).mean(1)
        images.flush()
        np.save(folder / f"{split}_target.npy", plan.target)
        np.save(folder / f"{split}_attribute.npy", plan.attribute)
    mean, square = sums / len(plans["train"].target)
    files = sorted(folder.glob("*.npy"))
    record = {
        **made_with(),
        "key": key,
        "mean": mean.tolist(),
        # A channel that is the same everywhere has no spread to divide by.
        "std": np.where(square > mean**2, np.sqrt(np.maximum(square - mean**2, 1e-12)), 1.0).tolist(),
        "sizes": {path.name: path.stat().st_size for path in files},
        "sha256": hashlib.sha256("".join(map(sha256_of_file, files)).encode()).hexdigest(),
    }
    write_json(folder / RECORD, record)
