"""A small survey that is embedded already: groups in a bulk, with images and votes, for tests of the class search."""

import json

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from small_scripts import CLUSTER

N_BULK, SIZES, DIM = 120, (20, 24, 28), 16
TREE = {"shape": {"answers": ["smooth", "featured"], "asked_after": []}}
TEXT = h5py.string_dtype()
SEARCH = (*CLUSTER, "embeddings=embeddings.h5", "logger=none")


def write_survey(folder, change=None, n_bulk=N_BULK):
    """Write embeddings.h5, truth.csv and the images below a folder; ids tell the groups.

    Parameters
    ----------
    change : called with the open file at the end, to spoil it
    """
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(-1, len(SIZES)), (n_bulk, *SIZES)))
    centres = 2 * rng.normal(size=(len(SIZES), DIM))
    x = np.where(group[:, None] < 0, rng.normal(size=(len(group), DIM)), centres[group])
    x += 0.1 * rng.normal(size=x.shape)
    ids = [f"{'bulk' if of < 0 else f'group{of}'}-{row}" for row, of in enumerate(group)]
    (folder / "images").mkdir(exist_ok=True)
    for name in ids:
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.jpg")
    with h5py.File(folder / "embeddings.h5", "w") as file:
        file["id"] = np.array(ids, dtype=TEXT)
        file["file_loc"] = np.array([f"images/{name}.jpg" for name in ids], dtype=TEXT)
        file["representation"] = x.astype(np.float32)
        smooth = np.where(group < 0, 70, 5)
        file["concentrations"] = np.column_stack([smooth, 100 - smooth]).astype(np.float32)
        file["ra"], file["dec"] = np.linspace(0, 359, len(ids)), np.linspace(-9, 9, len(ids))
        file["carried/redshift"] = rng.random(len(ids))
        for name in ("id_str", "file_loc", "reason"):
            file.create_dataset(f"failed/{name}", data=np.array([], dtype=TEXT))
        file.attrs.update(
            {"format": 1, "complete": True, "schema": json.dumps(TREE), "image_root": str(folder), "n_failed": 0}
        )
        file.attrs.create("label_cols", ["shape_smooth", "shape_featured"], dtype=TEXT)
        if change:
            change(file)
    names = ["" if of < 0 else f"group{of}" for of in group]
    pd.DataFrame({"id_str": ids, "rare_class": names}).to_csv(folder / "truth.csv", index=False)
    return folder


def again_elsewhere(folder, *options):
    """Options of a search of the same embeddings, from another folder, that finds the stages of the first."""
    return (*CLUSTER, "logger=none", f"embeddings={folder}/embeddings.h5", f"stages={folder}/stages", *options)


def record_of(results):
    return json.loads((results / "run.json").read_text())


def tables_of(results):
    return [pd.read_parquet(results / f"{name}.parquet") for name in ("classes", "galaxies")]


def stages_in(store):
    """Names of the stages in a store, without their hashes; nothing else may lie there but locks."""
    assert not [path.name for path in store.iterdir() if ".part" in path.name or "passing" in path.name]
    return sorted(path.name.rpartition("-")[0] for path in store.iterdir() if path.is_dir())
