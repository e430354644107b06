"""Other ways to look for rare classes, each as its package has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import pairwise_distances
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

from known_truth.contest import Found, Task
from known_truth.methods import montages_around, of_tree, searched_tree, strongest_members
from rarezoo.cli import UserError
from rarezoo.clustering.spanning import spanning_tree
from rarezoo.clustering.tree import class_tree

Match = Literal["count", "size"]
Settings = Mapping[str, Mapping[str, Any]]


def pca_search(task: Task, n_components: int, min_samples: int, min_cluster_size: int) -> Found:
    """HDBSCAN's leaves on principal components in place of a layout, with the same exact tree as `search`."""
    n_components = min(n_components, *task.x.shape)
    places = PCA(n_components, random_state=task.seed).fit_transform(task.x)
    return of_tree(class_tree(spanning_tree(places, min_samples), min_cluster_size), task.montage_size)


def kmeans(task: Task, match: Match, search: Settings) -> Found:
    """Make clusters around means (scikit-learn), as many as `matched_count` says; ordered as `by_centres` says."""
    n_clusters = matched_count(task, match, search)
    fitted = KMeans(n_clusters, n_init=1, random_state=task.seed).fit(task.x)
    return by_centres(task, fitted.labels_, fitted.cluster_centers_)


def mixture(task: Task, match: Match, search: Settings) -> Found:
    """Fit a mixture of normal distributions with diagonal covariances (scikit-learn); else as `kmeans`.

    Full covariances of 128 columns have 8,256 numbers each, more than rare classes have members.
    """
    n_clusters = matched_count(task, match, search)
    x = task.x.astype(np.float64)
    # A floor of a thousandth of the variance: one component must not shrink to a single galaxy.
    model = GaussianMixture(
        n_clusters, covariance_type="diag", reg_covar=1e-3 * float(x.var(axis=0).mean()), random_state=task.seed
    )
    return by_centres(task, model.fit_predict(x), model.means_)


def matched_count(task: Task, match: Match, search: Settings) -> int:
    """Number of clusters for a method that has to be told one.

    Parameters
    ----------
    task : what is searched
    match : count, as many as the search finds classes; size, as many as make clusters of their median size
    search : settings of the search that gives the number, as for `searched_tree`

    Raises
    ------
    UserError
        if that search finds no class
    """
    sizes = searched_tree(task, search).sizes()
    if not len(sizes):
        raise UserError("the search that gives the number of clusters finds no class, so there is no number to match")
    return len(sizes) if match == "count" else max(1, round(len(task.x) / float(np.median(sizes))))


def by_centres(task: Task, labels: NDArray[np.integer], centres: NDArray[np.floating]) -> Found:
    """Clusters around centres, the most compact first; a montage shows the galaxies nearest to the centre.

    Compactness is the mean simplified silhouette of the members (Hruschka, de Castro & Campello 2004): (b - a) / b for
    distances a to the own and b to the nearest other centre. Clusters that do not fill a montage come last: one of a
    single galaxy is as compact as can be.
    """
    n_clusters = len(centres)
    distances = pairwise_distances(task.x, centres)
    own = distances[np.arange(len(labels)), labels]
    distances[np.arange(len(labels)), labels] = np.inf
    other = distances.min(axis=1) if n_clusters > 1 else own
    silhouette = np.divide(other - own, np.maximum(own, other), out=np.zeros_like(own), where=other > 0)
    sizes = np.bincount(labels, minlength=n_clusters)
    mean = np.bincount(labels, weights=silhouette, minlength=n_clusters) / np.maximum(sizes, 1)
    order = np.lexsort((-mean, sizes < task.montage_size))
    montages = strongest_members(labels, -own, order, task.montage_size)
    return Found(montages, labels.astype(np.int32))


def evoc(task: Task, layer: Literal["best", "finest"], n_neighbors: int, min_cluster_size: int) -> Found:
    """EVoC (https://github.com/TutteInstitute/evoc): a layout of its own, by cosine, and layers of HDBSCAN's clusters.

    Clusters come in the order of their mean membership strength, and a montage shows the members of the greatest.

    Parameters
    ----------
    task : what to search
    layer : best, the one that EVoC calls the most persistent; finest, that of the smallest clusters
    n_neighbors, min_cluster_size : its options n_neighbors and base_min_cluster_size

    Raises
    ------
    UserError
        if it is not installed
    """
    try:
        from evoc import EVoC
    except ImportError as error:
        raise UserError("the package evoc is not installed: pip install 'rarezoo[benchmark]'") from error
    model = EVoC(n_neighbors=n_neighbors, base_min_cluster_size=min_cluster_size, random_state=task.seed).fit(task.x)
    if layer == "best":
        labels, strength = model.labels_, model.membership_strengths_
    else:
        labels, strength = model.cluster_layers_[0], model.membership_strength_layers_[0]
    labels, strength = np.asarray(labels, dtype=np.int32), np.asarray(strength, dtype=np.float64)
    inside = labels >= 0
    sums = np.bincount(labels[inside], weights=strength[inside])
    order = np.argsort(-sums / np.maximum(np.bincount(labels[inside]), 1), kind="stable")
    return Found(strongest_members(labels, strength, order, task.montage_size), labels)


def isolation_forest(task: Task, n_trees: int, n_montages: int) -> Found:
    """Rank galaxies by how few random cuts set them apart (scikit-learn); montages as `montages_around` makes them."""
    forest = IsolationForest(n_estimators=n_trees, random_state=task.seed).fit(task.x)
    order = np.argsort(forest.score_samples(task.x), kind="stable")
    return Found(montages_around(task, order, n_montages))


def local_outlier_factor(task: Task, n_neighbors: int, n_montages: int) -> Found:
    """Rank galaxies by how much sparser they lie than their neighbours (scikit-learn); montages likewise."""
    factor = LocalOutlierFactor(n_neighbors=min(n_neighbors, len(task.x) - 1)).fit(task.x)
    order = np.argsort(factor.negative_outlier_factor_, kind="stable")
    return Found(montages_around(task, order, n_montages))


def random_order(task: Task, n_montages: int) -> Found:
    """Rank galaxies by a draw, which knows nothing of them; montages likewise."""
    order = np.random.default_rng(task.seed).permutation(len(task.x))
    return Found(montages_around(task, order, n_montages))
