"""Simulated volunteers: what they answer to Galaxy Zoo's DECaLS questions, given what a galaxy is made of.

Each question has one score per answer, a function of the galaxy's physical parameters alone. The softmax of the scores,
blurred where the galaxy is small or faint, is the expected vote fraction; a Dirichlet draw per galaxy and question
makes the votes over-dispersed, as those of real volunteers are (Walmsley et al. 2022, MNRAS 509, 3966, section 4.1).
All numbers here are choices that give fractions like those of Galaxy Zoo DECaLS, not fits to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax

from rarezoo.cli import UserError

FloatArray: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = dict[str, FloatArray | float]
Tree: TypeAlias = Mapping[str, Mapping[str, Any]]

MIN_VOLUNTEERS = 5
MAX_VOLUNTEERS = 40
VOLUNTEERS_BETA = (0.8, 0.8)
"""Shape of the beta distribution of the share of the volunteers beyond the minimum: many galaxies get few or many."""
LAPSE = 0.02
"""Share of the votes that are given blindly, whatever the galaxy."""
_NUMERIC = (
    *("bulge_fraction", "axis_ratio", "edge_on", "n_arms", "arm_strength", "pitch", "flocculence", "bar_strength"),
    *("inner_ring", "outer_ring", "clumpiness", "dust", "disturbance", "companion", "bulge_boxiness"),
    *("half_light_radius", "snr", "psf_fwhm"),
)


@dataclass(frozen=True)
class _Question:
    """How volunteers answer one question.

    Parameters
    ----------
    scores : galaxies -> score of each answer, a number or (galaxies,)
    unclear : score of each answer where nothing can be made out
    concentration : of the Dirichlet that vote fractions are drawn from; n votes vary (n + c) / (1 + c) times as much
        as binomial ones
    """

    scores: Callable[[pd.DataFrame], Scores]
    unclear: Mapping[str, float]
    concentration: float


def simulate_votes(parameters: pd.DataFrame, decision_tree: Tree, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the votes of all galaxies for all questions.

    A galaxy is seen by 5 + Binomial(35, b) volunteers, b ~ Beta(0.8, 0.8): 5 to 40, 22.5 in the mean. Those who gave
    one of the answers that lead to a question go on to it, so deep questions get few votes. `merging` is asked of those
    who answered smooth or featured, as on the site, even where the tree says that it is asked of all.

    Parameters
    ----------
    parameters : one row per galaxy, with the columns of the simulated population; `rare_class` is not read
    decision_tree : question -> {"answers": [...], "asked_after": None, a label column, or several (any of them)}; the
        questions of Galaxy Zoo DECaLS, told by the start of their names (`bar-dr5`, `bar-dr8`, `bar`)
    rng : source of all randomness

    Returns
    -------
    Counts >= 0, int64, one column per answer (QUESTION_ANSWER) in the tree's order, indexed as `parameters`

    Raises
    ------
    UserError
        if the tree lacks a question or answer, has others, or leads nowhere
    ValueError
        if a parameter is absent or not finite
    """
    roles = _roles(decision_tree)
    _check_parameters(parameters)
    share = rng.beta(*VOLUNTEERS_BETA, len(parameters))
    volunteers = MIN_VOLUNTEERS + rng.binomial(MAX_VOLUNTEERS - MIN_VOLUNTEERS, share)
    counts: dict[str, NDArray[np.int64]] = {}
    for question in _parents_first(decision_tree, roles):
        role = roles[question]
        answers = list(decision_tree[question]["answers"])
        asked = volunteers
        if parents := _parents(decision_tree, question, roles):
            asked = np.minimum(volunteers, sum((counts[parent] for parent in parents), np.zeros_like(volunteers)))
        fractions = answer_probabilities(parameters, role)[answers].to_numpy()
        drawn = _dirichlet(QUESTIONS[role].concentration * fractions, rng)
        counts |= dict(zip(_columns(decision_tree, question), rng.multinomial(asked, drawn).T, strict=True))
    columns = [column for question in decision_tree for column in _columns(decision_tree, question)]
    return pd.DataFrame({column: counts[column] for column in columns}, index=parameters.index, dtype=np.int64)


def answer_probabilities(parameters: pd.DataFrame, role: str) -> pd.DataFrame:
    """Expected vote fractions of one question, for volunteers who are asked it.

    Parameters
    ----------
    parameters : one row per galaxy
    role : question without its campaign's suffix, one of `QUESTIONS`

    Returns
    -------
    One column per answer; each row sums to 1
    """
    question = QUESTIONS[role]
    clear = clarity(parameters)
    scores = question.scores(parameters)
    seen = np.stack([clear * s + (1 - clear) * question.unclear[answer] for answer, s in scores.items()])
    weights = np.exp(seen - seen.max(axis=0))
    fractions = (1 - LAPSE) * weights / weights.sum(axis=0) + LAPSE / len(weights)
    return pd.DataFrame(fractions.T, columns=list(scores), index=parameters.index)


