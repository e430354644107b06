from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.data.catalog import Catalog, read_catalog
from rarezoo.data.datamodule import FailureLog, GalaxyDataModule
from rarezoo.data.splits import split_by_id


def make_catalog(folder: Path, n_galaxies: int = 40) -> Catalog:
    for row in range(n_galaxies):
        Image.fromarray(np.full((6, 6, 3), row, dtype=np.uint8)).save(folder / f"{row}.png")
    frame = pd.DataFrame({"id_str": [f"g{row}" for row in range(n_galaxies)]})
    frame["file_loc"] = [f"{row}.png" for row in range(n_galaxies)]
    frame["a_yes"], frame["a_no"] = np.arange(n_galaxies), 1
    frame.to_parquet(folder / "catalog.parquet")
    return read_catalog(folder / "catalog.parquet", ["a_yes", "a_no"])


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Catalog:
    return make_catalog(tmp_path_factory.mktemp("survey"))


def module(catalog: Catalog, **options) -> GalaxyDataModule:
    return GalaxyDataModule(catalog, 6, **{"batch_size": 4, "validation_share": 0.3, "test_share": 0.3} | options)


def rows_of(loader) -> list[int]:
    return [row for batch in loader for row in batch["row"].tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_are_read_in_their_order_and_no_batch_reaches_into_the_next(workers, catalog):
    blocks = [range(0, 16), range(32, 40), range(16, 32)]
    loader = module(catalog, workers=workers, batch_size=7).block_dataloader(blocks)
    batches = list(loader)
    assert [batch["row"].tolist() for batch in batches] == [
        list(rows) for block in blocks for rows in (block[:7], block[7:14], block[14:]) if rows
    ]
    assert len(loader) == len(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_rows_are_read_in_catalog_order(workers, catalog):
    batches = list(module(catalog, workers=workers, batch_size=7).block_dataloader([range(40)]))
    assert [row for batch in batches for row in batch["row"].tolist()] == list(range(40))
    for batch in batches:
        assert batch["image"].shape[1:] == (3, 6, 6)
        assert batch["image"][:, 0, 0, 0].tolist() == batch["row"].tolist()
        assert batch["counts"][:, 0].tolist() == batch["row"].tolist()


def test_splits_are_disjoint_and_together_the_catalog(catalog):
    data = module(catalog, batch_size=1)
    train, validation, test = (
        rows_of(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    assert sorted(train + validation + test) == list(range(40))
    assert np.array_equal(data.split, split_by_id(catalog.ids, 0.3, 0.3, 0))


def test_training_order_is_that_of_seed_and_epoch(catalog):
    orders = []
    for seed, epoch in [(0, 0), (0, 0), (0, 1)]:
        loader = module(catalog, batch_size=1, seed=seed).train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        orders.append(rows_of(loader))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_only_training_leaves_out_the_last_smaller_batch(catalog):
    data = module(catalog, batch_size=7)
    n_train, n_validation = len(data.rows("train")), len(data.rows("validation"))
    assert n_train % 7
    assert len(rows_of(data.train_dataloader())) == n_train // 7 * 7
    assert len(rows_of(data.val_dataloader())) == n_validation
    assert len(rows_of(module(catalog, batch_size=100).train_dataloader())) == n_train


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    catalog = make_catalog(tmp_path, 10)
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "8.png").unlink()
    data = module(catalog, workers=1, max_failed_share=0.2)
    log = data.failure_log()
    rows = []
    for batch in data.block_dataloader([range(len(data.catalog))]):
        log.add(batch["failed"])
        rows += batch["row"].tolist()
    assert rows == [0, 1, 2, 4, 5, 6, 7, 9]
    assert log.reasons == {3: "empty file", 8: "no such file or directory"}
    log.check(10)


def test_too_many_failures_stop_the_run_with_the_first_named():
    log = FailureLog(["a.jpg", "b.jpg", "c.jpg"], 0.5)
    log.add([(2, "empty file")])
    log.check(3)
    log.add([(1, "truncated")])
    with pytest.raises(UserError, match=r"2 of 3 images .* data\.max_failed_share=0\.5 .* row 1, b\.jpg: truncated"):
        log.check(3)


def test_image_that_fails_every_epoch_counts_once():
    log = FailureLog(["a.jpg", "b.jpg"], 0.5)
    for _ in range(10):
        log.add([(0, "empty file")])
    assert len(log) == 1
    log.check(2)


def test_no_failure_is_allowed_with_a_share_of_zero():
    log = FailureLog(["a.jpg"], 0.0)
    log.check(0)
    log.add([(0, "empty file")])
    with pytest.raises(UserError):
        log.check(1000)


@pytest.mark.parametrize(
    ("stage", "shares", "named"),
    [
        ("fit", {"validation_share": 0.0}, "data.validation_share"),
        ("validate", {"validation_share": 0.0}, "data.validation_share"),
        ("test", {"test_share": 0.0}, "data.test_share"),
        ("fit", {"validation_share": 0.999, "test_share": 0.0}, "train split"),
    ],
)
def test_split_without_galaxies_is_refused_before_the_first_batch(stage, shares, named, catalog):
    with pytest.raises(UserError) as error:
        module(catalog, **shares).setup(stage)
    assert named in str(error.value)
    assert str(catalog.path) in str(error.value)
    module(catalog, **shares).setup("predict")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"size": 0}, "data.image_size=0"),
        ({"channels": 0}, "data.channels=0"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"workers": -1}, "data.workers=-1"),
        ({"workers": "many"}, "data.workers=many"),
        ({"crop": 0.0}, "data.crop=0.0"),
        ({"crop": 1.5}, "data.crop=1.5"),
        ({"max_failed_share": -0.1}, "data.max_failed_share=-0.1"),
        ({"validation_share": 0.9, "test_share": 0.2}, "data.validation_share=0.9"),
    ],
)
def test_setting_that_cannot_be_used_is_named(option, named, catalog):
    with pytest.raises(UserError) as error:
        GalaxyDataModule(catalog, **{"size": 6} | option)
    assert named in str(error.value)


