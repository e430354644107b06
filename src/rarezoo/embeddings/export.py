"""Format 1 to the files that the tools of Zoobot and of the Galaxy Zoo releases read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rarezoo.cli import UserError
from rarezoo.embeddings.hdf5 import TEXT, written_hdf5
from rarezoo.embeddings.interchange import made_from, new_table
from rarezoo.embeddings.rows import Rows
from rarezoo.embeddings.store import Embeddings
from rarezoo.provenance import canonical_json, made_with, written_beside

Layout = Literal["zoobot-features", "zoobot-predictions", "gz-desi"]


def export_embeddings(embeddings: Embeddings, target: Path, layout: Layout) -> dict[str, Any]:
    """Write the representation or the predictions for other programs.

    Parameters
    ----------
    embeddings : of format 1
    target : to be written
    layout : zoobot-features is HDF5 of the representation (galaxy, feature), zoobot-predictions of the concentrations
        (galaxy, answer, pass), gz-desi parquet with id_str, ra and dec where they are known, and feat_pca_0, ...

    Returns
    -------
    n_galaxies, and dim or n_answers and n_passes

    Raises
    ------
    UserError
        if there is no representation or there are no predictions, or the file cannot be written
    """
    n_rows, dim = embeddings.representation.shape
    if layout == "zoobot-predictions":
        if not embeddings.label_cols:
            raise UserError(f"{embeddings.path}: holds no predicted votes. Give --to zoobot-features or gz-desi.")
        votes = embeddings.member_concentrations or embeddings.concentrations
        n_passes = votes.shape[1] if len(votes.shape) == 3 else 1
        _write_zoobot(embeddings, target, votes, list(embeddings.label_cols), (n_passes,))
        return {"n_galaxies": n_rows, "n_answers": len(embeddings.label_cols), "n_passes": n_passes}
    if not dim:
        raise UserError(f"{embeddings.path}: holds no representation. Give --to zoobot-predictions.")
    if layout == "zoobot-features":
        _write_zoobot(embeddings, target, embeddings.representation, [f"feat_{index}" for index in range(dim)], ())
    else:
        _write_parquet(embeddings, target)
    return {"n_galaxies": n_rows, "dim": dim}


def _provenance(embeddings: Embeddings) -> dict[str, str]:
    made = made_with()
    return {
        **made_from({"source": embeddings.path}),
        "created": made["created"],
        "versions": canonical_json(made["versions"]),
        "git_commit": made["git_commit"] or "",
    }


def _write_zoobot(
    embeddings: Embeddings, target: Path, values: Rows, columns: list[str], passes: tuple[int, ...]
) -> None:
    with written_hdf5(target) as (file, disk):
        dataset = new_table(file, "predictions", (len(values), len(columns), *passes), compression="gzip")
        ids = file.create_dataset("id_str", (len(values),), TEXT)
        file.create_dataset("label_cols", data=columns, dtype=TEXT)
        for span in values.spans():
            piece = values[span]
            # Ours has the passes before the answers.
            dataset[span] = np.moveaxis(piece, 1, -1).reshape(len(piece), len(columns), *passes)
            ids[span] = embeddings.to_pandas(span)["id_str"].to_numpy(object)
            disk.check()
        file.attrs.update(_provenance(embeddings))


def _write_parquet(embeddings: Embeddings, target: Path) -> None:
    features = embeddings.representation
    known = embeddings.to_pandas(slice(0)).columns.intersection(["ra", "dec"])
    fields = [("id_str", pa.string()), *((name, pa.float64()) for name in known)]
    fields += [(f"feat_pca_{index}", pa.float32()) for index in range(features.shape[1])]
    schema = pa.schema(fields, metadata=_provenance(embeddings))
    with written_beside(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for span in features.spans():
            table = embeddings.to_pandas(span)
            columns = [table[name].to_numpy() for name in ("id_str", *known)]
            columns += list(features[span].astype(np.float32).T)
            writer.write_table(pa.table([pa.array(values) for values in columns], schema=schema))
