"""Settings of the class search: names, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rarezoo.config import ReportSettings, RunSettings


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cut(_Settings):
    """Keep the galaxies whose expected fraction of votes for one answer is below a threshold.

    Walmsley & Scaife 2023, Sec. 2 remove smooth >= 0.5, edge-on >= 0.3 and artifact >= 0.3.

    Attributes
    ----------
    answer : label column, or a shell pattern that matches exactly one
    below : rows at or above it are removed, in (0, 1]
    """

    answer: str = Field(min_length=1)
    below: float = Field(gt=0, le=1)


class SelectionSettings(_Settings):
    """Which galaxies are searched: cuts by name, applied in order."""

    cuts: dict[str, Cut] = Field(default_factory=dict)


class NeighbourSettings(_Settings):
    """How neighbours are found."""

    method: Literal["auto", "exact", "approximate"] = "auto"
    exact_below: int = Field(default=40_000, ge=0)


class LayoutSettings(_Settings):
    """UMAP, as Walmsley & Scaife 2023, Sec. 3 set it; see `umap_layout` for what the paper leaves open."""

    n_neighbors: int = Field(default=50, ge=2, le=1000)
    n_components: int = Field(default=5, ge=2, le=100)
    min_dist: float = Field(default=0.0, ge=0, le=1)
    densmap: bool = False
    seed: int | None = Field(default=0, ge=0, lt=2**32)
    init: Literal["auto", "spectral", "pca", "random"] = "auto"
    n_epochs: int | None = Field(default=None, ge=1)


class TreeSettings(_Settings):
    """HDBSCAN, as Walmsley & Scaife 2023, Sec. 3 set it."""

    min_samples: int = Field(default=300, ge=1)
    min_cluster_size: int = Field(default=10, ge=2)
    method: Literal["leaf", "eom"] = "leaf"
    epsilon: float = Field(default=0.0, ge=0)
    max_cluster_size: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sizes_agree(self) -> TreeSettings:
        if self.max_cluster_size and self.method == "leaf":
            raise ValueError("max_cluster_size has no effect with method=leaf: leave it at 0, or choose method=eom")
        if 0 < self.max_cluster_size < self.min_cluster_size:
            raise ValueError(
                f"max_cluster_size={self.max_cluster_size} is below min_cluster_size={self.min_cluster_size}: "
                "raise it, or set 0 for no limit"
            )
        return self


class SearchSettings(_Settings):
    """All that decides which classes are found."""

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
    report: ReportSettings

    _undecisive: ClassVar[Mapping[str, Any]] = {"embeddings": True, "stages": True}

    @property
    def search(self) -> SearchSettings:
        """The part that decides which classes are found."""
        return SearchSettings(selection=self.selection, neighbours=self.neighbours, layout=self.layout, tree=self.tree)
