"""All jobs of a sweep of searches side by side: a table, and a page that each job that ends brings up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from rarezoo.provenance import sweep_of, written_beside
from rarezoo.report.html import FOLDER, page_environment, script_hash
from rarezoo.report.sweep import (
    JOB,
    SEED,
    Sweep,
    independent_options,
    label,
    read_sweep,
    sort_values,
    sweep_lock,
    write_sweep_tables,
)

REPORT_NAME = "report.html"
# Parts of names: what a search is judged by comes first, what it cost last; others stand between, by name.
_FIRST = ("n_classes", "share_in_classes", "noise", "dbcv", "stability", "grade", "control", "recovery.", "median")
_LAST = ("neighbour_recall", "n_selected", "n_galaxies", "seconds", "stages_")
# Of the stages one by one, the parquet file tells.
_HIDDEN = "stages."
_MOST_TICKS = 6
# Of a figure, in the units of its drawing.
_WIDTH, _HEIGHT = 260.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 252.0, 8.0, 124.0


@dataclass(frozen=True)
class Plot:
    """A small figure: one number of the jobs against one option, whose values are evenly spaced.

    Attributes
    ----------
    points : x, y in the units of the drawing, number of the job, its value as text
    means : x, y of the mean at each value of the option that has one, as an SVG list of points
    ticks : x and text of values of the option
    lowest, highest : of the number, as text
    """

    option: str
    number: str
    points: list[tuple[float, float, int, str]]
    means: str
    ticks: list[tuple[float, str]]
    lowest: str
    highest: str


def note_in_search_sweep(folder: Path) -> dict[str, Path]:
    """Bring the files of the sweep up to date that a search's folder belongs to; nothing for a search on its own."""
    sweep = sweep_of(folder)
    return write_search_sweep(sweep) if sweep else {}


def write_search_sweep(folder: Path) -> dict[str, Path]:
    """Write sweep.parquet, sweep.csv and sweep.html of the searches below a folder.

    Every job calls this at its end, whatever launched it: a lock lets one write at a time, and the last of them sees
    all. Where no job is complete nothing is written.

    Parameters
    ----------
    folder : of the sweep, with a folder for each job

    Returns
    -------
    what -> path

    Raises
    ------
    UserError
        if the files cannot be written
    """
    with sweep_lock(folder):
        sweep = read_sweep(folder)
        if sweep.table.empty:
            return {}
        paths = write_sweep_tables(folder, sweep) | {"sweep.html": folder / "sweep.html"}
        with written_beside(paths["sweep.html"]) as temporary:
            temporary.write_text(render_search_sweep(folder, sweep), encoding="utf-8")
    return paths


def render_search_sweep(folder: Path, sweep: Sweep) -> str:
    """HTML text of the page that compares the searches; all that comes from users is escaped.

    Parameters
    ----------
    folder : of the sweep, in which the jobs' reports are looked for
    sweep : at least one job
    """
    script = (FOLDER / "sweep_page.js").read_text(encoding="utf-8")
    options, numbers = options_shown(sweep), numbers_shown(sweep)
    return (
        page_environment()
        .get_template("sweep_page.html.jinja")
        .render(
            title=f"{folder.parent.name}: {len(sweep.table)} searches compared",
            style=(FOLDER / "page.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=script_hash(script),
            n_jobs=len(sweep.table),
            left_out=sweep.left_out,
            options=options,
            columns=[*options, *numbers],
            rows=_rows(folder, sweep.table, options, numbers),
            plots=quality_plots(sweep.table, options, numbers),
        )
    )


def options_shown(sweep: Sweep) -> list[str]:
    """Options in which the jobs differ, without those that merely follow another; the seed last."""
    return [*independent_options(sweep), *([SEED] if SEED in sweep.options else [])]


def numbers_shown(sweep: Sweep) -> list[str]:
    """Numbers of the jobs' summaries, those by which a search is judged first."""

    def rank(name: str) -> tuple[int, str]:
        for position, part in enumerate(_FIRST):
            if part in name:
                return position, name
        for position, part in enumerate(_LAST):
            if part in name:
                return len(_FIRST) + 1 + position, name
        return len(_FIRST), name

    table = sweep.table
    given = {JOB, *sweep.options}
    numeric = [str(name) for name in table if is_numeric_dtype(table[name]) and not is_bool_dtype(table[name])]
    return sorted((name for name in numeric if name not in given and not name.startswith(_HIDDEN)), key=rank)


def quality_plots(table: pd.DataFrame, options: Sequence[str], numbers: Sequence[str]) -> list[Plot]:
    """Each number that differs between jobs against each option."""
    found = {name: _finite(table[name]) for name in numbers}
    varied = [name for name, values in found.items() if values.min() < values.max()]
    return [quality_plot(table, option, number) for number in varied for option in options]


def quality_plot(table: pd.DataFrame, option: str, number: str) -> Plot:
    """One number against one option; jobs without the number are left out.

    Parameters
    ----------
    table : one row a job
    option, number : columns; the number has at least two values
    """
    values = _finite(table[number]).dropna()
    texts = [label(level) for level in sort_values(table.loc[values.index, option].unique())]
    x = np.linspace(_LEFT, _RIGHT, len(texts) + 2)[1:-1]
    at = pd.Series([x[texts.index(label(level))] for level in table.loc[values.index, option]], values.index)
    lowest, highest = float(values.min()), float(values.max())
    y = _BOTTOM - (values - lowest) / (highest - lowest) * (_BOTTOM - _TOP)
    shown = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _MOST_TICKS)).round().astype(int))
    return Plot(
        option=option,
        number=number,
        points=[(round(float(at[i]), 1), round(float(y[i]), 1), int(i) + 1, text_of(values[i])) for i in values.index],
        means=" ".join(f"{place:.1f},{mean:.1f}" for place, mean in y.groupby(at).mean().items()),
        ticks=[(round(float(x[position]), 1), texts[position]) for position in shown],
        lowest=text_of(lowest),
        highest=text_of(highest),
    )


def text_of(value: float | None) -> str:
    """A number as the page shows it: whole ones in full, others with four digits, nothing for a missing one."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _finite(column: pd.Series) -> pd.Series:
    numbers = column.astype("Float64").to_numpy(float, na_value=np.nan)
    return pd.Series(np.where(np.isfinite(numbers), numbers, np.nan), column.index)


def _rows(folder: Path, table: pd.DataFrame, options: Sequence[str], numbers: Sequence[str]) -> list[dict[str, Any]]:
    """One row a job: its name, the address of its report where it has one, and its cells, see `_cell`."""
    rows = []
    for number, record in enumerate(table.to_dict("records"), start=1):
        job = str(record[JOB])
        # The leading dot keeps a name with a colon from being read as an address elsewhere.
        address = f"./{quote(job)}/{REPORT_NAME}" if (folder / job / REPORT_NAME).is_file() else None
        # An option that is null is set to that; a number that is missing was not measured.
        cells = [_cell(record[name], label(record[name])) for name in options]
        cells += [_cell(record[name], text_of(record[name])) for name in numbers]
        rows.append({"number": number, "job": job, "address": address, "cells": cells})
    return rows


def _cell(value: Any, text: str) -> dict[str, Any]:
    """What is shown, and the number that the cell is sorted by where it is one."""
    plain = isinstance(value, int | float | np.number) and not isinstance(value, bool) and np.isfinite(value)
    return {"text": text, "number": float(value) if plain else None}