def test_few_images_are_decoded_without_worker_processes(catalog):
    assert module(catalog, workers="auto").block_dataloader([range(40)]).num_workers == 0
    assert module(catalog, workers=2).block_dataloader([range(40)]).num_workers == 2


def test_many_images_are_decoded_by_worker_processes(catalog, monkeypatch):
    monkeypatch.setattr("rarezoo.data.datamodule._FEW_IMAGES", 10)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert module(catalog, workers="auto").block_dataloader([range(40)]).num_workers >= 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "10000")
    assert module(catalog, workers="auto").block_dataloader([range(40)]).num_workers == 1


class Recorder(lightning.LightningModule):
    """Notes the order of rows that a trainer gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs: list[list[int]] = []

    def training_step(self, batch):
        if len(self.epochs) <= self.current_epoch:
            self.epochs.append([])
        self.epochs[self.current_epoch] += batch["row"].tolist()
        return (self.weight * batch["image"].float().mean()).sum()

    def validation_step(self, batch):
        assert batch["failed"] == []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_shuffles_each_epoch_anew(catalog, tmp_path):
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=module(catalog, batch_size=2))
    first, second = recorder.epochs
    assert first != second
    for epoch, rows in enumerate(recorder.epochs):
        loader = module(catalog, batch_size=2).train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        assert rows == rows_of(loader)


def test_real_catalog_is_loaded_in_order(real_catalog):
    catalog = read_catalog(real_catalog)
    data = GalaxyDataModule(catalog, 32, batch_size=100, workers=2)
    batch = next(iter(data.block_dataloader([range(len(data.catalog))])))
    assert batch["row"].tolist() == list(range(100))
    assert batch["failed"] == []
