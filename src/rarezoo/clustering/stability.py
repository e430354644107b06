"""How far a class can be believed: whether it is found again, and whether chance gives classes like it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array

from rarezoo.clustering.tree import ClassTree

# Guidelines of Hennig's own clusterboot (R package fpc): highly stable; valid and stable; a pattern, whose members are
# highly doubtful. A class below is not to be trusted, and one at 0.5 or less is dissolved (Hennig 2008, Journal of
# Multivariate Analysis 99, 1154).
GRADES = {"A": 0.85, "B": 0.75, "C": 0.6}


def best_match_jaccard(
    labels: NDArray[np.integer], repeat_labels: NDArray[np.integer], rows: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """How well each class is found again by a repeat of the search.

    The largest Jaccard index, members shared over members of either, with any class of the repeat (Hennig 2007,
    Computational Statistics & Data Analysis 52, 258, Sec. 3). Galaxies in no class are not a class.

    Parameters
    ----------
    labels : (N,) class of each galaxy in the search, -1 for none
    repeat_labels : (N,) or (n,) class of each galaxy of the repeat
    rows : (n,) galaxies of the search that the repeat was made of; a class is then those of its members. None is all.

    Returns
    -------
    (K,) in [0, 1]; 0 where no class of the repeat holds a member, NaN where no member is among the rows

    Raises
    ------
    ValueError
        if the lengths differ
    """
    among = labels if rows is None else labels[rows]
    if len(among) != len(repeat_labels):
        raise ValueError(f"{len(among)} galaxies of the search and {len(repeat_labels)} labels of the repeat")
    n_classes = int(labels.max(initial=-1)) + 1
    both = (among >= 0) & (repeat_labels >= 0)
    sizes = np.bincount(among[among >= 0], minlength=n_classes)
    repeat_sizes = np.bincount(repeat_labels[repeat_labels >= 0])
    pairs = (among[both], repeat_labels[both])
    shared = coo_array((np.ones(both.sum()), pairs), shape=(n_classes, len(repeat_sizes))).tocsr().tocoo()
    of, found = shared.coords
    best = np.where(sizes > 0, 0.0, np.nan)
    np.maximum.at(best, of, shared.data / (sizes[of] + repeat_sizes[found] - shared.data))
    return best


def stability(
    labels: NDArray[np.integer],
    by_seed: Sequence[NDArray[np.integer]],
    by_sample: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]],
) -> pd.DataFrame:
    """How stable each class is, over repeats of the search.

    Parameters
    ----------
    labels : (N,) class of each galaxy in the search, -1 for none
    by_seed : (N,) labels of repeats on all galaxies
    by_sample : rows (n,) and labels (n,) of repeats on some of them

    Returns
    -------
    One row a class: stability_seeds and stability_samples, means of `best_match_jaccard` (a sample without any member
    of the class is left out, as in Hennig 2007); stability_lowest of all repeats; stability_repeats, how many there
    were; grade (see `grades`). NaN where nothing was measured.
    """
    seeds = _table([best_match_jaccard(labels, repeat) for repeat in by_seed], labels)
    samples = _table([best_match_jaccard(labels, repeat, rows) for rows, repeat in by_sample], labels)
    every = pd.concat([seeds, samples], axis=1)
    found = pd.DataFrame(
        {
            "stability_seeds": seeds.mean(axis=1),
            "stability_samples": samples.mean(axis=1),
            "stability_lowest": every.min(axis=1),
            "stability_repeats": every.count(axis=1).astype(np.int32),
        }
    )
    return found.assign(grade=grades(found["stability_seeds"], found["stability_samples"]))


def of_merged(parts: pd.DataFrame, found: NDArray[np.integer], labels: NDArray[np.integer]) -> pd.DataFrame:
    """Stability of classes of which some were merged from several, or excluded, after the search.

    Parameters
    ----------
    parts : one row a class as found, as from `stability`
    found : (N,) class of each galaxy as found, -1 for none
    labels : (N,) class of each galaxy now, -1 for none; each is of one or more whole classes as found

    Returns
    -------
    The same columns, one row a class as it is now: stability_seeds and stability_samples are means over its parts,
    weighted by size; stability_lowest and stability_repeats are the smallest of any part
    """
    inside = labels >= 0
    part, first = np.unique(found[inside], return_index=True)
    now, sizes = labels[inside][first], np.bincount(found[inside])[part]
    kept = parts.loc[part]
    merged: pd.DataFrame = kept.groupby(now)[["stability_lowest", "stability_repeats"]].min()
    for name in ("stability_seeds", "stability_samples"):
        values = kept[name].to_numpy()
        weights = np.where(np.isfinite(values), sizes, 0)
        total = np.bincount(now, weights=weights)
        merged[name] = np.bincount(now, weights=weights * np.nan_to_num(values)) / np.where(total > 0, total, np.nan)
    merged["grade"] = grades(merged["stability_seeds"], merged["stability_samples"])
    return merged.reindex(columns=parts.columns)


def _table(matches: list[NDArray[np.float64]], labels: NDArray[np.integer]) -> pd.DataFrame:
    """(K rows, repeats), also where there were none."""
    return pd.DataFrame(dict(enumerate(matches)), index=range(int(labels.max(initial=-1)) + 1), dtype=np.float64)


def grades(stability_seeds: ArrayLike, stability_samples: ArrayLike) -> pd.Series:
    """Grade of each class: A from 0.85, B from 0.75, C from 0.6, else D, of the smaller of both; – if neither is known.

    The thresholds are Hennig's, for means over bootstrap samples, which hold 63% of the galaxies: other seeds, and
    samples of more, disturb a search less, and grade it more kindly.

    Parameters
    ----------
    stability_seeds, stability_samples : (K,) mean Jaccard indices, NaN where not measured

    Returns
    -------
    (K,) text
    """
    lower = pd.Series(np.fmin(stability_seeds, stability_samples), dtype=np.float64)
    found = pd.Series("D", index=lower.index, dtype=object).where(lower.notna(), "–")
    for grade, threshold in reversed(GRADES.items()):
        found = found.mask(lower >= threshold, grade)
    return found


def permuted(x: NDArray[np.floating], seed: int) -> NDArray[np.floating]:
    """Put each column in an order of its own: no classes, and each number distributed as it was.

    All relations between columns are gone too, so that galaxies fill many more dimensions than those of the survey.
    `gaussian_like` is the sterner control.

    Parameters
    ----------
    x : (N, D) representation

    Returns
    -------
    (N, D)
    """
    return np.random.default_rng(seed).permuted(x, axis=0)


def gaussian_like(x: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """Draw as many rows from the normal distribution of the same mean and covariance: one smooth bulk, without classes.

    Parameters
    ----------
    x : (N, D) representation

    Returns
    -------
    (N, D)
    """
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
    # Of columns that depend on each other, a variance is 0 but for rounding, which may make it negative.
    spread = (axes * np.sqrt(np.maximum(variances, 0))).T.astype(np.float32)
    drawn = np.random.default_rng(seed).standard_normal(x.shape, dtype=np.float32)
    like: NDArray[np.float32] = drawn @ spread + x.mean(axis=0, dtype=np.float64).astype(np.float32)
    return like


def contrast(tree: ClassTree) -> NDArray[np.float64]:
    """How much denser each class is than where it parts from its surroundings.

    The mean over its members of 1 - (lambda at which the class is born / lambda at which the member leaves it). It is
    HDBSCAN's persistence with each member's lambda in place of the largest of the whole tree, which the tightest class
    sets: beside one tight class, the persistence of all others is small, and in another search it is not. Contrast
    depends on the class alone, so that classes of two searches compare.

    Parameters
    ----------
    tree : classes of the N galaxies

    Returns
    -------
    (K,) in [0, 1]
    """
    condensed = tree.condensed
    born = condensed.set_index("child")["lambda_val"].reindex(tree.nodes).fillna(0.0)
    leaving = condensed[condensed["parent"].isin(tree.nodes)]
    with np.errstate(invalid="ignore"):
        gain = 1 - born.loc[leaving["parent"]].to_numpy() / leaving["lambda_val"].to_numpy()
    # A class born at infinite density, among galaxies at one place, is no denser than what it parts from.
    weighted = pd.DataFrame({"gain": np.nan_to_num(gain), "n": leaving["child_size"].to_numpy()})
    sums = weighted.assign(gain=weighted["gain"] * weighted["n"]).groupby(leaving["parent"].to_numpy()).sum()
    found: NDArray[np.float64] = (sums["gain"] / sums["n"]).reindex(tree.nodes).to_numpy(dtype=np.float64)
    return found


def control_summary(controls: Sequence[ClassTree]) -> dict[str, float]:
    """What the same search finds where there are no classes.

    Parameters
    ----------
    controls : trees of searches of `permuted` or `gaussian_like` representations

    Returns
    -------
    control_classes and control_share_in_classes, means over the controls; control_contrast, the largest of any class.
    Nothing without controls.
    """
    if not controls:
        return {}
    return {
        "control_classes": float(np.mean([tree.n_classes for tree in controls])),
        "control_share_in_classes": float(np.mean([np.mean(tree.labels >= 0) for tree in controls])),
        "control_contrast": float(max(contrast(tree).max(initial=0.0) for tree in controls)),
    }


def control_exceeded(strength: NDArray[np.floating], control: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of the classes of the controls that are at least as strong as a class, (1 + how many) / (1 + all).

    The one added to both is the class itself, so that no share is zero (Phipson & Smyth 2010, Statistical Applications
    in Genetics and Molecular Biology 9, 39).

    Parameters
    ----------
    strength : (K,) of the classes, in a measure by which searches compare, such as `contrast`
    control : (C,) of all classes of the controls together

    Returns
    -------
    (K,) in (0, 1]; NaN where the controls have no class, so that there is none to compare with
    """
    if not len(control):
        return np.full(len(strength), np.nan)
    at_least = len(control) - np.searchsorted(np.sort(control), strength, side="left")
    shares: NDArray[np.float64] = (1 + at_least) / (1 + len(control))
    return shares
