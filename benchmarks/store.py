"""Time and memory of opening a file of embeddings and selecting by cuts on predicted votes.

    python benchmarks/store.py --rows 8700000 --folder /tmp

Writes a file of format 1 with h5py alone, some MB at a time: representations of 128 numbers and concentrations of the
34 answers of decals_dr5, both random. Then each question is asked in a fresh process, whose largest resident memory is
reported. The file is removed at the end.
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

import h5py
import numpy as np

from rarezoo.votes import load_schema

SCHEMA = "decals_dr5"
DIM = 128
ROWS_AT_ONCE = 65_536

ASK = """
import json, resource, sys, time
import numpy as np
from rarezoo.embeddings import open_embeddings
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
with open_embeddings(sys.argv[1]) as embeddings:
    opened = time.perf_counter() - start
    result = eval(sys.argv[2])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {"opened": opened, "seconds": seconds, "base": base / 1e6, "peak": peak / 1e6, "rows": len(result)}
print(json.dumps(found))
"""
CUTS = (
    '{"smooth-or-featured*_smooth": (None, 0.5), "disk-edge-on*_yes": (None, 0.3), '
    '"smooth-or-featured*_artifact": (None, 0.3)}'
)
QUESTIONS = {
    "select(the paper's three cuts)": f"embeddings.select({CUTS})",
    "representation[selected]": f"embeddings.representation[embeddings.select({CUTS})]",
    "rows_of(1,000 ids)": 'embeddings.rows_of([f"J{8 * row}" for row in range(1000)])',
    "to_pandas(selected)": f"embeddings.to_pandas(embeddings.select({CUTS}))",
    "vote_fractions()": "embeddings.vote_fractions()",
}


def write(path: Path, n_rows: int) -> None:
    """Write a file of format 1 with random content."""
    schema = load_schema(SCHEMA)
    text = h5py.string_dtype("utf-8")
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        widths = {"representation": DIM, "concentrations": len(schema.label_cols)}
        tables = {
            name: file.create_dataset(name, (n_rows, width), np.float32, chunks=(min(4096, n_rows), width))
            for name, width in widths.items()
        }
        names = {name: file.create_dataset(name, (n_rows,), text) for name in ("id", "file_loc")}
        for start in range(0, n_rows, ROWS_AT_ONCE):
            some = slice(start, min(start + ROWS_AT_ONCE, n_rows))
            n_some = some.stop - start
            tables["representation"][some] = rng.standard_normal((n_some, DIM), np.float32)
            tables["concentrations"][some] = 1 + 100 * rng.random((n_some, widths["concentrations"]), np.float32) ** 3
            names["id"][some] = np.array([f"J{row}" for row in range(some.start, some.stop)], object)
            names["file_loc"][some] = np.array([f"{row // 1000}/J{row}.jpg" for row in range(start, some.stop)], object)
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", (0,), text)
        file.attrs.update(format=1, complete=True, image_root="/images", schema=json.dumps(schema.to_tree()))
        file.attrs.create("label_cols", list(schema.label_cols), dtype=text)


def ask(path: Path, question: str) -> dict[str, float]:
    """Answer a question in a fresh process.

    Returns
    -------
    seconds to open the file (opened) and to have the answer (seconds), GB of resident memory before (base) and at most
    (peak), and rows of the answer (rows)
    """
    command = [sys.executable, "-c", ASK, str(path), question]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        path = Path(folder) / "embeddings.h5"
        start = time.perf_counter()
        write(path, settings.rows)
        size = path.stat().st_size / 1e9
        print(
            f"{settings.rows:,} rows, {size:.2f} GB, written in {time.perf_counter() - start:.0f} s; "
            f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n\n"
            "| question | open, s | open and answer, s | GB before | GB at most | rows |\n|---|---|---|---|---|---|"
        )
        for name, question in QUESTIONS.items():
            found = ask(path, question)
            print(
                f"| `{name}` | {found['opened']:.2f} | {found['seconds']:.1f} | {found['base']:.2f} | "
                f"{found['peak']:.2f} | {found['rows']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
