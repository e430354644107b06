"""Biased data sets as they are kept: arrays of images and labels, and a record beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError

SPLITS = ("train", "validation", "test")
RECORD = "biased.json"
_ARRAYS = ("images", "target", "attribute")


@dataclass(frozen=True)
class BiasedImages:
    """Images of one split.

    Attributes
    ----------
    images : uint8 (N, 3, S, S), memory-mapped
    target : int64 (N,) classes
    attribute : int64 (N,) values of what is confounded with the class; an image is aligned where the two are equal, and
        conflicting elsewhere
    """

    images: NDArray[np.uint8]
    target: NDArray[np.int64]
    attribute: NDArray[np.int64]


@dataclass(frozen=True)
class BiasedData:
    """A biased data set.

    Attributes
    ----------
    splits : "train", "validation" and "test"
    mean, std : of the training images by channel, of values from 0 to 1
    sha256 : of all images and labels
    origin : "made" here or "released" by Lee et al. (2021)
    """

    splits: Mapping[str, BiasedImages]
    mean: list[float]
    std: list[float]
    sha256: str
    origin: str


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a record and all arrays, of the sizes that the record names."""
    try:
        sizes = json.loads((folder / RECORD).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_kept(folder: Path) -> BiasedData:
    """Map the arrays of a folder that is whole."""
    record = json.loads((folder / RECORD).read_text())
    splits = {
        split: BiasedImages(*(np.load(folder / f"{split}_{name}.npy", mmap_mode="r") for name in _ARRAYS))
        for split in SPLITS
    }
    return BiasedData(splits, record["mean"], record["std"], record["sha256"], record["key"]["origin"])


def find_kept(root: Path, sha256: str) -> BiasedData:
    """The data set with that content among those that are kept in a folder.

    Raises
    ------
    UserError
        if it is not there
    """
    for path in sorted(root.glob(f"*/{RECORD}")):
        if is_whole(path.parent) and (found := load_kept(path.parent)).sha256 == sha256:
            return found
    raise UserError(
        f"{root}: does not hold the images that the networks were trained on (SHA-256 {sha256[:12]}...). Give the "
        "folder that bias.root named then, with --root; or run one of the trainings again, which makes the same images."
    )
