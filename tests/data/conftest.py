import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

VOTES = ["smooth-or-featured_smooth", "smooth-or-featured_featured", "bar_strong", "bar_no"]


@pytest.fixture
def votes() -> list[str]:
    return list(VOTES)


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Four galaxies with images in tmp_path/images."""
    folder = tmp_path / "images"
    folder.mkdir()
    ids = ["00123", "587722981741363294", "J0931+21", "NA"]
    rng = np.random.default_rng(0)
    for name in ids:
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
    return pd.DataFrame(
        {
            "id_str": ids,
            "file_loc": [f"images/{name}.jpg" for name in ids],
            "ra": [0.0, 12.5, 359.9, 180.0],
            "dec": [-90.0, 0.0, 90.0, 1.5],
            **{name: np.array([3, 0, 40, 1]) * (position + 1) for position, name in enumerate(VOTES)},
            "redshift": [0.1, np.nan, 0.3, 0.05],
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a frame as a table of the kind that the name says."""

    def write_table(frame: pd.DataFrame, name: str = "catalog.csv") -> Path:
        path = tmp_path / name
        if name.endswith((".csv", ".csv.gz")):
            frame.to_csv(path, index=False)
        elif name.endswith((".parquet", ".pq")):
            frame.to_parquet(path, index=False)
        else:
            from astropy.table import Table

            Table.from_pandas(frame).write(path, format="votable" if name.endswith(".vot") else None)
        return path

    return write_table


@pytest.fixture(params=["efigi", "sdss", "goods"])
def real_catalog(request: pytest.FixtureRequest) -> Path:
    default = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("RAREZOO_DATA", default)) / request.param / "catalog.csv"
    if not path.is_file():
        pytest.skip(f"real data are not here: {path} (set RAREZOO_DATA)")
    return path
