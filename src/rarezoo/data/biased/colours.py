"""Digits in colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS: NDArray[np.float64] = (
    np.array(
        [
            (230, 25, 75),
            (60, 180, 75),
            (255, 225, 25),
            (0, 130, 200),
            (245, 130, 48),
            (145, 30, 180),
            (70, 240, 240),
            (240, 50, 230),
            (210, 245, 60),
            (250, 190, 212),
        ]
    )
    / 255.0
)
"""Mean colours, red, green and blue from 0 to 1: the first ten of Trubetskoy's list of simple, distinct colours.

Those of Nam et al. (2020) are published as a file of torch's alone, and no text gives their values.
"""
SPREADS = (0.05, 0.02, 0.01, 0.005, 0.002)
"""Standard deviation of the colour by severity, from 1: the higher, the purer (Nam et al. 2020, code)."""


def colour_digit(digit: NDArray[np.uint8], colour: int, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint a white digit on black in a colour that is drawn around one of ten.

    Parameters
    ----------
    digit : (H, W)
    colour : row of `COLOURS`
    severity : 1 to 5

    Returns
    -------
    (3, H, W)
    """
    drawn = np.clip(COLOURS[colour] + rng.normal(0.0, SPREADS[severity - 1], 3), 0.0, 1.0)
    painted: NDArray[np.uint8] = np.rint(drawn[:, np.newaxis, np.newaxis] * digit).astype(np.uint8)
    return painted
