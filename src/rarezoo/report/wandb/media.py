"""Images, histograms and tables as Weights & Biases takes them; wandb is imported by the first of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import pandas as pd


def as_image(image: Path | bytes) -> Any:
    """An image file, or an encoded image such as PNG bytes."""
    import wandb

    return wandb.Image(Image.open(io.BytesIO(image)) if isinstance(image, bytes) else str(image))


def as_histogram(counts: NDArray[Any], edges: NDArray[Any]) -> Any:
    """A histogram of counts (n,) between edges (n + 1,)."""
    import wandb

    return wandb.Histogram(np_histogram=(counts, edges))


def as_table(table: pd.DataFrame) -> Any:
    """A table without its index; columns may be of mixed type, and what is missing is null."""
    import wandb

    plain = table.astype(object).where(table.notna(), None)
    return wandb.Table(dataframe=plain.rename(columns=str), allow_mixed_types=True)


def with_montages(classes: pd.DataFrame, montages: Mapping[int, Path]) -> pd.DataFrame:
    """The table of classes with a column of montages, and lists and mappings as JSON text.

    Parameters
    ----------
    classes : one row a class, with its number as `cluster`
    montages : class -> image file; a class may have none
    """
    table = classes.map(_as_cell).astype(object)
    table.insert(1, "montage", [as_image(montages[n]) if n in montages else None for n in classes["cluster"]])
    return table


def _as_cell(value: Any) -> Any:
    nested = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(nested, list | tuple | Mapping):
        return value
    return json.dumps(nested, default=lambda number: number.item())
