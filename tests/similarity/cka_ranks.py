"""Two processes that gather CKA together, forked after the imports; the second has more batches than the first."""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from rarezoo.similarity import MinibatchCKA

BATCHES = ([slice(0, 16)], [slice(16, 32), slice(32, 40)])


def gather(folder: Path, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    features = {name: torch.from_numpy(values) for name, values in np.load(folder / "features.npz").items()}
    metric = MinibatchCKA(["x"], ["y"])
    for part in BATCHES[rank]:
        metric.update({"x": features["x"][part]}, {"y": features["y"][part]})
    np.save(folder / f"rank{rank}.npy", metric.compute())
    distributed.destroy_process_group()


if __name__ == "__main__":
    forked = multiprocessing.get_context("fork")
    ranks = [forked.Process(target=gather, args=(Path(sys.argv[1]), rank)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    sys.exit(max(abs(each.exitcode or 0) for each in ranks))
