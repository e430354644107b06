"""Scores of all surveys, seeds and methods as tables of text, which the page and the markdown file show alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rarezoo.clustering.scores import bootstrap_interval, ratio_interval, recovered_by_abundance

# Whose classes are shown one by one, where they took part; the second is Walmsley & Scaife 2023 with min_samples scaled
# to the sample.
SHOWN = ("recommended", "paper-scaled")
# The rarest planted classes have 0.02%, the others up to 0.5%.
ABUNDANCES = (0.0, 0.0005, 0.001, 0.002, 0.01, 1.0)

_RUN_FIGURES = {
    "found_f1_50": "found, F1 ≥ 0.5",
    "found_f1_80": "F1 ≥ 0.8",
    "mean_f1": "mean F1",
    "chance_mean_f1": "by chance",
    "clusters": "clusters",
    "false_per_true": "false per true",
    "discovered_50": "discovered in 50",
    "discovered_100": "in 100",
    "discovered_200": "in 200 montages",
    "share_in_clusters": "share in clusters",
    "seconds": "seconds",
}
# Over the seeds, one sum over another: else a seed for which nothing was found would not count.
_RATIOS = {"false_per_true": ("clusters_of_no_class", "found_f1_50")}
_KIND_FIGURES = {
    "kinds_n": "artifacts",
    "kinds_ami": "AMI",
    "kinds_chance_ami": "by chance",
    "kinds_chance_highest": "highest by chance",
    "kinds_ami_in_clusters": "AMI of those in clusters",
}


_DISCOVERED = "discovered at montage"


@dataclass(frozen=True)
class TextTable:
    """A table to be read: the first column names the row."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_markdown(self) -> str:
        """Title, note and table."""
        lines = [self.columns, ["---", *("---:" for _ in self.columns[1:])], *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}.** {self.note}\n\n{body}\n"


def survey_tables(scores: pd.DataFrame, order: Sequence[str]) -> list[TextTable]:
    """All tables about one survey.

    Parameters
    ----------
    scores : rows of that survey, as `gather` gives them
    order : methods, as `ranked_methods` gives them
    """
    runs, classes = scores[scores["row"] == "run"], scores[scores["row"] == "class"]
    shown = [method for method in SHOWN if method in order] or order[:1]
    tables = [
        method_table(runs, order),
        abundance_table(classes, order, "50"),
        abundance_table(classes, order, "80"),
        *(class_table(classes, method) for method in shown),
        representation_table(scores[scores["row"] == "representation"]),
        control_table(scores[scores["row"] == "control"], order),
        kind_table(runs, order),
    ]
    return [table for table in tables if table.rows]


def ranked_methods(runs: pd.DataFrame) -> list[str]:
    """Methods of a survey, the highest mean F1 first; those without classes last, by what they discover."""
    means = runs.groupby("method", sort=False)[["mean_f1", "discovered_100"]].mean()
    return [str(name) for name in means.sort_values(["mean_f1", "discovered_100"], ascending=False).index]


def method_table(runs: pd.DataFrame, order: Sequence[str]) -> TextTable:
    """One row a method: mean over the seeds and its interval."""
    planted = bootstrap_interval(runs["planted"]).mean
    note = (
        f"Of {planted:.3g} known classes. Found: a cluster has F1 ≥ 0.5 with the class. By chance: clusters of the "
        "same sizes, of galaxies drawn at random. False per true: clusters of which no known class makes half, over "
        "classes found. Discovered: at least half of one of the first montages is of the class. Seconds: as if no "
        "other method had run before, on a machine that may have done other things too."
    )
    by_method = {name: runs[runs["method"] == name] for name in order}
    rows = [
        [name, of_method["representation"].iloc[0], str(len(of_method)), *_intervals(of_method, _RUN_FIGURES)]
        for name, of_method in by_method.items()
    ]
    return TextTable("Methods", note, ["method", "searched", "seeds", *_RUN_FIGURES.values()], rows)


def abundance_table(classes: pd.DataFrame, order: Sequence[str], percent: str) -> TextTable:
    """One row a method that makes clusters: share of the classes found in each bin of abundance that has any.

    Parameters
    ----------
    classes : rows of one survey
    order : methods
    percent : 50 or 80, the F1 from which on a class counts as found
    """
    found = {name: by_abundance(classes[classes["method"] == name]) for name in order}
    found = {name: bins for name, bins in found.items() if bins["classes"].any()}
    taken = sorted({place for bins in found.values() for place in bins.index[bins["classes"] > 0]})
    shares = [f"share_f1_{percent}{end}" for end in ("", "_low", "_high")]
    rows = [
        [name, *(_with_interval(*share) for share in bins.loc[taken, shares].itertuples(index=False))]
        for name, bins in found.items()
    ]
    note = (
        f"Share of the known classes of each abundance (members / all galaxies) that are found, F1 ≥ 0.{percent[0]}. A "
        "simulated class is as rare in all surveys, so that part of this is how hard the classes of a bin are."
    )
    bins = [_bin_name(*ABUNDANCES[place : place + 2]) for place in taken]
    return TextTable(f"How rare, F1 ≥ 0.{percent[0]}", note, ["method", *bins], rows)


