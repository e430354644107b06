"""All jobs of a sweep in one table and one figure, brought up to date by each job that ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rarezoo.cli import UserError, did_you_mean
from rarezoo.provenance import RECORD_NAME, flat, sweep_of, written_beside
from rarezoo.report.bottleneck import DIM, write_bottlenecks
from rarezoo.report.figures import INK, PALETTE, QUIET, blank_figure, plain_axes, to_png

METRIC = "test/loss"
# Hydra puts this file beside the folders of a sweep's jobs.
JOB, SEED = "job", "seed"
_MOST_LINES = 8
_STEEP_LABELS = 8
_HASH_DIGITS = 12


@dataclass(frozen=True)
class Sweep:
    """The complete jobs of a sweep.

    Attributes
    ----------
    table : one row per job: its folder (`job`), the options that differ between jobs, and the figures of its summary
    options : names of the columns of options, dotted
    left_out : folders of jobs that are not complete, or whose record is damaged
    """

    table: pd.DataFrame
    options: list[str]
    left_out: list[str]


def note_in_sweep(folder: Path) -> dict[str, Path]:
    """Bring the tables of the sweep up to date that the job in a folder belongs to; nothing for a run on its own."""
    sweep = sweep_of(folder)
    return write_sweep(sweep) if sweep else {}


def write_sweep(folder: Path, metric: str = METRIC) -> dict[str, Path]:
    """Write sweep.parquet, sweep.csv and sweep.png of the jobs below a folder, and compare bottlenecks if they differ.

    Every job may call this at its end, whatever launched it: a lock lets one write at a time, and the last of them sees
    all. Where no job is complete nothing is written, and where none has the metric there is no figure.

    Parameters
    ----------
    folder : of the sweep, with a folder for each job
    metric : name in the jobs' summaries, lower is better

    Returns
    -------
    what -> path
    """
    with sweep_lock(folder):
        sweep = read_sweep(folder)
        if sweep.table.empty:
            return {}
        paths = write_sweep_tables(folder, sweep)
        if metric in sweep.table:
            paths["sweep.png"] = folder / "sweep.png"
            with written_beside(paths["sweep.png"]) as temporary:
                temporary.write_bytes(to_png(sweep_figure(sweep, metric)))
        if DIM in sweep.options and metric in sweep.table:
            paired_by = [name for name in (SEED, *independent_options(sweep)) if name in sweep.options and name != DIM]
            paths |= write_bottlenecks(folder, sweep.table, metric, paired_by)
    return paths


def sweep_lock(folder: Path) -> FileLock:
    """Lock that a job holds while it brings the files of its sweep up to date."""
    return FileLock(folder / ".sweep.lock")


def write_sweep_tables(folder: Path, sweep: Sweep) -> dict[str, Path]:
    """Write sweep.parquet and sweep.csv; what -> path."""
    paths = {"sweep": folder / "sweep.parquet", "sweep.csv": folder / "sweep.csv"}
    with written_beside(paths["sweep"]) as temporary:
        sweep.table.to_parquet(temporary, index=False)
    with written_beside(paths["sweep.csv"]) as temporary:
        sweep.table.to_csv(temporary, index=False)
    return paths


def read_sweep(folder: Path) -> Sweep:
    """Read the records of all jobs directly below a folder.

    Options that are null are missing values; lists are JSON text. The same of an option that only some jobs have.
    Where jobs were made from different files, the first digits of the files' hashes are options too, as `inputs.NAME`.
    """
    settings: list[dict[str, Any]] = []
    summaries: list[dict[str, Any]] = []
    jobs: list[str] = []
    left_out: list[str] = []
    for path in sorted(folder.glob(f"*/{RECORD_NAME}")):
        record = _read_record(path)
        if record is None:
            left_out.append(path.parent.name)
            continue
        jobs.append(path.parent.name)
        settings.append(_plain(record["key"]["settings"]) | _input_digits(record["key"]))
        summaries.append({name: value for name, value in _plain(record["summary"]).items() if name != JOB})
    given = pd.DataFrame(settings)
    options = [str(name) for name in given if len(set(given[name].map(repr))) > 1]
    table = pd.concat([pd.DataFrame({JOB: jobs}), given[options]], axis=1)
    found = pd.DataFrame(summaries)
    table = pd.concat([table, found[found.columns.difference(table.columns, sort=False)]], axis=1)
    return Sweep(table.apply(_plain_column), options, left_out)


def sweep_figure(sweep: Sweep, metric: str = METRIC) -> Figure:
    """The metric against the option with most values, one line for each combination of the others.

    Points are means over seeds, with their standard error.

    Raises
    ------
    UserError
        if no job has that metric
    """
    table = sweep.table
    if metric not in table:
        raise UserError(f"no job of the sweep has '{metric}'. {did_you_mean(metric, table.columns)}")
    table = table[table[metric].notna()]
    options = independent_options(sweep)
    along = options[0] if options else JOB
    others = options[1:]
    levels = sort_values(table[along].unique())
    figure = blank_figure(max(7.0, 1.2 + 0.45 * len(levels)), 4.8)
    axes = plain_axes(figure.add_subplot())
    groups = list(table.groupby(others, dropna=False, sort=True)) if others else [((), table)]
    for index, (values, rows) in enumerate(groups[:_MOST_LINES]):
        name = ", ".join(f"{_short(option)}={label(value)}" for option, value in zip(others, values, strict=True))
        offset = 0.06 * (index - (min(len(groups), _MOST_LINES) - 1) / 2)
        _draw_line(axes, rows, along, levels, metric, offset, name, index)
    axes.set_xticks(range(len(levels)), [label(level) for level in levels], parse_math=False)
    if len(levels) > _STEEP_LABELS or along == JOB:
        axes.tick_params(axis="x", labelrotation=60)
    axes.set_xlabel(along, parse_math=False)
    axes.set_ylabel(metric, parse_math=False)
    if others:
        axes.legend(frameon=False, fontsize=8, loc="best")
    _say_what_is_shown(axes, sweep, len(table), len(groups))
    return figure


def independent_options(sweep: Sweep) -> list[str]:
    """Options other than the seed, the one with most values first, without those that merely follow another.

    A group such as backbone=resnet18 changes several options at once: of those that tell the same jobs apart, the one
    that the jobs' folders are named after is kept, or else the `name`.
    """
    table, named = sweep.table, " ".join(sweep.table[JOB])

    def preference(option: str) -> tuple[bool, bool, str]:
        return (f"{option}=" not in named, not option.endswith(".name"), option)

    kept: dict[tuple[int, ...], str] = {}
    for option in sorted((option for option in sweep.options if option != SEED), key=preference):
        codes = tuple(pd.factorize(table[option], use_na_sentinel=False)[0].tolist())
        if len(set(codes)) > 1:
            kept.setdefault(codes, option)
    return sorted(kept.values(), key=lambda option: (-table[option].nunique(dropna=False), preference(option)))


def sort_values(values: Sequence[Any] | np.ndarray) -> list[Any]:
    """Numbers in ascending order, then text, then none."""

    def rank(value: Any) -> tuple[int, float, str]:
        if pd.isna(value):
            return (2, 0.0, "")
        number = isinstance(value, int | float | np.number)
        return (0, float(value), "") if number else (1, 0.0, str(value))

    return sorted(values, key=rank)


def label(value: Any) -> str:
    """A value as a person writes it: null and missing are none, 512.0 is 512."""
    if pd.isna(value):
        return "none"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _draw_line(
    axes: Axes, rows: pd.DataFrame, along: str, levels: list[Any], metric: str, offset: float, name: str, index: int
) -> None:
    codes = np.array([[label(level) for level in levels].index(label(value)) for value in rows[along]])
    found = rows[metric].astype(float).groupby(codes).agg(["mean", "sem"])
    colour = PALETTE[(index + 4) % len(PALETTE)] if index < len(PALETTE) else INK
    axes.scatter(codes + offset, rows[metric].astype(float), s=9, color=colour, alpha=0.45, linewidths=0)
    axes.errorbar(
        found.index + offset, found["mean"], yerr=found["sem"].fillna(0), color=colour, marker="o", markersize=5,
        linewidth=1.2, capsize=3, label=name.replace("$", r"\$"),
    )  # fmt: skip


def _say_what_is_shown(axes: Axes, sweep: Sweep, n_jobs: int, n_lines: int) -> None:
    notes = [f"{n_jobs} jobs"]
    if sweep.left_out:
        notes.append(f"{len(sweep.left_out)} not complete")
    if SEED in sweep.options:
        notes.append("mean and standard error over seeds")
    if n_lines > _MOST_LINES:
        notes.append(f"the first {_MOST_LINES} of {n_lines} combinations")
    axes.set_title("Sweep", loc="left")
    axes.set_title("; ".join(notes), loc="right", fontsize=8, color=QUIET)


def _short(option: str) -> str:
    group, _, name = option.rpartition(".")
    return group.rpartition(".")[2] if name == "name" else name


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in flat(tree).items()}


def _input_digits(key: Mapping[str, Any]) -> dict[str, str]:
    inputs = key.get("inputs")
    found = inputs if isinstance(inputs, dict) else {}
    return {f"inputs.{name}": str(digest)[:_HASH_DIGITS] for name, digest in found.items()}


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        usable = record["complete"] and isinstance(record["key"]["settings"], dict)
        return record if usable and isinstance(record["summary"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain_column(column: pd.Series) -> pd.Series:
    # Whole numbers with gaps stay whole; what is of several kinds becomes text, as a parquet column has one kind.
    column = column.convert_dtypes()
    if column.dtype != object:
        return column
    text: pd.Series = column.map(str, na_action="ignore").astype("string")
    return text
