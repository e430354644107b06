import errno
import re
import shutil
from pathlib import Path

import lightning
import pytest
import torch
from small_training import (
    BATCH,
    N_GALAXIES,
    RUINOUS,
    SCHEMA,
    Diary,
    InterruptAt,
    assert_same_weights,
    make_settings,
    make_survey,
    make_trainer,
    prepare,
    train,
)
from torch import nn

from rarezoo.cli import UserError
from rarezoo.models.checkpoints import load_vote_model
from rarezoo.models.fitting import evaluate, fit
from rarezoo.models.keeping import MONITOR
from rarezoo.votes import expected_vote_fractions, vote_nll

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return make_survey(tmp_path_factory.mktemp("survey"))


def spoil(survey: Path, folder: Path, rows) -> Path:
    """A copy of the survey in which some images are empty files."""
    shutil.copytree(survey, folder)
    for row in rows:
        (folder / f"{row}.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def unbroken(survey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    diary, _ = train(survey, folder, max_epochs=4)
    return folder, diary


def test_training_lowers_the_loss_and_the_model_knows_bright_from_dark(survey, tmp_path):
    diary, _ = train(survey, tmp_path, max_epochs=20, head__dropout=0.0, backbone__drop_path_rate=0.0)
    assert min(diary.losses) < 0.5 * diary.losses[0]
    model = load_vote_model(tmp_path / "best.ckpt")
    _, data = prepare(survey)
    batch = next(iter(data.test_dataloader()))
    fractions = expected_vote_fractions(model.embed(batch["image"]).concentrations, SCHEMA)
    assert ((fractions[:, 0] > 0.5) == (batch["counts"][:, 0] > 0)).all()


def test_training_loss_of_an_epoch_is_the_mean_over_galaxies_whatever_the_size_of_their_batches(survey):
    training, data = prepare(survey)
    training.log = lambda *arguments, **options: None
    whole = next(iter(data.train_dataloader()))
    batches = [{name: values[:size] for name, values in whole.items()} for size in (BATCH, 3)]
    of_batches = [training.training_step(batch, index).item() for index, batch in enumerate(batches)]
    assert of_batches[0] != pytest.approx(of_batches[1], rel=0.01)
    expected = (BATCH * of_batches[0] + 3 * of_batches[1]) / (BATCH + 3)
    assert float(training.train_loss.compute()) == pytest.approx(expected, rel=1e-5)


def test_best_checkpoint_takes_its_place_only_at_the_end(unbroken):
    folder, diary = unbroken
    assert len(diary.losses) == 4
    assert not diary.best_was_there
    assert [path.name for path in folder.glob("*best*")] == ["best.ckpt"]


def test_best_checkpoint_is_that_of_the_lowest_validation_loss(survey, tmp_path):
    diary, trainer = train(survey, tmp_path, max_epochs=3, optim__lr=RUINOUS)
    assert diary.losses[-1] > min(diary.losses)
    training, data = prepare(survey)
    found = trainer.validate(training, datamodule=data, ckpt_path=tmp_path / "best.ckpt", weights_only=True)[0]
    assert found[MONITOR] == pytest.approx(min(diary.losses), rel=1e-6)


@pytest.mark.parametrize("at", [(1, 0), (2, 1)])
def test_interrupted_run_goes_on_to_the_weights_of_an_unbroken_one(at, survey, unbroken, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path, max_epochs=4, extra=[InterruptAt(*at)])
    assert not (tmp_path / "best.ckpt").exists()
    diary, _ = train(survey, tmp_path, resume=True, max_epochs=4)
    assert diary.losses == unbroken[1].losses[at[0] :]
    assert_same_weights(tmp_path / "checkpoints" / "last.ckpt", unbroken[0] / "checkpoints" / "last.ckpt")
    assert_same_weights(tmp_path / "best.ckpt", unbroken[0] / "best.ckpt")


def test_run_that_was_killed_after_its_last_epoch_trains_no_more(survey, unbroken, tmp_path):
    shutil.copytree(unbroken[0] / "checkpoints", tmp_path / "checkpoints")
    diary, _ = train(survey, tmp_path, resume=True, max_epochs=4)
    assert diary.losses == []
    assert_same_weights(tmp_path / "best.ckpt", unbroken[0] / "best.ckpt")


def test_run_that_was_killed_after_it_stopped_early_trains_no_more(survey, tmp_path):
    first, _ = train(survey, tmp_path, max_epochs=50, patience=2, optim__lr=RUINOUS)
    assert 2 < len(first.losses) < 50
    (tmp_path / "best.ckpt").rename(tmp_path / "first.ckpt")
    again, _ = train(survey, tmp_path, resume=True, max_epochs=50, patience=2, optim__lr=RUINOUS)
    assert again.losses == []
    assert_same_weights(tmp_path / "first.ckpt", tmp_path / "best.ckpt")


def test_last_checkpoint_is_of_the_last_epoch_though_it_is_not_the_best(survey, tmp_path):
    train(survey, tmp_path, max_epochs=3, optim__lr=RUINOUS)
    epochs = {
        name: torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert epochs["best"] < epochs["last"] == 2


def test_run_whose_folder_was_moved_still_knows_its_best_epoch(survey, tmp_path):
    train(survey, tmp_path / "unbroken", max_epochs=3, optim__lr=RUINOUS)
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path / "broken", max_epochs=3, optim__lr=RUINOUS, extra=[InterruptAt(2, 0)])
    (tmp_path / "broken").rename(tmp_path / "moved")
    train(survey, tmp_path / "moved", resume=True, max_epochs=3, optim__lr=RUINOUS)
    assert_same_weights(tmp_path / "moved" / "best.ckpt", tmp_path / "unbroken" / "best.ckpt")
    assert not (tmp_path / "broken").exists()


def test_damaged_last_checkpoint_is_passed_over_with_a_note(survey, unbroken, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path, max_epochs=4, extra=[InterruptAt(2, 0)])
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:50_000])
    diary, _ = train(survey, tmp_path, resume=True, max_epochs=4)
    assert f"{last} is damaged" in capsys.readouterr().err.replace("\n", "")
    assert diary.losses == unbroken[1].losses[2:]
    assert_same_weights(last, unbroken[0] / "checkpoints" / "last.ckpt")


