"""What the page's interactive map is drawn from: positions, ids, density and thumbnails, small enough to embed."""

from __future__ import annotations

import base64
import bisect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from rarezoo.cli import progress
from rarezoo.report.figures import class_centres, class_names, neighbour_colours
from rarezoo.report.montage import montage, pick_members

# Light qualitative scheme of Tol 2021 (SRON/EPS/TN/09-002): told apart by people with any colour vision, on black.
DARK_PALETTE = ("#EE8866", "#77AADD", "#BBCC33", "#FFAABB", "#44BB99", "#EEDD88", "#99DDFF", "#C9A6F2")
# With `cards.MONTAGE_BYTES`, these keep a page of up to 3,000 classes below 30 MB even if the images were pure noise.
MAX_BULK = 30_000
MAX_MEMBERS = 40_000
MAX_THUMBNAILS = 2_500
MAX_THUMBNAILS_OF_A_CLASS = 120
MAX_BULK_THUMBNAILS = 1_000
THUMBNAIL = 64
SHEET_COLUMNS = 10
# The best quality first. A galaxy takes some 640 bytes at that, and 1,400 alone on its sheet; noise would take 3,300.
_SHEET_QUALITIES = (78, 60, 40, 20)
_TILE_BYTES = 1_430
_GRID = 65_535
_SPREAD_CELL = 1024
_DENSITY_PIXELS = 1024
_DENSITY_COLOUR = (165, 178, 200)
_FAINTEST, _BRIGHTEST = 26, 205
# Outside these quantiles a few stray galaxies would take the pixels of the many.
_DENSITY_RANGE = (0.0005, 0.9995)

Gridding = Callable[[pd.Series, int], np.ndarray]


