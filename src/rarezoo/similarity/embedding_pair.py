"""Two files of embeddings to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarezoo.config import SimilaritySettings
from rarezoo.embeddings import open_embeddings
from rarezoo.provenance import sha256_of_file
from rarezoo.similarity.cka import LEAST_BATCH, centred_gram
from rarezoo.similarity.compare import Grams, draw
from rarezoo.similarity.networks import renamed


class EmbeddingComparison:
    """Two files of embeddings, whose galaxies are matched by their ids.

    Parameters
    ----------
    settings : of similarity.py

    Attributes
    ----------
    labels, layers : the files, and what is compared of them: representation, and features where the file has them
    inputs : what the result is made from, name -> content hash
    n_images : galaxies that are compared

    Raises
    ------
    UserError
        if a file cannot be used, or they have too few galaxies in common
    """

    def __init__(self, settings: SimilaritySettings) -> None:
        options = settings.similarity
        self._settings = settings
        self.labels = options.a, options.b
        self.inputs: dict[str, str] = {}
        ids = []
        for side, path in (("a", options.a), ("b", options.b)):
            with renamed({"embeddings=": f"similarity.{side}="}), open_embeddings(path) as embeddings:
                ids.append(pd.Index(embeddings.ids))
            self.inputs[side] = sha256_of_file(Path(path))
        rows_a = ids[0].get_indexer(ids[1])
        rows_b = np.flatnonzero(rows_a >= 0)
        drawn = draw(rows_b, options.n_images, settings.seed, f"galaxies that both {options.a} and {options.b} have")
        self._spaces = _spaces(options.a, rows_a[drawn]), _spaces(options.b, drawn)
        self.layers = tuple(self._spaces[0]), tuple(self._spaces[1])
        self.n_images = len(drawn)

    def batches(self, order: int, count: Callable[[int], object]) -> Iterator[tuple[Grams, Grams]]:
        """Gram matrices of what is compared, batch by batch, of the galaxies in an order of that number."""
        rows = np.random.default_rng((self._settings.seed, order)).permutation(self.n_images)
        size = self._settings.similarity.batch_size
        for start in range(0, self.n_images, size):
            batch = torch.from_numpy(rows[start : start + size])
            if len(batch) >= LEAST_BATCH:
                grams_a, grams_b = (
                    {name: centred_gram(values[batch]) for name, values in spaces.items()} for spaces in self._spaces
                )
                yield grams_a, grams_b
            count(len(batch))


def _spaces(path: str, rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """What a file says of some galaxies: features before the bottleneck, where it has them, and representation."""
    with open_embeddings(path) as embeddings:
        features = {} if embeddings.features is None else {"features": embeddings.features}
        stored = {**features, "representation": embeddings.representation}
        return {name: torch.from_numpy(values[rows]) for name, values in stored.items()}
