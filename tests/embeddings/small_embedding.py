"""A survey and a model whose embedding takes a second; as a script, one rank of an embedding of several."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from rarezoo.cli import UserError, quiet_libraries
from rarezoo.config import EmbeddingSettings
from rarezoo.data.catalog import read_catalog
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.embeddings.embed import Embedding, feature_moments
from rarezoo.embeddings.parts import Parts, cut_into_blocks
from rarezoo.models.inference import Embedder
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.ranks import Ranks, join_ranks

TREE = {
    "shape": {"answers": ["smooth", "featured"], "asked_after": []},
    "bar": {"answers": ["yes", "no"], "asked_after": ["shape_featured"]},
}
DIM, SIZE, N_ROWS = 6, 32, 43
BROKEN = (4, 17, 18, 42)
SETTINGS = {
    "batch_size": 3,
    "dtype": "float32",
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "features": False,
    "rotations": 1,
    "dropout_passes": 0,
    "ensemble": "first",
    "redundancy": False,
}


def make_model(seed: int = 0) -> VoteModel:
    torch.manual_seed(seed)
    return VoteModel(ModelSpec(TREE, "test_efficientnet", DIM, image_size=SIZE, zoom=1.2)).eval()


def make_survey(folder: Path, n_rows: int = N_ROWS, broken=BROKEN) -> Path:
    """Images of noise, some of them empty files, and catalog.csv."""
    rng = np.random.default_rng(0)
    for row in range(n_rows):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{row}.png")
    for row in broken:
        (folder / f"{row}.png").write_bytes(b"")
    table = pd.DataFrame({"id_str": [f"g{row}" for row in range(n_rows)]})
    table["file_loc"] = [f"{row}.png" for row in range(n_rows)]
    table.to_csv(folder / "catalog.csv", index=False)
    return folder


def embed_survey(
    survey: Path,
    path: Path,
    ranks: Ranks | None = None,
    *,
    resume: bool = False,
    workers: int = 0,
    rows_per_block: int = 8,
    max_failed_share: float = 0.5,
    note=lambda numbers: None,
    models=None,
    moments: bool = False,
    **changes,
) -> tuple[dict, Embedding]:
    """Embed the survey; parts are kept beside the file, as embed.py leaves them until the run is recorded."""
    settings = EmbeddingSettings(**SETTINGS | changes)
    catalog = read_catalog(survey / "catalog.csv")
    data = GalaxyDataModule(
        catalog, SIZE, workers=workers, batch_size=settings.batch_size, max_failed_share=max_failed_share
    )
    embedder = Embedder(
        models or [make_model()],
        torch.device("cpu"),
        rotations=settings.rotations,
        dropout_passes=settings.dropout_passes,
        ensemble=settings.ensemble,
    )
    parts = Parts(path.with_name("parts"), cut_into_blocks(len(catalog), rows_per_block), "key")
    gathered = feature_moments(embedder, moments)
    embedding = Embedding(embedder, data, parts, settings, ranks or Ranks(), note, gathered)
    return embedding.run(path, {"image_root": str(survey), "members": "[]"}, resume), embedding


class KilledAfter:
    """Ends this process as SIGKILL does, after so many blocks."""

    def __init__(self, n_blocks: int) -> None:
        self.left = n_blocks

    def __call__(self, numbers) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def one_rank(survey: str, path: str, options: dict) -> None:
    """Embed as one of several ranks, whose place is said by the environment."""
    ranks = join_ranks(options.pop("n_ranks")) or Ranks()
    killed = options.pop("kill", None)
    if killed and killed[0] == ranks.rank:
        options["note"] = KilledAfter(killed[1])
    try:
        embed_survey(Path(survey), Path(path), ranks, **options)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


def fork_rank(rank: int, request: dict) -> int:
    """Start one rank as torchrun does, without its minute of imports; what it says goes to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ |= {**request["environment"], "RANK": str(rank), "LOCAL_RANK": str(rank)}
        said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 2)
        one_rank(request["survey"], request["path"], request["options"])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def serve() -> None:
    """Run one group of ranks for each line of standard input, and write the status of the first that ended badly."""
    quiet_libraries()
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        children = {fork_rank(rank, request) for rank in range(request["options"]["n_ranks"])}
        worst = 0
        while children:
            child, status = os.wait()
            children.discard(child)
            if status and not worst:
                worst = os.waitstatus_to_exitcode(status)
                for other in children:
                    os.kill(other, signal.SIGKILL)
        sys.stdout.write(f"{worst}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
