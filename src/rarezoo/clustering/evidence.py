"""What speaks for the classes of a search and what against: stability, validity, controls, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rarezoo.clustering.neighbours import LEAST_RECALL
from rarezoo.clustering.pipeline import Announce
from rarezoo.clustering.repeats import Repeats, repeat_search
from rarezoo.clustering.search import ClassSearch
from rarezoo.clustering.settings import SearchSettings, TrustSettings
from rarezoo.clustering.stability import contrast, control_exceeded, control_summary, of_merged, stability
from rarezoo.clustering.tree import ClassTree
from rarezoo.clustering.validity import dbcv


@dataclass(frozen=True)
class Evidence:
    """What was measured of K classes.

    Attributes
    ----------
    classes : one row a class: stability_seeds, stability_samples, stability_lowest, stability_repeats, grade (see
        `stability` and, of classes that were put together, `of_merged`); contrast, and control_exceeded by it (NaN
        without controls or classes in them); validity (see `dbcv`; NaN where no layout was clustered)
    quality : figures of the search as a whole, by name, the same names for every search; None is not measured
    """

    classes: pd.DataFrame
    quality: dict[str, float | int | None]


def weigh(
    search: ClassSearch, tree: ClassTree, trust: TrustSettings, announce: Announce = lambda stage: None
) -> Evidence:
    """Measure how far the classes of a search can be believed.

    Parameters
    ----------
    search : what was found
    tree : its classes, after an astronomer's decisions where there are any
    trust : how often the search is repeated
    announce : called before each repeat
    """
    repeats = repeat_search(search.pipeline, trust, announce)
    announce("validity")
    # Distances in the representation, with as many dimensions, cannot prune pairs of classes: it would take hours.
    index, validity = (
        (float("nan"), np.full(tree.n_classes, np.nan)) if search.layout is None else dbcv(search.layout, tree.labels)
    )
    strength = contrast(tree)
    # A repeat knows nothing of decisions: it finds the parts of a merged class, and not that class.
    parts = stability(search.tree.labels, repeats.by_seed, repeats.by_sample)
    classes = of_merged(parts, search.tree.labels, tree.labels)
    classes = classes.assign(
        contrast=strength,
        control_exceeded=_exceeded(strength, repeats),
        validity=validity,
    )
    return Evidence(classes, _quality(search, tree, classes, repeats, index))


def warnings_of(search: ClassSearch, settings: SearchSettings, quality: Mapping[str, float | int | None]) -> list[str]:
    """What a reader should know before looking at any class, as sentences.

    Parameters
    ----------
    search : what was found
    settings : that it was found with
    quality : as from `weigh`
    """
    n_rows, found = len(search.selection.rows), search.tree.n_classes
    least, wanted = settings.tree.min_samples, settings.tree.min_cluster_size
    warnings = []
    if least > wanted:
        warnings.append(
            f"tree.min_samples={least} hides groups of fewer than about {least} galaxies, {least / n_rows:.2%} of the "
            f"{n_rows:,} searched, though tree.min_cluster_size={wanted} asks for classes of {wanted} on. To look for "
            "smaller classes, lower tree.min_samples; more of what is then found is chance."
        )
    if search.recall < LEAST_RECALL:
        warnings.append(
            f"Only {search.recall:.1%} of the nearest neighbours were found ({LEAST_RECALL:.0%} are wanted). Set "
            "neighbours.method=exact, or ivf."
        )
    in_control = quality.get("control_classes")
    if in_control is not None and found and in_control >= found:
        warnings.append(
            f"Searches of what has no classes found {in_control:.0f} on average, and this search {found}: most of them "
            "may be chance. Believe those of grade A or B that few classes of the controls exceed."
        )
    return warnings


def _exceeded(strength: np.ndarray, repeats: Repeats) -> np.ndarray:
    if not repeats.controls:
        return np.full(len(strength), np.nan)
    return control_exceeded(strength, np.concatenate([contrast(control) for control in repeats.controls]))


def _quality(
    search: ClassSearch, tree: ClassTree, classes: pd.DataFrame, repeats: Repeats, index: float
) -> dict[str, float | int | None]:
    controls = control_summary(repeats.controls)
    lower = classes[["stability_seeds", "stability_samples"]].min(axis=1)
    measured = bool(lower.notna().any())
    sizes = tree.sizes()
    share = float(sizes.sum() / len(tree.labels))
    return {
        "n_classes": tree.n_classes,
        "share_in_classes": share,
        "noise_share": 1 - share,
        "median_class_size": float(np.median(sizes)) if len(sizes) else 0.0,
        "dbcv": _known(index),
        "stability": _known(float(lower.mean())),
        "classes_of_grade_a_or_b": int(classes["grade"].isin(["A", "B"]).sum()) if measured else None,
        "control_classes": controls.get("control_classes"),
        "control_share_in_classes": controls.get("control_share_in_classes"),
        "control_contrast": controls.get("control_contrast"),
        "neighbour_recall": search.recall,
    }


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
