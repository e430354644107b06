"""Which image gets which value of the attribute that a classifier is tempted to look at instead of the class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError


def biased_attributes(
    target: NDArray[np.int64], n_classes: int, conflict_share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Give each image a value of the attribute that mostly agrees with its class.

    The share `conflict_share` of all images and of each class is conflicting, to within half an image of all and one of
    the class. Those get the other values, each as often as any other to within one image. The rest is aligned and gets
    the value that has the number of its class (Nam et al. 2020, NeurIPS, "Learning from Failure", Sec. 3.1).

    Parameters
    ----------
    target : (N,) classes from 0 to n_classes - 1
    conflict_share : between 0 and 1
    rng : decides which images are conflicting

    Returns
    -------
    (N,) values of the attribute, from 0 to n_classes - 1
    """
    attribute = target.copy()
    n_conflicting = _apportioned(conflict_share * np.bincount(target, minlength=n_classes))
    for label in range(n_classes):
        rows = rng.permutation(np.flatnonzero(target == label))[: n_conflicting[label]]
        others = rng.permutation(np.delete(np.arange(n_classes), label))
        attribute[rows] = np.resize(others, len(rows))
    return attribute


def unbiased_attributes(target: NDArray[np.int64], n_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Give each image a value of the attribute that tells nothing of its class: all are equally frequent in each.

    Parameters and result as of `biased_attributes`.
    """
    return biased_attributes(target, n_classes, 1 - 1 / n_classes, rng)


def check_conflict_share(
    where: str, target: NDArray[np.int64], attribute: NDArray[np.int64], conflict_share: float
) -> None:
    """Refuse data whose share of conflicting images is another than what they are said to have.

    Parameters
    ----------
    where : named in the message
    conflict_share : that is claimed; half an image is rounding, and a tenth of the share is granted to data that others
        have made

    Raises
    ------
    UserError
        with the share that was found, also where none conflicts
    """
    found = float((target != attribute).mean())
    if not found or abs(found - conflict_share) > 0.1 * conflict_share + 0.5 / len(target):
        raise UserError(
            f"{where}: {100 * found:.2f}% of {len(target)} images are conflicting, and "
            f"bias.conflict_percent={100 * conflict_share:g}. Give another share, or more images; copy the files again."
        )


def _apportioned(shares: NDArray[np.floating]) -> NDArray[np.int64]:
    """Whole numbers near the shares that sum to their rounded sum, by the largest remainders."""
    whole: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    missing = round(float(shares.sum())) - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:missing]] += 1
    return whole
