"""What a benchmark of the class search searches: planted groups, or the embeddings of a survey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from planted import plant

_X, _GROUP = "x.npy", "group.npy"


@dataclass(frozen=True)
class SearchedGalaxies:
    """Galaxies in memory, as a search takes them.

    Attributes
    ----------
    representation : (N, D) float32
    group : (N,) known class of each, -1 or '' for none; None where none are known
    """

    representation: NDArray[np.float32]
    group: NDArray | None

    def __len__(self) -> int:
        return len(self.representation)

    @property
    def label_cols(self) -> Sequence[str]:
        """Nothing is cut on votes."""
        return ()

    def votes_for(self, answers: Sequence[str], of: Sequence[str]) -> list[NDArray[np.float32]]:
        """Nothing is cut on votes."""
        return [np.empty((len(self), 0), np.float32)]

    def to_pandas(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Rows are as good as ids."""
        return pd.DataFrame({"id_str": rows.astype(str).astype(object)})

    def save(self, folder: Path) -> None:
        """Write them for processes that `load` them."""
        np.save(folder / _X, self.representation)
        if self.group is not None:
            np.save(folder / _GROUP, self.group)

    @classmethod
    def load(cls, folder: Path) -> SearchedGalaxies:
        """What `save` wrote."""
        group = folder / _GROUP
        return cls(np.load(folder / _X), np.load(group) if group.is_file() else None)

    @classmethod
    def planted(cls, n_rows: int) -> SearchedGalaxies:
        """Groups of 30 to 1,500 in a bulk."""
        found = plant(n_rows)
        return cls(found.representation, found.group)

    @classmethod
    def embedded(cls, path: Path, truth: Path | None = None, n_rows: int | None = None) -> SearchedGalaxies:
        """Galaxies of a survey, none of them cut away.

        Parameters
        ----------
        path : file of embeddings
        truth : table of id_str and rare_class
        n_rows : of a random sample; None takes all

        Raises
        ------
        UserError
            if a file cannot be read, or the files do not belong together
        ValueError
            if there are fewer than `n_rows`
        """
        from rarezoo.embeddings import open_embeddings
        from rarezoo.report.truth import read_truth

        with open_embeddings(path) as embeddings:
            n_all = len(embeddings)
            rows = np.sort(np.random.default_rng(0).choice(n_all, n_rows or n_all, replace=False))
            x = embeddings.representation[rows].astype(np.float32)
            if truth is None:
                return cls(x, None)
            names = read_truth(truth, embeddings)[0]["rare_class"].fillna("").astype(str)
            return cls(x, names.reindex(embeddings.ids[rows]).fillna("").to_numpy(str))
