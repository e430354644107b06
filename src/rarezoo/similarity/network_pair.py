"""Two networks to compare on the images of a catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import tee

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarezoo.config import SimilaritySettings
from rarezoo.data.catalog import Catalog
from rarezoo.data.images import GalaxyBatch
from rarezoo.data.prepare import make_datamodule, prepare_catalog
from rarezoo.embeddings.embed import choose_device
from rarezoo.similarity.activations import averaged, flattened
from rarezoo.similarity.cka import LEAST_BATCH, centred_gram
from rarezoo.similarity.compare import Grams, draw, listed, note
from rarezoo.similarity.networks import Network, open_network, renamed
from rarezoo.votes.schema import resolve_schema

_REDUCE: Mapping[str, Callable[[Tensor], Tensor]] = {"flatten": flattened, "average": averaged}


class NetworkComparison:
    """Two networks that are shown the images of one catalog.

    Parameters
    ----------
    settings : of similarity.py

    Attributes
    ----------
    labels, layers : what a and b are, and the names of their layers
    inputs : what the result is made from, name -> content hash
    n_images : of the catalog that are read

    Raises
    ------
    UserError
        if a network or the device cannot be used, a pattern matches no layer, or there are too few images
    """

    def __init__(self, settings: SimilaritySettings) -> None:
        options = settings.similarity
        with renamed({"embedding.device": "similarity.device"}):
            self._device = choose_device(options.device)
        # Random weights are of the seed.
        torch.manual_seed(settings.seed)
        self._a = open_network("similarity.a", options.a, options.weights, settings.data).to(self._device)
        self._b = self._a
        if options.b != options.a:
            self._b = open_network("similarity.b", options.b, options.weights, settings.data).to(self._device)
        self._settings = settings
        self._patterns = tuple(options.layers_a), tuple(options.layers_b)
        self.labels = self._a.label, self._b.label
        self.layers = (
            _layers("similarity.layers_a", self._a, self._patterns[0], self._device),
            _layers("similarity.layers_b", self._b, self._patterns[1], self._device),
        )
        tree = self._a.tree or self._b.tree or resolve_schema(settings.tree).to_tree()
        self._catalog = prepare_catalog(settings.data, (), tree)
        self._rows = self._draw()
        self.n_images = len(self._rows)
        self.inputs = {"a": self._a.fingerprint, "b": self._b.fingerprint, "catalog": self._catalog.sha256}

    def batches(self, order: int, count: Callable[[int], object]) -> Iterator[tuple[Grams, Grams]]:
        """Gram matrices of all layers, batch by batch, of the images in an order of that number.

        Parameters
        ----------
        count : is told how many images are done

        Raises
        ------
        UserError
            if too many images cannot be read
        """
        rows = np.random.default_rng((self._settings.seed, order)).permutation(self._rows)
        for images_a, images_b in paired(*self._loaders(_reordered(self._catalog, rows), count)):
            if len(images_a) >= LEAST_BATCH:
                grams_a = self._grams(self._a, images_a, self._patterns[0])
                same = self._b is self._a and self._patterns[1] == self._patterns[0]
                yield grams_a, grams_a if same else self._grams(self._b, images_b, self._patterns[1])

    def _draw(self) -> NDArray[np.int64]:
        options, seed = self._settings.similarity, self._settings.seed
        rows = np.arange(len(self._catalog))
        if options.split != "all":
            rows = make_datamodule(self._settings.data, self._catalog, seed).rows(options.split)
        return draw(rows, options.n_images, seed, f"{self._catalog.path}, similarity.split={options.split}")

    def _loaders(
        self, catalog: Catalog, count: Callable[[int], object]
    ) -> tuple[Iterator[GalaxyBatch], Iterator[GalaxyBatch]]:
        def batches(network: Network, count: Callable[[int], object]) -> Iterator[GalaxyBatch]:
            reading = {**network.reading, "batch_size": self._settings.similarity.batch_size}
            data = make_datamodule(self._settings.data, catalog, self._settings.seed, **reading)
            failures = data.failure_log()
            for batch in data.block_dataloader([range(len(catalog))]):
                failures.add(batch["failed"])
                failures.check(len(catalog))
                yield batch
                count(len(batch["row"]) + len(batch["failed"]))

        first = batches(self._a, count)
        if self._a.reading == self._b.reading:
            once, again = tee(first)
            return once, again
        return first, batches(self._b, lambda n_images: None)

    def _grams(self, network: Network, images: Tensor, patterns: tuple[str, ...]) -> Grams:
        reduce = _REDUCE[self._settings.similarity.features]
        return network.capture(images.to(self._device), patterns, lambda found: centred_gram(reduce(found))).layers


def paired(batches_a: Iterable[GalaxyBatch], batches_b: Iterable[GalaxyBatch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of the same galaxies as two networks read them, without those that either could not read.

    Raises
    ------
    ValueError
        if the two are not in the same order, as from loaders that shuffle by themselves
    """
    for number, (a, b) in enumerate(zip(batches_a, batches_b, strict=True)):
        failed = torch.tensor([row for row, _ in (*a["failed"], *b["failed"])], dtype=torch.int64)
        read_a, read_b = (~torch.isin(batch["row"], failed) for batch in (a, b))
        if not torch.equal(a["row"][read_a], b["row"][read_b]):
            raise ValueError(
                f"batch {number} has other galaxies for a than for b, or in another order: give loaders of one order"
            )
        yield a["image"][read_a], b["image"][read_b]


def _layers(option: str, network: Network, patterns: tuple[str, ...], device: torch.device) -> tuple[str, ...]:
    with renamed({"layers: ": f"{option}: ", "layers=": f"{option}="}):
        tried = network.try_on(patterns, device)
    if tried.left_out:
        note(f"{option}: without one row per image, so left out: {listed(tried.left_out)}")
    return tuple(tried.layers)


def _reordered(catalog: Catalog, rows: NDArray[np.int64]) -> Catalog:
    files = [catalog.files[row] for row in rows.tolist()]
    return replace(
        catalog, table=catalog.table.iloc[rows].reset_index(drop=True), files=files, counts=catalog.counts[rows]
    )