def clarity(parameters: pd.DataFrame) -> FloatArray:
    """How much of a galaxy's structure can be made out: 0 nothing, 1 all.

    Product of r² / (r² + 1), r the half-light radius in units of the PSF's full width, and snr / (snr + 4).
    """
    resolution = (_column(parameters, "half_light_radius") / _column(parameters, "psf_fwhm")) ** 2
    snr = _column(parameters, "snr")
    return resolution / (resolution + 1) * snr / (snr + 4)


def _smooth_or_featured(galaxies: pd.DataFrame) -> Scores:
    weights = {"inner_ring": 0.8, "outer_ring": 0.8, "clumpiness": 0.8, "dust": 0.7, "disturbance": 0.75}
    weights |= {"bar_strength": 0.8, "edge_on": 0.7}
    plain = 1 - 0.9 * _arms(galaxies)
    for name, weight in weights.items():
        plain = plain * (1 - weight * _column(galaxies, name))
    bias = galaxies["morphology"].map({"smooth": -1.0, "disk": 0.8, "irregular": 1.2, "merger": 0.4})
    artifact = np.where(galaxies["artifact"] != "", 7.0, -4.0)
    return {
        "smooth": 0.0,
        "featured-or-disk": -2.2 + 6.0 * (1 - plain) + bias.to_numpy(np.float64),
        "artifact": artifact,
    }


def _disk_edge_on(galaxies: pd.DataFrame) -> Scores:
    return {"yes": 14.0 * (_column(galaxies, "edge_on") - 0.75), "no": 0.0}


def _has_spiral_arms(galaxies: pd.DataFrame) -> Scores:
    return {"yes": 9.0 * (_arms(galaxies) - 0.3), "no": 0.0}


def _bar(galaxies: pd.DataFrame) -> Scores:
    return _nearest(_column(galaxies, "bar_strength"), {"strong": 0.8, "weak": 0.4, "no": 0.05}, width=0.17)


def _bulge_size(galaxies: pd.DataFrame) -> Scores:
    centres = {"dominant": 0.75, "large": 0.5, "moderate": 0.27, "small": 0.1, "none": 0.0}
    return _nearest(_column(galaxies, "bulge_fraction"), centres, width=0.1)


def _how_rounded(galaxies: pd.DataFrame) -> Scores:
    centres = {"round": 0.95, "in-between": 0.62, "cigar-shaped": 0.28}
    return _nearest(_column(galaxies, "axis_ratio"), centres, width=0.14)


def _edge_on_bulge(galaxies: pd.DataFrame) -> Scores:
    boxiness, bulge = _column(galaxies, "bulge_boxiness"), _column(galaxies, "bulge_fraction")
    return {"boxy": 8.0 * (boxiness - 0.5), "none": 18.0 * (0.12 - bulge), "rounded": 0.0}


def _spiral_winding(galaxies: pd.DataFrame) -> Scores:
    return _nearest(_column(galaxies, "pitch"), {"tight": 9.0, "medium": 19.0, "loose": 32.0}, width=6.0)