def by_abundance(classes: pd.DataFrame) -> pd.DataFrame:
    """`recovered_by_abundance` of one method over the seeds of a survey; rankings have no classes in any bin."""
    seeds = [table for _, table in classes[classes["f1"].notna()].groupby("seed")]
    return recovered_by_abundance(seeds, [int(table["galaxies"].iloc[0]) for table in seeds], ABUNDANCES)


def class_table(classes: pd.DataFrame, method: str) -> TextTable:
    """One row a known class, the best found first, as one method found it."""
    figures = {
        "members": "members",
        "selected": "selected",
        "f1": "F1",
        "purity": "purity",
        "completeness": "completeness",
    }
    figures |= {"chance_f1_highest": "highest F1 by chance"}
    of_method = classes[classes["method"] == method]
    means = of_method.groupby("class")["f1"].mean().sort_values(ascending=False, kind="stable")
    parts = {str(name): of_method[of_method["class"] == name] for name in means.index}
    rows = [[name, *_intervals(part, figures), _discovered(part)] for name, part in parts.items()]
    note = "Selected: those that the cuts leave; of the others none can be found."
    columns = ["class", *figures.values(), _DISCOVERED]
    return TextTable(f"Known classes, as {method} finds them", note, columns, rows)


def representation_table(ranked: pd.DataFrame) -> TextTable:
    """One row a representation, the best first: average precision of ranking from one example, mean over classes."""
    figures = {"average_precision": "average precision", "chance": "by chance"}
    means = ranked.groupby(["representation", "seed"], as_index=False)[list(figures)].mean()
    best_first = means.groupby("representation")["average_precision"].mean().sort_values(ascending=False).index
    rows = [[str(name), *_intervals(means[means["representation"] == name], figures)] for name in best_first]
    note = (
        "Given one member of a class, how early the others come when all galaxies are ranked by distance from it: mean "
        "over members and classes. No search and no threshold enters."
    )
    return TextTable("Representations", note, ["representation", *figures.values()], rows)


def control_table(controls: pd.DataFrame, order: Sequence[str]) -> TextTable:
    """One row a method: how well it finds what is no class."""
    figures = {"f1": "F1", "purity": "purity", "completeness": "completeness"}
    parts = {name: controls[controls["method"] == name] for name in order}
    rows = [[name, *_intervals(part, figures), _discovered(part)] for name, part in parts.items() if len(part)]
    note = (
        "Galaxies drawn at random from the survey that injected classes were taken from. A method that finds them as "
        "well as the classes tells surveys apart, not kinds of galaxies."
    )
    return TextTable("Control", note, ["method", *figures.values(), _DISCOVERED], rows)


def kind_table(runs: pd.DataFrame, order: Sequence[str]) -> TextTable:
    """One row a method: agreement of its clusters with the kinds of artifact."""
    known = runs[runs["kinds_ami"].notna()]
    taken = set(known["method"])
    rows = [[name, *_intervals(known[known["method"] == name], _KIND_FIGURES)] for name in order if name in taken]
    note = (
        "Volunteers were asked whether there is an artifact, not of which kind. Adjusted mutual information between "
        "clusters and kinds (0 is chance, 1 identity), over all galaxies with an artifact that pass the other cuts."
    )
    return TextTable("Kinds of artifact", note, ["method", *_KIND_FIGURES.values()], rows)


def _intervals(table: pd.DataFrame, figures: Iterable[str]) -> list[str]:
    intervals = [
        ratio_interval(*(table[part] for part in _RATIOS[name])) if name in _RATIOS else bootstrap_interval(table[name])
        for name in figures
    ]
    return [_with_interval(*interval[:3]) for interval in intervals]


def _discovered(classes: pd.DataFrame) -> str:
    """At which montage, mean over the seeds for which it was discovered at all, and how many these are."""
    at = classes["discovered_at"].dropna()
    if at.empty:
        return "–"
    return _number(at.mean()) + ("" if len(at) == len(classes) else f" in {len(at)} of {len(classes)} seeds")


def _with_interval(mean: float, low: float, high: float) -> str:
    if pd.isna(mean):
        return "–"
    texts = [_number(value) for value in (mean, low, high)]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]}–{texts[2]})"


def _number(value: float) -> str:
    if np.isinf(value):
        return "∞"
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:.0f}"
    # Adding zero takes the sign off what is rounded to it.
    return f"{value:.1f}" if abs(value) >= 10 else f"{round(value, 2) + 0.0:.2f}"


def _bin_name(low: float, high: float) -> str:
    if not low:
        return f"below {high:.2%}"
    return f"from {low:.2%}" if high >= 1 else f"{low:.2%} to {high:.2%}"
