"""Which galaxies are trained on, and which are kept for validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError


def split_by_id(
    ids: Sequence[str] | NDArray[np.object_], validation_share: float, test_share: float, seed: int = 0
) -> NDArray[np.str_]:
    """Assign each galaxy to a split by a hash of its id, whatever the other rows and their order.

    The test split stays the same whatever the validation share.

    Parameters
    ----------
    ids : (N,)
    validation_share, test_share : expected shares of the rows, each >= 0, together < 1
    seed : another seed gives another split

    Returns
    -------
    (N,) "train", "validation" or "test"

    Raises
    ------
    UserError
        if the shares leave nothing to train on
    """
    check_shares(validation_share, test_share)
    key = str(seed).encode()
    digests = b"".join(hashlib.blake2b(str(name).encode(), digest_size=8, key=key).digest() for name in ids)
    draws = np.frombuffer(digests, dtype="<u8") / 2.0**64
    return np.where(draws < test_share, "test", np.where(draws < test_share + validation_share, "validation", "train"))


def check_shares(validation_share: float, test_share: float) -> None:
    """Refuse shares of the splits that leave nothing to train on."""
    if not (validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1):
        raise UserError(
            f"data.validation_share={validation_share}, data.test_share={test_share}: "
            "shares are >= 0 and leave some galaxies to train on, so that their sum is < 1."
        )
