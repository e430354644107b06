"""A survey, a model and a training small enough for seconds; as a script, one rank of a training of several."""

import json
import os
import sys
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from configs import CHOSEN, read_choice
from PIL import Image

from rarezoo.cli import quiet_libraries
from rarezoo.data.catalog import read_catalog
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.data.prepare import make_datamodule
from rarezoo.models.fitting import evaluate, fit, training_callbacks
from rarezoo.models.keeping import MONITOR
from rarezoo.models.settings import TrainSettings
from rarezoo.models.training import VoteTraining, make_training
from rarezoo.ranks import Ranks, join_ranks
from rarezoo.votes import Schema

SCHEMA = Schema.from_tree(
    {
        "shape": {"answers": ["bright", "dark"], "asked_after": None},
        "side": {"answers": ["left", "right"], "asked_after": "shape_bright"},
    }
)
SIZE = 32
TINY = {
    "data__catalog": "catalog.csv",
    "data__image_size": SIZE,
    "data__validation_share": 0.25,
    "data__test_share": 0.2,
    "data__workers": 0,
    "data__max_failed_share": 0.1,
    "backbone__name": "test_efficientnet",
    "backbone__drop_path_rate": 0.2,
    "bottleneck__dim": 8,
    "augment__brightness": 0.1,
    "optim__lr": 0.01,
}
N_GALAXIES = 40
BATCH = 8
# A learning rate at which the first epoch is the best.
RUINOUS = 0.05


def make_survey(folder: Path) -> Path:
    """Bright and dark squares; volunteers say which, and on which side the bright ones lie."""
    rng = np.random.default_rng(0)
    bright, left = rng.integers(0, 2, N_GALAXIES), rng.integers(0, 2, N_GALAXIES)
    for row in range(N_GALAXIES):
        image = rng.integers(0, 30, (SIZE, SIZE, 3))
        image[8:24, slice(0, 16) if left[row] else slice(16, 32)] += 200 * bright[row] + 20
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{row}.png")
    table = pd.DataFrame({"id_str": [f"g{row}" for row in range(N_GALAXIES)]})
    table["file_loc"] = [f"{row}.png" for row in range(N_GALAXIES)]
    table["shape_bright"], table["shape_dark"] = 20 * bright, 20 * (1 - bright)
    table["side_left"], table["side_right"] = 10 * bright * left, 10 * bright * (1 - left)
    table.to_csv(folder / "catalog.csv", index=False)
    return folder


def make_settings(**changes) -> TrainSettings:
    """Settings as the configuration files have them, for a tiny model; data__crop=0.5 changes data.crop."""
    groups = {group: read_choice(group, name) for group, name in {"data": "catalog", **CHOSEN}.items()}
    changes = TINY | changes
    for name, value in changes.items():
        group, _, option = name.partition("__")
        groups[group][option] = value
    rest = {"name": "test", "seed": 3, "overwrite": False, "schema": SCHEMA.to_tree(), "trainer": {}}
    rest["save_every_minutes"] = 1000
    return TrainSettings.model_validate(groups | rest)


def prepare(survey: Path, batch_size=BATCH, **changes) -> tuple[VoteTraining, GalaxyDataModule]:
    settings = make_settings(**changes)
    catalog = read_catalog(survey / "catalog.csv", SCHEMA.label_cols, check_files=False)
    data = make_datamodule(settings.data, catalog, settings.seed, batch_size=batch_size)
    lightning.seed_everything(settings.seed, verbose=False)
    return make_training(settings, SCHEMA, data), data


class Diary(lightning.Callback):
    """Losses of each epoch, and whether the final checkpoint was there before the end."""

    def __init__(self, folder: Path) -> None:
        self.losses: list[float] = []
        self.best_was_there = False
        self._best = folder / "best.ckpt"

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics[MONITOR]))
        self.best_was_there |= self._best.exists()


def make_trainer(
    folder: Path, max_epochs=2, extra=(), save_every_minutes=1000.0, optim=None, **options
) -> lightning.Trainer:
    optim = optim or make_settings(optim__patience=None).optim
    usual = {
        "accelerator": "cpu",
        "max_epochs": max_epochs,
        "callbacks": [*training_callbacks(folder, optim, save_every_minutes), *extra],
        "logger": False,
        "enable_progress_bar": sys.stderr.isatty(),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "gradient_clip_val": 1.0,
        "default_root_dir": folder,
        "use_distributed_sampler": False,
    }
    return lightning.Trainer(**usual | options)


def train(
    survey: Path,
    folder: Path,
    resume=False,
    max_epochs=2,
    patience=None,
    extra=(),
    options=None,
    ranks=None,
    batch_size=BATCH,
    **changes,
):
    """Losses of each epoch that was run, and the trainer."""
    training, data = prepare(survey, batch_size, optim__patience=patience, **changes)
    diary = Diary(folder)
    options = {"max_epochs": max_epochs} | (options or {})
    trainer = make_trainer(folder, extra=[diary, *extra], optim=training.optim, **options)
    best = fit(trainer, training, data, folder, resume, ranks)
    assert best == folder / "best.ckpt"
    assert best.is_file()
    return diary, trainer


class InterruptAt(lightning.Callback):
    """Ends a run as Ctrl-C does, in the middle of an epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise KeyboardInterrupt


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


class SignalAt(lightning.Callback):
    """Sends this process a signal at the start of a step."""

    def __init__(self, number: int, epoch: int, batch: int) -> None:
        self.number, self.at = number, (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), self.number)


def main(survey: str, folder: str, wanted: str) -> None:
    """Train as one of several ranks, and write what each of them found."""
    quiet_libraries()
    options = json.loads(wanted)
    ranks = join_ranks(options.pop("n_ranks")) or Ranks()
    extra = [SignalAt(*options.pop("signal_at"))] if "signal_at" in options else []
    spread = {"devices": ranks.n_ranks, "strategy": "ddp"} if ranks.n_ranks > 1 else {}
    try:
        diary, trainer = train(Path(survey), Path(folder), ranks=ranks, extra=extra, **options, options=spread)
    except KeyboardInterrupt:
        sys.exit(130)
    scores = evaluate(trainer, trainer.lightning_module, trainer.datamodule, Path(folder) / "best.ckpt")
    found = {"losses": diary.losses, "test": scores, "failures": trainer.lightning_module.failures.reasons}
    (Path(folder) / f"rank{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
