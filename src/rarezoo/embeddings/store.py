"""Reading `embeddings.h5`, format 1."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.cli import UserError
from rarezoo.embeddings.foreign import how_to_convert
from rarezoo.embeddings.rows import Rows
from rarezoo.embeddings.select import Bounds, Of, expected_fractions, find_answer, predicted_votes, rows_within
from rarezoo.votes import FractionPosterior, Schema, fraction_posterior

FORMAT = 1
CARRIED = "carried"
_REQUIRED = ("id", "representation", "concentrations", "file_loc")
_OPTIONAL = ("features", "member_concentrations", "ra", "dec")
# Rows whose fractions are computed at a time.
_ROWS_AT_ONCE = 2**17


class Embeddings:
    """An open file of embeddings; arrays are read from disk where they are indexed.

    Attributes
    ----------
    path : the file
    representation : (N, D), float32 or float16; index it to read rows
    features : (N, F), float16, before the bottleneck; None where they were not kept
    concentrations : (N, A), float32; A is 0 where no votes were predicted
    member_concentrations : (N, M, A), float32, of each checkpoint and pass; None where there was one
    members : M mappings, what each member is (checkpoint_sha256, pass); empty where there was one
    schema : decision tree that the A answers belong to; without questions where no votes were predicted
    label_cols : names of the A answers
    attributes : what the file says of itself (format, created, git_commit, config, checkpoint_sha256, ...)
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.attributes: dict[str, Any] = dict(file.attrs)
        tree = json.loads(self.attributes["schema"])
        self.schema = Schema(()) if tree == {} else Schema.from_tree(tree, str(path))
        self.label_cols = self.schema.label_cols
        self.representation = Rows(file["representation"])
        self.concentrations = Rows(file["concentrations"])
        self.features, self.member_concentrations = (
            Rows(file[name]) if name in file else None for name in ("features", "member_concentrations")
        )
        self.members: list[dict[str, Any]] = json.loads(self.attributes.get("members", "[]"))
        self._votes = self.concentrations if self.member_concentrations is None else self.member_concentrations
        self._file = file

    def __len__(self) -> int:
        return len(self.representation)

    @property
    def ids(self) -> NDArray[np.object_]:
        """(N,) identifiers as text."""
        return np.asarray(self._file["id"].asstr()[:], dtype=object)

    @property
    def files(self) -> NDArray[np.object_]:
        """(N,) paths of the images, joined to the folder that they were read from; '' where there is none."""
        return self._locations(slice(None))

    def rows_of(self, ids: Sequence[str] | NDArray[np.object_]) -> NDArray[np.int64]:
        """Rows of galaxies, (len(ids),), in the order of their ids.

        Raises
        ------
        UserError
            naming the first id that the file does not have
        """
        which, distinct = pd.factorize(np.asarray(ids, dtype=object))
        wanted = pd.Index(distinct, dtype=object)
        rows = np.full(len(wanted), -1, dtype=np.int64)
        stored = Rows(self._file["id"])
        for span in stored.spans():
            places = wanted.get_indexer(pd.Index(stored[span], dtype=object))
            here = np.flatnonzero(places >= 0)
            rows[places[here]] = span.start + here
        if len(absent := np.flatnonzero(rows < 0)):
            raise UserError(
                f"{self.path}: has no galaxy '{wanted[absent[0]]}' ({len(absent)} of {len(wanted)} ids are not there). "
                "failed() lists the images that could not be read."
            )
        return rows[which]

    def votes_for(self, answers: Sequence[str], of: Sequence[Of]) -> Iterable[NDArray[np.float32]]:
        """Votes that are expected for some answers, (rows, len(answers)), piece by piece in the file's order.

        Parameters
        ----------
        answers : label columns
        of : for each, fraction (share of those who are asked the question) or joint (share of all volunteers)
        """
        return predicted_votes(self._votes.pieces(), self.schema, answers, of)

    def select(self, cuts: Mapping[str, Bounds]) -> NDArray[np.int64]:
        """Rows of the galaxies whose expected vote fractions lie within bounds, (M,), ascending.

        Parameters
        ----------
        cuts : answer, or a pattern that matches one -> (low, high); rows with low <= fraction < high are kept, and
            None bounds nothing

        Raises
        ------
        UserError
            if there is no such answer, or a fraction is not finite
        """
        if not cuts:
            return np.arange(len(self))
        self._require_votes()
        answers = [find_answer(pattern, self.label_cols, f"select, {self.path}") for pattern in cuts]
        fractions = self.votes_for(answers, ["fraction"] * len(answers))
        return rows_within(fractions, answers, list(cuts.values()))[0]

    def vote_fractions(self, rows: slice | NDArray = slice(None)) -> NDArray[np.float32]:
        """Expected vote fractions (rows, A), read piece by piece; of several members, the mean of theirs."""
        numbers = np.arange(len(self))[rows]
        fractions = np.empty((len(numbers), len(self.label_cols)), np.float32)
        if self.label_cols:
            # Ascending, so that no part of the file is read for more than two pieces.
            order = np.argsort(numbers, kind="stable")
            for start in range(0, len(order), _ROWS_AT_ONCE):
                some = order[start : start + _ROWS_AT_ONCE]
                fractions[some] = expected_fractions(self._votes[numbers[some]], self.schema)
        return fractions

    def credible_intervals(self, rows: slice | NDArray, level: float = 0.9) -> FractionPosterior:
        """Mean and central credible interval of the vote fractions, (rows, A) each; see `fraction_posterior`.

        Of several members, those of their mixture with equal weights.

        Raises
        ------
        UserError
            if no votes were predicted
        """
        self._require_votes()
        votes = self._votes[np.arange(len(self))[rows]]
        return fraction_posterior(np.moveaxis(votes, 1, 0) if votes.ndim == 3 else votes, self.schema, level)

    def to_pandas(self, rows: slice | NDArray = slice(None)) -> pd.DataFrame:
        """One row per galaxy: id_str, file, ra, dec where known, carried columns; without the representation."""
        table = pd.DataFrame({"id_str": Rows(self._file["id"])[rows], "file_loc": self._locations(rows)})
        for name in ("ra", "dec"):
            if name in self._file:
                table[name] = Rows(self._file[name])[rows]
        for key, dataset in self._file.get(CARRIED, {}).items():
            table[dataset.attrs.get("column", key)] = Rows(dataset)[rows]
        return table

    def failed(self) -> pd.DataFrame:
        """Images that could not be read: id_str, file_loc, reason."""
        group = self._file["failed"]
        return pd.DataFrame({name: group[name].asstr()[:] for name in ("id_str", "file_loc", "reason")})

    def _locations(self, rows: slice | NDArray) -> NDArray[np.object_]:
        root = str(self.attributes["image_root"])
        locations = Rows(self._file["file_loc"])[rows]
        return np.asarray([location and os.path.join(root, location) for location in locations], dtype=object)  # noqa: PTH118 (millions)

    def _require_votes(self) -> None:
        if not self.label_cols:
            raise UserError(
                f"{self.path}: holds no predicted votes. Add them: "
                "python -m rarezoo.embeddings.convert ... --predictions FILE --schema NAME."
            )


