"""How redundant features are: the spectrum of their covariance, gathered batch by batch.

Walmsley & Scaife 2023, Sec. 3, first paragraph: a principal component analysis showed the 1280 and 1024 features of the
published networks to be highly redundant, which led to the bottleneck of 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarezoo.cli import UserError

SHARES = (0.90, 0.95, 0.99)
_FEWEST = 2


class FeatureMoments:
    """Number, mean and scatter matrix of features, summed over batches in float64.

    Batches and processes are joined by the update of Chan, Golub & LeVeque 1983 (Am. Stat. 37, 242), which centres each
    before it adds: a large common offset costs no digits, and the order does not matter.

    Parameters
    ----------
    width : number of features, F

    Attributes
    ----------
    n_rows : galaxies so far
    mean : (F,)
    scatter : (F, F), sum over galaxies of the products of deviations from the mean
    """

    def __init__(self, width: int) -> None:
        self.n_rows = 0
        self.mean: NDArray[np.float64] = np.zeros(width)
        self.scatter: NDArray[np.float64] = np.zeros((width, width))

    def update(self, features: NDArray[np.floating]) -> None:
        """Add a batch of features (batch, F), of any float type; a batch may be empty."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features of shape {features.shape}, expected (batch, {len(self.mean)})")
        if not len(features):
            return
        rows = features.astype(np.float64)
        mean = rows.mean(0)
        rows -= mean
        self._add(len(rows), mean, rows.T @ rows)

    def merge(self, other: FeatureMoments) -> None:
        """Add the galaxies that another process saw."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"moments of {len(other.mean)} features, expected {len(self.mean)}")
        self._add(other.n_rows, other.mean, other.scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(F, F), with n - 1 in the denominator; needs two galaxies."""
        return self.scatter / (self.n_rows - 1)

    def _add(self, n_rows: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        if n_rows == 0:
            return
        total = self.n_rows + n_rows
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(shift, shift) * (self.n_rows * n_rows / total)
        self.mean = self.mean + shift * (n_rows / total)
        self.n_rows = total


@dataclass(frozen=True)
class Spectrum:
    """Principal components of a set of features, and what they say of its redundancy.

    Attributes
    ----------
    n_rows : galaxies that it was measured on
    variance_ratio : (F,) share of the variance along each component, the largest first; sums to 1
    standardised_ratio : (F,) the same after each feature is divided by its standard deviation, which is the spectrum of
        the correlation matrix; 0 where a constant feature leaves a component out
    mean_abs_correlation : mean of |r| over the pairs of features that vary; NaN where fewer than two do
    n_constant : features without variance
    """

    n_rows: int
    variance_ratio: NDArray[np.float64]
    standardised_ratio: NDArray[np.float64]
    mean_abs_correlation: float
    n_constant: int

    @property
    def cumulative(self) -> NDArray[np.float64]:
        """(F,) share of the variance in the first 1, 2, ..., F components."""
        return np.cumsum(self.variance_ratio)

    def describe(self) -> dict[str, float]:
        """Figures for the record of a run; those of the standardised features have a suffix."""
        found: dict[str, float] = {"features": len(self.variance_ratio), "constant": self.n_constant}
        for suffix, ratio in (("", self.variance_ratio), ("_standardised", self.standardised_ratio)):
            found[f"participation_ratio{suffix}"] = participation_ratio(ratio)
            found[f"effective_rank{suffix}"] = effective_rank(ratio)
            for share in SHARES:
                found[f"components_{100 * share:.0f}{suffix}"] = components_for(ratio, share)
        return {**found, "mean_abs_correlation": self.mean_abs_correlation}


def spectrum(moments: FeatureMoments) -> Spectrum:
    """Principal components of the features that the moments were gathered from.

    Raises
    ------
    UserError
        if there are fewer than two galaxies, a feature is not finite, or none varies
    """
    n_rows, scatter = moments.n_rows, moments.scatter
    if n_rows < _FEWEST:
        raise UserError(f"redundancy: {n_rows} galaxies have no covariance. Embed more, or embedding.redundancy=false.")
    if not np.isfinite(scatter).all():
        raise UserError("redundancy: features that the model gives are not finite. Train it with a lower optim.lr.")
    variances = np.diag(scatter)
    # Rounding leaves a constant feature a variance of the order of its square times the precision of float64.
    varies = variances > n_rows * np.square(moments.mean * np.finfo(np.float64).eps * len(variances))
    if not varies.any():
        raise UserError("redundancy: the model gives every galaxy the same features. Check its training.")
    scale = np.sqrt(variances[varies])
    correlation = scatter[np.ix_(varies, varies)] / np.outer(scale, scale)
    standardised = np.zeros(len(variances))
    standardised[: len(scale)] = _ratios(correlation)
    pairs = np.abs(correlation[np.triu_indices_from(correlation, k=1)])
    return Spectrum(
        n_rows=n_rows,
        variance_ratio=_ratios(scatter),
        standardised_ratio=standardised,
        mean_abs_correlation=float(pairs.mean()) if len(pairs) else float("nan"),
        n_constant=int((~varies).sum()),
    )


def participation_ratio(ratio: NDArray[np.float64]) -> float:
    """(sum l)^2 / sum l^2 of the eigenvalues: F where all are equal, 1 where there is one (Gao et al. 2017, Sec. 3).

    Parameters
    ----------
    ratio : (F,) eigenvalues >= 0, in any unit, not all 0
    """
    return float(ratio.sum() ** 2 / np.square(ratio).sum())


def effective_rank(ratio: NDArray[np.float64]) -> float:
    """Exponential of the entropy of the eigenvalues' shares (Roy & Vetterli 2007, Sec. 2).

    Parameters
    ----------
    ratio : (F,) eigenvalues >= 0, in any unit, not all 0
    """
    shares = ratio[ratio > 0] / ratio.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def components_for(ratio: NDArray[np.float64], share: float) -> int:
    """Fewest of the largest components that hold at least a share of the variance.

    Parameters
    ----------
    ratio : (F,) eigenvalues, the largest first
    share : between 0 and 1
    """
    cumulative = np.cumsum(ratio) / ratio.sum()
    return int(np.searchsorted(cumulative, share - 1e-12)) + 1


def _ratios(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    # A covariance of fewer galaxies than features has eigenvalues of 0, which rounding makes slightly negative.
    eigenvalues = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    ratios: NDArray[np.float64] = eigenvalues / eigenvalues.sum()
    return ratios
