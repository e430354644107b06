"""Settings of the class search: names, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rarezoo.config import ReportSettings, RunSettings


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cut(_Settings):
    """Keep the galaxies whose predicted votes for one answer lie within bounds.

    Walmsley & Scaife 2023, Sec. 2 remove smooth >= 0.5, edge-on >= 0.3 and artifact >= 0.3.

    Attributes
    ----------
    answer : label column, or a shell pattern that matches exactly one
    below : rows at or above it are removed, in (0, 1]
    at_least : rows below it are removed, in [0, 1)
    of : fraction, the expected share of the votes of those who are asked the question; joint, that of all volunteers,
        which is the fraction times the probability that the question is asked
    """

    answer: str = Field(min_length=1)
    below: float | None = Field(default=None, gt=0, le=1)
    at_least: float | None = Field(default=None, ge=0, lt=1)
    of: Literal["fraction", "joint"] = "fraction"

    @model_validator(mode="after")
    def _bounds_agree(self) -> Cut:
        if self.below is None and self.at_least is None:
            raise ValueError("a cut needs a bound: give below, at_least, or both")
        if self.below is not None and self.at_least is not None and self.at_least >= self.below:
            raise ValueError(f"at_least={self.at_least} and below={self.below} leave nothing: swap them")
        return self


class SelectionSettings(_Settings):
    """Which galaxies are searched: cuts by name, applied in order."""

    cuts: dict[str, Cut] = Field(default_factory=dict)


class NeighbourSettings(_Settings):
    """How neighbours are found, and how many: one graph serves every layout.n_neighbors up to its width.

    Attributes
    ----------
    whitening : power of its standard deviation that each principal component is divided by first; see `Whitening`
    """

    method: Literal["auto", "exact", "ivf", "pynndescent", "cuml"] = "auto"
    exact_below: int = Field(default=50_000, ge=0)
    width: int = Field(default=100, ge=2, le=1000)
    whitening: float = Field(default=0.0, ge=0, le=1)


class LayoutSettings(_Settings):
    """UMAP as in Walmsley & Scaife 2023, Sec. 3, or no layout; see `umap_layout` for what the paper leaves open."""

    method: Literal["umap", "none"] = "umap"
    n_neighbors: int = Field(default=50, ge=2, le=1000)
    n_components: int = Field(default=5, ge=2, le=100)
    min_dist: float = Field(default=0.0, ge=0, le=1)
    densmap: bool = False
    seed: int | None = Field(default=0, ge=0, lt=2**32)
    init: Literal["auto", "spectral", "pca", "random"] = "auto"
    n_epochs: int | None = Field(default=None, ge=1)


class TreeSettings(_Settings):
    """HDBSCAN, as Walmsley & Scaife 2023, Sec. 3 set it.

    Attributes
    ----------
    max_cluster_size : of eom; galaxies, or below 1 their share of all that are searched; 0 sets no limit
    """

    engine: Literal["fast_hdbscan", "hdbscan"] = "fast_hdbscan"
    min_samples: int = Field(default=300, ge=1)
    min_cluster_size: int = Field(default=10, ge=2)
    method: Literal["leaf", "eom"] = "leaf"
    epsilon: float = Field(default=0.0, ge=0)
    min_lambda: float = Field(default=0.0, ge=0)
    min_persistence: float = Field(default=0.0, ge=0, le=1)
    max_cluster_size: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0

    @model_validator(mode="after")
    def _sizes_agree(self) -> TreeSettings:
        if 1 <= self.max_cluster_size < self.min_cluster_size:
            raise ValueError(
                f"max_cluster_size={self.max_cluster_size} is below min_cluster_size={self.min_cluster_size}: "
                "raise it, or set 0 for no limit"
            )
        return self

    def most_in_a_class(self, n_rows: int) -> int:
        """max_cluster_size among so many galaxies, as a number of them; 0 for no limit, as leaves have none."""
        if self.method == "leaf":
            return 0
        if isinstance(self.max_cluster_size, int):
            return self.max_cluster_size
        return max(self.min_cluster_size, round(self.max_cluster_size * n_rows))


class TrustSettings(_Settings):
    """What is measured to tell how far a class can be believed.

    Attributes
    ----------
    seeds : layouts of other seeds that the search is repeated on
    bootstraps : random samples of the galaxies that it is repeated on, from neighbours to classes
    share : of the galaxies in such a sample, without replacement; min_samples and the sizes of classes shrink with it
    controls : searches of what has no classes
    control : what they search: normal draws of the same mean and covariance, or the columns permuted independently
    """

    seeds: int = Field(default=0, ge=0, le=100)
    bootstraps: int = Field(default=0, ge=0, le=100)
    share: float = Field(default=0.8, gt=0, lt=1)
    controls: int = Field(default=0, ge=0, le=100)
    control: Literal["gaussian", "permuted"] = "gaussian"


class GroupSettings(_Settings):
    """How over-split classes are grouped; None does not use that criterion.

    Attributes
    ----------
    tree : classes that part in the condensed tree within this share of the density (1 - lambda of the branching /
        lambda at which the denser of them ends), in (0, 1], are of one group
    similarity : classes of at least this cosine similarity of their mean representations, all galaxies' mean taken off,
        in [-1, 1], are of one group
    """

    tree: float | None = Field(default=None, gt=0, le=1)
    similarity: float | None = Field(default=None, ge=-1, le=1)


class SearchSettings(_Settings):
    """All that decides which classes are found; where nothing is said, as in Walmsley & Scaife 2023.

    The defaults of cluster.py are in conf/, and are those that find more.
    """

    selection: SelectionSettings = SelectionSettings()
    neighbours: NeighbourSettings = NeighbourSettings()
    layout: LayoutSettings = LayoutSettings()
    tree: TreeSettings = TreeSettings()


class ClusterSettings(RunSettings):
    """Settings of cluster.py: what it reads, the search, and the report."""

    embeddings: Path
    stages: Path
    truth: Path | None
    selection: SelectionSettings
    neighbours: NeighbourSettings
    layout: LayoutSettings
    tree: TreeSettings
    trust: TrustSettings
    groups: GroupSettings
    decisions: Path
    report: ReportSettings

    _undecisive: ClassVar[Mapping[str, Any]] = {"embeddings": True, "stages": True, "decisions": True}

    @property
    def search(self) -> SearchSettings:
        """The part that decides which classes are found."""
        return SearchSettings(selection=self.selection, neighbours=self.neighbours, layout=self.layout, tree=self.tree)