@contextmanager
def open_embeddings(path: str | Path) -> Iterator[Embeddings]:
    """Open a file of embeddings for reading.

    Raises
    ------
    UserError
        if there is no such file, it is not HDF5, not of this format, not complete, or its arrays do not agree
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"embeddings={path}: there is no such file. Run embed.py first, or give embeddings=<file>.h5.")
    if advice := how_to_convert(path):
        raise UserError(advice)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path}: is not a whole HDF5 file ({error}). Run embed.py again with overwrite=true."
        ) from error
    with file:
        try:
            _check(path, file)
            embeddings = Embeddings(path, file)
        except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: is damaged ({error}). Run embed.py again with overwrite=true.") from error
        yield embeddings


def _check(path: Path, file: h5py.File) -> None:
    found = file.attrs.get("format", "none")
    if not np.array_equal(found, FORMAT):
        raise UserError(f"{path}: has format {found}, not embeddings format {FORMAT}. Give a file that embed.py wrote.")
    missing = [name for name in _REQUIRED if name not in file]
    if missing or not file.attrs.get("complete", False):
        raise UserError(f"{path}: is not complete ({', '.join(missing) or 'complete is false'}). Run embed.py again.")
    lengths = {name: file[name].shape[0] for name in (*_REQUIRED, *_OPTIONAL) if name in file}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: its arrays differ in length ({lengths}). Run embed.py again with overwrite=true.")
    if file["representation"].ndim != 2 or file["concentrations"].ndim != 2:
        raise ValueError("representation and concentrations are not tables")
    n_answers = len(file.attrs["label_cols"])
    for name in ("concentrations", "member_concentrations"):
        if name in file and (n_columns := file[name].shape[-1]) != n_answers:
            raise UserError(
                f"{path}: has {name} of {n_columns} answers, and names {n_answers}. "
                "Run embed.py again with overwrite=true."
            )
