"""The surveys of a suite, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from known_truth import attributes, injected
from known_truth.contest import KnownSurvey
from known_truth.simulated import simulated, simulated_source
from rarezoo.cli import UserError, announce, did_you_mean

_LARGE_NAMES = ("bottleneck", "whitened", "votes")
_NAMES = (*_LARGE_NAMES, "features", "pixels")
_CONTROLS = ("imagenet", "random")
# Another seed than that of the survey that its network was trained on.
_LARGE_SEED = 10


@dataclass(frozen=True)
class Scale:
    """Sizes of a suite.

    Attributes
    ----------
    seeds : of the surveys and networks, where the user does not say otherwise
    n_galaxies, size : of each simulated survey, its images in px
    test_share : of its galaxies that training does not see, beside the 5% that it validates on
    epochs : of training on it
    names : of its representations
    names_once : of those that only the first of these seeds has
    names_real_once : of those that the real surveys have for that seed beside the others'
    n_large : galaxies of a larger survey for each seed, of other galaxies, embedded by the same network; None for none
    rare_shares : of the rarest planted class and of the most frequent
    attribute_epochs : of training on EFIGI
    """

    seeds: tuple[int, ...]
    n_galaxies: int
    size: int
    test_share: float
    epochs: int
    names: tuple[str, ...]
    names_once: tuple[str, ...]
    names_real_once: tuple[str, ...]
    n_large: int | None
    rare_shares: tuple[float, float]
    attribute_epochs: int


# Training sees half of the small surveys, and of the full ones 9,000 galaxies, so that their number decides nothing.
SCALES = {
    "small": Scale((0,), 8_000, 64, 0.45, 3, (*_NAMES, *_CONTROLS), (), (), None, (0.001, 0.01), 3),
    "full": Scale(
        (0, 1, 2),
        30_000,
        96,
        0.65,
        4,
        (*_NAMES, "layernorm"),
        (*_CONTROLS, "unbottlenecked"),
        _CONTROLS,
        100_000,
        (0.0002, 0.005),
        10,
    ),
}


def suite(name: str, out: Path, data: Path | None = None, seeds: Sequence[int] | None = None) -> Iterator[KnownSurvey]:
    """Surveys with known classes, each made when it is reached, and each representation when it is read.

    Parameters
    ----------
    name : small or full
    out : folder for networks and embeddings; those of an earlier run with the same settings are used
    data : folder with efigi/, sdss/ and goods/. Surveys whose images are not there are left out, which is said.
    seeds : in place of the suite's own

    Raises
    ------
    UserError
        if there is no such suite or folder, or a script fails
    """
    if name not in SCALES:
        raise UserError(f"--suite={name}: there is no such suite. {did_you_mean(name, SCALES)}")
    if data is not None and not data.is_dir():
        raise UserError(
            f"--data={data}: there is no such folder. Give one with efigi/, sdss/ and goods/, or leave it out."
        )
    out, data = out.resolve(), data and data.resolve()
    scale = SCALES[name]
    seeds = scale.seeds if seeds is None else seeds
    for seed in seeds:
        first = seed == scale.seeds[0]
        names = (*scale.names, *scale.names_once) if first else scale.names
        real_names = (*_NAMES, *scale.names_real_once) if first else _NAMES
        made: dict[str, Any] = {
            "test_share": scale.test_share,
            "epochs": scale.epochs,
            "rare_shares": scale.rare_shares,
        }
        source = simulated_source(out, scale.n_galaxies, scale.size, seed, names=names, **made)
        yield simulated(source, names, seed)
        if data is not None and _has("efigi", data, attributes.NEEDED):
            yield attributes.attributes(out, data, real_names, seed, scale.attribute_epochs)
        if data is not None and _has("injected", data, injected.NEEDED):
            yield injected.injected(out, data, real_names, seed, source)
        if scale.n_large is not None:
            many = (out, scale.n_large, scale.size, seed + _LARGE_SEED)
            yield simulated(simulated_source(*many, names=_LARGE_NAMES, trained=source, **made), _LARGE_NAMES, many[-1])
    if data is None:
        announce("efigi and injected are left out: they need images, which --data names the folder of")


def _has(survey: str, data: Path, needed: Sequence[str]) -> bool:
    absent = [file for file in needed if not (data / file).is_file()]
    if absent:
        announce(f"{survey} is left out: {data} has no {', '.join(absent)}")
    return not absent