def map_data(galaxies: pd.DataFrame, classes: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Data of the interactive map, JSON-like.

    Parameters
    ----------
    galaxies : table with id_str, file_loc ('' for no image), cluster, probability, x, y and optionally ra, dec
    classes : table with cluster, size, medoid_id and optionally name
    seed : of the choice of galaxies that is drawn where there are more than `MAX_BULK` outside the classes
        or more than `MAX_MEMBERS` in them

    Returns
    -------
    x, y : base64 of little-endian uint16, the galaxies outside the classes first
    ids : id_str in the same order
    n_bulk, n_members : galaxies on the map; all_bulk, all_members : galaxies that could be
    bulk_tiles : how many of the first of them have a thumbnail on bulk_sheet (data URI, or None), in its order
    density : where not all galaxies outside the classes are drawn, their density (see `density_image`), else None
    members : columns cluster, probability, ra, dec, tile (place on the class's sheet, -1 = none) of the members
    classes : for each class its colour, name, centre, size and sheet of thumbnails (data URI)
    """
    placed = galaxies[np.isfinite(galaxies["x"]) & np.isfinite(galaxies["y"])]
    everyone_in, everyone_out = placed[placed["cluster"] >= 0], placed[placed["cluster"] < 0]
    rng = np.random.default_rng(seed)
    to_grid = _gridding(placed)
    bulk, members = spread_out(everyone_out, to_grid, rng).head(MAX_BULK), _sample_members(everyone_in, rng)
    with_image = members[members["file_loc"] != ""]
    # Where there are more classes than thumbnails, those of the galaxies outside go to classes that would have none.
    given_up = min(max(0, with_image["cluster"].nunique() - MAX_THUMBNAILS), MAX_BULK_THUMBNAILS)
    sheets, tiles = thumbnail_sheets(with_image, MAX_THUMBNAILS + given_up)
    pictured = bulk[bulk["file_loc"] != ""].head(MAX_BULK_THUMBNAILS - given_up)
    drawn = pd.concat([bulk, members])
    return {
        "x": _packed(to_grid(drawn["x"], 0)),
        "y": _packed(to_grid(drawn["y"], 1)),
        "ids": [str(identifier) for identifier in drawn["id_str"]],
        "n_bulk": len(bulk),
        "all_bulk": len(everyone_out),
        "bulk_tiles": len(pictured),
        "bulk_sheet": _sheet(pictured) if len(pictured) else None,
        "density": density_image(everyone_out, to_grid) if len(bulk) < len(everyone_out) else None,
        "n_members": len(members),
        "all_members": len(everyone_in),
        "members": _member_columns(members, tiles),
        "classes": _class_entries(class_centres(placed, classes), classes, sheets, to_grid),
        "thumbnail": THUMBNAIL,
        "columns": SHEET_COLUMNS,
    }


def spread_out(table: pd.DataFrame, to_grid: Gridding, rng: np.random.Generator) -> pd.DataFrame:
    """Rows in an order whose beginning covers the map evenly, those with an image first.

    From each occupied cell of a coarse lattice one row at random, then a second of each, and so on: a plain sample
    would show the crowded parts alone.
    """
    shuffled = table.iloc[rng.permutation(len(table))]
    cells = [to_grid(shuffled[axis], index) // _SPREAD_CELL for index, axis in enumerate(("x", "y"))]
    turn = shuffled.groupby(cells).cumcount().to_numpy()
    return shuffled.iloc[np.lexsort((turn, shuffled["file_loc"].to_numpy() == ""))]


def density_image(galaxies: pd.DataFrame, to_grid: Gridding) -> dict[str, Any]:
    """Number of galaxies in each pixel of the map, as a picture.

    Returns
    -------
    image : PNG as a data URI, its opacity a logarithm of the number, north up
    left, right, low, high : its edges on the grid
    """
    x, y = to_grid(galaxies["x"], 0).astype(float), to_grid(galaxies["y"], 1).astype(float)
    edges = [(low, max(high, low + 1)) for low, high in (np.quantile(axis, _DENSITY_RANGE) for axis in (x, y))]
    spans = np.array([high - low for low, high in edges])
    pixels = np.maximum(1, np.ceil(_DENSITY_PIXELS * spans / spans.max())).astype(int)
    counts, _, _ = np.histogram2d(y, x, bins=tuple(pixels[::-1]), range=edges[::-1])
    share = np.log1p(counts) / np.log1p(max(counts.max(), 1))
    picture = np.empty((*counts.shape, 4), np.uint8)
    picture[..., :3] = _DENSITY_COLOUR
    picture[..., 3] = np.where(counts > 0, _FAINTEST + (_BRIGHTEST - _FAINTEST) * share, 0)[::-1]
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    (left, right), (low, high) = edges
    image = data_uri(stream.getvalue(), "image/png")
    return {"image": image, "left": left, "right": right, "low": low, "high": high}


def thumbnail_sheets(members: pd.DataFrame, budget: int) -> tuple[dict[int, str], pd.Series]:
    """Thumbnails of each class's members, highest probability first, as one JPEG sheet a class.

    Small classes are shown whole and large ones up to a common number. Of more classes than the budget has thumbnails,
    the first, which are the most persistent, have one each.

    Parameters
    ----------
    members : rows of galaxies with an image
    budget : thumbnails of all sheets together

    Returns
    -------
    sheets : class -> data URI
    tiles : place of each galaxy on its sheet, row by row, indexed like `members`; galaxies not shown are absent
    """
    by_class: dict[Any, pd.DataFrame] = dict(iter(members.groupby("cluster")))
    sizes = np.array([len(rows) for rows in by_class.values()], int)
    most = min(max(1, equal_share(sizes, budget)), MAX_THUMBNAILS_OF_A_CLASS)
    sheets: dict[int, str] = {}
    tiles: list[pd.Series] = []
    for cluster in progress(list(by_class)[:budget], "thumbnails", unit="class"):
        shown = pick_members(by_class[cluster], most)
        sheets[int(cluster)] = _sheet(shown)
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


def _sheet(shown: pd.DataFrame) -> str:
    """Thumbnails as a data URI, of a lower quality where they would take up too much."""
    rows = -(-len(shown) // SHEET_COLUMNS)
    image = montage([Path(file) for file in shown["file_loc"]], SHEET_COLUMNS, rows, THUMBNAIL, gap=0)
    for quality in _SHEET_QUALITIES:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= _TILE_BYTES * len(shown):
            break
    return data_uri(stream.getvalue(), "image/jpeg")


def _sample_members(members: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Members class by class; where there are too many, a random sample of the large classes and all of the small."""
    share = equal_share(members["cluster"].value_counts().to_numpy(), MAX_MEMBERS)
    shuffled = members.iloc[rng.permutation(len(members))]
    kept = shuffled[shuffled.groupby("cluster").cumcount() < share]
    return kept.sort_index().sort_values("cluster", kind="stable")


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
    sizes, names = classes.set_index("cluster")["size"], class_names(classes)
    x, y = to_grid(centres["x"], 0).tolist(), to_grid(centres["y"], 1).tolist()
    return [
        {
            "cluster": int(cluster),
            "name": names.get(int(cluster)),
            "colour": colour,
            "x": x[row],
            "y": y[row],
            "size": int(sizes[cluster]),
            "sheet": sheets.get(int(cluster)),
        }
        for row, (cluster, colour) in enumerate(zip(centres.index, colours, strict=True))
    ]
