"""The biased data sets of Lee et al. (2021, NeurIPS) in the folders that they are released in.

Coloured MNIST and Corrupted CIFAR-10 are `<ratio>/align/<class>/`, `<ratio>/conflict/<class>/` and `<ratio>/valid/`,
with `test/<class>/` beside the ratios `0.5pct`, `1pct`, `2pct` and `5pct`. Biased FFHQ has `0.5pct`, and `valid` and
`test` beside it. Pictures are named `<anything>_<class>_<attribute>.png`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError

# The archive's own description has one letter less.
_CONFLICT = ("conflict", "conlict")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_LABELS = re.compile(r"_(\d+)_(\d+)$")


class Listing(NamedTuple):
    """Pictures of one split: paths, classes (N,), values of the attribute (N,)."""

    files: list[Path]
    target: NDArray[np.int64]
    attribute: NDArray[np.int64]


def is_released(source: Path, conflict_percent: float) -> bool:
    """Whether a folder has the layout of the release, for that share of conflicting images."""
    return (source / f"{conflict_percent:g}pct" / "align").is_dir()


def list_released(source: Path, conflict_percent: float, n_classes: int) -> dict[str, Listing]:
    """Find the pictures of a released data set, and read their labels from their names.

    Parameters
    ----------
    source : folder `cmnist`, `cifar10c` or `bffhq` of the release
    conflict_percent : 0.5, 1, 2 or 5

    Returns
    -------
    "train", "validation" and "test"; pictures are sorted by path

    Raises
    ------
    UserError
        naming the folder that is missing or empty, or the picture whose name has no labels, or labels that do not agree
        with its folder
    """
    ratio = source / f"{conflict_percent:g}pct"
    aligned = _listing(ratio / "align", n_classes)
    conflicting = _listing(_first_folder(*(ratio / name for name in _CONFLICT)), n_classes)
    _agree(aligned, aligned.target == aligned.attribute, "align")
    _agree(conflicting, conflicting.target != conflicting.attribute, "conflict")
    train = Listing(
        aligned.files + conflicting.files,
        np.concatenate([aligned.target, conflicting.target]),
        np.concatenate([aligned.attribute, conflicting.attribute]),
    )
    validation = _listing(_first_folder(ratio / "valid", source / "valid"), n_classes)
    return {"train": train, "validation": validation, "test": _listing(source / "test", n_classes)}


def _first_folder(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _listing(folder: Path, n_classes: int) -> Listing:
    # In the release, some splits have a folder for each class, and some have none.
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{folder}: has no pictures. Give the folder of the data set as bias.source, unpacked whole.")
    labels = np.array([_labels(path, n_classes) for path in files], dtype=np.int64)
    return Listing(files, labels[:, 0], labels[:, 1])


def _labels(path: Path, n_classes: int) -> tuple[int, int]:
    found = _LABELS.search(path.stem)
    labels = (int(found[1]), int(found[2])) if found else None
    if labels is None or max(labels) >= n_classes:
        raise UserError(
            f"{path}: its name does not end in _<class>_<attribute>, each from 0 to {n_classes - 1}. Remove it, or "
            "copy the data set again."
        )
    return labels


def _agree(listing: Listing, agrees: NDArray[np.bool_], folder: str) -> None:
    if not agrees.all():
        row = int(np.argmin(agrees))
        raise UserError(
            f"{listing.files[row]}: has class {listing.target[row]} and attribute {listing.attribute[row]}, and lies "
            f"in {folder}. Copy the data set again."
        )
