"""CKA of what two networks or files say of the same images, over several orders of the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarezoo.cli import UserError, console, progress_bar
from rarezoo.config import SimilaritySettings
from rarezoo.provenance import written_beside
from rarezoo.similarity.cka import LEAST_BATCH, MinibatchCKA

Grams = Mapping[str, Tensor]
_MOST_NAMED = 5


class Comparison(Protocol):
    """Two things to compare, opened and checked.

    Attributes
    ----------
    labels : what a and b are, for people
    layers : names of what is compared of each
    inputs : what the result is made from, name -> content hash
    n_images : that are read for each order
    """

    labels: tuple[str, str]
    layers: tuple[tuple[str, ...], tuple[str, ...]]
    inputs: dict[str, str]
    n_images: int

    def batches(self, order: int, count: Callable[[int], object]) -> Iterator[tuple[Grams, Grams]]:
        """Centred Gram matrices of the layers of a and of b, batch by batch, with at least 4 images in each.

        Parameters
        ----------
        order : number of the order of the images
        count : is told how many more images are done
        """


@dataclass(frozen=True, eq=False)
class Similarity:
    """CKA of all pairs of layers.

    Attributes
    ----------
    labels : what a and b are, for people
    layers_a, layers_b : names, in the order of execution
    cka : (orders, layers of a, layers of b); NaN where a layer is constant or not finite
    permuted : the same with the images of b exchanged within each batch, which is 0 but for chance
    n_images : that each order is of
    """

    labels: tuple[str, str]
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    cka: NDArray[np.float64]
    permuted: NDArray[np.float64]
    n_images: int

    @property
    def mean(self) -> NDArray[np.float64]:
        """(layers of a, layers of b), over the orders."""
        return np.asarray(self.cka.mean(0))

    @property
    def undefined(self) -> tuple[str, ...]:
        """Layers that have no CKA with any other, as "a: name"."""
        of_a = [f"a: {name}" for name, row in zip(self.layers_a, self.mean, strict=True) if np.isnan(row).all()]
        of_b = [f"b: {name}" for name, row in zip(self.layers_b, self.mean.T, strict=True) if np.isnan(row).all()]
        return (*of_a, *of_b)

    def describe(self) -> dict[str, Any]:
        """Figures for the record of a run."""
        last = (self.layers_a[-1], self.layers_b[-1])
        known = np.isfinite(self.mean)
        return {
            "n_images": self.n_images,
            "n_layers": " x ".join(map(str, self.mean.shape)),
            "n_undefined": len(self.undefined),
            "mean_cka": float(self.mean[known].mean()) if known.any() else float("nan"),
            f"cka of {last[0]} and {last[1]}": float(self.mean[-1, -1]),
            "largest_spread_over_orders": float(np.ptp(self.cka, 0)[known].max(initial=0)),
            "largest_permuted": float(np.abs(self.permuted[:, known]).max(initial=0)),
        }

    def write(self, path: Path) -> None:
        """Write an .npz file that numpy reads without pickle: the attributes under their names."""
        with written_beside(path) as temporary:
            np.savez_compressed(
                temporary,
                labels=np.array(self.labels),
                layers_a=np.array(self.layers_a),
                layers_b=np.array(self.layers_b),
                cka=self.cka,
                permuted=self.permuted,
                n_images=np.array(self.n_images),
            )


def gather(batches: Iterable[tuple[Grams, Grams]], seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """CKA of all pairs of layers over some batches; of at least 4 images each.

    Parameters
    ----------
    batches : centred Gram matrices of the layers of a and of b, of the same images
    seed : of the permutations of the images

    Returns
    -------
    cka, permuted : (layers of a, layers of b)
    n_images : in all batches

    Raises
    ------
    UserError
        if there is no batch
    """
    generator = torch.Generator().manual_seed(seed)
    found: tuple[MinibatchCKA, MinibatchCKA] | None = None
    n_images = 0
    for grams_a, grams_b in batches:
        if found is None:
            names = list(grams_a), list(grams_b)
            found = MinibatchCKA(*names, from_grams=True), MinibatchCKA(*names, from_grams=True)
        first = next(iter(grams_b.values()))
        order = torch.randperm(len(first), generator=generator).to(first.device)
        found[0].update(grams_a, grams_b)
        found[1].update(grams_a, {name: gram[order][:, order] for name, gram in grams_b.items()})
        n_images += len(first)
    if found is None:
        raise UserError(f"no batch has {LEAST_BATCH} images that could be read: give more images.")
    with warnings.catch_warnings():
        # `compare` says it once for all orders.
        warnings.simplefilter("ignore", UserWarning)
        return found[0].compute(), found[1].compute(), n_images


def compare(settings: SimilaritySettings, comparison: Comparison) -> Similarity:
    """Run a comparison once for each order of the images."""
    orders = range(settings.similarity.orders)
    with progress_bar(len(orders) * comparison.n_images, "comparing", "img") as bar:
        passes = [gather(comparison.batches(order, bar.update), settings.seed + order) for order in orders]
    cka, permuted, n_images = (np.stack(each) for each in zip(*passes, strict=True))
    found = Similarity(comparison.labels, *comparison.layers, cka, permuted, int(n_images[0]))
    if found.undefined:
        note(f"constant or not finite, so without CKA: {listed(found.undefined)}")
    return found


def draw(rows: NDArray[np.int64], n_images: int | None, seed: int, where: str) -> NDArray[np.int64]:
    """Draw some of the rows, ascending; all of them for None.

    Parameters
    ----------
    where : the rows are from, for the message

    Raises
    ------
    UserError
        if there are too few to compare
    """
    if len(rows) < LEAST_BATCH:
        raise UserError(f"{where}: {len(rows)}; at least {LEAST_BATCH} are compared. Give more.")
    if n_images is None or n_images >= len(rows):
        return rows
    drawn: NDArray[np.int64] = np.sort(np.random.default_rng(seed).choice(rows, n_images, replace=False))
    return drawn


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def note(text: str) -> None:
    """Say something on the terminal that is no error."""
    console.print(f"note: {text}", style="yellow", markup=False)
