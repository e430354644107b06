"""Time and memory of embedding many galaxies, apart from images and model: catalog, parts, and one file of them.

    python benchmarks/parts.py --rows 10000000 --folder /tmp

The representations, of 128 numbers, and the concentrations of the 34 answers of decals_dr5 are random. Each step is a
process of its own, whose largest resident memory is reported. Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 128
ROWS_AT_ONCE = 1_000_000
STEPS = {
    "read the catalog": "read",
    "and write the parts": "write",
    "and check the parts, to go on": "check",
    "and merge them into one file": "merge",
}


def write_catalog(path: Path, n_rows: int) -> None:
    """Write a catalog of ids, paths and coordinates."""
    text, number = pa.string(), pa.float64()
    schema = pa.schema([("id_str", text), ("file_loc", text), ("ra", number), ("dec", number)])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n_rows, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, n_rows))
            ids = [f"{row:010d}_{row % 997}" for row in rows]
            files = [f"images/{row // 10_000:04d}/{row:010d}.jpg" for row in rows]
            writer.write_table(pa.table([ids, files, 360 * rows / n_rows, 180 * rows / n_rows - 90], schema=schema))


def do_step(step: str, folder: Path) -> None:
    """Do one step, and print its seconds and the largest resident memory in GB."""
    import resource

    import torch

    from rarezoo.data.catalog import read_catalog
    from rarezoo.embeddings.parts import Part, Parts, cut_into_blocks
    from rarezoo.embeddings.writer import write_embeddings
    from rarezoo.models.vote_model import ModelSpec, VoteModel
    from rarezoo.votes import load_schema

    torch.set_num_threads(1)
    tree = load_schema("decals_dr5").to_tree()
    model = VoteModel(ModelSpec(tree, "test_efficientnet", DIM, image_size=32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    catalog = read_catalog(folder / "catalog.parquet", check_files=False)
    parts = Parts(folder / "parts", cut_into_blocks(len(catalog)), "key")
    if step != "read":
        start = time.perf_counter()
    if step == "write":
        rng = np.random.default_rng(0)
        for block in parts.blocks:
            representation = rng.standard_normal((len(block), DIM), np.float32)
            concentrations = 1 + 100 * rng.random((len(block), len(model.schema.label_cols)), np.float32)
            arrays = {"representation": representation, "concentrations": concentrations}
            parts.write(block, Part(np.asarray(block), arrays))
    elif step == "check":
        assert sum(1 for _ in parts.whole()) == len(parts.blocks)
    elif step == "merge":
        every = (parts.read(block) for block in parts.blocks)
        write_embeddings(folder / "embeddings.h5", catalog, every, model, {"image_root": ""})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "before": before * 1024 / 1e9, "peak": peak * 1024 / 1e9}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument(
        "--step", choices=STEPS.values(), help="do one step in this process; used by the benchmark itself"
    )
    settings = parser.parse_args()
    if settings.step:
        do_step(settings.step, settings.folder)
        return
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        write_catalog(folder / "catalog.parquet", settings.rows)
        print(
            f"{settings.rows:,} rows, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n\n"
            "| step | s | GB before | GB at most |\n|---|---|---|---|"
        )
        for title, step in STEPS.items():
            command = [sys.executable, __file__, "--folder", name, "--step", step]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"| {title} | {found['seconds']:.0f} | {found['before']:.2f} | {found['peak']:.2f} |", flush=True)
        print(f"\nThe file: {(folder / 'embeddings.h5').stat().st_size / 1e9:.2f} GB.")


if __name__ == "__main__":
    main()