def test_disk_that_is_full_is_a_fault_that_the_user_can_mend(survey, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"best\.ckpt: cannot be written \(No space left on device\)"):
        train(survey, tmp_path)
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_run_that_is_not_resumed_begins_anew(survey, unbroken, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"of another run")
    diary, _ = train(survey, tmp_path, max_epochs=4)
    assert diary.losses == unbroken[1].losses


def test_another_seed_gives_another_model(survey, unbroken, tmp_path):
    diary, _ = train(survey, tmp_path, max_epochs=1)
    settings = make_settings()
    training, data = prepare(survey)
    training.seed = settings.seed + 1
    other = Diary(tmp_path)
    fit(make_trainer(tmp_path, 1, extra=[other]), training, data, tmp_path, False)
    assert diary.losses != other.losses


class StepDiary(lightning.Callback):
    """Whether each step changed the weights."""

    def __init__(self) -> None:
        self.changed: list[bool] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._before = nn.utils.parameters_to_vector(pl_module.parameters()).clone()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.changed.append(not torch.equal(self._before, nn.utils.parameters_to_vector(pl_module.parameters())))


@pytest.mark.parametrize("position", [0, 1])
def test_batch_of_which_no_image_could_be_read_is_skipped(position, survey, tmp_path):
    _, data = prepare(survey)
    rows = [batch["row"].tolist() for batch in data.train_dataloader()]
    assert [len(batch) for batch in rows] == [BATCH, BATCH]
    spoilt = spoil(survey, tmp_path / "survey", rows[position])
    steps = StepDiary()
    _, trainer = train(spoilt, tmp_path, max_epochs=1, data__max_failed_share=0.5, extra=[steps])
    assert steps.changed == [position != 0, position != 1]
    assert trainer.lightning_module.failures.reasons == dict.fromkeys(rows[position], "empty file")


