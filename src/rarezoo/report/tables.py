"""The classes and the galaxies as files that other programs read: parquet, CSV, FITS and VOTable."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from rarezoo.provenance import canonical_json, written_beside
from rarezoo.report.table_formats import MOST_PADDING, Column, write_fits, write_votable

log = logging.getLogger(__name__)


class About(NamedTuple):
    """What a column holds, with its unit and its UCD (IVOA, Unified Content Descriptor 1+)."""

    description: str
    ucd: str = ""
    unit: str = ""


_CARRIED = About("As in the catalog")
_GALAXIES = {
    "id_str": About("Galaxy", "meta.id;meta.main"),
    "ra": About("Right ascension", "pos.eq.ra;meta.main", "deg"),
    "dec": About("Declination", "pos.eq.dec;meta.main", "deg"),
    "file_loc": About("Image", "meta.ref.url"),
    "cluster": About("Class, -1 for none", "meta.code.class"),
    "found_cluster": About("Class as the search found it, before decisions on it; -1 for none", "meta.code.class"),
    "probability": About("How firmly the galaxy belongs to its class, 0 for none", "stat.probability"),
    "outlier_score": About("GLOSH outlier score, 0 to 1", "stat.value"),
    "x": About("First coordinate of the 2-d layout"),
    "y": About("Second coordinate of the 2-d layout"),
}
_CLASSES = {
    "cluster": About("Class", "meta.id;meta.main"),
    "name": About("Name given by a person", "meta.title"),
    "note": About("Note by a person", "meta.note"),
    "found_clusters": About("Classes as the search found them that this one was put together from", "meta.code.class"),
    "group": About("Group of classes that are alike", "meta.code.class"),
    "size": About("Galaxies in the class", "meta.number"),
    "share": About("Galaxies in the class, as a share of those searched", "stat.probability"),
    "persistence": About("Persistence in HDBSCAN's condensed tree, 0 to 1", "stat.value"),
    "birth_lambda": About("Lambda (1 / distance) at which the class parts from others"),
    "grade": About("How far the class can be believed, A (most) to D", "meta.code.qual"),
    "stability_seeds": About("Mean overlap (Jaccard) with the nearest class of layouts of other seeds", "stat.mean"),
    "stability_samples": About("Mean overlap (Jaccard) with the nearest class of random samples", "stat.mean"),
    "stability_lowest": About("Lowest overlap (Jaccard) of all repeats", "stat.min"),
    "stability_repeats": About("Repeats of the search", "meta.number"),
    "contrast": About("How much denser it is than where it parts from its surroundings, 0 to 1"),
    "validity": About("DBCV, gap to other classes against density within, -1 to 1"),
    "control_exceeded": About(
        "(1 + classes of the control searches of at least its contrast) / (1 + all of them)", "stat.probability"
    ),
    "mean_probability": About("Mean of its galaxies' probability", "stat.probability;stat.mean"),
    "mean_outlier_score": About("Mean of its galaxies' GLOSH outlier score", "stat.mean"),
    "max_outlier_score": About("Largest of its galaxies' GLOSH outlier scores", "stat.max"),
    "cohesion": About("Share of its galaxies' 10 nearest neighbours that are of the class too"),
    "cohesion_random": About("Cohesion expected of random sets of its size"),
    "cohesion_z": About("Cohesion above that, in standard deviations of random sets of its size"),
    "medoid_id": About("Galaxy nearest to the mean of the class", "meta.id.assoc"),
    "medoid_row": About("Its row among the galaxies, from 0", "meta.record"),
    "medoid_ra": About("Right ascension of that galaxy", "pos.eq.ra;meta.main", "deg"),
    "medoid_dec": About("Declination of that galaxy", "pos.eq.dec;meta.main", "deg"),
    "nearest": About("Classes of the nearest mean representations, the nearest first"),
    "nearest_distance": About("Distance to the first of them"),
    "distinguishing": About("Answers whose expected vote fractions set the class apart"),
    "answers": About("The same with means and effect sizes"),
    "unseen": About("What stands out of it in columns of the catalog that no training saw"),
    "node": About("Node in the condensed tree", "meta.id"),
    "parent": About("Node above it", "meta.id.parent"),
}


def write_tables(
    folder: Path, classes: pd.DataFrame, galaxies: pd.DataFrame, made_from: Mapping[str, Any]
) -> dict[str, Path]:
    """Write galaxies and classes, each as .parquet, .csv, .fits and .vot (VOTable, BINARY2), all of them or none.

    Parquet keeps lists as lists; elsewhere they are JSON text. Missing numbers are null in parquet and VOTable, empty
    in CSV, and NaN or TNULL in FITS, which has no missing text: there it is empty. Truth values are 1 and 0 in FITS
    where some are missing, and its text is ASCII: other characters are written as Python escapes them.

    In FITS and VOTable all fields of a column are as wide as its longest text. A column that would so come to more than
    a gigabyte of padding is left out of both, and named in the log and, as `left_out`, in HISTORY and INFO.

    Parameters
    ----------
    folder : for the files
    classes : as from `class_table`, with any further columns
    galaxies : as from `galaxy_table`
    made_from : settings, versions, commit, ...; in parquet it is JSON under the key rarezoo, in FITS the header's
        HISTORY, in VOTable INFO elements. CSV has no place for it.

    Returns
    -------
    file name -> path

    Raises
    ------
    UserError
        if a file cannot be written
    """
    paths: dict[str, Path] = {}
    with ExitStack() as together:
        for name, frame, about in (("galaxies", galaxies, _GALAXIES), ("classes", classes, _CLASSES)):
            table = _described(pa.Table.from_pandas(frame, preserve_index=False), about)
            content = _Content.of(name, table, made_from)
            for suffix, write in _WRITERS.items():
                path = folder / f"{name}{suffix}"
                # A file takes its name when the block is left, which is after all are written.
                temporary = together.enter_context(written_beside(path))
                write(temporary, content)
                paths[path.name] = path
    return paths


@dataclass(frozen=True)
class _Content:
    """A table with its name; `flat` is the same without lists, `columns` those that fields of one width can hold."""

    name: str
    table: pa.Table
    flat: pa.Table
    columns: list[Column]
    made_from: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, table: pa.Table, made_from: Mapping[str, Any]) -> _Content:
        flat = _without_lists(table)
        columns = [_column(field, flat[field.name].combine_chunks()) for field in flat.schema]
        too_wide = [column.name for column in columns if column.padding() > MOST_PADDING]
        for column in too_wide:
            log.warning(
                f"{name}: column '{column}' is left out of FITS and VOTable, whose fields would all be as wide as its "
                f"longest text, with more than {MOST_PADDING / 1e9:g} GB of padding. Parquet and CSV have it."
            )
        return cls(name, table, flat, [column for column in columns if column.name not in too_wide], made_from)

    def noted(self) -> dict[str, Any]:
        """What the table was made from, and which of its columns the file lacks."""
        left_out = sorted(set(self.flat.column_names) - {column.name for column in self.columns})
        return {**self.made_from, **({"left_out": ", ".join(left_out)} if left_out else {})}


def _write_parquet(path: Path, content: _Content) -> None:
    metadata = (content.table.schema.metadata or {}) | {b"rarezoo": canonical_json(content.made_from).encode()}
    parquet.write_table(content.table.replace_schema_metadata(metadata), path)


_WRITERS: dict[str, Callable[[Path, _Content], None]] = {
    ".parquet": _write_parquet,
    ".csv": lambda path, content: csv.write_csv(content.flat, path),
    ".fits": lambda path, content: write_fits(path, content.name, content.columns, content.noted()),
    ".vot": lambda path, content: write_votable(path, content.name, content.columns, content.noted()),
}


def _described(table: pa.Table, about: Mapping[str, About]) -> pa.Table:
    fields = [field.with_metadata(about.get(field.name, _CARRIED)._asdict()) for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def _without_lists(table: pa.Table) -> pa.Table:
    """Columns of numbers, truth values and text alone."""
    arrays = [_simple(column) for column in table.columns]
    fields = [
        pa.field(field.name, array.type, metadata=field.metadata)
        for field, array in zip(table.schema, arrays, strict=True)
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _simple(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _simple(values.cast(kind.value_type))
    if pa.types.is_nested(kind):
        texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values.to_pylist()]
        return pa.chunked_array([texts], type=pa.large_string())
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return values
    return values.cast(pa.float64() if pa.types.is_decimal(kind) else pa.large_string())


def _column(field: pa.Field, values: pa.Array) -> Column:
    about = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
    missing: NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    kind = values.type
    if pa.types.is_floating(kind):
        found = values.to_numpy(zero_copy_only=False)
        return Column(field.name, found.astype(np.promote_types(found.dtype, np.float32)), missing, **about)
    if pa.types.is_integer(kind) and kind == pa.uint64() and (pc.max(values).as_py() or 0) >= 2**63:
        # No other format has whole numbers as large.
        values, kind = values.cast(pa.large_string()), pa.large_string()
    if pa.types.is_integer(kind):
        # Of 16, 32 or 64 bits with a sign, which all formats have.
        exact = np.promote_types(kind.to_pandas_dtype(), np.int16) if kind != pa.uint64() else np.dtype(np.int64)
        return Column(field.name, values.fill_null(0).to_numpy(zero_copy_only=False).astype(exact), missing, **about)
    filler = False if pa.types.is_boolean(kind) else ""
    return Column(field.name, values.fill_null(filler).to_numpy(zero_copy_only=False), missing, **about)
