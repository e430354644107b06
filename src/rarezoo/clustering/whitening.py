"""Directions of a representation made more alike in spread, before neighbours are looked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

# Below this share of the largest standard deviation a direction holds rounding errors alone.
_LEAST_SPREAD = 1e-5


@dataclass(frozen=True)
class Whitening:
    """A linear map that divides each principal component by a power of its standard deviation.

    A network that predicts votes spends most of the spread of its representation on a few directions, those that the
    votes of most galaxies differ in; what sets a rare kind apart lies in others, which Euclidean distance hardly sees.
    Power 0 leaves distances as they are, 1 gives every direction the same spread (PCA whitening, Kessy, Lewin &
    Strimmer 2018, The American Statistician 72, 309), and what lies between is a compromise: the last directions are
    mostly noise. docs/benchmark.md compares powers by what they recover.

    Attributes
    ----------
    mean : (D,)
    axes : (D, R), R directions that have any spread, scaled so that the total variance stays as it was
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]

    @classmethod
    def of(cls, x: NDArray[np.float32], power: float) -> Self:
        """Measure the principal components of N galaxies.

        Parameters
        ----------
        x : (N, D), finite, not all the same
        power : 0 to 1
        """
        # In float64: in float32 a mean that is large beside the spread leaves nothing of the last directions.
        variances, components = np.linalg.eigh(np.cov(x, rowvar=False, dtype=np.float64))
        spread, components = np.sqrt(np.maximum(variances, 0.0))[::-1], components[:, ::-1]
        kept = spread > _LEAST_SPREAD * spread[0]
        scale = spread[kept] ** -power
        scale = scale * np.sqrt((spread[kept] ** 2).sum() / ((spread[kept] * scale) ** 2).sum())
        axes = np.ascontiguousarray(components[:, kept] * scale, dtype=np.float32)
        return cls(x.mean(axis=0, dtype=np.float64).astype(np.float32), axes)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M, R) of galaxies (M, D) of the same network."""
        mapped: NDArray[np.float32] = np.matmul(x - self.mean, self.axes, dtype=np.float32)
        return mapped


def whitening_of(x: NDArray[np.float32], power: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Map that whitens galaxies of one network by the spread of some of them; for power 0, what changes nothing.

    Parameters
    ----------
    x : (N, D), finite, not all the same
    power : 0 to 1, of the standard deviation that each principal component is divided by
    """
    return Whitening.of(x, power) if power else lambda galaxies: galaxies
