"""Command that places new galaxies in a search that is done, without laying out or clustering anything again.

python -m rarezoo.clustering.place outputs/mine/cluster new.h5 --embeddings outputs/mine/embed/embeddings.h5
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarezoo.cli import UserError, closing_lines, progress, run_script
from rarezoo.clustering.placing import KnownGalaxies
from rarezoo.clustering.select import check_galaxies, select
from rarezoo.clustering.settings import SearchSettings
from rarezoo.embeddings import Embeddings, open_embeddings
from rarezoo.provenance import RECORD_NAME, sha256_of_file, written_beside

_COLUMNS = ["id_str", "cluster", "probability", "x", "y"]
_ROWS_AT_ONCE = 2**16


def main() -> None:
    """Place the galaxies of one file."""
    given = _parser().parse_args()
    summary = place_file(given.run_folder, given.new, given.embeddings, given.output)
    closing_lines({"placed": given.output}, summary, None)


def place_file(run_folder: Path, new: Path, embeddings: Path, output: Path) -> dict[str, float]:
    """Place the galaxies of one file of embeddings among those of a search; see `KnownGalaxies`.

    Those that the search's cuts would have removed are left out, since nothing like them was searched.

    Parameters
    ----------
    run_folder : that cluster.py wrote galaxies.parquet and run.json to
    new : embeddings of the new galaxies, by the checkpoint of the known ones
    embeddings : the file that was searched
    output : parquet to write: id_str, ra and dec where known, cluster (-1 for none), probability, x and y of the view,
        and distance, that in the representation to the nearest known galaxy

    Returns
    -------
    n_galaxies, n_left_out, n_placed and share_in_classes

    Raises
    ------
    UserError
        if the files do not belong together, or one is not there, not whole, or cannot be written
    """
    if output.exists():
        raise UserError(f"{output}: is there already. Choose another name with --output, or remove it.")
    searched, settings = _read_run(run_folder, embeddings)
    with open_embeddings(embeddings) as known, open_embeddings(new) as arrived:
        _check_same_model(known, arrived)
        rows = select(arrived, settings.selection.cuts).rows
        galaxies = KnownGalaxies(
            known.representation[known.rows_of(searched["id_str"].to_numpy())],
            searched[["x", "y"]].to_numpy(),
            searched["cluster"].to_numpy(),
            searched["probability"].to_numpy(),
            settings.layout.n_neighbors,
            settings.neighbours.exact_below,
            settings.layout.seed,
            settings.neighbours.whitening,
        )
        pieces = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
        placed = pd.concat(_placed(galaxies, arrived, progress(pieces, "placing")), ignore_index=True)
        n_galaxies = len(arrived)
    with written_beside(output) as temporary:
        placed.to_parquet(temporary, index=False)
    return {
        "n_galaxies": n_galaxies,
        "n_left_out": n_galaxies - len(placed),
        "n_placed": len(placed),
        "share_in_classes": float((placed["cluster"] >= 0).mean()),
    }


def _placed(
    galaxies: KnownGalaxies, arrived: Embeddings, pieces: Iterator[NDArray[np.int64]]
) -> Iterator[pd.DataFrame]:
    for rows in pieces:
        who, x = arrived.to_pandas(rows), arrived.representation[rows]
        check_galaxies(who["id_str"].to_numpy(object), x, rows)
        found = galaxies.place(x)
        yield who[[name for name in ("id_str", "ra", "dec") if name in who]].assign(
            cluster=found.labels,
            probability=found.probabilities,
            x=found.layout[:, 0],
            y=found.layout[:, 1],
            distance=found.nearest,
        )


def _read_run(folder: Path, embeddings: Path) -> tuple[pd.DataFrame, SearchSettings]:
    """What a search found, and its settings."""
    record, table = folder / RECORD_NAME, folder / "galaxies.parquet"
    for path, fix in (
        (embeddings, "Give the file that was searched with --embeddings."),
        (record, "Give the folder that cluster.py wrote, such as outputs/mine/cluster."),
        (table, "Give the folder that cluster.py wrote, such as outputs/mine/cluster."),
    ):
        if not path.is_file():
            raise UserError(f"{path}: there is no such file. {fix}")
    try:
        run: dict[str, Any] = json.loads(record.read_text())
        done, stage, made_from = run["complete"], run["key"]["stage"], run["key"]["inputs"]
        groups = {name: run["key"]["settings"][name] for name in SearchSettings.model_fields}
        settings = SearchSettings.model_validate(groups)
        searched = pd.read_parquet(table, columns=_COLUMNS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: holds no search that can be read ({error}). Run cluster.py again with overwrite=true."
        ) from error
    if not done or stage != "cluster":
        raise UserError(f"{record}: is of no complete search. Run cluster.py to its end.")
    if made_from.get("embeddings") != sha256_of_file(embeddings):
        raise UserError(
            f"--embeddings={embeddings}: is not the file that {folder} was made from. Give that one, or search this "
            f"one: python cluster.py embeddings={embeddings}."
        )
    return searched, settings


def _check_same_model(known: Embeddings, arrived: Embeddings) -> None:
    name = "checkpoint_sha256"
    theirs, ours = (each.attributes.get(name) for each in (arrived, known))
    # A converted file does not say what made it.
    if theirs is not None and ours is not None and theirs != ours:
        raise UserError(
            f"{arrived.path}: was embedded with another checkpoint ({name} {theirs}) than {known.path} ({ours}), and "
            "the representations of two models have nothing in common. Embed it with the same checkpoint."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rarezoo.clustering.place",
        description="Place new galaxies in a search that is done, by their neighbours among the galaxies searched.",
    )
    parser.add_argument("run_folder", type=Path, help="that cluster.py wrote, such as outputs/mine/cluster")
    parser.add_argument("new", type=Path, help="embeddings of the new galaxies (.h5)")
    parser.add_argument("--embeddings", type=Path, required=True, help="the file that was searched (.h5)")
    parser.add_argument("--output", type=Path, default=Path("placed.parquet"), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    run_script(main, Path())