def _spiral_arm_count(galaxies: pd.DataFrame) -> Scores:
    centres = {"1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0, "more-than-4": 5.0}
    counted = _nearest(np.clip(_column(galaxies, "n_arms"), 0, 5), centres, width=0.55)
    return {**counted, "cant-tell": -3.0 + 3.0 * _column(galaxies, "flocculence")}


def _merging(galaxies: pd.DataFrame) -> Scores:
    centres = {"none": 0.0, "minor-disturbance": 0.4, "major-disturbance": 0.85}
    ordered = _nearest(_column(galaxies, "disturbance"), centres, width=0.2)
    # Normalised, so that a merger is told by its companion however disturbed the galaxy is.
    disturbed = dict(zip(ordered, log_softmax(np.stack(list(ordered.values())), axis=0), strict=True))
    merger = np.where(galaxies["morphology"] == "merger", 2.0, 0.0)
    return {**disturbed, "merger": -5.0 + 7.0 * np.sqrt(_column(galaxies, "companion")) + merger}


QUESTIONS: dict[str, _Question] = {
    "smooth-or-featured": _Question(_smooth_or_featured, {"smooth": 1, "featured-or-disk": 0, "artifact": -2}, 20),
    "disk-edge-on": _Question(_disk_edge_on, {"yes": 0, "no": 1}, 30),
    "has-spiral-arms": _Question(_has_spiral_arms, {"yes": 0, "no": 1}, 20),
    "bar": _Question(_bar, {"strong": -1.5, "weak": 0, "no": 1}, 15),
    "bulge-size": _Question(_bulge_size, {"dominant": -1, "large": 0, "moderate": 0, "small": 0, "none": -1}, 12),
    "how-rounded": _Question(_how_rounded, {"round": 0, "in-between": 0, "cigar-shaped": -1}, 25),
    "edge-on-bulge": _Question(_edge_on_bulge, {"boxy": -1.5, "none": 0, "rounded": 0}, 15),
    "spiral-winding": _Question(_spiral_winding, {"tight": 0, "medium": 0, "loose": 0}, 10),
    "spiral-arm-count": _Question(
        _spiral_arm_count, {"1": 0, "2": 1, "3": 0, "4": 0, "more-than-4": 0, "cant-tell": 1}, 12
    ),
    "merging": _Question(_merging, {"none": 1, "minor-disturbance": 0, "major-disturbance": 0, "merger": -1}, 20),
}
"""The questions that the simulated volunteers can answer, by name without a campaign's suffix."""


def _arms(galaxies: pd.DataFrame) -> FloatArray:
    """Visible strength of the spiral arms, 0 where there are none."""
    return np.where(galaxies["n_arms"] > 0, _column(galaxies, "arm_strength"), 0.0)


def _nearest(value: FloatArray, centres: Mapping[str, float], width: float) -> Scores:
    """Scores of ordered answers: highest where the value is nearest to the answer's centre."""
    return {answer: -0.5 * ((value - centre) / width) ** 2 for answer, centre in centres.items()}


def _column(galaxies: pd.DataFrame, name: str) -> FloatArray:
    return galaxies[name].to_numpy(np.float64)


def _dirichlet(concentrations: FloatArray, rng: np.random.Generator) -> FloatArray:
    """One draw per row; (galaxies, answers)."""
    gammas = rng.standard_gamma(concentrations)
    fractions: FloatArray = gammas / gammas.sum(axis=1, keepdims=True)
    return fractions


def _check_parameters(parameters: pd.DataFrame) -> None:
    if absent := [name for name in (*_NUMERIC, "morphology", "artifact") if name not in parameters]:
        raise ValueError(f"the parameter table lacks the columns {', '.join(absent)}.")
    for name in _NUMERIC:
        if not np.isfinite(_column(parameters, name)).all():
            raise ValueError(f"column '{name}' of the parameter table holds values that are not finite.")


def _roles(tree: Tree) -> dict[str, str]:
    """Question -> its name without the campaign's suffix; refuses a tree that the volunteers cannot answer."""
    found = {role: [q for q in tree if q == role or q.startswith(f"{role}-")] for role in QUESTIONS}
    if absent := [role for role, questions in found.items() if not questions]:
        raise UserError(f"decision tree: no question named {_listed(absent)}. {_FIX}")
    if doubled := [q for questions in found.values() if len(questions) > 1 for q in questions]:
        raise UserError(f"decision tree: holds more than one campaign ({_listed(doubled)}). {_FIX}")
    roles = {questions[0]: role for role, questions in found.items()}
    if unknown := [question for question in tree if question not in roles]:
        raise UserError(f"decision tree: simulated volunteers cannot answer {_listed(unknown)}. {_FIX}")
    for question, role in roles.items():
        _check_answers(question, tree[question]["answers"], role)
    return roles


_FIX = (
    "The simulated survey asks the questions of Galaxy Zoo DECaLS: choose schema=decals_dr5 or schema=desi, or train "
    "on a catalog of your own with data=catalog."
)


def _check_answers(question: str, answers: Sequence[str], role: str) -> None:
    known = QUESTIONS[role].unclear
    if absent := [answer for answer in known if answer not in answers]:
        raise UserError(f"decision tree: question '{question}' lacks the answers {_listed(absent)}. {_FIX}")
    if unknown := [answer for answer in answers if answer not in known]:
        raise UserError(f"decision tree: question '{question}' has the answers {_listed(unknown)}. {_FIX}")


def _listed(names: Sequence[object]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _columns(tree: Tree, question: str) -> list[str]:
    return [f"{question}_{answer}" for answer in tree[question]["answers"]]


def _parents(tree: Tree, question: str, roles: Mapping[str, str]) -> list[str]:
    """Label columns whose votes lead to a question; none where all volunteers are asked."""
    if roles[question] == "merging":
        root = next(name for name, role in roles.items() if role == "smooth-or-featured")
        return [f"{root}_smooth", f"{root}_featured-or-disk"]
    after = tree[question].get("asked_after") or []
    return [after] if isinstance(after, str) else list(after)


def _parents_first(tree: Tree, roles: Mapping[str, str]) -> Iterator[str]:
    """Questions in an order in which each comes after those that lead to it."""
    waiting = list(tree)
    known: set[str] = set()
    while waiting:
        ready = [q for q in waiting if known.issuperset(_parents(tree, q, roles))]
        if not ready:
            raise UserError(
                f"decision tree: {_listed(waiting)} can never be asked; 'asked_after' names answers that do not exist "
                "or that lead back to the question itself. Name answer columns as QUESTION_ANSWER."
            )
        yield from ready
        known.update(column for question in ready for column in _columns(tree, question))
        waiting = [question for question in waiting if question not in ready]
