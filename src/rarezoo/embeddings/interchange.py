"""Format 1 from the files of other programs, some MB at a time whatever the size of the survey."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rarezoo.cli import UserError, did_you_mean
from rarezoo.data.catalog import Catalog, read_catalog
from rarezoo.embeddings.foreign import Foreign, ZoobotFile, features_in_order, open_foreign, tree_with
from rarezoo.embeddings.hdf5 import TEXT, SteadyFile, require_room, write_attributes, written_hdf5
from rarezoo.provenance import canonical_json, sha256_of_file
from rarezoo.votes import Schema

_ROWS_PER_CHUNK, _BYTES_PER_CHUNK = 4096, 2**22
_TEXTS_AT_ONCE = 2**16
# Predictions in another order than that of the galaxies are looked for in their whole file each time.
_VOTE_BYTES = 2**27


@dataclass(frozen=True)
class Predictions:
    """Concentrations of a Zoobot file, in the order of the galaxies and of a tree's answers.

    Attributes
    ----------
    file : (rows, columns, passes ...)
    rows : (N,) of the file
    schema : tree of A answers
    columns : (A,) of the file
    """

    file: ZoobotFile
    rows: NDArray[np.int64]
    schema: Schema
    columns: list[int]

    @property
    def n_passes(self) -> int:
        """Forward passes of a galaxy, of all models together."""
        return math.prod(self.file.shape[2:])

    def of(self, galaxies: slice) -> NDArray[np.float32]:
        """Concentrations (galaxies, passes, A).

        Raises
        ------
        UserError
            if one is not finite or not above 0
        """
        rows = self.rows[galaxies]
        found = self.file.take(rows).reshape(len(rows), len(self.file.columns), -1)
        values = np.ascontiguousarray(np.moveaxis(found[:, self.columns], 1, 2), np.float32)
        good = np.isfinite(values) & (values > 0)
        if not good.all():
            row, each, answer = np.argwhere(~good)[0]
            raise UserError(
                f"{self.file.path}: '{self.schema.label_cols[answer]}' of row {rows[row]}, id "
                f"{self.file.ids[rows[row]]}, is {values[row, each, answer]}. Concentrations are finite and above 0."
            )
        return values


def import_embeddings(
    source: Path,
    target: Path,
    predictions: Path | None = None,
    schema: Schema | None = None,
    catalog: Path | None = None,
) -> dict[str, Any]:
    """Write a file of format 1 from representations, predictions or both that another program made.

    Parameters
    ----------
    source : of representations, or of predictions alone; its galaxies are those of the target, in its order
    target : to be written
    predictions : Zoobot's file of predictions for each of the galaxies, in any order
    schema : tree that the predictions' answers belong to
    catalog : table with file_loc, relative to its folder, for any of the galaxies, and ra and dec, which are taken
        where the source has none

    Returns
    -------
    n_galaxies, dim, n_answers, n_passes and n_with_image

    Raises
    ------
    UserError
        naming file, column and row of ids that are empty, repeated or without predictions, of answers that are not
        those of the tree, and of values that are not finite or, of concentrations, not above 0
    """
    with ExitStack() as stack:
        galaxies = stack.enter_context(open_foreign(source))
        _check_ids(galaxies)
        voted: Foreign | None = galaxies if galaxies.kind == "predictions" else None
        if predictions is not None:
            if voted is not None:
                raise UserError(f"{source}: holds predictions, as {predictions} does. Give a file of features first.")
            voted = stack.enter_context(open_foreign(predictions))
        if voted is None and schema is not None:
            raise UserError(f"--schema: {source} holds no predictions that it could be of. Leave it out.")
        votes = None if voted is None else _match(voted, galaxies, schema)
        images = None if catalog is None else read_catalog(catalog, check_files=False)
        inputs = {"source": source, "predictions": predictions, "catalog": catalog}
        return _write(target, galaxies, votes, images, made_from(inputs))


def made_from(inputs: Mapping[str, Path | None]) -> dict[str, str]:
    """Name and SHA-256 of each file that there is, as attributes: NAME_file, NAME_sha256."""
    found: dict[str, str] = {}
    for name, path in inputs.items():
        if path is not None:
            found |= {f"{name}_file": path.name, f"{name}_sha256": sha256_of_file(path)}
    return found


def new_table(file: h5py.File, name: str, shape: tuple[int, ...], **options: Any) -> h5py.Dataset:
    """A float32 dataset of a size that is known, in chunks of whole rows."""
    if not all(shape):
        return file.create_dataset(name, shape, np.float32)
    n_rows = max(1, min(_ROWS_PER_CHUNK, shape[0], _BYTES_PER_CHUNK // (4 * math.prod(shape[1:]))))
    return file.create_dataset(name, shape, np.float32, chunks=(n_rows, *shape[1:]), **options)


def _check_ids(file: Foreign) -> None:
    ids = file.ids
    if not len(ids):
        raise UserError(f"{file.path}: holds no galaxies.")
    empty = np.flatnonzero(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(ids), ""), True).to_numpy(False))
    if len(empty):
        raise UserError(f"{file.path}: row {empty[0]} has no id ({len(empty)} rows have none). Every galaxy needs one.")
    codes = ids.dictionary_encode().indices.to_numpy()
    if codes.max() + 1 < len(codes):
        _, first = np.unique(codes, return_index=True)
        again = np.setdiff1d(np.arange(len(codes)), first)
        earlier = first[codes[again[0]]]
        raise UserError(
            f"{file.path}: the id '{ids[again[0]]}' of row {again[0]} is that of row {earlier} too "
            f"({len(again)} ids are repeated). Every galaxy needs an id of its own: leave one of the rows out."
        )


def _match(voted: Foreign, galaxies: Foreign, schema: Schema | None) -> Predictions:
    """Find each galaxy's row, and each answer's column, in a file of predictions."""
    if not isinstance(voted, ZoobotFile) or voted.kind != "predictions":
        raise UserError(f"{voted.path}: holds no predicted votes. Give a file of Zoobot's predictions.")
    fitting = tree_with(voted.columns)
    if schema is None:
        raise UserError(
            f"{voted.path}: which decision tree its answers belong to has to be said: --schema {fitting or 'NAME'}."
        )
    hint = f"All of its columns are those of --schema {fitting}." if fitting else "Give the tree it was trained with."
    for column in schema.label_cols:
        if voted.columns.count(column) != 1:
            wrong = "has no label column" if column not in voted.columns else "has more than once the label column"
            raise UserError(f"{voted.path}: {wrong} '{column}' of the tree. {hint}")
    if unknown := [column for column in voted.columns if column not in schema.label_cols]:
        raise UserError(
            f"{voted.path}: label column '{unknown[0]}' is no answer of the tree. "
            f"{hint if fitting else did_you_mean(unknown[0], schema.label_cols)}"
        )
    rows = np.arange(len(galaxies.ids))
    if voted is not galaxies:
        _check_ids(voted)
        rows = _places(galaxies.ids, voted.ids)
        if len(absent := np.flatnonzero(rows < 0)):
            raise UserError(
                f"{voted.path}: has no predictions for '{galaxies.ids[absent[0]]}' ({len(absent)} of "
                f"{len(rows)} galaxies of {galaxies.path} are not there). Predict all of them."
            )
    return Predictions(voted, rows, schema, [voted.columns.index(column) for column in schema.label_cols])


def _places(wanted: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    """Place of each text among others, (len(wanted),), -1 where it is not there."""
    places: NDArray[np.int64] = pc.fill_null(pc.index_in(wanted, value_set=among), -1).to_numpy().astype(np.int64)
    return places


def _write(
    target: Path, galaxies: Foreign, votes: Predictions | None, images: Catalog | None, attributes: dict[str, str]
) -> dict[str, Any]:
    n_rows, schema = len(galaxies.ids), Schema(()) if votes is None else votes.schema
    dim = 0 if galaxies.kind == "predictions" else len(galaxies.columns)
    n_passes, n_answers = votes.n_passes if votes else 1, len(schema.label_cols)
    require_room(target, 4 * n_rows * (dim + n_answers * (1 + n_passes * (n_passes > 1))))
    with written_hdf5(target) as (file, disk):
        representation = new_table(file, "representation", (n_rows, dim))
        if dim:
            _fill(representation, _features(galaxies), disk)
        concentrations = new_table(file, "concentrations", (n_rows, n_answers))
        if votes is not None:
            _write_votes(file, concentrations, votes, disk)
        _write_text(file, "id", galaxies.ids, disk)
        n_with_image = _write_places(file, galaxies, images, disk)
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", (0,), TEXT)
        root = "" if images is None else str(images.path.resolve().parent)
        write_attributes(file, schema, {"image_root": root, "n_failed": 0, **attributes})
    return {
        "n_galaxies": n_rows,
        "dim": dim,
        "n_answers": n_answers,
        "n_passes": n_passes,
        "n_with_image": n_with_image,
    }


def _write_places(file: h5py.File, galaxies: Foreign, images: Catalog | None, disk: SteadyFile) -> int:
    """Write file_loc, ra and dec, and return how many galaxies have an image."""
    coordinates, locations = galaxies.coordinates(), pa.nulls(len(galaxies.ids), pa.string())
    if images is not None:
        table = images.table
        rows = _places(galaxies.ids, pa.array(table["id_str"], pa.string()))
        if (rows < 0).all():
            raise UserError(f"{images.path}: holds none of the galaxies of {galaxies.path}. Compare their id_str.")
        locations = pa.array(table["file_loc"], pa.string()).take(pa.array(rows, mask=rows < 0))
        for name in {"ra", "dec"} & set(table.columns) - coordinates.keys():
            coordinates[name] = np.where(rows < 0, np.nan, table[name].to_numpy()[rows])
    _write_text(file, "file_loc", locations, disk)
    for name, values in coordinates.items():
        file.create_dataset(name, data=values)
    return int(locations.is_valid().sum().as_py())


def _features(galaxies: Foreign) -> Iterator[NDArray[np.float32]]:
    """Representation (rows, D) with its columns in order, piece by piece, checked."""
    order, row = features_in_order(galaxies.path, galaxies.columns), 0
    for piece in galaxies.pieces():
        if piece[0].size != len(order):
            raise UserError(f"{galaxies.path}: has features of {piece.shape[2:]} passes. Give those of one pass.")
        values = np.asarray(piece.reshape(len(piece), len(order))[:, order], np.float32)
        finite = np.isfinite(values)
        if not finite.all():
            bad, feature = np.argwhere(~finite)[0]
            raise UserError(
                f"{galaxies.path}: '{galaxies.columns[order[feature]]}' of row {row + bad}, id "
                f"{galaxies.ids[row + bad]}, is {values[bad, feature]}. Leave rows without a representation out."
            )
        yield values
        row += len(values)


def _write_votes(file: h5py.File, concentrations: h5py.Dataset, votes: Predictions, disk: SteadyFile) -> None:
    n_rows, n_answers = concentrations.shape
    members = None
    if votes.n_passes > 1:
        members = new_table(file, "member_concentrations", (n_rows, votes.n_passes, n_answers))
        which = np.ndindex(votes.file.shape[2:])
        file.attrs["members"] = canonical_json([{"checkpoint_sha256": "", "pass": list(each)} for each in which])
    step = max(1, _VOTE_BYTES // (4 * votes.n_passes * n_answers))
    for start in range(0, n_rows, step):
        galaxies = slice(start, min(start + step, n_rows))
        values = votes.of(galaxies)
        concentrations[galaxies] = values.mean(1)
        if members is not None:
            members[galaxies] = values
        disk.check()


def _fill(dataset: h5py.Dataset, pieces: Iterable[NDArray[np.float32]], disk: SteadyFile) -> None:
    row = 0
    for piece in pieces:
        dataset[row : row + len(piece)] = piece
        row += len(piece)
        disk.check()


def _write_text(file: h5py.File, name: str, values: pa.Array, disk: SteadyFile) -> None:
    dataset = file.create_dataset(name, (len(values),), TEXT)
    for start in range(0, len(values), _TEXTS_AT_ONCE):
        piece = values.slice(start, _TEXTS_AT_ONCE)
        # What is not written reads as '', and takes no room.
        if piece.null_count < len(piece):
            dataset[start : start + len(piece)] = pc.fill_null(piece, "").to_numpy(zero_copy_only=False)
        disk.check()
