"""Which objective does best on biased data: table and figure of a sweep over objectives, data sets and seeds.

    python -m rarezoo.report.biased outputs/biased/train-sweep

The layout is that of Table 3 in Bangaru et al. (2022): one row per objective, one column per data set, mean and
standard deviation over seeds of the test accuracy in per cent, and the mean over data sets. The same for the aligned
and for the conflicting test images, which the paper does not separate. The figure is that of `layer_maps`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from rarezoo.cli import UserError, closing_lines, print_table, run_script
from rarezoo.data.biased.kept import find_kept
from rarezoo.embeddings.embed import choose_device
from rarezoo.models.classifier import load_classifier
from rarezoo.provenance import RECORD_NAME, written_beside
from rarezoo.report.layer_maps import NO_SEED, LayerMaps, reference_runs, write_layer_maps
from rarezoo.report.sweep import JOB, Sweep, label, read_sweep
from rarezoo.similarity.classifiers import LEAST_BATCH_SIZE, compare_classifiers

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


def write_figures(folder: Path, root: Path, batch_size: int, device: torch.device) -> dict[str, Path]:
    """Write cka-DATA_SET.npz and .png for each data set of a sweep, and for each value of what else was swept.

    Parameters
    ----------
    folder : of the sweep
    root : folder that bias.root named; the images are found there by their content
    batch_size : most test images in a batch, at least 8

    Returns
    -------
    what -> path

    Raises
    ------
    UserError
        if the images, or the classifier of a complete run, are not there
    """
    sweep = read_sweep(folder)
    runs = sweep.table[sweep.table["objective"].notna()]
    also = _what_else_was_swept(sweep, runs)
    paths: dict[str, Path] = {}
    for values, rows in runs.groupby([*also, "bias"], dropna=False):
        data_set = str(values[-1])
        chosen = [f"{name}={label(value)}" for name, value in zip(also, values[:-1], strict=True)]
        found = _layer_maps(folder, rows, root, batch_size, device, ", ".join([DATA_SETS[data_set], *chosen]))
        stem = re.sub(r"[^\w.=-]+", "_", "-".join(["cka", data_set, *chosen]))
        paths |= write_layer_maps(folder / stem, found, OBJECTIVES)
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


def _layer_maps(
    folder: Path, runs: pd.DataFrame, root: Path, batch_size: int, device: torch.device, title: str
) -> LayerMaps:
    jobs = [str(job) for job in runs[JOB]]
    objectives = [str(name) for name in runs["objective"]]
    keys: list[dict[str, Any]] = [json.loads((folder / job / RECORD_NAME).read_text())["key"] for job in jobs]
    seeds = [int(key["settings"]["seed"]) for key in keys]
    # One value for all of them: runs on other images are another value of what else was swept.
    images = find_kept(root, keys[0]["inputs"]["bias"]).splits["test"].images
    references = reference_runs(objectives, seeds)
    models = {job: load_classifier(folder / job / "best.ckpt") for job in jobs}
    compared = [(jobs[other], job) for job, other in zip(jobs, references, strict=True) if other is not None]
    layers, cka = compare_classifiers(models, [*((job, job) for job in jobs), *compared], images, batch_size, device)
    with_reference = np.full((len(jobs), *cka.shape[1:]), np.nan)
    with_reference[[other is not None for other in references]] = cka[len(jobs) :]
    return LayerMaps(
        title=title,
        layers=tuple(layers),
        objectives=tuple(objectives),
        seeds=tuple(seeds),
        itself=cka[: len(jobs)],
        reference_seeds=tuple(NO_SEED if other is None else seeds[other] for other in references),
        with_reference=with_reference,
        n_images=len(images),
    )


def main() -> None:
    """Write table and figures of one sweep."""
    given = _parser().parse_args()
    paths = write_objectives(given.folder) if given.folder.is_dir() else {}
    if not paths:
        raise UserError(
            f"{given.folder}: has no complete run of train.py with task=biased. Give the folder of a sweep, such as "
            "outputs/biased/train-sweep."
        )
    device = choose_device("auto")
    paths |= write_figures(given.folder, given.root, given.batch_size, device)
    closing_lines(paths, {"device": device}, None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rarezoo.report.biased",
        description="Table 3 and Figure 1 of a sweep of train.py with task=biased: accuracies, and CKA of all layers.",
    )
    parser.add_argument("folder", type=Path, help="of the sweep; what is written goes there")
    parser.add_argument(
        "--root", type=Path, default=Path("outputs/biased"), help="folder of bias.root (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=_batch_size, default=128, help="test images in a batch (default: %(default)s)"
    )
    return parser


def _batch_size(text: str) -> int:
    if not text.isdecimal() or int(text) < LEAST_BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from {LEAST_BATCH_SIZE}")
    return int(text)


if __name__ == "__main__":
    run_script(main, Path())
