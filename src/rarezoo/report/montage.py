"""Montages: the galaxies of a class side by side, as an astronomer would look at them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from rarezoo.cli import progress
from rarezoo.data.addresses import ImageError
from rarezoo.data.images import read_picture
from rarezoo.provenance import written_beside

Order = Literal["probability", "random"]

GAP = 2
GAP_COLOUR = (11, 14, 20)
UNREADABLE_COLOUR = (96, 96, 96)
# Scale and JPEG quality of an embedded copy, the best first.
_LADDER = ((1.0, 88), (1.0, 75), (1.0, 55), (0.5, 75), (0.5, 50), (0.25, 50))


@dataclass(frozen=True)
class ClassMontage:
    """A class's montage and what it shows.

    Attributes
    ----------
    path : the PNG file
    shown : id_str of the galaxies shown, row by row from the upper left
    members : number of galaxies in the class
    columns : tiles in a row
    thumbnail : side of a tile in pixels; tiles are `GAP` pixels apart and from the edge
    """

    path: Path
    shown: tuple[str, ...]
    members: int
    columns: int
    thumbnail: int


def montage(files: Sequence[Path], columns: int, rows: int, thumbnail: int, gap: int = GAP) -> Image.Image:
    """Images side by side, row by row, divided by dark lines; one that cannot be read is a grey tile that says so.

    Parameters
    ----------
    files : image files; those beyond columns * rows are left out
    columns, rows : tiles; rows that would be empty are left off
    thumbnail : side of a tile, pixels
    gap : width of the lines between and around the tiles, pixels

    Returns
    -------
    RGB image of columns * (thumbnail + gap) + gap by as many pixels for the rows
    """
    files = files[: columns * rows]
    used_rows = max(1, -(-len(files) // columns))
    step = thumbnail + gap
    canvas = Image.new("RGB", (columns * step + gap, used_rows * step + gap), GAP_COLOUR)
    for position, file in enumerate(files):
        row, column = divmod(position, columns)
        canvas.paste(_tile(Path(file), thumbnail), (gap + column * step, gap + row * step))
    return canvas


def class_montages(
    folder: Path,
    galaxies: pd.DataFrame,
    columns: int = 6,
    rows: int = 3,
    thumbnail: int = 96,
    order: Order = "probability",
    seed: int = 0,
) -> dict[int, ClassMontage]:
    """Write the montage of each class as class_007.png and so on; galaxies without an image are not shown.

    Parameters
    ----------
    folder : where the files go; made if absent
    galaxies : table with `id_str`, `file_loc` (paths that can be opened, '' for no image), `cluster` (-1 = none) and
        `probability`
    columns, rows, thumbnail : see `montage`
    order : which members are shown where there are more than places: those of highest probability,
        or a random sample, which tells better how varied a class is
    seed : of the random sample

    Returns
    -------
    class -> its montage, in ascending order of classes; those without any image are left out

    Raises
    ------
    UserError
        if the folder cannot be written to
    """
    sizes = galaxies["cluster"].value_counts()
    pictured = galaxies.loc[
        (galaxies["file_loc"] != "") & (galaxies["cluster"] >= 0), ["id_str", "file_loc", "cluster", "probability"]
    ]
    by_class = {int(str(cluster)): members for cluster, members in pictured.groupby("cluster")}
    montages = {}
    for cluster, members in progress(sorted(by_class.items()), "montages", unit="class"):
        shown = pick_members(members, columns * rows, order, seed)
        image = montage([Path(file) for file in shown["file_loc"]], columns, rows, thumbnail)
        path = folder / f"class_{cluster:03d}.png"
        with written_beside(path) as temporary:
            image.save(temporary, "PNG")
        montages[cluster] = ClassMontage(
            path, tuple(map(str, shown["id_str"])), int(sizes[cluster]), columns, thumbnail
        )
    return montages


def embedded_copies(montages: Mapping[int, ClassMontage], budget: int) -> dict[int, bytes]:
    """JPEG copies of montages that take up no more than some bytes together, each at most an equal part of them.

    Quality, and then size, is lowered as far as that takes: PNG of galaxies is some five times as large.

    Returns
    -------
    class -> JPEG; a montage that is too large even at the lowest quality is left out
    """
    allowed = budget // max(len(montages), 1)
    copies = {cluster: _copy_within(montage.path, allowed) for cluster, montage in montages.items()}
    return {cluster: copy for cluster, copy in copies.items() if copy is not None}


def pick_members(members: pd.DataFrame, number: int, order: Order = "probability", seed: int = 0) -> pd.DataFrame:
    """Up to `number` members of a class, highest probability first; ties stand in the order of the table.

    Parameters
    ----------
    members : rows of one class
    order : "probability" takes those of highest probability, "random" a random sample
    """
    if order == "random" and len(members) > number:
        chosen = np.random.default_rng(seed).choice(len(members), number, replace=False)
        members = members.iloc[np.sort(chosen)]
    return members.sort_values("probability", ascending=False, kind="stable").head(number)


def _copy_within(path: Path, allowed: int) -> bytes | None:
    with Image.open(path) as image:
        image.load()
    for scale, quality in _LADDER:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        stream = io.BytesIO()
        (image if scale == 1 else image.resize(size, Image.Resampling.BOX)).save(stream, "JPEG", quality=quality)
        if stream.tell() <= allowed:
            return stream.getvalue()
    return None


def _tile(file: Path, side: int) -> Image.Image:
    try:
        pixels = np.asarray(read_picture(file, side))
    except ImageError as error:
        return _unreadable_tile(file, error.reason, side)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _unreadable_tile(file: Path, reason: str, side: int) -> Image.Image:
    tile = Image.new("RGB", (side, side), UNREADABLE_COLOUR)
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(size=max(8, side // 9))
    letters = max(4, int(side / font.getlength("n")) - 1)
    text = f"unreadable {file.stem} {reason}"
    lines = [text[start : start + letters].strip() for start in range(0, len(text), letters)]
    draw.multiline_text((side // 16, side // 16), "\n".join(lines), fill=(230, 230, 230), font=font, spacing=1)
    return tile