def test_some_unreadable_images_are_left_out_of_the_loss(survey):
    training, data = prepare(survey)
    training.eval()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        whole = training._predict(batch, training.model.eval_transform)[1]
        part = {**batch, "image": batch["image"][:3], "counts": batch["counts"][:3], "failed": [(0, "empty file")]}
        kept = training._predict(part, training.model.eval_transform)[1]
    torch.testing.assert_close(kept, whole[:3])
    assert len(training.failures) == 1


def test_too_many_unreadable_images_stop_the_run(survey, tmp_path):
    spoilt = spoil(survey, tmp_path / "survey", range(0, N_GALAXIES, 4))
    with pytest.raises(UserError, match=r"of 40 images could not be read.* data\.max_failed_share=0\.1 .*empty file"):
        train(spoilt, tmp_path)
    assert not (tmp_path / "best.ckpt").exists()


def test_validation_split_without_a_readable_image_is_refused(survey, tmp_path):
    _, data = prepare(survey)
    spoilt = spoil(survey, tmp_path / "survey", data.rows("validation"))
    with pytest.raises(UserError, match="none of the validation images could be read"):
        train(spoilt, tmp_path, data__max_failed_share=0.9)
    assert not (tmp_path / "best.ckpt").exists()


@pytest.mark.parametrize("patience", [None, 3])
def test_loss_that_is_not_finite_ends_the_run_at_once_and_leaves_no_checkpoint(patience, survey, tmp_path):
    with pytest.raises(UserError, match=r"validation loss is (nan|inf) after epoch 1\. Lower optim\.lr=1e\+30"):
        train(survey, tmp_path, max_epochs=5, patience=patience, optim__lr=1e30)
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_epochs": 0}, "trainer.max_epochs"),
        ({"fast_dev_run": True}, "fast_dev_run"),
        ({"limit_val_batches": 0}, "trainer.limit_val_batches=0"),
    ],
)
def test_option_of_the_trainer_that_keeps_no_epoch_is_named(options, named, survey, tmp_path):
    with pytest.raises(UserError, match=re.escape(named)):
        train(survey, tmp_path, patience=2, options=options)
    assert not (tmp_path / "best.ckpt").exists()


def test_options_of_the_trainer_leave_a_best_checkpoint(survey, tmp_path):
    options = {"num_sanity_val_steps": 2, "val_check_interval": 0.5, "precision": "bf16-mixed", "max_steps": 3}
    _, trainer = train(survey, tmp_path, options=options)
    assert trainer.global_step == 3


def test_test_loss_is_that_of_the_best_checkpoint(survey, unbroken):
    folder, _ = unbroken
    training, data = prepare(survey)
    found = evaluate(make_trainer(folder), training, data, folder / "best.ckpt")
    model = load_vote_model(folder / "best.ckpt")
    batches = list(data.test_dataloader())
    images, counts = (torch.cat([batch[name] for batch in batches]) for name in ("image", "counts"))
    per_question = vote_nll(model.embed(images).concentrations, counts, SCHEMA)
    asked = (counts[:, 2:].sum(1) > 0).sum()
    assert 0 < asked < len(counts)
    expected = {
        "test/loss": float(per_question.sum(1).mean()),
        "test/loss_shape": float(per_question[:, 0].mean()),
        "test/loss_side": float(per_question[:, 1].sum() / asked),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert {"test/calibration_error", "test/coverage_90"} < found.keys()


def test_catalog_without_a_test_split_has_no_test_loss(survey, unbroken):
    training, data = prepare(survey, data__test_share=0.0)
    assert evaluate(make_trainer(unbroken[0]), training, data, unbroken[0] / "best.ckpt") == {}


def test_model_is_evaluated_at_the_mean_zoom_of_training(survey):
    training, _ = prepare(survey, augment__zoom=[1.0, 1.5], backbone__mean=0.25, backbone__std=0.5)
    assert training.model.eval_transform.settings == {"zoom": 1.25, "mean": 0.25, "std": 0.5}


def test_log_has_one_line_an_epoch(survey, tmp_path, capsys):
    train(survey, tmp_path, max_epochs=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert re.match(r"epoch 2/2: train/loss \d+\.\d+, validation/loss \d+\.\d+ \(\d+ s, at most 0 min left\)", lines[1])
