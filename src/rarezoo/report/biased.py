"""Which objective does best on biased data: the table of a sweep over objectives, data sets and seeds.

The layout is that of Table 3 in Bangaru et al. (2022): one row per objective, one column per data set, mean and
standard deviation over seeds of the test accuracy in per cent, and the mean over data sets. The same for the aligned
and for the conflicting test images, which the paper does not separate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from filelock import FileLock

from rarezoo.cli import print_table
from rarezoo.provenance import written_beside
from rarezoo.report.sweep import Sweep, label, read_sweep

OBJECTIVES = {
    "sce": "softmax cross-entropy",
    "bce": "binary cross-entropy",
    "nll": "negative log-likelihood",
    "l1": "absolute error",
    "l2": "squared error",
    "sos": "rescaled squares",
}
"""In the order of the paper: three probabilistic, three margin-based."""
DATA_SETS = {"digits": "digits", "cmnist": "C-MNIST", "cifar10c": "C-CIFAR", "bffhq": "B-FFHQ"}
TEST_IMAGES = {"all": "test/accuracy", "aligned": "test/accuracy_aligned", "conflicting": "test/accuracy_conflicting"}
MEAN = "mean"
_KEYS = ["objective", "bias"]


def objectives_table(sweep: Sweep) -> pd.DataFrame:
    """Mean and standard deviation over seeds of the test accuracies, in per cent.

    Parameters
    ----------
    sweep : of runs of train.py with task=biased; others are left out

    Returns
    -------
    One row per test images ("all", "aligned", "conflicting"), objective and data set (`bias`), and per value of what
    else was swept: n_seeds, mean, std (of the sample; missing for one seed). Rows with the data set "mean" have the
    mean over all data sets of the table; it is missing for an objective that does not have all of them. Empty where
    there are no such runs.
    """
    runs = sweep.table
    if not {*_KEYS, *TEST_IMAGES.values()} <= set(runs):
        return pd.DataFrame()
    runs = runs[runs["objective"].notna()]
    also = _what_else_was_swept(sweep, runs)
    rows = []
    for images, metric in TEST_IMAGES.items():
        groups = (100.0 * runs[metric].astype(float)).groupby([runs[name] for name in (*also, *_KEYS)], dropna=False)
        found = groups.agg(n_seeds="count", mean="mean", std="std").reset_index()
        rows.append(pd.concat([found, _means(found, also)]).assign(images=images))
    table = pd.concat(rows, ignore_index=True)
    order = {"images": list(TEST_IMAGES), "objective": list(OBJECTIVES), "bias": [*DATA_SETS, MEAN]}
    for name, values in order.items():
        table[name] = pd.Categorical(table[name], values, ordered=True)
    table = table.sort_values([*also, "images", "objective", "bias"], ignore_index=True)
    for name in order:
        table[name] = table[name].astype(str)
    return table[[*also, "images", *_KEYS, "n_seeds", "mean", "std"]]


def write_objectives(folder: Path) -> dict[str, Path]:
    """Write objectives.parquet and objectives.md of the runs in a sweep's folder, and print the accuracies.

    Every run may call this at its end: a lock lets one write at a time. Nothing is written where no run is complete.

    Returns
    -------
    what -> path
    """
    with FileLock(folder / ".objectives.lock"):
        table = objectives_table(read_sweep(folder))
        if table.empty:
            return {}
        paths = {"objectives": folder / "objectives.parquet", "objectives.md": folder / "objectives.md"}
        with written_beside(paths["objectives"]) as temporary:
            table.to_parquet(temporary, index=False)
        with written_beside(paths["objectives.md"]) as temporary:
            temporary.write_text(objectives_markdown(table), encoding="utf-8")
    for title, shown in _sections(table[table["images"] == "all"]):
        print_table(shown, title)
    return paths


def objectives_markdown(table: pd.DataFrame) -> str:
    """The table of `objectives_table` for people to read, the best mean of each column in bold."""
    parts = ["# Objectives on biased data", ""]
    for title, shown in _sections(table, bold=True):
        names = [str(name) for name in shown.columns]
        rows = ["| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)]
        parts += [f"## {title}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names), *rows, ""]
    return "\n".join(parts)


def _what_else_was_swept(sweep: Sweep, runs: pd.DataFrame) -> list[str]:
    """Options, other than the seed, in which runs of one objective and data set differ."""
    options = [option for option in sweep.options if option != "seed"]
    groups = runs.groupby(_KEYS)
    return [option for option in options if groups[option].nunique(dropna=False).max() > 1]


def _means(found: pd.DataFrame, also: list[str]) -> pd.DataFrame:
    n_data_sets = found["bias"].nunique()
    groups = found.groupby([*also, "objective"], dropna=False)
    means = groups.agg(n_seeds=("n_seeds", "min"), mean=("mean", "mean"), n_found=("mean", "count")).reset_index()
    means.loc[means["n_found"] < n_data_sets, "mean"] = float("nan")
    return means.drop(columns="n_found").assign(bias=MEAN, std=float("nan"))


def _sections(table: pd.DataFrame, bold: bool = False) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and one row per objective, for each kind of test images and each value of what else was swept."""
    also = list(table.columns[: table.columns.get_loc("images")])
    for values, rows in table.groupby([*also, "images"], dropna=False, sort=False):
        setting = "".join(f", {name}={label(value)}" for name, value in zip(also, values[:-1], strict=True))
        seeds = sorted({int(number) for number in rows["n_seeds"]})
        n_seeds = "1 seed" if seeds == [1] else f"{' to '.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))} seeds"
        title = f"Test accuracy in %, {values[-1]} images{setting} (mean ± standard deviation, {n_seeds})"
        data_sets = [name for name in DATA_SETS if name in set(rows["bias"])]
        if len(data_sets) > 1:
            data_sets.append(MEAN)
        best = rows.groupby("bias")["mean"].transform("max") == rows["mean"]
        cells = [
            _cell(mean, std, bold and strong) for mean, std, strong in zip(rows["mean"], rows["std"], best, strict=True)
        ]
        wide = rows.assign(cell=cells).pivot_table(index="objective", columns="bias", values="cell", aggfunc="first")
        wide = wide.reindex(index=[name for name in OBJECTIVES if name in wide.index], columns=data_sets)
        wide = wide.fillna("").rename(columns=DATA_SETS)
        wide.insert(0, "", [OBJECTIVES[name] for name in wide.index])
        yield title, wide.reset_index(names="objective")


def _cell(mean: float, std: float, bold: bool) -> str:
    if pd.isna(mean):
        return ""
    text = f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"
    return f"**{text}**" if bold else text
