"""Convert between format 1 and the files of other programs.

Into format 1, from HDF5 of Zoobot's or from parquet as GZ DESI's representations are published:

    python -m rarezoo.embeddings.convert representations.parquet embeddings.h5
    python -m rarezoo.embeddings.convert features.hdf5 embeddings.h5 --predictions votes.hdf5 --schema decals_dr5

Out of format 1:

    python -m rarezoo.embeddings.convert embeddings.h5 features.hdf5 --to zoobot-features
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rarezoo.cli import UserError, closing_lines, run_script
from rarezoo.embeddings.export import Layout, export_embeddings
from rarezoo.embeddings.interchange import import_embeddings
from rarezoo.embeddings.store import open_embeddings
from rarezoo.votes import load_schema
from rarezoo.votes.tree_files import SCHEMA_FOLDER


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command.

    Parameters
    ----------
    arguments : of the command line by default
    """
    parser = argparse.ArgumentParser(
        prog="python -m rarezoo.embeddings.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="file to convert")
    parser.add_argument("target", type=Path, help="file to write, which must not be there yet")
    parser.add_argument(
        "--predictions", type=Path, help="Zoobot's predictions for the galaxies of SOURCE, in any order"
    )
    parser.add_argument("--schema", help="decision tree of the predictions: its name, or the path of a .yaml file")
    parser.add_argument("--catalog", type=Path, help="table with id_str and file_loc, and ra and dec where wanted")
    parser.add_argument("--to", choices=get_args(Layout), help="what to write, where SOURCE is of format 1")
    return parser.parse_args(arguments)


def convert(arguments: argparse.Namespace) -> None:
    """Convert, and say what came out and what can be run next.

    Raises
    ------
    UserError
        if the files or options do not fit
    """
    source, target = arguments.source, arguments.target
    if target.exists():
        raise UserError(f"{target}: is there already. Choose another name, or remove it.")
    if arguments.to is not None:
        for name in ("predictions", "schema", "catalog"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name}: is for files that are read into format 1, and --to writes out of it.")
        with open_embeddings(source) as embeddings:
            facts = export_embeddings(embeddings, target, arguments.to)
        closing_lines({arguments.to: target}, facts, None)
        return
    schema = None if arguments.schema is None else load_schema(arguments.schema)
    facts = import_embeddings(source, target, arguments.predictions, schema, arguments.catalog)
    selection = [] if facts["n_answers"] else ["selection=all"]
    searched = shlex.join(["python", "cluster.py", f"name={target.stem}", f"embeddings={target}", *selection])
    closing_lines({"embeddings": target}, facts, searched if facts["dim"] else None)


if __name__ == "__main__":
    run_script(lambda: convert(parse()), SCHEMA_FOLDER.parent)
