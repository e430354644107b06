"""Command that packs a catalog's images into tar shards: python -m rarezoo.data.shards galaxies.parquet packed/."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from rarezoo.cli import closing_lines, run_script
from rarezoo.data.catalog import read_catalog
from rarezoo.data.packing import CATALOG_NAME, FAILED_NAME, Packing, pack
from rarezoo.data.sources import usable_cores


def main() -> None:
    """Pack one catalog, or the rest of it."""
    given = _parser().parse_args()
    # A missing image is one of those that cannot be read: listed, and counted.
    catalog = read_catalog(given.catalog, image_root=given.image_root, check_files=False)
    packing = Packing(given.size, given.quality, given.rows_per_shard)
    summary = pack(catalog, given.folder.absolute(), packing, given.max_failed_share, given.workers)
    outputs = {"shards": given.folder, "catalog": given.folder / CATALOG_NAME}
    if summary["n_failed"]:
        outputs["left out"] = given.folder / FAILED_NAME
    following = f"python train.py data=catalog data.catalog={shlex.quote(str(outputs['catalog']))}"
    closing_lines(outputs, summary, following)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rarezoo.data.shards",
        description="Pack the images of a catalog into tar files that data=shards, data=catalog and webdataset read.",
    )
    parser.add_argument("catalog", type=Path, help="table with id_str and file_loc; its other columns are packed too")
    parser.add_argument("folder", type=Path, help="of the shards; an interrupted run goes on there")
    parser.add_argument("--image-root", type=Path, help="folder that file_loc is relative to (default: the catalog's)")
    parser.add_argument("--size", type=_whole(16, 4096), help="side of the images, px, in JPEG (default: files as are)")
    parser.add_argument("--quality", type=_whole(1, 100), default=92, help="of the JPEG (default: %(default)s)")
    parser.add_argument("--rows-per-shard", type=_whole(1, 10**6), default=10_000, help="default: %(default)s")
    parser.add_argument("--max-failed-share", type=_share, default=0.01, help="of the images (default: %(default)s)")
    parser.add_argument("--workers", type=_whole(0, 256), default=usable_cores(), help="processes (default: the cores)")
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: give a whole number from {low} to {high}")
        return int(text)

    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a share from 0 to 1")
    return share


if __name__ == "__main__":
    run_script(main, Path())
