from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

LABEL_COLS = [
    "smooth-or-featured-dr5_smooth",
    "smooth-or-featured-dr5_featured-or-disk",
    "smooth-or-featured-dr5_artifact",
    "bar-dr5_strong",
    "bar-dr5_no",
]


@dataclass(frozen=True)
class Planted:
    """A broad bulk in 128 dimensions with tight groups in it; the groups have strong bars, the bulk has few."""

    x: np.ndarray
    group: np.ndarray  # -1 for the bulk
    vote_fractions: np.ndarray
    label_cols: list[str]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def representation(self) -> np.ndarray:
        return self.x

    def to_pandas(self, rows) -> pd.DataFrame:
        return pd.DataFrame({"id_str": [f"J{row}" for row in rows]})

    def votes_for(self, answers, of):
        return [self.vote_fractions[:, [self.label_cols.index(answer) for answer in answers]]]


def plant(n_bulk: int, sizes: tuple[int, ...], seed: int = 0) -> Planted:
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(12, 128)) / np.sqrt(12)
    latent, group = [rng.normal(size=(n_bulk, 12))], [np.full(n_bulk, -1)]
    for number, size in enumerate(sizes):
        latent.append(rng.normal(size=12) * 1.5 + 0.1 * rng.normal(size=(size, 12)))
        group.append(np.full(size, number))
    order = rng.permutation(n_bulk + sum(sizes))
    x = np.concatenate(latent)[order] @ basis + 0.02 * rng.normal(size=(len(order), 128))
    group = np.concatenate(group)[order]
    return Planted(x.astype(np.float32), group, _votes(group, rng), LABEL_COLS)


def _votes(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first = rng.dirichlet((2, 6, 1), size=len(group))
    bar = np.where(group < 0, rng.beta(2, 8, len(group)), rng.beta(8, 2, len(group)))
    return np.column_stack([first, bar, 1 - bar]).astype(np.float32)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return plant(1000, (40, 60, 90))
