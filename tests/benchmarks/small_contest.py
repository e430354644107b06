"""A survey of a few hundred points with three tight groups in a broad bulk."""

import numpy as np
import pandas as pd
from known_truth.contest import KnownSurvey, Task

from rarezoo.clustering.stages import StageStore

GROUPS = {"rings": 40, "tails": 30, "arms": 25}
N_BULK = 405


def points(seed=0):
    rng = np.random.default_rng(seed)
    centres = 8 * np.eye(6)[: len(GROUPS)]
    groups = [centre + 0.1 * rng.normal(size=(n, 6)) for centre, n in zip(centres, GROUPS.values(), strict=True)]
    name = np.array([""] * N_BULK + [group for group, n in GROUPS.items() for _ in range(n)], dtype=object)
    x = np.concatenate([rng.normal(size=(N_BULK, 6)), *groups])
    order = rng.permutation(len(x))
    return x[order].astype(np.float32), name[order]


def task_of(folder, seed=0, montage_size=12):
    return Task(points(seed)[0], seed, StageStore(folder / "stages"), montage_size)


def survey_of(seed=0, name="few", truth="planted", control=False, kinds=False):
    """One in ten is cut away, whatever its class."""
    x, group = points(seed)
    rng = np.random.default_rng(seed)
    classes = pd.DataFrame({known: group == known for known in GROUPS})
    if control:
        classes["few-at-random"] = rng.random(len(x)) < 0.05
    everyone = np.arange(len(x))
    return KnownSurvey(
        name=name,
        truth=truth,
        seed=seed,
        ids=np.array([f"galaxy-{row}" for row in everyone], dtype=object),
        classes=classes,
        kinds=group if kinds else np.full(len(x), "", dtype=object),
        rows=everyone[everyone % 10 > 0],
        rows_with_artifacts=everyone if kinds else np.empty(0, np.int64),
        representations={"bottleneck": lambda: x, "votes": lambda: x[:, :2]},
    )
