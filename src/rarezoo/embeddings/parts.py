"""Embeddings that are not yet one file: a part for each block of rows, whichever process made it.

The catalog is cut into blocks of rows in the same way whatever the number of processes and the size of their batches,
and each block's part appears under its name only when it is whole. So a crash costs one block for each process, any
number of processes may go on, and what comes out is what an unbroken run gives.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarezoo.provenance import written_beside

# A block is what a crash costs: seconds on a GPU, a minute or a few on a CPU. Small catalogs are cut finer, so that
# several processes have something to do.
_MOST_ROWS, _FEWEST_ROWS, _N_PARTS = 2048, 64, 32
_FORMAT = 1
_ABOUT, _ROWS = "_about", "_rows"


@dataclass(frozen=True)
class Part:
    """Embeddings of the galaxies of one block.

    Attributes
    ----------
    rows : (B,) rows of the catalog whose images could be read, ascending
    arrays : name in the final file -> (B, ...)
    failed : row of the catalog -> why its image could not be read
    """

    rows: NDArray[np.int64]
    arrays: dict[str, NDArray[np.floating]]
    failed: dict[int, str] = field(default_factory=dict)


class DamagedPartError(Exception):
    """A part that cannot be used; the message says which and why."""


def cut_into_blocks(n_rows: int, rows_per_block: int | None = None) -> list[range]:
    """Blocks of consecutive rows, in order.

    Parameters
    ----------
    n_rows : of the catalog
    rows_per_block : by default 2048, and fewer where the catalog has fewer than 65,536 rows
    """
    size = rows_per_block or min(_MOST_ROWS, max(_FEWEST_ROWS, n_rows // _N_PARTS))
    return [range(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


class Parts:
    """The parts of one run.

    Parameters
    ----------
    folder : of the parts; made with the first of them
    blocks : of `cut_into_blocks`
    key : fingerprint of what decides the result; parts of another key are not taken for this run's
    """

    def __init__(self, folder: Path, blocks: list[range], key: str) -> None:
        self.folder = folder
        self.blocks = blocks
        self._key = key

    def write(self, block: range, part: Part) -> None:
        """Keep the part of a block, whole or not at all.

        Raises
        ------
        UserError
            if the folder cannot be written to or the disk is full
        """
        about = {"format": _FORMAT, "key": self._key, "block": [block.start, block.stop]}
        failed = [[int(row), reason] for row, reason in sorted(part.failed.items())]
        text = np.frombuffer(json.dumps({**about, "failed": failed}).encode(), np.uint8)
        content: dict[str, Any] = {_ABOUT: text, _ROWS: part.rows, **part.arrays}
        with written_beside(self.path(block)) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **content)

    def read(self, block: range) -> Part:
        """Part of a block, its checksums compared.

        Raises
        ------
        DamagedPartError
            if it is not there, truncated, altered, of another run, or its rows are not those of the block
        """
        path = self.path(block)
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            about = json.loads(arrays.pop(_ABOUT).tobytes())
            rows, failed = arrays.pop(_ROWS), dict(about["failed"])
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DamagedPartError(f"{path}: {error}") from error
        if (about["format"], about["key"], about["block"]) != (_FORMAT, self._key, [block.start, block.stop]):
            raise DamagedPartError(f"{path}: belongs to another run")
        if sorted([*rows.tolist(), *failed]) != list(block) or (np.diff(rows) <= 0).any():
            raise DamagedPartError(
                f"{path}: its rows are not rows {block.start} to {block.stop - 1}, each once and in order"
            )
        if any(len(values) != len(rows) for values in arrays.values()):
            raise DamagedPartError(f"{path}: its arrays differ in length")
        return Part(rows, arrays, failed)

    def whole(self) -> Iterator[tuple[range, Part]]:
        """Blocks that an earlier run has done, with their parts; those that cannot be used are passed over."""
        for block in self.blocks:
            if self.path(block).exists():
                try:
                    yield block, self.read(block)
                except DamagedPartError:
                    continue

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, block: range) -> Path:
        """Where the part of a block stands."""
        return self.folder / f"rows-{block.start:010d}.npz"
