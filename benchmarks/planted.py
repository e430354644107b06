"""A representation like those of galaxies, with rare groups planted in it: for questions of speed and recovery.

A mixture of anisotropic Gaussians in 14 dimensions goes through a network of two layers with random weights to 128
dimensions that are not negative and mostly zero, as the features of a trained network are. The groups are tight spots
off the middles of the mixture. They part more cleanly than classes of galaxies do: the order of methods carries over to
real data, their scores do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_LATENT = 14
N_COMPONENTS = 15
DIM = 128
_ROWS_AT_ONCE = 50_000


@dataclass(frozen=True)
class PlantedGalaxies:
    """Galaxies in memory, as a search takes them.

    Attributes
    ----------
    representation : (N, 128) float32
    group : (N,) planted group of each, -1 for the bulk
    """

    representation: NDArray[np.float32]
    group: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.representation)


def plant(n_rows: int, n_groups: int = 20, smallest: int = 30, largest: int = 1500, seed: int = 0) -> PlantedGalaxies:
    """Draw a representation with groups of `smallest` to `largest` members, evenly spaced in the logarithm.

    Raises
    ------
    ValueError
        if the groups hold more than the rows
    """
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(smallest, largest, n_groups).round().astype(int)
    if sizes.sum() >= n_rows:
        raise ValueError(f"{n_rows} rows do not hold {sizes.sum()} members of groups: fewer or smaller groups do")
    group = np.concatenate([np.full(n_rows - sizes.sum(), -1), np.repeat(np.arange(n_groups), sizes)])
    group = rng.permutation(group).astype(np.int32)
    x = _through_network(_latent(group, sizes, rng), rng)
    return PlantedGalaxies(x, group)


def _latent(group: NDArray[np.int32], sizes: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.float32]:
    spectrum = np.arange(1, N_LATENT + 1) ** -0.6
    weights = rng.dirichlet(np.full(N_COMPONENTS, 2.0))
    centres = 0.9 * rng.normal(size=(N_COMPONENTS, N_LATENT)) * spectrum
    z = np.empty((len(group), N_LATENT), np.float32)
    component = np.where(group < 0, rng.choice(N_COMPONENTS, len(group), p=weights), -1)
    for number in range(N_COMPONENTS):
        rows = np.flatnonzero(component == number)
        axes = np.linalg.qr(rng.normal(size=(N_LATENT, N_LATENT)))[0] * rng.uniform(0.4, 1.2, N_LATENT)
        z[rows] = centres[number] + 0.8 * (rng.normal(size=(len(rows), N_LATENT)) @ axes) * spectrum
    for number, size in enumerate(sizes):
        centre = centres[rng.choice(N_COMPONENTS, p=weights)] + 1.3 * rng.normal(size=N_LATENT) * spectrum
        spread = 0.18 * rng.uniform(0.7, 1.3) * spectrum
        z[group == number] = centre + rng.normal(size=(size, N_LATENT)) * spread
    return z


def _through_network(z: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    first, first_bias = 1.6 * rng.normal(size=(N_LATENT, 256)) / np.sqrt(N_LATENT), 0.3 * rng.normal(size=256)
    second, second_bias = 0.1 * rng.normal(size=(256, DIM)), 0.2 * rng.normal(size=DIM) - 0.25
    x = np.empty((len(z), DIM), np.float32)
    for start in range(0, len(z), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        hidden = np.maximum(z[part] @ first + first_bias, 0) @ second + second_bias
        x[part] = np.maximum(hidden + 0.04 * rng.normal(size=hidden.shape), 0)
    return x
