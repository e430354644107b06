"""What the page's interactive map is drawn from: positions, ids and thumbnails, small enough to embed."""

from __future__ import annotations

import base64
import bisect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarezoo.cli import progress
from rarezoo.report.figures import class_centres, neighbour_colours
from rarezoo.report.montage import montage, pick_members

# Light qualitative scheme of Tol 2021 (SRON/EPS/TN/09-002): told apart by people with any colour vision, on black.
DARK_PALETTE = ("#EE8866", "#77AADD", "#BBCC33", "#FFAABB", "#44BB99", "#EEDD88", "#99DDFF", "#C9A6F2")
MAX_BULK = 40_000
MAX_MEMBERS = 40_000
MAX_THUMBNAILS = 4_000
THUMBNAIL = 64
SHEET_COLUMNS = 10
_SHEET_QUALITY = 78
_GRID = 65_535

Gridding = Callable[[pd.Series, int], np.ndarray]


def map_data(galaxies: pd.DataFrame, classes: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Data of the interactive map, JSON-like.

    Parameters
    ----------
    galaxies : table with id_str, file_loc ('' for no image), cluster, probability, x, y and optionally ra, dec
    classes : table with cluster, size, medoid_id
    seed : of the random sample that is drawn where there are more than `MAX_BULK` galaxies outside the classes
        or more than `MAX_MEMBERS` in them

    Returns
    -------
    x, y : base64 of little-endian uint16, the galaxies outside the classes first
    ids : id_str in the same order
    n_bulk, n_members : galaxies on the map; all_bulk, all_members : galaxies that could be
    members : columns cluster, probability, ra, dec, tile (place on the class's sheet, -1 = none) of the members
    classes : for each class its colour, centre, size and sheet of thumbnails (data URI)
    """
    placed = galaxies[np.isfinite(galaxies["x"]) & np.isfinite(galaxies["y"])]
    everyone_in, everyone_out = placed[placed["cluster"] >= 0], placed[placed["cluster"] < 0]
    rng = np.random.default_rng(seed)
    bulk, members = _sample(everyone_out, MAX_BULK, rng), _sample(everyone_in, MAX_MEMBERS, rng)
    drawn = pd.concat([bulk, members])
    to_grid = _gridding(placed)
    sheets, tiles = thumbnail_sheets(everyone_in[everyone_in["file_loc"] != ""])
    return {
        "x": _packed(to_grid(drawn["x"], 0)),
        "y": _packed(to_grid(drawn["y"], 1)),
        "ids": [str(identifier) for identifier in drawn["id_str"]],
        "n_bulk": len(bulk),
        "all_bulk": len(everyone_out),
        "n_members": len(members),
        "all_members": len(everyone_in),
        "members": _member_columns(members, tiles),
        "classes": _class_entries(class_centres(placed, classes), classes, sheets, to_grid),
        "thumbnail": THUMBNAIL,
        "columns": SHEET_COLUMNS,
    }


def thumbnail_sheets(members: pd.DataFrame) -> tuple[dict[int, str], pd.Series]:
    """Thumbnails of each class's members, highest probability first, as one JPEG sheet a class.

    Small classes are shown whole and large ones up to a common number, such that all hold `MAX_THUMBNAILS` at most.

    Returns
    -------
    sheets : class -> data URI
    tiles : place of each galaxy on its sheet, row by row, indexed like `members`; galaxies not shown are absent
    """
    sizes = members["cluster"].value_counts().sort_index()
    most = equal_share(sizes.to_numpy(), MAX_THUMBNAILS)
    sheets: dict[int, str] = {}
    tiles: list[pd.Series] = []
    for cluster in progress(sizes.index if most else (), "thumbnails", unit="class"):
        shown = pick_members(members[members["cluster"] == cluster], most)
        rows = -(-len(shown) // SHEET_COLUMNS)
        image = montage([Path(file) for file in shown["file_loc"]], SHEET_COLUMNS, rows, THUMBNAIL, gap=0)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=_SHEET_QUALITY)
        sheets[int(cluster)] = data_uri(stream.getvalue(), "image/jpeg")
        tiles.append(pd.Series(range(len(shown)), index=shown.index))
    return sheets, pd.concat(tiles) if tiles else pd.Series(dtype=int)


def equal_share(sizes: np.ndarray, budget: int) -> int:
    """Largest n such that the sum of min(size, n) stays within the budget; 0 where even one of each is too many.

    Parameters
    ----------
    sizes : (classes,) integers
    """
    return bisect.bisect_right(
        range(1, int(max(sizes, default=0)) + 1), budget, key=lambda share: int(np.minimum(sizes, share).sum())
    )


def data_uri(content: bytes, mime: str) -> str:
    """Bytes as a URI that needs no file and no request."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _sample(table: pd.DataFrame, number: int, rng: np.random.Generator) -> pd.DataFrame:
    if len(table) <= number:
        return table
    return table.iloc[np.sort(rng.choice(len(table), number, replace=False))]


def _gridding(placed: pd.DataFrame) -> Gridding:
    """Function that puts coordinates of an axis (0 = x, 1 = y) on a grid of 16 bits, the same scale on both axes."""
    positions = placed[["x", "y"]].to_numpy(float)
    low, high = (positions.min(axis=0), positions.max(axis=0)) if len(positions) else (np.zeros(2), np.ones(2))
    span = float((high - low).max()) or 1.0
    start = (low + high - span) / 2

    def to_grid(values: pd.Series, axis: int) -> np.ndarray:
        placed_values = (np.asarray(values, float) - start[axis]) / span * _GRID
        return np.asarray(placed_values.round().clip(0, _GRID), "<u2")

    return to_grid


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _member_columns(members: pd.DataFrame, tiles: pd.Series) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "cluster": members["cluster"].astype(int).tolist(),
        "probability": _rounded(members["probability"], 3),
        "tile": tiles.reindex(members.index, fill_value=-1).astype(int).tolist(),
    }
    for axis in ("ra", "dec"):
        columns[axis] = _rounded(members[axis], 5) if axis in members else [None] * len(members)
    return columns


def _rounded(values: pd.Series, decimals: int) -> list[float | None]:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    return [round(float(number), decimals) if np.isfinite(number) else None for number in numbers]


def _class_entries(
    centres: pd.DataFrame, classes: pd.DataFrame, sheets: dict[int, str], to_grid: Gridding
) -> list[dict[str, Any]]:
    colours = neighbour_colours(centres.to_numpy(float), DARK_PALETTE)
    sizes = classes.set_index("cluster")["size"]
    x, y = to_grid(centres["x"], 0).tolist(), to_grid(centres["y"], 1).tolist()
    return [
        {
            "cluster": int(cluster),
            "colour": colour,
            "x": x[row],
            "y": y[row],
            "size": int(sizes[cluster]),
            "sheet": sheets.get(int(cluster)),
        }
        for row, (cluster, colour) in enumerate(zip(centres.index, colours, strict=True))
    ]
