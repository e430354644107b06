"""Rate at which a catalog is embedded, beside that of the bare model and of timm with a plain torch data set.

    taskset -c 0,1 python benchmarks/embedding.py
    taskset -c 0,1 python benchmarks/embedding.py --catalog galaxies.parquet --images 2048

All rows are of the same images, random weights, machine and run, each in a process of its own:

- bare: timm's model on tensors in memory, without reading or transforming anything. The fastest of each precision is
  the limit that the others are compared with.
- Embedder: rarezoo's on images in memory, transformed and with bottleneck and head.
- rarezoo: from JPEG files, or whatever a catalog names, and from tar shards of the same, to the arrays that are
  written.
- plain torch: from JPEG files with timm, Pillow, and torchvision's transforms in the order of Galaxy Zoo's own test
  transform: scaled by 1.2 at full size, resized, cropped, divided by 255.

A rate is the median over several rounds after one of warming up, in images per second; beside it is that of the best
round. The error is that of the representation or features against the bare model in float32, relative, of the worst
galaxy; neighbours are the 10 nearest of each image that stay among the 10 nearest. The plain route resizes after it
magnifies, and so sees slightly other pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from rarezoo.data.catalog import read_catalog
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.data.images import read_image
from rarezoo.data.packing import CATALOG_NAME, Packing, pack
from rarezoo.models.inference import Embedder
from rarezoo.models.vote_model import ModelSpec, VoteModel

SIZE = 224
STORED = 424
ZOOM = 1.2
N_NEIGHBOURS = 10
TREE = {"shape": {"answers": ["smooth", "featured", "artifact"], "asked_after": []}}
# Name -> options of `bare_model`.
BARE: dict[str, dict[str, Any]] = {
    "as timm makes it": {},
    "compiled": {"compiled": True},
    "compiled, frozen": {"compiled": True, "frozen": True},
    "compiled, frozen, 8 at a time": {"compiled": True, "frozen": True, "at_once": 8},
    "channels last": {"channels_last": True},
    "channels last, 4 at a time": {"channels_last": True, "at_once": 4},
    "channels last, 2 at a time": {"channels_last": True, "at_once": 2},
}


def write_galaxies(folder: Path, n_images: int) -> Path:
    """Write JPEG files of smooth galaxies with noise, quality 90, and their catalog.

    Returns
    -------
    path of the catalog
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:STORED, :STORED] - STORED / 2
    names = [f"{number:06d}.jpg" for number in range(n_images)]
    for name in names:
        angle, axis_ratio, scale = rng.uniform(0, np.pi), rng.uniform(0.3, 1), rng.uniform(15, 70)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        light = rng.uniform(80, 250, 3) * np.exp(-np.hypot(along, across / axis_ratio) / scale)[..., None]
        pixels = np.clip(light + rng.normal(8, 5, light.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=90)
    pd.DataFrame({"id_str": names, "file_loc": names}).to_csv(folder / "catalog.csv", index=False)
    return folder / "catalog.csv"


def make_model(backbone: str) -> VoteModel:
    """A model with random weights; the same in every process."""
    torch.manual_seed(0)
    return VoteModel(ModelSpec(TREE, backbone, image_size=SIZE, zoom=ZOOM))


def bare_model(
    encoder: nn.Module, channels_last: bool = False, compiled: bool = False, frozen: bool = False, at_once: int = 0
) -> Callable[[Tensor], Tensor]:
    """An encoder as a function of transformed images; at_once: images of each call, 0 for all."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = encoder.eval().to(memory_format=layout)
    if compiled:
        model = torch.compile(model, dynamic=False, options={"freezing": frozen})

    def run(images: Tensor) -> Tensor:
        parts = images.split(at_once or len(images))
        return torch.cat([model(part.contiguous(memory_format=layout)) for part in parts])

    return run


class PlainImages(Dataset[Tensor]):
    """Files as a plain torch data set reads them."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._transform = v2.Compose(
            [
                v2.RandomAffine(0, scale=(ZOOM, ZOOM), interpolation=v2.InterpolationMode.BILINEAR),
                v2.Resize(SIZE, antialias=True),
                v2.CenterCrop(SIZE),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._files[index]) as image:
            transformed: Tensor = self._transform(image.convert("RGB"))
        return transformed


def rounds_of(row: dict[str, Any]) -> Callable[[], Iterator[Tensor]]:
    """One round of a row, over all of its images, batch by batch: features or representation."""
    catalog = read_catalog(Path(row["catalog"]))
    files, batch = catalog.files[: row["n_images"]], row["batch"]
    half = {"float32": False, "bfloat16": True}[row["precision"]]
    model = make_model(row["backbone"]).eval()
    if row["route"] in ("bare", "Embedder"):
        images = torch.from_numpy(np.stack([read_image(file, SIZE) for file in files]))
    if row["route"] == "bare":
        run = bare_model(model.backbone, **BARE[row["variant"]])
        with torch.inference_mode():
            transformed = model.eval_transform(images)

        def in_memory() -> Iterator[Tensor]:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                yield from (run(part) for part in transformed.split(batch))

        return in_memory
    if row["route"] == "plain torch":
        plain = DataLoader(PlainImages(files), batch, num_workers=row["workers"], persistent_workers=row["workers"] > 0)

        def by_torch() -> Iterator[Tensor]:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                yield from (model.backbone(part) for part in plain)

        return by_torch
    embedder = Embedder([model], torch.device("cpu"), precision=row["precision"], compiled=row["compiled"])
    if row["route"] == "Embedder":
        rows = torch.arange(len(images))
        return lambda: (embedder(*part).features for part in zip(images.split(batch), rows.split(batch), strict=True))
    data = GalaxyDataModule(catalog, SIZE, batch_size=batch, workers=row["workers"])
    loader = data.block_dataloader([range(len(files))])
    return lambda: (embedder(part["image"], part["row"]).features for part in loader)


def measure(row: dict[str, Any]) -> None:
    """Write one row's rates and peak memory to standard output, and its features to a file."""
    torch.set_num_threads(row["threads"])
    one_round = rounds_of(row)
    rates = []
    for _ in range(row["repeats"] + 1):
        start = time.perf_counter()
        features = [part.float() for part in one_round()]
        rates.append(row["n_images"] / (time.perf_counter() - start))
    np.save(row["features"], torch.cat(features).numpy())
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    first = row["n_images"] / rates[0]
    print(json.dumps({"rate": statistics.median(rates[1:]), "best": max(rates[1:]), "first": first, "memory": own}))


def neighbours_kept(exact: np.ndarray, found: np.ndarray) -> float:
    """Share of each image's nearest neighbours that are its nearest in another space too."""
    sets = []
    for features in (exact, found):
        search = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(features)
        sets.append(search.kneighbors(return_distance=False))
    return float(np.mean([len(np.intersect1d(*pair)) / N_NEIGHBOURS for pair in zip(*sets, strict=True)]))


def rows_of(settings: argparse.Namespace, backbone: str) -> list[dict[str, Any]]:
    """All rows of one backbone; the first is what errors are measured against."""
    rows: list[dict[str, Any]] = []
    for precision in ("float32", "bfloat16"):
        rows += [{"route": "bare", "variant": name, "precision": precision} for name in BARE]
        for compiled in (False, True):
            name = "compiled" if compiled else "eager"
            ours = {"variant": name, "compiled": compiled, "precision": precision}
            rows.append({"route": "Embedder", **ours})
            rows += [
                {"route": route, "workers": workers, **ours}
                for workers in settings.workers
                for route in ("rarezoo", "rarezoo, shards")
            ]
    rows.append({"route": "plain torch", "variant": "eager", "precision": "float32", "workers": 2})
    common = {name: getattr(settings, name) for name in ("batch", "threads", "repeats")}
    common |= {"backbone": backbone, "n_images": settings.images}
    return [{**row, **common} for row in rows if row["route"].split(",")[0] in ("bare", *settings.routes)]


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """Measure one row in a fresh process."""
    command = [sys.executable, __file__, "--row", json.dumps(row)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what was measured as Markdown."""
    print(
        "| model | route | variant | workers | precision | images/s (best) | of the limit | GB | error | neighbours |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    exact = np.load(rows[0]["features"])
    for row in rows:
        limit = max(each["rate"] for each in rows if (each["route"], each["precision"]) == ("bare", row["precision"]))
        features = np.load(row["features"])
        error = np.max(np.linalg.norm(features - exact, axis=1) / np.linalg.norm(exact, axis=1))
        print(
            f"| {row['backbone']} | {row['route']} | {row['variant']} | {row.get('workers', '')} | {row['precision']} "
            f"| {row['rate']:.1f} ({row['best']:.1f}) | {row['rate'] / limit:.2f} | {row['memory']:.2f} "
            f"| {error:.0e} | {neighbours_kept(exact, features):.3f} |"
        )


def main() -> None:
    """Print a table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_b0", "maxvit_tiny_rw_224"])
    parser.add_argument("--catalog", type=Path, help="catalog to read instead of JPEG files made here")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--routes", nargs="+", default=["Embedder", "rarezoo", "plain torch"])
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.row:
        return measure(settings.row)
    if settings.images <= N_NEIGHBOURS:
        parser.error(f"--images: at least {N_NEIGHBOURS + 1}, so that each has {N_NEIGHBOURS} neighbours")
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, torch {torch.__version__}, timm "
        f"{timm.__version__}, {settings.threads} threads on {len(os.sched_getaffinity(0))} cores, batches of "
        f"{settings.batch}, median of {settings.repeats} rounds, load average {os.getloadavg()[0]:.2f}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        catalog = settings.catalog or write_galaxies(Path(name), settings.images)
        packed = Path(name) / "packed" / CATALOG_NAME
        pack(read_catalog(catalog), packed.parent, Packing())
        for backbone in settings.backbones:
            rows = []
            for number, row in enumerate(rows_of(settings, backbone)):
                read = packed if row["route"].endswith("shards") else catalog
                row |= {"catalog": str(read), "features": f"{name}/{number}.npy"}
                rows.append(measured(row))
                shown = (row["route"], row["variant"], row["precision"], row.get("workers"))
                print(*shown, f"{rows[-1]['rate']:.1f}", file=sys.stderr, flush=True)
            print_table(rows)


if __name__ == "__main__":
    main()
