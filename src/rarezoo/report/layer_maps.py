"""CKA of all pairs of layers, for each objective of a study: a file of all numbers, and Figure 1 of the study.

The matrices of Bangaru et al. (2022), Fig. 1, compare each network with itself. Here a second row compares it with the
network of the same seed that softmax cross-entropy trained, and that one with another seed's: what the choice of an
objective changes is seen beside what the choice of a seed does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rarezoo.provenance import written_beside
from rarezoo.report.figures import INK, QUIET, blank_figure, to_png

REFERENCE = "sce"
NO_SEED = -1
_UNDEFINED = "#d9dde4"
_PANEL = 2.5


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """CKA within and between the networks that were trained on one data set.

    Attributes
    ----------
    title : data set, for people
    layers : names (L,), in the order of execution
    objectives, seeds : of the runs (R,)
    itself : (R, L, L), each network with itself; NaN where a layer is dead (constant or not finite)
    reference_seeds : (R,), seed of the network of sce that each is compared with: the run's own, and another for the
        runs of sce; -1 where there is none
    with_reference : (R, L, L), rows are the layers of that network, columns those of the run; NaN where there is none
    n_images : test images
    """

    title: str
    layers: tuple[str, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    itself: NDArray[np.float64]
    reference_seeds: tuple[int, ...]
    with_reference: NDArray[np.float64]
    n_images: int

    def write(self, path: Path) -> None:
        """Write an .npz file that numpy reads without pickle: the attributes under their names."""
        with written_beside(path) as temporary:
            np.savez_compressed(
                temporary,
                title=np.array(self.title),
                layers=np.array(self.layers),
                objectives=np.array(self.objectives),
                seeds=np.array(self.seeds),
                itself=self.itself,
                reference_seeds=np.array(self.reference_seeds),
                with_reference=self.with_reference,
                n_images=np.array(self.n_images),
            )


def reference_runs(objectives: Sequence[str], seeds: Sequence[int]) -> list[int | None]:
    """Which run each one is compared with: that of sce with its seed, and for sce that with the next seed.

    Returns
    -------
    positions among the runs; None where there is no such run
    """
    of_seed = {seed: index for index, seed in enumerate(seeds) if objectives[index] == REFERENCE}
    known = sorted(of_seed)
    following = dict(zip(known, [*known[1:], *known[:1]], strict=True)) if len(known) > 1 else {}
    return [
        of_seed.get(following.get(seed, NO_SEED) if objective == REFERENCE else seed)
        for objective, seed in zip(objectives, seeds, strict=True)
    ]


def write_layer_maps(stem: Path, found: LayerMaps, names: Mapping[str, str]) -> dict[str, Path]:
    """Write STEM.npz and STEM.png; what -> path."""
    paths = {f"{stem.name}{suffix}": stem.with_name(f"{stem.name}{suffix}") for suffix in (".npz", ".png")}
    numbers, figure = paths.values()
    found.write(numbers)
    with written_beside(figure) as temporary:
        temporary.write_bytes(to_png(layer_maps_figure(found, names)))
    return paths


def layer_maps_figure(found: LayerMaps, names: Mapping[str, str]) -> Figure:
    """Means over seeds: above, each objective's networks with themselves; below, with those of sce.

    Layers run from the first at the lower left, as in the paper's figure. Those that are dead for all seeds are light
    grey; below each panel stands the spread over seeds, and how many layers are dead for how many of them.

    Parameters
    ----------
    names : objective -> its name for people, in the order of the columns
    """
    shown = [name for name in names if name in found.objectives]
    figure = blank_figure(_PANEL * len(shown) + 1.4, 2 * _PANEL + 1.6)
    panels = figure.subplots(2, len(shown), squeeze=False, sharex=True, sharey=True)
    for column, objective in enumerate(shown):
        chosen = np.array(found.objectives) == objective
        compared = chosen & (np.array(found.reference_seeds) != NO_SEED)
        other = f"{REFERENCE}, another seed" if objective == REFERENCE else REFERENCE
        _draw(panels[0, column], found.itself[chosen], found.layers, f"{objective}: {names[objective]}")
        _draw(panels[1, column], found.with_reference[compared], found.layers, f"{objective} with {other}")
    panels[0, 0].set_ylabel("layers, with themselves", color=INK)
    panels[1, 0].set_ylabel(f"layers of {REFERENCE}", color=INK)
    bar = figure.colorbar(panels[0, 0].images[0], ax=panels, label="CKA", extend="min", fraction=0.02, aspect=40)
    bar.outline.set_visible(False)
    note = f"{len(found.layers)} layers, {found.n_images:,} test images, mean over seeds; light grey: dead layers"
    figure.suptitle(f"{found.title}: {note}".replace("$", r"\$"), fontsize=10, color=INK)
    return figure


def over_seeds(maps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (of the sample) over the seeds for which a pair of layers has a CKA.

    Parameters
    ----------
    maps : (seeds, L, L)

    Returns
    -------
    mean, std : (L, L), NaN where no seed, or for the deviation only one, has one
    """
    known = np.isfinite(maps)
    n_known = known.sum(0)
    mean = np.where(known, maps, 0).sum(0) / np.where(n_known, n_known, np.nan)
    squares = np.where(known, (maps - mean) ** 2, 0).sum(0)
    return mean, np.sqrt(squares / np.where(n_known > 1, n_known - 1, np.nan))


def _draw(axes: Axes, maps: NDArray[np.float64], layers: Sequence[str], title: str) -> None:
    stages = [name.split(".")[0] for name in layers]
    firsts = [index for index, stage in enumerate(stages) if "layer" in stage and stage != stages[index - 1]]
    firsts.append(stages.index("global_pool"))
    axes.set_facecolor(_UNDEFINED)
    axes.set_title(title, fontsize=8, color=INK)
    axes.set_xticks(firsts, [stages[index] for index in firsts], rotation=90)
    axes.set_yticks(firsts, [stages[index] for index in firsts])
    axes.tick_params(labelsize=7, color=QUIET, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_aspect("equal")
    mean, std = over_seeds(maps)
    axes.imshow(np.ma.masked_invalid(mean), vmin=0, vmax=1, cmap="cividis", origin="lower")
    axes.set_xlabel(_spread(maps, std), fontsize=7, color=INK)


def _spread(maps: NDArray[np.float64], std: NDArray[np.float64]) -> str:
    if not len(maps):
        return "no run to compare with"
    known = std[np.isfinite(std)]
    lines = [f"{len(maps)} seed{'s' if len(maps) > 1 else ''}"]
    if known.size:
        lines[0] += f", sd {np.median(known):.2f} (median), {known.max():.2f} (most)"
    # Those of the run: what is dead in the network that it is compared with stands in that one's own panel.
    dead = (~np.isfinite(maps)).all(1).sum(1)
    if dead.any():
        lines.append(f"up to {dead.max()} dead layers, in {np.count_nonzero(dead)} of {len(maps)}")
    return "\n".join(lines)
